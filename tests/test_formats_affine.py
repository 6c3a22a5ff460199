"""Blocks as codes, scales and biases: the numbers of the decoders, both ways."""

from __future__ import annotations

import numpy as np
import pytest

from ggufkit.errors import CodecError
from ggufkit.formats.affine import AFFINE, Affine, join, pack_codes, split, unpack_codes
from ggufkit.formats.codec import decode
from ggufkit.formats.table import FORMATS


def random_blocks(format, n: int, seed: int = 0) -> np.ndarray:
    """Any bytes, but scales that are finite."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (n, format.type_size), np.uint8)
    records = blocks.view(format.dtype)[:, 0]
    for field, count, code in format.fields:
        if code == "f2":
            assert count == 1
            records[field] = (rng.standard_normal(n) * 10.0 ** rng.integers(-7, 3, n)).astype(np.float16)
    return blocks


@pytest.mark.parametrize("name", AFFINE)
def test_split_has_the_numbers_of_decode(name):
    format = FORMATS[name]
    blocks = random_blocks(format, 4000)
    found = split(blocks, format)
    bits, group = AFFINE[name]
    assert found.codes.shape == (4000, format.block_size)
    assert found.scales.shape == found.biases.shape == (4000, format.block_size // group)
    assert found.codes.max() < 1 << bits
    np.testing.assert_array_equal(decode(blocks, format), found.floats())


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_join_is_the_inverse_of_split(name):
    blocks = random_blocks(FORMATS[name], 500)
    np.testing.assert_array_equal(blocks, join(split(blocks, FORMATS[name]), FORMATS[name]))


def test_join_rounds_nothing():
    codes = np.zeros((1, 32), np.uint8)
    fine, none = np.float32([[1.0002]]), np.float32([[0]])
    with pytest.raises(CodecError, match=r"scale 1\.0002 is not exact"):
        join(Affine(codes, fine, none), FORMATS["Q4_1"])
    with pytest.raises(CodecError, match=r"bias 1e\+06 is not exact"):
        join(Affine(codes, np.float32([[1]]), np.float32([[1e6]])), FORMATS["Q5_1"])
    with pytest.raises(CodecError, match="other than -8 scales"):
        join(Affine(codes, np.float32([[1]]), np.float32([[-7]])), FORMATS["Q4_0"])
    with pytest.raises(CodecError, match="code 16 does not fit"):
        join(Affine(codes + 16, np.float32([[1]]), none), FORMATS["Q4_1"])


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
def test_codes_are_a_stream_of_bits(bits):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 96), np.uint8)
    packed = pack_codes(codes, bits)
    stream = np.unpackbits(packed.view(np.uint8), axis=1, bitorder="little")
    expected = (codes[:, :, None] >> np.arange(bits, dtype=np.uint8) & 1).reshape(3, -1)
    np.testing.assert_array_equal(expected, stream)
    np.testing.assert_array_equal(codes, unpack_codes(packed, bits))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_are_in_the_order_of_mlx(bits):
    mx = pytest.importorskip("mlx.core")
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (2, 64), np.uint8)
    one, zero = mx.ones((2, 2)), mx.zeros((2, 2))
    found = mx.dequantize(mx.array(pack_codes(codes, bits)), one, zero, group_size=32, bits=bits)
    np.testing.assert_array_equal(codes, np.array(found))
