"""Weights in eight-bit floats: values, scales for blocks, rows and matrices, and what is refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ggufkit.checkpoint.packed.registry import unpack
from ggufkit.checkpoint.packed.small_floats import FP8, levels_of
from ggufkit.checkpoint.packed.stored import Source
from ggufkit.checkpoint.safetensors import RAW_DTYPES
from ggufkit.errors import CheckpointError
from ggufkit.formats.table import FORMATS
from ggufkit.tensors.tensor import Tensor

DTYPES = {
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}


def read_fp8(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor] | None:
    """The tensors with all that was quantized in float32; None where nothing was."""
    unpacked = unpack(Source(tensors, config), keep=False)
    return None if unpacked is None else dict(unpacked.tensors)


def tensor(name: str, data: np.ndarray, format: Any = FORMATS["F32"]) -> Tensor:
    rows = np.ascontiguousarray(data.reshape(-1, data.shape[-1] if data.ndim else 1)).view(np.uint8)
    return Tensor(name, data.shape, format, lambda lo, hi: rows[lo:hi])


def checkpoint(shape: tuple[int, int], scale: np.ndarray, dtype: str = "F8_E4M3", end: str = "_scale_inv"):
    """(tensors, weights as float32); the weights are all bytes in turn."""
    data = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    values = data.view(DTYPES[dtype]).astype(np.float32)
    tensors = [tensor("w.weight", data, RAW_DTYPES[dtype]), tensor(f"w.weight{end}", scale.astype(np.float32))]
    return {t.name: t for t in tensors}, values


@pytest.mark.parametrize("dtype", FP8)
def test_fp8_bytes_mean_what_ml_dtypes_says(dtype: str):
    tensors, values = checkpoint((2, 128), np.ones(()), dtype)
    np.testing.assert_array_equal(levels_of(dtype)[np.arange(256)], values.reshape(-1))
    finite = np.isfinite(values.reshape(-1))
    tensors["w.weight"] = tensor("w.weight", np.arange(256, dtype=np.uint8)[finite].reshape(1, -1), RAW_DTYPES[dtype])
    (found,) = read_fp8(tensors, {}).values()
    assert found.format.name == "F32"
    np.testing.assert_array_equal(found.floats()[0], values.reshape(-1)[finite])


@pytest.mark.parametrize("shape", [(8, 12), (9, 13), (1, 1), (7, 4)])
def test_fp8_scale_for_each_block_and_any_rows(shape: tuple[int, int]):
    block = (4, 3)
    grid = tuple(-(size // -step) for size, step in zip(shape, block, strict=True))
    scale = np.arange(1, np.prod(grid) + 1, dtype=np.float32).reshape(grid) / 8
    tensors, values = checkpoint(shape, scale)
    (found,) = read_fp8(tensors, {"quantization_config": {"weight_block_size": list(block)}}).values()
    factors = np.repeat(np.repeat(scale, 4, axis=0), 3, axis=1)[: shape[0], : shape[1]]
    expected = values * factors
    np.testing.assert_array_equal(found.floats(), expected)
    for lo in range(shape[0] + 1):
        np.testing.assert_array_equal(found.floats(lo, shape[0]), expected[lo:])


@pytest.mark.parametrize("scale", [np.float32([[2], [3], [4]]), np.float32([2, 3, 4])])
def test_fp8_scale_for_each_row(scale: np.ndarray):
    tensors, values = checkpoint((3, 5), scale, end="_scale")
    (found,) = read_fp8(tensors, {}).values()
    np.testing.assert_array_equal(found.floats(1, 3), (values * scale.reshape(3, 1))[1:])


def test_fp8_other_tensors_stay_and_scales_of_activations_go():
    tensors, _ = checkpoint((3, 5), np.ones(()))
    for name in ("norm.weight", "w.input_scale", "w.activation_scale"):
        tensors[name] = tensor(name, np.ones(4, np.float32))
    assert list(read_fp8(tensors, {})) == ["w.weight", "norm.weight"]
    del tensors["w.weight"]
    assert read_fp8(tensors, {}) is None


def test_fp8_scale_that_does_not_fit():
    tensors, _ = checkpoint((8, 8), np.ones((2, 3)))
    with pytest.raises(CheckpointError, match=r"w\.weight_scale_inv of shape \[2, 3\] does not fit w\.weight"):
        read_fp8(tensors, {})
    with pytest.raises(CheckpointError, match="in blocks of 4 × 4"):
        read_fp8(tensors, {"quantization_config": {"weight_block_size": [4, 4]}})
    del tensors["w.weight_scale_inv"]
    with pytest.raises(CheckpointError, match="has no scale beside it"):
        read_fp8(tensors, {"quantization_config": {"quant_method": "fp8"}})
