"""GGUF blocks in MLX: quantized arrays and MLX's own operations, against our decoders bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")

from verify_mlx import random_blocks

from ggufkit.formats.codec import decode
from ggufkit.formats.table import FORMATS
from ggufkit.runtime.mlx.arrays import QUANTIZED, Quantized, repack
from ggufkit.runtime.mlx.decode import _DECODERS
from ggufkit.runtime.mlx.decode import decode as mx_decode

RNG = np.random.default_rng(0)


def test_scale_without_a_code_in_mlx_is_refused():
    blocks = random_blocks(FORMATS["NVFP4"], 8, RNG)
    blocks.view(FORMATS["NVFP4"].dtype)["d"][5, 0, 2] = 0xFF
    assert repack(blocks[:5], FORMATS["NVFP4"]) is not None
    assert repack(blocks, FORMATS["NVFP4"]) is None


def floats(q: Quantized) -> np.ndarray:
    biases = None if q.biases is None else mx.array(q.biases)
    how = {"group_size": q.group_size, "bits": q.bits, "mode": q.mode}
    if q.mode != "affine":
        how["dtype"] = mx.float32
    return np.array(mx.dequantize(mx.array(q.codes), mx.array(q.scales), biases, **how))


@pytest.mark.parametrize("name", QUANTIZED)
def test_repacked_arrays_decode_to_the_same_bits(name):
    format = FORMATS[name]
    blocks = random_blocks(format, 4096, RNG).reshape(64, -1)
    np.testing.assert_array_equal(decode(blocks, format), floats(repack(blocks, format)))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_half_scales_are_used_where_they_are_exact(name):
    format = FORMATS[name]
    blocks = random_blocks(format, 64, RNG).reshape(4, -1)
    packed = repack(blocks, format, exact=False)
    assert packed.scales.dtype == packed.biases.dtype == np.float16
    full = repack(blocks, format)
    np.testing.assert_array_equal(full.scales, packed.scales.astype(np.float32))
    np.testing.assert_array_equal(full.biases, packed.biases.astype(np.float32))


def test_half_scales_are_not_used_where_a_bias_overflows():
    blocks = np.zeros((1, 34), np.uint8)
    blocks.view(FORMATS["Q8_0"].dtype)["d"] = 600  # -128 · 600 is beyond float16
    assert repack(blocks, FORMATS["Q8_0"], exact=False).scales.dtype == np.float32


@pytest.mark.parametrize("name", _DECODERS)
def test_mlx_operations_decode_to_the_same_bits(name):
    format = FORMATS[name]
    blocks = random_blocks(format, 2048, RNG).reshape(32, -1)
    found = np.array(mx_decode(mx.array(blocks), format))
    np.testing.assert_array_equal(decode(blocks, format), found)


def test_every_quantized_format_has_its_way():
    quantized = {f.name for f in FORMATS.values() if f.is_quantized and f.encodable}
    assert quantized == set(QUANTIZED) | set(_DECODERS)
    assert not set(QUANTIZED) & set(_DECODERS)
