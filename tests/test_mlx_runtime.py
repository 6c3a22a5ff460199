"""Models on MLX: the logits of the CPU backend, whatever the weights and caches are."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")

from verify_runtime import divergence

import ggufkit
from ggufkit.calibrate.imatrix import collect
from ggufkit.errors import MissingDependency, UsageError
from ggufkit.evaluate.windows import Windows
from ggufkit.formats.codec import encode
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.gguf.writer import Writer
from ggufkit.jobs.convert import convert
from ggufkit.runtime.backend import make_ops
from ggufkit.runtime.kv.types import TYPES
from ggufkit.runtime.mlx import memory
from ggufkit.runtime.mlx.weight import Blocks, Dense, Packed, load_weight
from ggufkit.tensors.tensor import Tensor

TOKENS = np.random.default_rng(5).integers(3, 4000, 40).astype(np.int32)


@pytest.fixture(scope="module")
def models(tmp_path_factory, fixtures):
    folder = tmp_path_factory.mktemp("models")

    def model(preset: str):
        path = folder / f"{preset}.gguf"
        return path if path.exists() else convert(fixtures / "pylib-llama", path, preset)

    return model


def logits(path, backend: str, cache: str = "F32") -> np.ndarray:
    with ggufkit.load(path, backend=backend) as model:
        return model.forward(TOKENS, model.new_cache(64, cache, cache), logits="all")


def decoded(path, target):
    """The same model with every tensor in F32."""
    with open_gguf(path) as model:
        shapes = [(t.name, t.shape, FORMATS["F32"]) for t in model.tensors.values()]
        with Writer(target, model.metadata, shapes) as writer:
            for t in model.tensors.values():
                writer.write(t.name, 0, t.floats().view(np.uint8))
    return target


def test_logits_equal_the_cpus(models):
    path = models("F32")
    assert divergence(logits(path, "cpu"), logits(path, "mlx")).max() < 1e-9


@pytest.mark.parametrize("preset", ["Q4_0", "Q5_1", "Q8_0", "Q4_K_M", "Q2_K", "IQ4_XS", "IQ3_S", "MXFP4_MOE"])
def test_quantized_weights_are_the_numbers_of_the_file(models, tmp_path, preset):
    expected = logits(decoded(models(preset), tmp_path / "f32.gguf"), "cpu")
    assert divergence(expected, logits(models(preset), "mlx")).max() < 1e-9


@pytest.mark.parametrize(
    ("cache", "limit"), [(t, 1e-5 if t in ("F16", "BF16", "Q8_0", "tq8") else 1e-3) for t in TYPES if t != "F32"]
)
def test_caches_hold_what_the_cpus_hold(models, cache, limit):
    path = models("F32")
    assert divergence(logits(path, "cpu", cache), logits(path, "mlx", cache)).max() < limit


def test_tokens_one_by_one_and_a_prefix_used_again(models):
    path = models("Q8_0")
    expected = logits(path, "mlx")
    with ggufkit.load(path, backend="mlx") as model:
        cache = model.new_cache(64, "F32", "F32")
        first = [model.forward([token], cache) for token in TOKENS[:20]]
        model.forward([7, 8, 9], cache)
        assert cache.keep_prefix(TOKENS.tolist()) == 20
        rest = model.forward(TOKENS[20:], cache, logits="all")
    assert divergence(expected, np.concatenate([first, rest])).max() < 1e-9


def test_greedy_text_is_the_cpus(models, fixtures):
    def greedy(backend: str, start: list[int]) -> list[int]:
        with ggufkit.load(models("Q8_0"), backend=backend) as model:
            cache, tokens, found = model.new_cache(64), start, []
            for _ in range(24):
                tokens = [int(model.forward(tokens, cache).argmax())]
                found += tokens
        return found

    for start in ([1, 600, 700], [1, 31, 32, 33]):
        assert greedy("cpu", start) == greedy("mlx", start)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q4_0", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4", "NVFP4"])
def test_experts_are_chosen_from_any_format(name):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 16, 256)).astype(np.float32)
    blocks = encode(values.reshape(-1, 256), name)
    tensor = Tensor("experts", values.shape, FORMATS[name], lambda lo, hi: blocks[lo:hi])
    weight = load_weight(tensor)
    assert isinstance(
        weight, Dense if name in ("F32", "F16", "BF16") else Blocks if name in ("Q6_K", "IQ4_XS") else Packed
    )
    numbers = tensor.floats().reshape(values.shape)
    x = rng.standard_normal((5, 256)).astype(np.float32)
    experts = np.array([[0, 2], [1, 1], [2, 0], [0, 1], [2, 2]])
    found = np.array(weight.multiply_chosen(mx.array(x)[:, None], mx.array(experts)))
    expected = np.stack([[numbers[e] @ x[i] for e in row] for i, row in enumerate(experts)])
    np.testing.assert_allclose(expected, found, rtol=1e-4, atol=1e-3)


def test_unknown_backend_and_missing_mlx_are_said(models, monkeypatch):
    with open_gguf(models("Q8_0")) as model:
        with pytest.raises(UsageError, match="auto, cpu, mlx"):
            make_ops("cuda", model)
        monkeypatch.setattr("ggufkit.runtime.backend._has_mlx", lambda: False)
        with pytest.raises(MissingDependency, match=r"pip install 'ggufkit\[mlx\]'"):
            make_ops("mlx", model)


def test_mlx_is_not_imported_for_the_cpu(models):
    code = (
        f"import sys, ggufkit; ggufkit.load({str(models('Q8_0'))!r}, backend='cpu'); print('mlx.core' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_model_that_does_not_fit_names_what_would(models, monkeypatch):
    with open_gguf(models("F32")) as model:
        size = sum(t.size for t in model.tensors.values())
        monkeypatch.setattr(memory, "room", lambda: memory._KEPT + size * 8 // 8)
        with pytest.raises(UsageError, match="as Q6_K it would fit"):
            memory.require_room(model)
        monkeypatch.setattr(memory, "room", lambda: memory._KEPT)
        with pytest.raises(UsageError, match="no quantization of it fits"):
            memory.require_room(model)


# Architectures whose blocks differ from Llama's, each in its own way.
ARCHITECTURES = ("gemma2", "gpt-oss", "gpt2", "gptneox", "granite", "mixtral", "olmo2", "phi3", "qwen2moe", "qwen3")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_have_the_cpus_logits(name, checkpoints, tmp_path):
    # Decoded: the CPU multiplies blocks (gpt-oss keeps some) with activations of eight bits.
    path = decoded(convert(checkpoints / name / "hf", tmp_path / "m.gguf", "F32"), tmp_path / "f32.gguf")
    found = []
    for backend in ("cpu", "mlx"):
        with ggufkit.load(path, backend=backend) as model:
            found.append(model.forward(TOKENS, model.new_cache(64, "F32", "F32"), logits="all"))
    assert divergence(*found).max() < 1e-5


def test_importance_is_the_cpus(checkpoints, tmp_path):
    """Of a model with experts, too: the observer looks at any backend."""
    path = decoded(convert(checkpoints / "mixtral" / "hf", tmp_path / "m.gguf", "F32"), tmp_path / "f32.gguf")
    found = []
    for backend in ("cpu", "mlx"):
        with ggufkit.load(path, backend=backend) as model:
            found.append(collect(model, Windows(TOKENS, 20, bos=1), output=True))
    cpu, mlx = found
    assert cpu.keys() == mlx.keys()
    assert any(len(sums.counts) > 1 for sums in cpu.values())
    for name, sums in cpu.items():
        assert np.array_equal(sums.counts, mlx[name].counts)
        np.testing.assert_allclose(sums.squares, mlx[name].squares, rtol=1e-2, atol=1e-6)
