"""Sixteen super-blocks at a time: how they come into lanes and how their bytes leave.

A batch is 16 consecutive super-blocks of 256 weights, super-block k in lane k:

    X   (256, 16) float32   weight i of super-block k at X[16 i + k]
    Y   (type_size, 16) uint8   byte p of super-block k at Y[16 p + k]

All that an encoder does to a super-block, from the search to the packed bytes, is then a straight line of vector
operations. The last batch is filled up with zeros; only the bytes that there are places for are written. Formats with
blocks of 32 weights take eight of them for a super-block, so that one may end in the middle.
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.jit import helper, maker
from ggufkit.kernels.lanes import (
    LANES,
    all_lanes,
    bits_f32,
    f32_bits,
    fabs,
    load,
    load_half,
    maximum,
    minimum,
    nearest_int,
    splat,
    store,
    store_half,
    transpose,
    untranspose,
)

QK_K = 256

_MAGIC = np.float32(12582912.0)  # 1.5 × 2²³
_EXPONENT = np.int32(0x4B000000)
_MANTISSA = np.int32(0x007FFFFF)


@helper
def load_batch(weights, first, X):
    """Transpose sixteen super-blocks from the one `first` of the flat array `weights` on into X; zeros beyond it."""
    at = first * QK_K
    if weights.size - at >= LANES * QK_K:
        for i in range(0, QK_K, LANES):
            transpose(weights, at + i, QK_K, X, i * LANES)
        return
    X[:] = np.float32(0)
    for i in range(weights.size - at):
        X[i % QK_K * LANES + i // QK_K] = weights[at + i]


@helper
def store_batch(Y, type_size, blocks, first):
    """Write the columns of Y to sixteen blocks from the one `first` of the flat byte array `blocks` on, to its end."""
    at = first * type_size
    if blocks.size - at >= LANES * type_size:
        for start in range(0, type_size, LANES):
            p = min(start, type_size - LANES)  # the last tile overlaps the one before
            untranspose(Y, p * LANES, blocks, at + p, type_size)
        return
    for i in range(blocks.size - at):
        blocks[at + i] = Y[i % type_size * LANES + i // type_size]


@maker
def repeat_importance(importance):
    """`importance` and its own beginning again, so that sixteen super-blocks find theirs in one piece."""
    repeated = np.empty(importance.size + LANES * QK_K, np.float32)
    for start in range(0, repeated.size, importance.size):
        for i in range(min(importance.size, repeated.size - start)):
            repeated[start + i] = importance[i]
    return repeated


@helper
def _rounded(v):
    """1.5 × 2²³ + nearest_int(v): the reference adds the constant and reads the low 23 bits of the sum.

    That also defines what becomes of an infinity, a NaN or a number beyond ±2²², which its searches do meet.
    """
    return bits_f32((f32_bits(v + splat(_MAGIC)) & splat(_MANTISSA)) | splat(_EXPONENT))


@helper
def nearest_wrapped(v):
    """`nearest_int(v)` as a float, for any v."""
    return _rounded(v) - splat(_MAGIC)


@helper
def nearest_level(v, low, high):
    """`clamp(nearest_int(v), low, high)` as a float, for any v; `low` and `high` are whole numbers."""
    magic = splat(_MAGIC)
    return minimum(maximum(_rounded(v), magic + low), magic + high) - magic


@helper
def nearest_quotient(x, divisor, inverse, low, high):
    """`nearest_level(x / divisor, low, high)`, mostly without the division. inverse: 1 / divisor, not subnormal.

    Quotients below 2¹² differ from x·inverse by less than 0.001, so that both round alike if one is 0.001 away from
    where rounding changes.
    """
    v = x * inverse
    level = nearest_int(v)
    sure = (fabs(v - level) < splat(np.float32(0.499))) & (fabs(v) < splat(np.float32(4096)))
    if all_lanes(sure):
        return minimum(maximum(level, low), high)
    return nearest_level(x / divisor, low, high)


@helper
def put_half(value, half, Y, p):
    """Write float16(value) to bytes p and p + 1 and return it as float32. half: (16,) uint16, scratch."""
    store_half(half, 0, value)
    bits = load(half, 0)
    store(Y, p * LANES, bits)
    store(Y, (p + 1) * LANES, bits >> splat(np.int32(8)))
    return load_half(half, 0)
