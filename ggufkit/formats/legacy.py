"""Blocks of 32 weights with one or two float16 numbers: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, and Q8_1 for activations.

    Q4_0, Q5_0, Q8_0   w = d q          Q4_1, Q5_1   w = d q + m

Byte j of `qs` holds weights j and j + 16; Q5 keeps the fifth bit of weight j in bit j of the 32-bit `qh`:

    qs[j]   BBBBAAAA    A = level of weight j, B = level of weight j + 16
    qh      HHHH … HH   bit j = bit 4 of level j

Here one block is two vectors of 16 weights, so that packing is lane by lane; `legacy_search` encodes with
importance. Source: quantize_row_q4_0_ref … and dequantize_row_q4_0 … of ggml-quants.c.
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.legacy_search import (
    q4_0_encode_weighted,
    q4_1_encode_weighted,
    q5_0_encode_weighted,
    q5_1_encode_weighted,
)
from ggufkit.kernels.blocks import finite_level, inverse, read_half_lanes, read_word, write_half, write_word
from ggufkit.kernels.jit import helper, kernel
from ggufkit.kernels.lanes import (
    fabs,
    first_bit,
    flat,
    highest,
    lane_numbers,
    load,
    lowest,
    mask_bits,
    maximum,
    minimum,
    round_away,
    splat,
    store,
    store_out,
    to_f32,
    to_i32,
    total,
    view,
)

__all__ = [
    "q4_0_decode",
    "q4_0_encode",
    "q4_0_encode_weighted",
    "q4_1_decode",
    "q4_1_encode",
    "q4_1_encode_weighted",
    "q5_0_decode",
    "q5_0_encode",
    "q5_0_encode_weighted",
    "q5_1_decode",
    "q5_1_encode",
    "q5_1_encode_weighted",
    "q8_0_decode",
    "q8_0_encode",
    "q8_1_decode",
    "q8_1_encode",
]

ZERO = np.float32(0)


@helper
def first_equal(values, at, low, high, value):
    """The first of 32 values from `at` on for which `low` or `high`, made from them, equals `value`.

    Which of equal weights it is decides about a sign.
    """
    wanted = splat(value)
    return values[at + first_bit(mask_bits(low == wanted) | mask_bits(high == wanted) << np.int32(16))]


@helper
def extreme_weight(values, at):
    """The first of the 32 values from `at` on with the largest magnitude, sign kept; 0.0 if all are ±0."""
    low, high = fabs(load(values, at)), fabs(load(values, at + 16))
    extreme = first_equal(values, at, low, high, highest(maximum(low, high)))
    return extreme if extreme != ZERO else ZERO


@helper
def smallest_and_spread(values, at):
    """The smallest of the 32 values from `at` on, and how much larger the largest is."""
    low, high = load(values, at), load(values, at + 16)
    smallest = lowest(minimum(low, high))
    return first_equal(values, at, low, high, smallest), highest(maximum(low, high)) - smallest


@helper
def fifth_bits(low, high):
    """`qh` of 32 levels in two vectors."""
    bit, none = splat(np.int32(16)), splat(np.int32(0))
    return mask_bits((low & bit) != none) | mask_bits((high & bit) != none) << np.int32(16)


# ---- Encode without importance ----------------------------------------------------------------------------------


@helper
def symmetric_levels(values, at, d, middle):
    """⌊w / d + middle + 0.5⌋ of 32 weights, at most 2 middle - 1, as two vectors."""
    scale, offset = splat(inverse(d)), splat(np.float32(middle) + np.float32(0.5))
    top = splat(np.int32(2 * middle - 1))
    low = to_i32(finite_level(load(values, at) * scale + offset))
    high = to_i32(finite_level(load(values, at + 16) * scale + offset))
    return minimum(low, top), minimum(high, top)


@helper
def offset_levels(values, at, d, m, levels):
    """⌊(w - m) / d + 0.5⌋ of 32 weights, at most levels - 1, as two vectors."""
    scale, lowest_weight, half = splat(inverse(d)), splat(m), splat(np.float32(0.5))
    top = splat(np.int32(levels - 1))
    low = to_i32(finite_level((load(values, at) - lowest_weight) * scale + half))
    high = to_i32(finite_level((load(values, at + 16) - lowest_weight) * scale + half))
    return minimum(low, top), minimum(high, top)


@helper
def store_nibbles(data, at, low, high):
    """Write `qs`: the low four bits of 32 levels in two vectors."""
    store(data, at, (low & splat(np.int32(15))) | (high << splat(np.int32(4))))


@kernel
def q4_0_encode(x, out):
    """The weight of largest magnitude becomes level 0: d = weight / -8."""
    values, data = flat(x), flat(out)
    for block in range(values.size // 32):
        at, to = block * 32, block * 18
        d = extreme_weight(values, at) / np.float32(-8)
        low, high = symmetric_levels(values, at, d, 8)
        write_half(data, to, d)
        store_nibbles(data, to + 2, low, high)


@kernel
def q5_0_encode(x, out):
    """The weight of largest magnitude becomes level 0: d = weight / -16."""
    values, data = flat(x), flat(out)
    for block in range(values.size // 32):
        at, to = block * 32, block * 22
        d = extreme_weight(values, at) / np.float32(-16)
        low, high = symmetric_levels(values, at, d, 16)
        write_half(data, to, d)
        write_word(data, to + 2, fifth_bits(low, high))
        store_nibbles(data, to + 6, low, high)


@kernel
def q4_1_encode(x, out):
    """m = the smallest weight, d = (largest - m) / 15."""
    values, data = flat(x), flat(out)
    for block in range(values.size // 32):
        at, to = block * 32, block * 20
        m, spread = smallest_and_spread(values, at)
        d = spread / np.float32(15)
        low, high = offset_levels(values, at, d, m, 16)
        write_half(data, to, d)
        write_half(data, to + 2, m)
        store_nibbles(data, to + 4, low, high)


@kernel
def q5_1_encode(x, out):
    """m = the smallest weight, d = (largest - m) / 31."""
    values, data = flat(x), flat(out)
    for block in range(values.size // 32):
        at, to = block * 32, block * 24
        m, spread = smallest_and_spread(values, at)
        d = spread / np.float32(31)
        low, high = offset_levels(values, at, d, m, 32)
        write_half(data, to, d)
        write_half(data, to + 2, m)
        write_word(data, to + 4, fifth_bits(low, high))
        store_nibbles(data, to + 8, low, high)


@helper
def largest_magnitude(values, at):
    """Largest |w| of the 32 values from `at` on."""
    return highest(maximum(fabs(load(values, at)), fabs(load(values, at + 16))))


@helper
def byte_levels(values, at, d):
    """w / d of 32 weights to the nearest integer, ties away from zero, as two vectors."""
    scale = splat(inverse(d))
    low = round_away(finite_level(load(values, at) * scale))
    return low, round_away(finite_level(load(values, at + 16) * scale))


@kernel
def q8_0_encode(x, out):
    """d = max |w| / 127."""
    values, data = flat(x), flat(out)
    for block in range(values.size // 32):
        at, to = block * 32, block * 34
        d = largest_magnitude(values, at) / np.float32(127)
        low, high = byte_levels(values, at, d)
        write_half(data, to, d)
        store(data, to + 2, low)
        store(data, to + 18, high)


@kernel
def q8_1_encode(x, out):
    """Q8_0 and s = d Σ q, for activations; what quantize_row_q8_1_ref gives."""
    values, data = flat(x), flat(out)
    for block in range(values.size // 32):
        at, to = block * 32, block * 36
        d = largest_magnitude(values, at) / np.float32(127)
        low, high = byte_levels(values, at, d)
        write_half(data, to, d)
        write_half(data, to + 2, np.float32(total(low + high)) * d)
        store(data, to + 4, low)
        store(data, to + 20, high)


# ---- Decode -----------------------------------------------------------------------------------------------------


@helper
def nibbles(data, at):
    """The low four bits of 32 levels from `qs` at byte `at`, as two vectors."""
    pairs = load(data, at)
    return pairs & splat(np.int32(15)), pairs >> splat(np.int32(4))


@helper
def five_bit_levels(data, qh_at, qs_at):
    """32 levels from 0 to 31 as two vectors."""
    low, high = nibbles(data, qs_at)
    bits, fifth = splat(read_word(data, qh_at)), splat(np.int32(16))
    low = low | (((bits << splat(np.int32(4))) >> lane_numbers()) & fifth)
    return low, high | ((bits >> (lane_numbers() + splat(np.int32(12)))) & fifth)


@kernel
def q4_0_decode(blocks, out):
    """w = d (level - 8). blocks: (n, 18) uint8; out: (n, 32) float32."""
    data, values = flat(blocks), flat(out)
    middle = splat(np.int32(8))
    for block in range(blocks.shape[0]):
        at, to = block * 18, block * 32
        d = read_half_lanes(data, at)
        low, high = nibbles(data, at + 2)
        store_out(values, to, to_f32(low - middle) * d)
        store_out(values, to + 16, to_f32(high - middle) * d)


@kernel
def q4_1_decode(blocks, out):
    """w = d level + m. blocks: (n, 20) uint8; out: (n, 32) float32."""
    data, values = flat(blocks), flat(out)
    for block in range(blocks.shape[0]):
        at, to = block * 20, block * 32
        d, m = read_half_lanes(data, at), read_half_lanes(data, at + 2)
        low, high = nibbles(data, at + 4)
        store_out(values, to, to_f32(low) * d + m)
        store_out(values, to + 16, to_f32(high) * d + m)


@kernel
def q5_0_decode(blocks, out):
    """w = d (level - 16). blocks: (n, 22) uint8; out: (n, 32) float32."""
    data, values = flat(blocks), flat(out)
    middle = splat(np.int32(16))
    for block in range(blocks.shape[0]):
        at, to = block * 22, block * 32
        d = read_half_lanes(data, at)
        low, high = five_bit_levels(data, at + 2, at + 6)
        store_out(values, to, to_f32(low - middle) * d)
        store_out(values, to + 16, to_f32(high - middle) * d)


@kernel
def q5_1_decode(blocks, out):
    """w = d level + m. blocks: (n, 24) uint8; out: (n, 32) float32."""
    data, values = flat(blocks), flat(out)
    for block in range(blocks.shape[0]):
        at, to = block * 24, block * 32
        d, m = read_half_lanes(data, at), read_half_lanes(data, at + 2)
        low, high = five_bit_levels(data, at + 4, at + 8)
        store_out(values, to, to_f32(low) * d + m)
        store_out(values, to + 16, to_f32(high) * d + m)


@kernel
def _bytes_decode(blocks, out):
    """w = d q; `s` is not used. blocks: (n, 34 or 36) uint8; out: (n, 32) float32."""
    type_size = blocks.shape[1]
    data, levels, values = flat(blocks), view(blocks, np.int8), flat(out)
    for block in range(blocks.shape[0]):
        end, to = (block + 1) * type_size, block * 32
        d = read_half_lanes(data, end - type_size)
        store_out(values, to, to_f32(load(levels, end - 32)) * d)
        store_out(values, to + 16, to_f32(load(levels, end - 16)) * d)


q8_0_decode = q8_1_decode = _bytes_decode
