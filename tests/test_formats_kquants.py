"""The K-quants against libggml byte for byte, and hand-made blocks against the formula."""

from __future__ import annotations

import ctypes

import ggml
import numpy as np
import pytest

from ggufkit.formats import kquants
from ggufkit.formats.codec import decode, encode
from ggufkit.formats.table import format_by_name

KQUANTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]

COLS = 512


def _weights() -> dict[str, np.ndarray]:
    """Rows of every kind that a search could stumble over; 17 rows of 2 super-blocks: two batches and a rest."""
    random = np.random.default_rng(0)
    shape = (17, COLS)
    size = shape[0] * shape[1]
    normal = random.standard_normal(size)
    scales = 10.0 ** random.uniform(-8, 3, size // 16)
    rows = {
        "student-t": random.standard_t(4, size) * 0.02,
        "uniform": random.uniform(-1, 1, size),
        "positive": random.uniform(0.5, 1, size),
        "negative": -random.uniform(0.9, 1, size),
        "sparse": normal * (random.random(size) < 0.05),
        "one-hot": normal * (np.arange(size) % 259 == 0),
        "zero": np.zeros(size),
        "constant": np.repeat(random.standard_normal(size // 64), 64),
        "nearly constant": -1 - 1e-7 * random.integers(0, 3, size),
        "two values": np.where(random.random(size) < 0.5, 1, -0.25),
        "whole numbers": random.integers(-8, 8, size),
        "alternating": np.where(np.arange(size) % 2, 1, -1) * random.uniform(0.9, 1.1, size),
        "sorted": np.sort(normal),
        "scales": normal * np.repeat(scales, 16),
        "denormal": normal * 1e-40,
        **{f"{scale:g}": normal * scale for scale in (1e-38, 1e-30, 1e-15, 1e-7, 1e-6, 1e-4, 1e4)},
    }
    return {name: values.astype(np.float32).reshape(shape) for name, values in rows.items()}


def _importance() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    rows = {
        "random": random.random(COLS),
        "spiky": random.pareto(1, COLS) + 1e-3,
        "zeros": random.random(COLS) * (random.random(COLS) < 0.5),
        "zero blocks": random.random(COLS) * (np.arange(COLS) >= 288),
        "all zero": np.zeros(COLS),
        "1e-30": random.random(COLS) * 1e-30,
        "1e12": random.random(COLS) * 1e12,
    }
    return {name: values.astype(np.float32) for name, values in rows.items()}


WEIGHTS, IMPORTANCE = _weights(), _importance()


def assert_same_blocks(expected: np.ndarray, actual: np.ndarray, name: str) -> None:
    size = format_by_name(name).type_size
    differing = (expected.reshape(-1, size) != actual.reshape(-1, size)).any(1)
    assert not differing.any(), f"{differing.sum()} of {differing.size} blocks, first {differing.argmax()}"


@pytest.mark.parametrize("name", KQUANTS)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_encode_gives_ggml_bytes(name: str, kind: str):
    rows = WEIGHTS[kind]
    assert_same_blocks(ggml.quantize(rows, format_by_name(name).id), encode(rows, name), name)


@pytest.mark.parametrize("name", KQUANTS)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_encode_weighted_gives_ggml_bytes(name: str, kind: str):
    rows = WEIGHTS[kind]
    for importance in IMPORTANCE.values():
        expected = ggml.quantize(rows, format_by_name(name).id, importance)
        assert_same_blocks(expected, encode(rows, name, importance), name)


@pytest.mark.parametrize("name", KQUANTS)
@pytest.mark.parametrize("shape", [(40, 256), (1, 5 * 256), (7, 3 * 256), (2, 32 * 256), (3, 17 * 256)])
def test_encode_weighted_finds_each_column(name: str, shape: tuple[int, int]):
    random = np.random.default_rng(2)
    rows, importance = random.standard_normal(shape).astype(np.float32), random.random(shape[1]).astype(np.float32)
    expected = ggml.quantize(rows, format_by_name(name).id, importance)
    assert_same_blocks(expected, encode(rows, name, importance), name)


@pytest.mark.parametrize("name", KQUANTS)
@pytest.mark.parametrize("blocks", [1, 2, 15, 16, 17, 33])
def test_encode_any_number_of_blocks(name: str, blocks: int):
    rows = np.random.default_rng(blocks).standard_normal((1, 256 * blocks)).astype(np.float32)
    assert_same_blocks(ggml.quantize(rows, format_by_name(name).id), encode(rows, name), name)


@pytest.mark.parametrize("name", KQUANTS)
def test_decode_gives_ggml_bits(name: str):
    format = format_by_name(name)
    blocks = np.random.default_rng(0).integers(0, 256, (5000, format.type_size), np.uint8)
    expected, actual = ggml.to_float(blocks, format.id), decode(blocks, name)
    np.testing.assert_array_equal(expected.view(np.uint32), actual.view(np.uint32))


def test_q8_k_activations_equal_ggml():
    reference = ggml.library().quantize_row_q8_K_ref
    reference.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    for kind, rows in WEIGHTS.items():
        # Zeros, since the reference does not write the sums of a block of zeros.
        expected = np.zeros((len(rows), COLS // 256 * 292), np.uint8)
        reference(rows.ctypes.data, expected.ctypes.data, rows.size)
        actual = np.full_like(expected, 0xAA)
        kquants.q8_k_encode(rows, actual)
        assert np.array_equal(expected, actual), kind


def test_q8_k_scale_has_the_sign_of_the_first_of_equal_extremes():
    rows = np.zeros((2, 256), np.float32)
    rows[0, 100], rows[0, 30] = 2, -2
    rows[1, 100], rows[1, 30] = -2, 2
    blocks = np.empty((2, 292), np.uint8)
    kquants.q8_k_encode(rows, blocks)
    assert blocks[:, 4 + 30].view(np.int8).tolist() == [-127, -127]
    assert blocks[:, :4].copy().view(np.float32)[:, 0].tolist() == [np.float32(2 / 127), np.float32(-2 / 127)]


def test_decode_q8_k_by_hand():
    values = decode(_block("Q8_K", d=0.5, qs=np.arange(-128, 128)), "Q8_K")
    assert values.tolist() == (0.5 * np.arange(-128, 128)).tolist()


def _block(name: str, **fields: object) -> np.ndarray:
    block = np.zeros((1,), format_by_name(name).dtype)
    for field, value in fields.items():
        block[field] = value
    return block.view(np.uint8)


def test_decode_q4_k_by_hand():
    # Sub-block 0: scale 3, min 2; sub-block 5: scale 0b10_0001, min 0b01_0010.
    scales = np.zeros(12, np.uint8)
    scales[0], scales[4], scales[9] = 3, 2, 0b0010_0001
    scales[1], scales[5] = 0b10 << 6, 0b01 << 6
    qs = np.zeros(128, np.uint8)
    qs[0], qs[64] = 7, 9 << 4
    values = decode(_block("Q4_K", d=0.5, dmin=0.25, scales=scales, qs=qs), "Q4_K")
    assert values[0] == 0.5 * 3 * 7 - 0.25 * 2
    assert values[1] == -0.25 * 2
    assert values[160] == 0.5 * 33 * 9 - 0.25 * 18
    assert values[161] == -0.25 * 18


def test_decode_q6_k_by_hand():
    # Weight 37: nibble 0xB of ql[5 + 32], bits 2–3 of qh[5]; weight 200: high nibble of ql[64 + 8], bits 4–5 of qh[40].
    ql, qh, scales = np.zeros(128, np.uint8), np.zeros(64, np.uint8), np.zeros(16, np.int8)
    ql[37], qh[5] = 0x0B, 0b10 << 2
    ql[72], qh[40] = 0xC0, 0b11 << 4
    scales[2], scales[12] = -7, 100
    values = decode(_block("Q6_K", d=0.5, ql=ql, qh=qh, scales=scales), "Q6_K")
    assert values[37] == 0.5 * -7 * (0b10_1011 - 32)
    assert values[38] == 0.5 * -7 * -32
    assert values[200] == 0.5 * 100 * (0b11_1100 - 32)
    assert values[0] == 0


def test_decode_q5_k_by_hand():
    # Weight 70 (sub-block 2) and weight 102 (sub-block 3) share qs[38]; their high bits are bits 2 and 3 of qh[6].
    scales, qs, qh = np.zeros(12, np.uint8), np.zeros(128, np.uint8), np.zeros(32, np.uint8)
    scales[2], scales[3], scales[6] = 5, 11, 9
    qs[38], qh[6] = 0x3E, 0b0100
    values = decode(_block("Q5_K", d=0.5, dmin=0.25, scales=scales, qs=qs, qh=qh), "Q5_K")
    assert values[70] == 0.5 * 5 * (16 + 14) - 0.25 * 9
    assert values[102] == 0.5 * 11 * 3


def test_decode_q3_k_by_hand():
    # Weight 100 (sub-block 6, bits 6–7 of qs[4], bit 3 of hmask[4]) and 240 (sub-block 15, qs[48], bit 7 of hmask[16]).
    hmask, qs, scales = np.zeros(32, np.uint8), np.zeros(64, np.uint8), np.zeros(12, np.uint8)
    qs[4], hmask[4] = 0b10 << 6, 1 << 3
    qs[48] = 0b01 << 6
    scales[6], scales[10] = 0x05, 0b11 << 2  # scale 6: 0b11_0101
    scales[7], scales[11] = 0xC0, 0b01 << 6  # scale 15: 0b01_1100
    values = decode(_block("Q3_K", d=0.5, hmask=hmask, qs=qs, scales=scales), "Q3_K")
    assert values[100] == 0.5 * (0b11_0101 - 32) * 2
    assert values[240] == 0.5 * (0b01_1100 - 32) * (1 - 4)
    assert values[101] == 0.5 * (0b11_0101 - 32) * -4


def test_decode_q2_k_by_hand():
    # Weight 50 (sub-block 3) is bits 2–3 of qs[18]; weight 255 (sub-block 15) bits 6–7 of qs[63].
    scales, qs = np.zeros(16, np.uint8), np.zeros(64, np.uint8)
    scales[3], scales[15] = 0x7C, 0x1F
    qs[18], qs[63] = 0b11 << 2, 0b01 << 6
    values = decode(_block("Q2_K", d=0.5, dmin=0.25, scales=scales, qs=qs), "Q2_K")
    assert values[50] == 0.5 * 12 * 3 - 0.25 * 7
    assert values[51] == -0.25 * 7
    assert values[255] == 0.5 * 15 - 0.25
