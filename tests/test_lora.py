"""LoRA adapters beside a model's weights: llama.cpp's logits; scales; what does not fit is refused."""

from __future__ import annotations

from functools import partial

import llama
import numpy as np
import pytest
from tiny_adapters import ADAPTERS, write_adapter
from tiny_checkpoints import write
from tiny_families import FAMILIES
from verify_runtime import divergence

import ggufkit
from ggufkit.cli import main
from ggufkit.cli.speculate import adapter
from ggufkit.errors import GgufkitError
from ggufkit.jobs.adapter import adapter_conversion
from ggufkit.jobs.convert import convert
from ggufkit.runtime.sampling import Sampling
from ggufkit.serve.engine import Engine, Request

TOKENS = [3, 9, 4, 17, 5, 20, 11, 8, 30, 2, 7, 7, 19]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Name of an adapter → (model, adapter), both F32."""
    folder, found = tmp_path_factory.mktemp("lora"), {}
    for name, (family, _) in ADAPTERS.items():
        base = write(FAMILIES[family](), folder / name / "base")
        model = convert(base, folder / name / "model.gguf", "F32", pre="gpt-2")
        adapter = write_adapter(name, folder / name / "adapter")
        (lora,) = adapter_conversion(adapter, folder / name / "lora.gguf", "F32", base=base).write()
        found[name] = model, lora
    return found


@pytest.mark.parametrize("backend", ["cpu", "mlx"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_logits_are_those_of_llama_cpp(files, name, backend):
    if backend == "mlx":
        pytest.importorskip("mlx.core")
    path, lora = files[name]
    with llama.Model(path, context=64) as oracle:
        plain = oracle.logits(np.array(TOKENS))
        oracle.adapt([(lora, 0.5)])
        expected = oracle.logits(np.array(TOKENS))
    assert divergence(plain, expected).max() > 1e-6
    with ggufkit.load(path, backend=backend, lora=[(lora, 0.5)]) as model:
        cache = model.new_cache(64, "F32", "F32")
        found = model.forward(TOKENS, cache, "all")
        assert divergence(expected, found).max() < 1e-6
        one = model.new_cache(64, "F32", "F32")
        single = np.concatenate([model.forward([token], one, "all") for token in TOKENS])
        if backend == "cpu":
            assert np.array_equal(single, found)
        model.adapt({})
        assert divergence(plain, model.forward(TOKENS, model.new_cache(64, "F32", "F32"), "all")).max() < 1e-6


def test_requests_of_an_engine_have_scales_of_their_own(files):
    path, lora = files["llama"]
    engine = Engine(partial(ggufkit.load, path, backend="cpu", lora=[(lora, 0.0)]), context=64, slots=4)
    prompt = TOKENS * 2

    def ask(adapters):
        return engine.submit(
            Request(prompt, max_tokens=8, sampling=Sampling(seed=3), adapters=adapters, ignore_ends=True, logprobs=0)
        )

    def values(stream):
        return [(token.id, token.logprob) for token in stream.result()[0]]

    alone = [values(ask(adapters)) for adapters in (None, {"lora": 1.0}, {"lora": -2.0})]
    assert len({tuple(one) for one in alone}) == 3
    streams = [ask(adapters) for adapters in (None, {"lora": 1.0}, {"lora": -2.0}, {"lora": 1.0})]
    assert [values(stream) for stream in streams] == [*alone, alone[1]]
    with pytest.raises(GgufkitError, match="no adapter other; there are lora"):
        ask({"other": 1.0})
    engine.close()


def test_what_does_not_fit_is_refused(files, tmp_path):
    path, lora = files["llama"]
    for model, adapters, message in (
        (path, [(files["command-r"][1], 1.0)], "adapter for command-r models"),
        (path, [(path, 1.0)], "not a LoRA adapter"),
        (path, [(lora, 1.0), (lora, 1.0)], "two adapters"),
        (path, [(lora, float("nan"))], "must be a number"),
        (path, [(tmp_path / "none.gguf", 1.0)], "none.gguf"),
    ):
        with pytest.raises(GgufkitError, match=message):
            ggufkit.load(model, backend="cpu", lora=adapters)


def test_run_takes_adapters_with_their_scales(files, capsys):
    assert adapter("a.gguf") == ("a.gguf", 1.0)
    assert adapter("c:/a.gguf:0.5") == ("c:/a.gguf", 0.5)
    path, lora = files["llama"]
    texts = []
    for more in ([], ["--lora", f"{lora}:0"], ["--lora", f"{lora}:-2"]):
        main(
            ["run", str(path), "-p", "some text", "-n", "12", "--temp", "0", "--ignore-eos", "--backend", "cpu", *more]
        )
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_requests_to_a_server_have_scales_of_their_own(files):
    pytest.importorskip("uvicorn")
    pytest.importorskip("llguidance")
    from served import Client, serving

    path, lora = files["llama"]
    asked = {"prompt": "some text", "n_predict": 8, "temperature": 0, "ignore_eos": True}
    with serving(path, {"context": 64}, lora=[(lora, 0.0)]) as url:
        client = Client(url)
        assert client.get("/lora-adapters") == [{"id": 0, "path": str(lora), "scale": 0.0}]
        plain = client.post("/completion", **asked)["content"]
        other = client.post("/completion", **asked, lora=[{"id": 0, "scale": -2.0}])["content"]
        assert client.post("/completion", **asked, lora=[])["content"] == plain != other
        status, found = client.fail("/completion", **asked, lora=[{"id": 1}])
        assert status == 400
        assert "numbers go to 0" in str(found)
