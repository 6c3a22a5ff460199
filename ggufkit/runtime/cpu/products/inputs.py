"""Activations as bytes, the way llama.cpp quantizes them for each kind of weight.

    Q8_0   32 at a time: d = max |x| / 127, kept as float16         for Q4_0, Q8_0, IQ4_NL, MXFP4 …
    Q8_K   256 at a time: d = extreme / -127, kept as float32       for the K-quants and IQ4_XS

What a block holds there lies here in planes (see `forms.Planes`):

    levels   (n, cols) int8                    x ≈ scale · level
    scales   (n, cols / group) float32         group: 16 or 32, whatever the weights have
    counts   (n, cols / group) int32           sums of the levels of each group
    sums     (n, cols / group) float32         scale · count
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.tiles import nearest_wrapped
from ggufkit.kernels.blocks import finite_level
from ggufkit.kernels.jit import helper, kernel
from ggufkit.kernels.lanes import (
    LANES,
    fabs,
    float_to_half,
    half_to_float,
    highest,
    load,
    lowest,
    maximum,
    minimum,
    nearest_int,
    splat,
    store,
    sum_lanes,
    to_i32,
    total,
)

__all__ = ["lay_columns", "quantize_q8_0", "quantize_q8_k"]

_ZERO, _TOP = np.float32(0), np.float32(127)


@helper
def _spoiled(x, at, count):
    """0, or NaN if one of `count` values is infinite or NaN: a product must not lose that."""
    spoil = splat(_ZERO)
    for i in range(at, at + count, LANES):
        spoil = spoil + load(x, i) * splat(_ZERO)
    return sum_lanes(spoil)


@kernel
def quantize_q8_0(x, levels, scales, counts, sums):
    """As quantize_row_q8_0 of llama.cpp's x86-64 build does: levels to nearest, ties to even.

    x: (n, cols) float32; levels: (≥ n, ≥ cols) int8; the others: flat, so many of each row as levels have groups.
    """
    values, bytes_ = x.reshape(-1), levels.reshape(-1)
    cols, wide = x.shape[1], levels.shape[1]
    for row in range(x.shape[0]):
        for block in range(cols // 32):
            at, to, group = row * cols + 32 * block, row * wide + 32 * block, row * (wide // 32) + block
            low, high = load(values, at), load(values, at + LANES)
            largest = highest(maximum(fabs(low), fabs(high)))
            inverse = splat(_TOP / largest if largest > _ZERO else _ZERO)
            low = to_i32(finite_level(nearest_int(low * inverse)))
            high = to_i32(finite_level(nearest_int(high * inverse)))
            store(bytes_, to, low)
            store(bytes_, to + LANES, high)
            scales[group] = half_to_float(float_to_half(largest / _TOP)) + _spoiled(values, at, 32)
            counts[group] = total(low + high)
            sums[group] = scales[group] * np.float32(counts[group])


@kernel
def quantize_q8_k(x, group, levels, scales, counts, sums):
    """As quantize_row_q8_K_ref does. x: (n, cols) float32; levels: (n, cols) int8; the others: flat."""
    values, bytes_, groups = x.reshape(-1), levels.reshape(-1), 256 // group
    for block in range(values.size // 256):
        at = 256 * block
        extreme = _extreme(values, at)
        inverse = -_TOP / extreme if extreme != _ZERO else _ZERO
        scale = np.float32(1) / inverse if inverse != _ZERO else _ZERO
        scale += _spoiled(values, at, 256)
        for i in range(at, at + 256, LANES):
            level = minimum(finite_level(nearest_wrapped(splat(inverse) * load(values, i))), splat(_TOP))
            store(bytes_, i, to_i32(level))
        for g in range(groups * block, groups * (block + 1)):
            scales[g] = scale
            some = splat(np.int32(0))
            for i in range(group * g, group * (g + 1), LANES):
                some = some + load(bytes_, i)
            counts[g] = total(some)
            sums[g] = scale * np.float32(counts[g])


@helper
def _extreme(values, at):
    """The value of largest magnitude of 256; of x and -x, the one that comes first."""
    high, low = load(values, at), load(values, at)
    for i in range(at + LANES, at + 256, LANES):
        v = load(values, i)
        high, low = maximum(v, high), minimum(v, low)
    largest, smallest = highest(high), lowest(low)
    if largest != -smallest:
        return largest if largest > -smallest else smallest
    for i in range(at, at + 256):
        if values[i] == largest or values[i] == smallest:
            return values[i]
    return largest


@kernel
def lay_columns(x, out):
    """out[t, c, k] = x[t, 32 k + c]. x: (n, cols) float32; out: (n or more, 32, columns / 32), zeros where x ends."""
    n, cols = x.shape
    columns = out.shape[1]
    for t in range(n):
        row = x[t]
        for c in range(min(columns, cols)):
            for k in range((cols - c + columns - 1) // columns):
                out[t, c, k] = row[columns * k + c]
