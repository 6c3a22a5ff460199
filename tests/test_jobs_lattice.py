"""Models trained for a block format are quantized to what they were trained for; others as always."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import ggufkit
from ggufkit.errors import UsageError
from ggufkit.jobs.convert import convert
from ggufkit.jobs.quantize import quantization, quantize
from ggufkit.policy.recipe import recipe_of


@pytest.fixture(scope="module")
def plain(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(fixtures / "pylib-llama", tmp_path_factory.mktemp("plain") / "bf16.gguf", "BF16")


def trained(plain: Path, type: str, folder: Path) -> Path:
    """The model as training for `type` leaves it: on its lattice, rounded to bfloat16."""
    blocks = quantize(plain, folder / "blocks.gguf", replace(recipe_of(type), pure=True))
    return quantize(blocks, folder / "trained.gguf", replace(recipe_of("BF16"), allow_requantize=True))


@pytest.mark.parametrize("type", ["Q4_0", "Q4_1", "Q8_0"])
def test_trained_models_keep_every_weight(type: str, plain: Path, tmp_path: Path):
    source = trained(plain, type, tmp_path)
    pure = replace(recipe_of(type), pure=True)
    kept = quantize(source, tmp_path / "kept.gguf", pure)
    with ggufkit.open(source) as before, ggufkit.open(kept) as after:
        assert "lie on the lattice" in quantization(before, tmp_path / "x.gguf", pure).plan.notes[-1]
        for name, tensor in after.tensors.items():
            if tensor.format.name == type:
                found = tensor.floats().astype(ml_dtypes.bfloat16).astype(np.float32)
                np.testing.assert_array_equal(before.tensors[name].floats(), found)


@pytest.mark.parametrize("type", ["Q4_0", "Q8_0"])
def test_plain_models_are_quantized_as_always(type: str, plain: Path, tmp_path: Path):
    auto = quantize(plain, tmp_path / "auto.gguf", type)
    off = quantize(plain, tmp_path / "off.gguf", replace(recipe_of(type), lattice="off"))
    assert auto.read_bytes() == off.read_bytes()
    with pytest.raises(UsageError, match="there is no lattice 'maybe'"):
        quantize(plain, tmp_path / "x.gguf", replace(recipe_of(type), lattice="maybe"))
