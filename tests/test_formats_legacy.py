"""Legacy formats: hand-made blocks against the drawings in legacy.py, and the activations of Q8_1."""

from __future__ import annotations

import ctypes

import ggml
import numpy as np
import pytest
import weights

from ggufkit.formats import codec, legacy

ONE, HALF, MINUS_TWO = b"\x00\x3c", b"\x00\x38", b"\x00\xc0"  # float16
COUNTING = bytes(range(0xF0, 0, -15))  # F0 E1 D2 … 0F: byte j holds level j below and 15 - j above


def decoded(block, name):
    return codec.decode(np.frombuffer(block, np.uint8), name).tolist()


def test_q4_0_counts_from_minus_8_and_keeps_weight_j_beside_j_plus_16():
    expected = [float(j - 8) for j in range(16)] + [float(7 - j) for j in range(16)]
    assert decoded(ONE + COUNTING, "Q4_0") == expected


def test_q4_1_adds_the_smallest_weight():
    expected = [0.5 * j - 2 for j in range(16)] + [0.5 * (15 - j) - 2 for j in range(16)]
    assert decoded(HALF + MINUS_TWO + COUNTING, "Q4_1") == expected


def test_q5_0_takes_bit_j_of_qh_as_the_fifth_of_level_j():
    qh = (1 << 3 | 1 << 31).to_bytes(4, "little")
    expected = [float(j - 16) for j in range(16)] + [float(-1 - j) for j in range(16)]
    expected[3] += 16
    expected[31] += 16
    assert decoded(ONE + qh + COUNTING, "Q5_0") == expected


def test_q5_1_takes_bit_j_of_qh_as_the_fifth_of_level_j():
    qh = (1 << 0 | 1 << 16).to_bytes(4, "little")
    expected = [0.5 * j - 2 for j in range(16)] + [0.5 * (15 - j) - 2 for j in range(16)]
    expected[0] += 8
    expected[16] += 8
    assert decoded(HALF + MINUS_TWO + qh + COUNTING, "Q5_1") == expected


@pytest.mark.parametrize(("name", "header"), [("Q8_0", HALF), ("Q8_1", HALF + ONE)])
def test_q8_is_signed_bytes(name, header):
    levels = np.arange(-16, 16, dtype=np.int8) * 8
    assert decoded(header + levels.tobytes(), name) == (levels * 0.5).tolist()


@pytest.mark.parametrize(("kernel", "type_size"), [("q8_0", 34), ("q8_1", 36)])
def test_activations_equal_libggml(kernel, type_size):
    reference = getattr(ggml.library(), f"quantize_row_{kernel}_ref")
    reference.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    for what, x in weights.weights(2, 256):
        expected, actual = np.zeros((2, 8 * type_size), np.uint8), np.zeros((2, 8 * type_size), np.uint8)
        reference(x.ctypes.data, expected.ctypes.data, x.size)
        getattr(legacy, f"{kernel}_encode")(x, actual)
        assert np.array_equal(expected, actual), what


def test_importance_of_columns_decides_where_the_error_goes():
    x = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    importance = np.where(np.arange(32) < 16, np.float32(1), np.float32(0.001))
    for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        plain = codec.decode(codec.encode(x, name), name) - x
        weighted = codec.decode(codec.encode(x, name, importance), name) - x
        assert (weighted[:, :16] ** 2).sum() < 0.9 * (plain[:, :16] ** 2).sum()


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("shape", [(1, 32), (1, 288), (7, 96), (129, 32), (3, 2816)])
def test_importance_fits_rows_that_end_within_eight_blocks(name, shape):
    # Eight blocks share a lane: rows, importance and the tensor may all end in the middle of them.
    rows, cols = shape
    importance = np.random.default_rng(5).random(cols).astype(np.float32)
    for kind, x in weights.weights(rows, cols, seed=5):
        expected = ggml.quantize(x, codec.format_by_name(name).id, importance)
        assert np.array_equal(expected, codec.encode(x, name, importance)), kind
