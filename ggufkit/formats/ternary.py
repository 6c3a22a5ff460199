"""Weights of one, three or four levels and one float16 scale per block: Q1_0, Q2_0, TQ1_0, TQ2_0.

    Q1_0    128 weights, ±d
    Q2_0     64 weights, d times -1, 0, 1 or 2 (the encoder never needs 2)
    TQ1_0   256 weights, d times -1, 0 or 1: five trits in a byte
    TQ2_0   256 weights, d times -1, 0 or 1: four in a byte

llama.cpp does not use importance for any of them. Source: quantize_row_q1_0_ref … of ggml-quants.c.
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.blocks import finite_level, inverse, read_half_lanes, read_word, write_half
from ggufkit.kernels.jit import helper, kernel
from ggufkit.kernels.lanes import (
    LANES,
    bits_mask,
    fabs,
    flat,
    highest,
    lane_numbers,
    load,
    mask_bits,
    maximum,
    round_away,
    select,
    splat,
    store,
    store_out,
    to_f32,
    transpose,
    view,
)

ZERO = np.float32(0)

POWERS_OF_3 = np.array([1, 3, 9, 27, 81], np.int32)


@helper
def largest_of(values, at, n):
    """Largest |w| of the `n` values from `at` on."""
    largest = fabs(load(values, at))
    for i in range(16, n, 16):
        largest = maximum(largest, fabs(load(values, at + i)))
    return highest(largest)


# ---- Q1_0 -------------------------------------------------------------------------------------------------------


@helper
def sum_magnitudes(values, block, blocks, tile, columns):
    """Σ |w| of 16 blocks of 128, each in order, block k in lane k. The last block is repeated past the end."""
    sums = splat(ZERO)
    for j in range(0, 128, LANES):
        for k in range(LANES):
            store(tile, 16 * k, load(values, min(block + k, blocks - 1) * 128 + j))
        transpose(tile, 0, 16, columns, 0)
        for i in range(LANES):
            sums = sums + fabs(load(columns, 16 * i))
    return sums


@kernel
def q1_0_encode(x, out):
    """d = mean |w|; bit j of `qs` is set where weight j is not negative."""
    values, data = flat(x), flat(out)
    tile, columns, d = np.empty(256, np.float32), np.empty(256, np.float32), np.empty(16, np.float32)
    blocks = values.size // 128
    for block in range(0, blocks, LANES):
        sums = sum_magnitudes(values, block, blocks, tile, columns)
        store(d, 0, sums / splat(np.float32(128)))
        for k in range(min(LANES, blocks - block)):
            at, to = (block + k) * 128, (block + k) * 18
            write_half(data, to, d[k])
            for i in range(8):
                bits = mask_bits(load(values, at + 16 * i) >= splat(ZERO))
                data[to + 2 + 2 * i] = np.uint8(bits)
                data[to + 3 + 2 * i] = np.uint8(bits >> np.int32(8))


@kernel
def q1_0_decode(blocks, out):
    """blocks: (n, 18) uint8; out: (n, 128) float32."""
    data, values = flat(blocks), flat(out)
    for block in range(blocks.shape[0]):
        at, to = block * 18, block * 128
        d = read_half_lanes(data, at)
        for i in range(8):
            bits = np.int32(data[at + 2 + 2 * i]) | np.int32(data[at + 3 + 2 * i]) << np.int32(8)
            store_out(values, to + 16 * i, select(bits_mask(bits), d, -d))


# ---- Q2_0 -------------------------------------------------------------------------------------------------------
#
#     qs[j]   DDCCBBAA    levels of weights 4 j, 4 j + 1, 4 j + 2, 4 j + 3


@kernel
def q2_0_encode(x, out):
    """d = max |w|, level = w / d to the nearest integer, ties away from zero, plus one."""
    values, data = flat(x), flat(out)
    levels = np.empty(64, np.uint8)
    words = view(levels, np.uint32)
    one = splat(np.int32(1))
    for block in range(values.size // 64):
        at, to = block * 64, block * 18
        d = largest_of(values, at, 64)
        scale = splat(inverse(d))
        for i in range(0, 64, 16):
            level = load(values, at + i) * scale
            # Infinities and NaNs of an infinite inverse: C makes INT_MIN of them, so level 0.
            level = select(fabs(level) < splat(np.float32(2)), level, -splat(np.float32(1)))
            store(levels, i, round_away(level) + one)
        write_half(data, to, d)
        # Four levels in the bytes of a word to one byte.
        word = load(words, 0)
        word = word | (word >> splat(np.int32(6)))
        store(data, to + 2, (word & splat(np.int32(15))) | ((word >> splat(np.int32(12))) & splat(np.int32(0xF0))))


@kernel
def q2_0_decode(blocks, out):
    """w = d (level - 1). blocks: (n, 18) uint8; out: (n, 64) float32."""
    data, values = flat(blocks), flat(out)
    shifts = lane_numbers() + lane_numbers()
    for block in range(blocks.shape[0]):
        at, to = block * 18, block * 64
        d = read_half_lanes(data, at)
        for i in range(4):
            levels = (splat(read_word(data, at + 2 + 4 * i)) >> shifts) & splat(np.int32(3))
            store_out(values, to + 16 * i, to_f32(levels - splat(np.int32(1))) * d)


# ---- TQ1_0 and TQ2_0 --------------------------------------------------------------------------------------------


@helper
def trits(values, at, scale):
    """Sixteen weights times `scale` to the nearest integer, plus one: 0, 1 or 2."""
    return round_away(finite_level(load(values, at) * scale)) + splat(np.int32(1))


@helper
def trit_byte(q):
    """⌈256 q / 243⌉ of five trits q < 243, so that multiplying the byte by 3 shifts a trit into bits 8 and 9.

    It is q + ⌈13 q / 243⌉, and for numbers this small dividing by 243 is multiplying by 1079 / 2¹⁸.
    """
    extra = (q * splat(np.int32(13)) + splat(np.int32(242))) * splat(np.int32(1079))
    return q + (extra >> splat(np.int32(18)))


@helper
def five_trits(values, at, stride, scale):
    """Sixteen bytes: trits of the weights at, at + stride, … at + 4 stride, the first the most significant."""
    q = trits(values, at, scale)
    for n in range(1, 5):
        q = q * splat(np.int32(3)) + trits(values, at + n * stride, scale)
    return trit_byte(q)


@kernel
def tq1_0_encode(x, out):
    """d = max |w|.

    qs[0:32]    byte m: weights m, m + 32, … m + 128
    qs[32:48]   byte m: weights 160 + m, 176 + m, … 224 + m
    qh[0:4]     byte m: weights 240 + m, 244 + m, 248 + m, 252 + m and a trit 0
    """
    values, data = flat(x), flat(out)
    last, high = np.empty(16, np.int32), np.zeros(16, np.int32)
    for block in range(values.size // 256):
        at, to = block * 256, block * 54
        d = largest_of(values, at, 256)
        scale = splat(inverse(d))
        store(data, to, five_trits(values, at, 32, scale))
        store(data, to + 16, five_trits(values, at + 16, 32, scale))
        store(data, to + 32, five_trits(values, at + 160, 16, scale))
        store(last, 0, trits(values, at + 240, scale))
        for m in range(4):
            high[m] = ((last[m] * 3 + last[m + 4]) * 3 + last[m + 8]) * 9 + last[m + 12] * 3
        store(last, 0, trit_byte(load(high, 0)))
        for m in range(4):
            data[to + 48 + m] = last[m]
        write_half(data, to + 52, d)


@helper
def store_trits(values, to, bytes, power, d):
    """Weights of sixteen bytes: the trit that `power`, a power of 3, brings to the front."""
    front = (bytes * power) & splat(np.int32(255))
    trit = (front * splat(np.int32(3))) >> splat(np.int32(8))
    store(values, to, to_f32(trit - splat(np.int32(1))) * d)


@kernel
def tq1_0_decode(blocks, out):
    """w = d (trit - 1). blocks: (n, 54) uint8; out: (n, 256) float32."""
    data, values = flat(blocks), flat(out)
    lanes = lane_numbers()
    byte_shifts = (lanes & splat(np.int32(3))) << splat(np.int32(3))
    powers = np.empty(16, np.int32)
    for k in range(16):
        powers[k] = POWERS_OF_3[k // 4]
    for block in range(blocks.shape[0]):
        at, to = block * 54, block * 256
        d = read_half_lanes(data, at + 52)
        low, middle, high = load(data, at), load(data, at + 16), load(data, at + 32)
        for n in range(5):
            power = splat(POWERS_OF_3[n])
            store_trits(values, to + 32 * n, low, power, d)
            store_trits(values, to + 32 * n + 16, middle, power, d)
            store_trits(values, to + 160 + 16 * n, high, power, d)
        last = splat(read_word(data, at + 48)) >> byte_shifts
        store_trits(values, to + 240, last, load(powers, 0), d)


@kernel
def tq2_0_encode(x, out):
    """d = max |w|.

    qs[32 h + m]   DDCCBBAA    trits of weights 128 h + m, … + 32, … + 64, … + 96
    """
    values, data = flat(x), flat(out)
    for block in range(values.size // 256):
        at, to = block * 256, block * 66
        d = largest_of(values, at, 256)
        scale = splat(inverse(d))
        for m in range(0, 64, 16):
            first = at + m + (m // 32) * 96
            q = trits(values, first, scale)
            for n in range(1, 4):
                q = q | (trits(values, first + 32 * n, scale) << splat(np.int32(2 * n)))
            store(data, to + m, q)
        write_half(data, to + 64, d)


@kernel
def tq2_0_decode(blocks, out):
    """w = d (level - 1), level 3 included. blocks: (n, 66) uint8; out: (n, 256) float32."""
    data, values = flat(blocks), flat(out)
    for block in range(blocks.shape[0]):
        at, to = block * 66, block * 256
        d = read_half_lanes(data, at + 64)
        for m in range(0, 64, 16):
            q, first = load(data, at + m), to + m + (m // 32) * 96
            for n in range(4):
                level = (q >> splat(np.int32(2 * n))) & splat(np.int32(3))
                store_out(values, first + 32 * n, to_f32(level - splat(np.int32(1))) * d)
