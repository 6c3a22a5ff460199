"""Blocks of 32 weights with one float16 scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, and the activations Q8_1.

    Q4_0, Q5_0, Q8_0   w = d q          Q4_1, Q5_1   w = d q + m

Without importance a block is two vectors of 16 weights. Source: quantize_row_q4_0_ref … of ggml-quants.c.
Byte j of `qs` holds weights j and j + 16 of the block, so the two vectors are packed lane by lane:

    qs[j]   BBBBAAAA    A = level of weight j, B = level of weight j + 16
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import (
    fabs,
    first_lane,
    float_to_half,
    half_to_float,
    highest,
    load,
    maximum,
    minimum,
    round_away,
    select,
    splat,
    store,
    to_f32,
    to_i32,
)

ZERO, ONE = np.float32(0), np.float32(1)


@kernel
def read_half(data, at):
    """The little-endian float16 at byte `at`, as float32."""
    return half_to_float(np.uint16(data[at]) | np.uint16(data[at + 1]) << np.uint16(8))


@kernel
def write_half(data, at, value):
    """Write float32 `value` as little-endian float16 at byte `at`."""
    bits = float_to_half(value)
    data[at] = np.uint8(bits)
    data[at + 1] = np.uint8(bits >> np.uint16(8))


@kernel
def inverse(d):
    """1 / d, or 0 for 0; infinite for the smallest subnormals."""
    return ONE / d if d != ZERO else ZERO


@kernel
def in_byte(level):
    """`level`, with 0 for the infinities and NaNs of an infinite inverse: what x86 leaves of them in a byte."""
    return select(fabs(level) < splat(np.float32(256)), level, splat(ZERO))


@kernel
def largest_magnitude(values, at):
    """Largest |w| of the 32 values from `at` on."""
    return highest(maximum(fabs(load(values, at)), fabs(load(values, at + 16))))


@kernel
def extreme_weight(values, at):
    """The first of the 32 values from `at` on with the largest magnitude, sign kept; 0.0 if all are ±0."""
    low, high = fabs(load(values, at)), fabs(load(values, at + 16))
    largest = splat(highest(maximum(low, high)))
    j = first_lane(low == largest)
    if j == 16:
        j += first_lane(high == largest)
    extreme = values[at + j]
    return extreme if extreme != ZERO else ZERO


@kernel
def q4_0_encode(x, out):
    """The first weight of largest magnitude becomes level 0: d = weight / -8, level = ⌊w / d + 8.5⌋, at most 15."""
    values, data = x.reshape(-1), out.reshape(-1)
    half, top, four = splat(np.float32(8.5)), splat(np.int32(15)), splat(np.int32(4))
    for block in range(values.size // 32):
        at, to = block * 32, block * 18
        d = extreme_weight(values, at) / np.float32(-8)
        scale = splat(inverse(d))
        low = to_i32(in_byte(load(values, at) * scale + half))
        high = to_i32(in_byte(load(values, at + 16) * scale + half))
        write_half(data, to, d)
        store(data, to + 2, minimum(low, top) | (minimum(high, top) << four))


@kernel
def q4_0_decode(blocks, out):
    """w = d (level - 8). blocks: (n, 18) uint8; out: (n, 32) float32."""
    data, values = blocks.reshape(-1), out.reshape(-1)
    four, low_bits, eight = splat(np.int32(4)), splat(np.int32(15)), splat(np.int32(8))
    for block in range(blocks.shape[0]):
        at, to = block * 18, block * 32
        d = splat(read_half(data, at))
        levels = load(data, at + 2)
        store(values, to, to_f32((levels & low_bits) - eight) * d)
        store(values, to + 16, to_f32((levels >> four) - eight) * d)


@kernel
def q8_0_encode(x, out):
    """d = max |w| / 127, q = w / d to the nearest integer, ties away from zero."""
    values, data = x.reshape(-1), out.reshape(-1)
    for block in range(values.size // 32):
        at, to = block * 32, block * 34
        d = largest_magnitude(values, at) / np.float32(127)
        scale = splat(inverse(d))
        write_half(data, to, d)
        store(data, to + 2, round_away(in_byte(load(values, at) * scale)))
        store(data, to + 18, round_away(in_byte(load(values, at + 16) * scale)))


@kernel
def q8_0_decode(blocks, out):
    """w = d q. blocks: (n, 34) uint8; out: (n, 32) float32."""
    data, values = blocks.reshape(-1).view(np.int8), out.reshape(-1)
    scales = blocks.reshape(-1)
    for block in range(blocks.shape[0]):
        at, to = block * 34, block * 32
        d = splat(read_half(scales, at))
        store(values, to, to_f32(load(data, at + 2)) * d)
        store(values, to + 16, to_f32(load(data, at + 18)) * d)
