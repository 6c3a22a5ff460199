"""Q1_0, Q2_0, TQ1_0, TQ2_0: hand-made blocks against the drawings in ternary.py."""

from __future__ import annotations

import numpy as np

from ggufkit.formats import codec

TWO = b"\x00\x40"  # float16


def decoded(block, name):
    return codec.decode(np.frombuffer(block, np.uint8), name)


def test_q1_0_bit_j_is_the_sign_of_weight_j():
    bits = (1 << 0 | 1 << 9 | 1 << 127).to_bytes(16, "little")
    expected = np.full(128, -2.0)
    expected[[0, 9, 127]] = 2
    assert np.array_equal(decoded(TWO + bits, "Q1_0"), expected)


def test_q1_0_scale_is_the_mean_magnitude():
    x = np.where(np.arange(128) % 2, np.float32(-1), np.float32(3))[None]
    assert np.array_equal(codec.decode(codec.encode(x, "Q1_0"), "Q1_0"), np.sign(x) * 2)


def test_q2_0_four_neighbours_share_a_byte():
    expected = np.tile([-2.0, 0, 2, 4], 16)
    assert np.array_equal(decoded(TWO + bytes([0b11100100] * 16), "Q2_0"), expected)


def test_tq2_0_weights_32_apart_share_a_byte():
    qs = bytearray([0b01010101] * 64)
    qs[5] = 0b00100110  # weights 5, 37, 69, 101: levels 2, 1, 2, 0
    expected = np.zeros(256)
    expected[[5, 69, 101]] = [2, 2, -2]
    assert np.array_equal(decoded(bytes(qs) + TWO, "TQ2_0"), expected)


def test_tq1_0_byte_is_a_fraction_of_243():
    def byte(*trits):
        q = 0
        for trit in trits:
            q = 3 * q + trit
        return -(-256 * q // 243)

    qs, qh = bytearray([byte(1, 1, 1, 1, 1)] * 48), bytearray([byte(1, 1, 1, 1, 0)] * 4)
    qs[7] = byte(2, 0, 1, 0, 2)  # weights 7, 39, 71, 103, 135
    qs[32] = byte(0, 2, 2, 1, 0)  # weights 160, 176, 192, 208, 224
    qh[3] = byte(2, 1, 0, 2, 0)  # weights 243, 247, 251, 255
    expected = np.zeros(256)
    expected[[7, 39, 103, 135]] = [2, -2, -2, 2]
    expected[[160, 176, 192, 224]] = [-2, 2, 2, -2]
    expected[[243, 251, 255]] = [2, -2, 2]
    assert np.array_equal(decoded(bytes(qs + qh) + TWO, "TQ1_0"), expected)


def test_ternary_weights_survive_exactly():
    x = np.random.default_rng(0).integers(-1, 2, (40, 512)).astype(np.float32) * np.float32(0.125)
    for name in ("TQ1_0", "TQ2_0", "Q2_0"):
        assert np.array_equal(codec.decode(codec.encode(x, name), name), x), name
