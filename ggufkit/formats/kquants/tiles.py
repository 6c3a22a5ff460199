"""Sixteen super-blocks at a time: how they come into lanes and how their bytes leave.

A batch is 16 consecutive super-blocks of 256 weights, super-block k in lane k:

    X   (256, 16) float32   weight i of super-block k at X[16 i + k]
    Y   (type_size, 16) uint8   byte p of super-block k at Y[16 p + k]

All that a K-quant does to a super-block, from the search to the packed bytes, is then a straight line of vector
operations. Batches at the end are padded with zeros; their blocks are not written.
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import (
    LANES,
    bits_f32,
    f32_bits,
    load,
    load_half,
    maximum,
    minimum,
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


@kernel
def load_batch(weights, first, count, X):
    """Transpose super-blocks `first … first + count` of the flat array `weights` into X; lanes beyond are zero."""
    if count == LANES:
        for i in range(0, QK_K, LANES):
            transpose(weights, first * QK_K + i, QK_K, X, i * LANES)
        return
    X[:] = np.float32(0)
    for k in range(count):
        for i in range(QK_K):
            X[i * LANES + k] = weights[(first + k) * QK_K + i]


@kernel
def store_batch(Y, type_size, blocks, first, count):
    """Write the columns of Y to blocks `first … first + count` of the flat byte array `blocks`."""
    if count == LANES:
        for p in range(0, type_size, LANES):
            at = min(p, type_size - LANES)  # the last tile overlaps the one before
            untranspose(Y, at * LANES, blocks, first * type_size + at, type_size)
        return
    for k in range(count):
        for p in range(type_size):
            blocks[(first + k) * type_size + p] = Y[p * LANES + k]


@kernel
def repeat_importance(importance):
    """`importance` and its own beginning again, so that any 16 consecutive super-blocks find theirs in one piece."""
    repeated = np.empty(importance.size + (LANES - 1) * QK_K, np.float32)
    for i in range(repeated.size):
        repeated[i] = importance[i % importance.size]
    return repeated


@kernel
def _rounded(v):
    """1.5 × 2²³ + nearest_int(v): the reference adds the constant and reads the low 23 bits of the sum.

    That also defines what becomes of an infinity, a NaN or a number beyond ±2²², which its searches do meet.
    """
    return bits_f32((f32_bits(v + splat(_MAGIC)) & splat(_MANTISSA)) | splat(_EXPONENT))


@kernel
def nearest_wrapped(v):
    """`nearest_int(v)` as a float, for any v."""
    return _rounded(v) - splat(_MAGIC)


@kernel
def nearest_level(v, low, high):
    """`clamp(nearest_int(v), low, high)` as a float, for any v; `low` and `high` are whole numbers."""
    magic = splat(_MAGIC)
    return minimum(maximum(_rounded(v), magic + low), magic + high) - magic


@kernel
def put_half(value, half, Y, p):
    """Write float16(value) to bytes p and p + 1 and return it as float32. half: (16,) uint16, scratch."""
    store_half(half, 0, value)
    bits = load(half, 0)
    store(Y, p * LANES, bits)
    store(Y, (p + 1) * LANES, bits >> splat(np.int32(8)))
    return load_half(half, 0)
