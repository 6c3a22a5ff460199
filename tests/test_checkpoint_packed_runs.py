"""Files made of quantized checkpoints run: in llama.cpp and here, as the decoded weights do."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import llama
import numpy as np
import pytest

import ggufkit
from ggufkit.jobs.convert import convert
from ggufkit.policy.recipe import recipe_of

# NVFP4 and a ternary scale as tensors of their own, inputs in another order, blocks of four kinds.
NAMES = (
    "compressed-tensors/nvfp4",
    "modelopt/nvfp4",
    "bitnet/bitlinear-offline",
    "gptq/w4-g32-asym-actorder",
    "awq/w4-g128",
    "hqq/w4-g64",
)

TOKENS = np.random.default_rng(0).integers(3, 1000, 48).astype(np.int32)


@pytest.fixture(scope="module")
def quantized(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    with tarfile.open(shared / "quantized" / "checkpoints.tar.xz") as opened:
        for member in opened:
            if member.name.removeprefix("./").startswith(NAMES):
                opened.extract(member, folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder


def log_shares(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """Mean KL divergence."""
    p, q = log_shares(expected), log_shares(found)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def run(path: Path, backend: str = "cpu") -> np.ndarray:
    with ggufkit.load(path, backend=backend) as model:
        return model.forward(TOKENS, model.new_cache(64), logits="all")


@pytest.mark.parametrize("name", NAMES)
def test_models_run_as_their_decoded_weights(name: str, quantized: Path, tmp_path: Path):
    kept = convert(quantized / name, tmp_path / "kept.gguf")
    decoded = convert(quantized / name, tmp_path / "f32.gguf", replace(recipe_of("F32"), allow_requantize=True))
    expected = run(decoded)
    with llama.Model(str(kept)) as model:
        assert divergence(expected, model.logits(TOKENS)) < 1e-3
    assert divergence(expected, run(kept)) < 1e-3
    if name.endswith("nvfp4"):
        pytest.importorskip("mlx.core")
        assert divergence(expected, run(kept, "mlx")) < 1e-3
