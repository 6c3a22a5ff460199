"""Models trained for a block format are quantized to what they were trained for; others as always."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from tiny_checkpoints import write
from tiny_families import FAMILIES
from weights import KINDS, plain_weights, weights

import ggufkit
from ggufkit.errors import UsageError
from ggufkit.formats.codec import encode
from ggufkit.formats.table import FORMATS
from ggufkit.jobs.convert import as_gguf, convert
from ggufkit.jobs.lattice import _distinct, on_lattices
from ggufkit.jobs.quantize import quantization, quantize
from ggufkit.jobs.to_huggingface import export_hf
from ggufkit.policy.recipe import recipe_of
from ggufkit.tensors.tensor import Tensor


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


@pytest.mark.parametrize("type", ["Q4_0", "Q4_1"])
def test_checkpoints_of_training_become_what_they_were_trained_for(type: str, plain: Path, tmp_path: Path):
    blocks = quantize(plain, tmp_path / "blocks.gguf", replace(recipe_of(type), pure=True))
    export_hf(blocks, tmp_path / "hf", dtype="bfloat16", decode=True)
    model = as_gguf(tmp_path / "hf", lattices=True)
    assert f"matrices lie on the lattice of {type}" in model.notes[-1]
    with ggufkit.open(blocks) as before, ggufkit.open(convert(tmp_path / "hf")) as after:
        assert type in Path(after.path).name
        for name, tensor in before.tensors.items():
            assert tensor.format == after.tensors[name].format
            if type == "Q4_0":  # of Q4_1 several scales and biases may mean the same
                assert np.mean(tensor.read(0, tensor.rows) == after.tensors[name].read(0, tensor.rows)) > 0.99
    off = convert(tmp_path / "hf", tmp_path / "off.gguf", replace(recipe_of("COPY"), lattice="off"))
    with ggufkit.open(off) as model:
        assert {tensor.format.name for tensor in model.tensors.values()} == {"BF16", "F32"}


def test_weights_of_one_step_are_no_lattice(fixtures: Path, tmp_path: Path):
    folder = write(FAMILIES["llama-yarn"](), tmp_path / "hf")  # multiples of 1/64
    assert as_gguf(folder, lattices=True).quantized_to is None
    assert as_gguf(fixtures / "pylib-llama", lattices=True).quantized_to is None


def untrained() -> dict[str, np.ndarray]:
    battery = dict(weights(64, 256))
    kinds = {kind: plain_weights(kind, (64, 256), np.random.default_rng(len(kind))) for kind in KINDS}
    return {name: values for name, values in (battery | kinds).items() if np.isfinite(values).all()}


@pytest.mark.parametrize(("kind", "values"), untrained().items(), ids=list(untrained()))
def test_plain_weights_are_never_taken_for_a_lattice(kind: str, values: np.ndarray):
    for source in ("BF16", "F16", "F32"):
        blocks = encode(values, source)
        tensor = Tensor("w", (64, 256), FORMATS[source], lambda lo, hi, blocks=blocks: blocks[lo:hi])
        assert on_lattices({"w": tensor}) == {}, source


@pytest.mark.parametrize("type", ["Q4_0", "Q8_0"])
def test_plain_models_are_quantized_as_always(type: str, plain: Path, tmp_path: Path):
    auto = quantize(plain, tmp_path / "auto.gguf", type)
    off = quantize(plain, tmp_path / "off.gguf", replace(recipe_of(type), lattice="off"))
    assert auto.read_bytes() == off.read_bytes()
    with pytest.raises(UsageError, match="there is no lattice 'maybe'"):
        quantize(plain, tmp_path / "x.gguf", replace(recipe_of(type), lattice="maybe"))


def test_distinct_numbers_of_all_blocks_at_once_are_those_of_each():
    rng = np.random.default_rng(0)
    blocks = rng.integers(-9, 9, (40, 32)).astype(np.float32) * rng.integers(0, 2, (40, 1)).astype(np.float32)
    blocks[0, :5] = 0.0, -0.0, 1e-45, -1e-45, 3e38
    assert _distinct(blocks).tolist() == [len(np.unique(block)) for block in blocks]
