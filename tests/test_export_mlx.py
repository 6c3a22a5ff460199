"""Models as folders for mlx-lm: config, arrays, and whether mlx-lm itself makes of them what llama.cpp does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import ggufkit
from ggufkit.errors import ArchitectureError, FileError, UsageError
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.gguf.writer import Writer
from ggufkit.jobs.convert import convert
from ggufkit.jobs.to_mlx import export_mlx
from ggufkit.tokenizer.run.tokenizer import load_tokenizer

mx = pytest.importorskip("mlx.core")


@pytest.fixture(scope="module")
def models(tmp_path_factory, fixtures):
    """Preset → the bundled model as GGUF, made when asked for."""
    folder = tmp_path_factory.mktemp("models")

    def model(preset: str):
        path = folder / f"{preset}.gguf"
        return path if path.exists() else convert(fixtures / "pylib-llama", path, preset)

    return model


def arrays(folder) -> dict:
    found = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= mx.load(str(file))
    return found


def test_config_is_the_checkpoints(models, tmp_path, fixtures):
    export_mlx(models("Q8_0"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    source = json.loads((fixtures / "pylib-llama" / "config.json").read_text())
    for name in (
        "architectures",
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "vocab_size",
    ):
        assert source[name] == config[name]
    for name in ("num_key_value_heads", "num_hidden_layers", "rope_theta", "max_position_embeddings", "eos_token_id"):
        assert source[name] == config[name]
    assert source["rms_norm_eps"] == pytest.approx(config["rms_norm_eps"])
    assert config["quantization"] == {"group_size": 32, "bits": 8, "mode": "affine"}


@pytest.mark.parametrize("preset", ["Q4_0", "Q5_1", "Q8_0", "Q4_K_M", "MXFP4_MOE"])
def test_arrays_have_the_numbers_of_the_blocks(models, tmp_path, preset):
    folder = tmp_path / "out"
    notes = export_mlx(models(preset), folder)
    found = arrays(folder)
    quantization = json.loads((folder / "config.json").read_text())["quantization"]
    with open_gguf(models(preset)) as model:
        for gguf, base in (
            ("blk.1.ffn_up", "model.layers.1.mlp.up_proj"),
            ("blk.3.attn_v", "model.layers.3.self_attn.v_proj"),
            ("token_embd", "model.embed_tokens"),
        ):
            tensor = model.tensors[f"{gguf}.weight"]
            own = quantization.get(base, {n: quantization[n] for n in ("group_size", "bits", "mode")})
            if own is False:
                assert tensor.format.name in notes[0]
                np.testing.assert_array_equal(
                    tensor.floats().astype(np.float16), np.array(found[f"{base}.weight"].astype(mx.float16))
                )
                continue
            biases = found.get(f"{base}.biases")
            scales = found[f"{base}.scales"]
            if biases is not None:
                scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
            how = {} if biases is not None else {"dtype": mx.float32}
            weights = mx.dequantize(found[f"{base}.weight"], scales, biases, **own, **how)
            np.testing.assert_array_equal(tensor.floats(), np.array(weights))


def test_scales_are_halves_where_that_rounds_nothing(models, tmp_path):
    export_mlx(models("Q8_0"), tmp_path / "halves")
    export_mlx(models("Q4_K_M"), tmp_path / "floats")
    export_mlx(models("Q4_K_M"), tmp_path / "asked", dtype="bfloat16")
    name = "model.layers.0.mlp.up_proj.scales"
    assert arrays(tmp_path / "halves")[name].dtype == mx.float16
    assert arrays(tmp_path / "floats")[name].dtype == mx.float32
    assert arrays(tmp_path / "asked")[name].dtype == mx.bfloat16


@pytest.mark.parametrize(("bits", "group"), [(2, 64), (3, 32), (4, 64), (5, 128)])
def test_what_came_from_mlx_goes_back_unchanged(tmp_path, fixtures, bits, group):
    folder = tmp_path / "model"
    shutil.copytree(fixtures / "pylib-llama", folder)
    settings = {"bits": bits, "group_size": group, "mode": "affine", "lm_head": {"bits": 4, "group_size": 32}}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization": settings}))
    weights = {}
    for name, weight in mx.load(str(folder / "model.safetensors")).items():
        base = name.removesuffix(".weight")
        if weight.ndim == 1:
            weights[name] = weight
            continue
        own = settings.get(base, {"bits": bits, "group_size": group})
        weights[name], weights[f"{base}.scales"], weights[f"{base}.biases"] = mx.quantize(weight, **own)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)

    export_mlx(convert(folder, tmp_path / "m.gguf"), tmp_path / "back")
    found = arrays(tmp_path / "back")
    assert set(weights) == set(found)
    for name, array in weights.items():
        assert array.dtype == found[name].dtype, name
        assert mx.array_equal(array, found[name]).item(), name


def test_large_models_are_sharded(models, tmp_path, monkeypatch):
    monkeypatch.setattr("ggufkit.jobs.checkpoint_folder._SHARD", 1 << 20)
    export_mlx(models("Q8_0"), tmp_path / "out")
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(arrays(tmp_path / "out")) == set(index["weight_map"])
    assert set(index["weight_map"].values()) == set(files)


def test_existing_folder_is_kept_without_force(models, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(FileError, match="exists already"):
        export_mlx(models("Q8_0"), folder)
    assert [folder] == list(tmp_path.iterdir())
    export_mlx(models("Q8_0"), folder, force=True)
    assert not (folder / "mine.txt").exists()
    assert (folder / "config.json").exists()
    assert [folder] == list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_said(models, tmp_path):
    with pytest.raises(UsageError, match="float16, bfloat16, float32"):
        export_mlx(models("Q8_0"), tmp_path / "out", dtype="float8")
    path = tmp_path / "m.gguf"
    with Writer(path, {"general.architecture": "rwkv7"}, []):
        pass
    with pytest.raises(ArchitectureError, match=r"rwkv7 models cannot be exported; those that can: .*llama, "):
        export_mlx(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def text() -> str:
    """Python that the model was not trained on: this file."""
    return Path(__file__).read_text()


def loss(logits: np.ndarray, tokens: np.ndarray) -> float:
    """Mean negative log-likelihood of each token after the first."""
    logits = logits[:-1].astype(np.float64)
    top = logits.max(axis=1)
    total = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
    return float((total - logits[np.arange(len(logits)), tokens[1:]]).mean())


@pytest.mark.parametrize("preset", ["Q4_0", "Q8_0", "Q4_K_M"])
def test_mlx_lm_has_the_text_and_perplexity_of_our_backend(models, tmp_path, text, preset):
    utils = pytest.importorskip("mlx_lm.utils")
    from mlx_lm import generate

    export_mlx(models(preset), tmp_path / "out", dtype="float32")
    theirs, tokenizer = utils.load(str(tmp_path / "out"))
    with ggufkit.load(models(preset), backend="mlx") as model, open_gguf(models(preset)) as file:
        own = load_tokenizer(file)
        for prompt in ("import os\n", "def main(", "class TestCase(unittest."):
            cache, ids, found = model.new_cache(128, "F32", "F32"), own.encode(prompt), []
            assert ids == tokenizer.encode(prompt)
            for _ in range(32):
                ids = [int(model.forward(ids, cache).argmax())]
                found += ids
            assert tokenizer.decode(found) == generate(theirs, tokenizer, prompt=prompt, max_tokens=32)
        tokens = np.array(own.encode(text)[:512], np.int32)
        expected = loss(model.forward(tokens, model.new_cache(512, "F32", "F32"), logits="all"), tokens)
        actual = loss(np.array(theirs(mx.array(tokens)[None])[0].astype(mx.float32)), tokens)
    assert np.exp(expected) == pytest.approx(np.exp(actual), rel=1e-3)
