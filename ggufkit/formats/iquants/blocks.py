"""Weights into lanes and what is done to them before a search; scale codes after it.

Sixteen sub-blocks of 16 weights are one super-block of 256; sixteen of 32 are two, where the last one of an odd
number is done twice. Arrays "in lanes" have the shape (weights of a sub-block, 16 sub-blocks).
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.jit import helper
from ggufkit.kernels.lanes import (
    LANES,
    f32_bits,
    fabs,
    lane_numbers,
    load,
    maximum,
    minimum,
    select,
    splat,
    sqrt,
    store,
    transpose,
)

SUPER = 256  # weights per super-block

# What encoders without importance pass on to the kernel that serves both.
NO_IMPORTANCE = np.empty(0, np.float32)
NO_IMPORTANCE.flags.writeable = False


@helper
def nearest_code(x):
    """GGML's `nearest_int` in lanes, bit for bit: adds 1.5 · 2²³ and reads the mantissa, whatever x is.

    Rounds to nearest, ties to even, for |x| < 2²². Infinities give -2²² and NaN 0, which matters where a scale of
    almost nothing overflows in its inverse.
    """
    bits = f32_bits(x + splat(np.float32(12582912.0)))
    return (bits & splat(np.int32(0x007FFFFF))) - splat(np.int32(0x00400000))


# ---- Loading ----------------------------------------------------------------------------------------------------


@helper
def load_sub_blocks(values, first, second, natural, X):
    """Eight sub-blocks of 32 from `first` and eight from `second` on, into lanes. natural: scratch, (512,) float32"""
    for i in range(0, SUPER, LANES):
        store(natural, i, load(values, first + i))
        store(natural, SUPER + i, load(values, second + i))
    transpose(natural, 0, 32, X, 0)
    transpose(natural, LANES, 32, X, LANES * LANES)


@helper
def per_super_block(a, b):
    """`a` in the eight lanes of the first super-block, `b` in those of the second."""
    return select(lane_numbers() < splat(np.int32(8)), splat(a), splat(b))


@helper
def sums_of_squares(values, first, second):
    """Σ x² of the super-blocks from `first` and from `second` on, each in the order of its weights."""
    a = b = np.float32(0)
    for i in range(SUPER):
        a += values[first + i] * values[first + i]
        b += values[second + i] * values[second + i]
    return a, b


# ---- How much each weight matters -------------------------------------------------------------------------------


@helper
def weigh_by_square(X, W):
    """Without importance: x²."""
    for i in range(0, X.size, LANES):
        x = load(X, i)
        store(W, i, x * x)


@helper
def weigh(X, W, sigma2):
    """With importance: importance · √(sigma2 + x²). W holds the importance and takes the result."""
    for i in range(0, X.size, LANES):
        x = load(X, i)
        store(W, i, load(W, i) * sqrt(sigma2 + x * x))


# ---- Signs ------------------------------------------------------------------------------------------------------


@helper
def split_signs(X, signs):
    """Leave magnitudes in X. signs: (groups of eight weights, 16) int32, bit i set where weight i is negative."""
    zero = splat(np.float32(0))
    for group in range(X.size // (8 * LANES)):
        bits = splat(np.int32(0))
        for i in range(8):
            at = LANES * (8 * group + i)
            x = load(X, at)
            bits = bits | select(x < zero, splat(np.int32(1 << i)), splat(np.int32(0)))
            store(X, at, fabs(x))
        store(signs, LANES * group, bits)


@helper
def make_signs_even(X, W, signs):
    """Where a group of eight has an odd number of minus signs, turn the sign of the weight that matters least.

    Its magnitude in X becomes negative. The eighth sign then follows from the others and is dropped.
    """
    one = splat(np.int32(1))
    for group in range(X.size // (8 * LANES)):
        first = LANES * 8 * group
        bits = load(signs, LANES * group)
        odd = bits ^ bits >> splat(np.int32(4))
        odd = odd ^ odd >> splat(np.int32(2))
        odd = (odd ^ odd >> one) & one
        x = load(X, first)
        least, which = load(W, first) * x * x, odd
        for i in range(1, 8):
            x = load(X, first + LANES * i)
            matters = load(W, first + LANES * i) * x * x
            less = matters < least
            least = select(less, matters, least)
            which = select(less, odd << splat(np.int32(i)), which)
        for i in range(8):
            x = load(X, first + LANES * i)
            store(X, first + LANES * i, select(which == splat(np.int32(1 << i)), -x, x))
        store(signs, LANES * group, (bits ^ which) & splat(np.int32(127)))


@helper
def turn_signs(signs, negative, used):
    """Turn the signs of whole sub-blocks, where their scale came out negative. used: the bits in use, 127 or 255"""
    for i in range(0, signs.size, LANES):
        bits = load(signs, i)
        store(signs, i, select(negative, bits ^ splat(np.int32(used)), bits))


# ---- Results ----------------------------------------------------------------------------------------------------


@helper
def largest_in_lanes(X):
    """The largest weight of each sub-block."""
    largest = load(X, 0)
    for i in range(LANES, X.size, LANES):
        largest = maximum(largest, load(X, i))
    return largest


@helper
def clear(values, dead):
    """Zero the lanes `dead` of (n, 16) int32."""
    for i in range(0, values.size, LANES):
        store(values, i, select(dead, splat(np.int32(0)), load(values, i)))


@helper
def odd_code(scale, d, last):
    """The code s, 0 … last, for which d · (2s + 1) is nearest to the scale."""
    one = splat(np.float32(1))
    code = nearest_code(splat(np.float32(0.5)) * (one / d * scale - one))
    return maximum(splat(np.int32(0)), minimum(splat(np.int32(last)), code))


@helper
def write_u16(data, at, bits):
    """Two bytes, the low one first."""
    data[at] = np.uint8(bits & np.uint16(255))
    data[at + 1] = np.uint8(bits >> np.uint16(8))


@helper
def largest_of_8(scales, first):
    """The largest of eight scales, none of them negative."""
    largest = np.float32(0)
    for k in range(first, first + 8):
        largest = max(largest, scales[k])
    return largest


@helper
def finish(scale, dead, signs, rows, used):
    """Make scales positive by turning the signs, and zero all of the sub-blocks `dead`. Returns the scales."""
    turn_signs(signs, scale < splat(np.float32(0)), used)
    clear(signs, dead)
    clear(rows, dead)
    return select(dead, splat(np.float32(0)), fabs(scale))
