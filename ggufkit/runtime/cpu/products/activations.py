"""Activations as bytes, the way llama.cpp quantizes them for each kind of weight.

    Q8_0   32 at a time: d = max |x| / 127, kept as float16         for Q4_0, Q8_0, IQ4_NL, MXFP4 …
    Q8_K   256 at a time: d = extreme / -127, kept as float32       for the K-quants and IQ4_XS

What a block holds there lies here in planes, with rows padded to a multiple of 256 columns, and zero rows after them:

    levels   (n, cols) int8                    x ≈ scale · level
    scales   (n, cols / group) float32         group: 16 or 32, whatever the weights have
    sums     (n, cols / group) int32           of the levels of each group
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.kquants.tiles import nearest_wrapped
from ggufkit.kernels.blocks import finite_level
from ggufkit.kernels.dot import TOKENS, sum_lanes
from ggufkit.kernels.jit import kernel
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
    to_i32,
    total,
)
from ggufkit.kernels.threads import for_ranges
from ggufkit.runtime.cpu.products import UNIT

_ZERO, _TOP = np.float32(0), np.float32(127)


@kernel
def _spoiled(x, at, count):
    """0, or NaN if one of `count` values is infinite or NaN: a product must not lose that."""
    spoil = splat(_ZERO)
    for i in range(at, at + count, LANES):
        spoil = spoil + load(x, i) * splat(_ZERO)
    return sum_lanes(spoil)


@kernel
def quantize_q8_0(x, levels, scales, sums):
    """As quantize_row_q8_0 of llama.cpp's x86-64 build does: levels to nearest, ties to even.

    x: (n, cols) float32; levels: (n, cols) int8; scales, sums: (n, cols / 32).
    """
    values, bytes_, scales, sums = x.reshape(-1), levels.reshape(-1), scales.reshape(-1), sums.reshape(-1)
    for block in range(values.size // 32):
        at = 32 * block
        low, high = load(values, at), load(values, at + LANES)
        largest = highest(maximum(fabs(low), fabs(high)))
        inverse = splat(_TOP / largest if largest > _ZERO else _ZERO)
        low = to_i32(finite_level(nearest_int(low * inverse)))
        high = to_i32(finite_level(nearest_int(high * inverse)))
        store(bytes_, at, low)
        store(bytes_, at + LANES, high)
        scales[block] = half_to_float(float_to_half(largest / _TOP)) + _spoiled(values, at, 32)
        sums[block] = total(low + high)


@kernel
def quantize_q8_k(x, levels, scales, sums):
    """As quantize_row_q8_K_ref does. x: (n, cols) float32; levels: (n, cols) int8; scales, sums: a group each."""
    groups = sums.shape[1] * 256 // x.shape[1]  # in 256 columns
    values, bytes_, scales, sums = x.reshape(-1), levels.reshape(-1), scales.reshape(-1), sums.reshape(-1)
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
            for i in range(256 // groups * g, 256 // groups * (g + 1), LANES):
                some = some + load(bytes_, i)
            sums[g] = total(some)


@kernel
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


def quantize(x: np.ndarray, form: str, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of activations as planes.

    Parameters
    ----------
    x : array of shape (n, cols), float32.
    form : ``"Q8_0"`` or ``"Q8_K"``.
    group : 16 or 32 columns that have a scale and a sum of their own.

    Returns
    -------
    levels : array of shape (tokens, cols), int8. One row stays one; more are made a multiple of TOKENS with zeros,
        and columns a multiple of 256.
    scales, sums : arrays of shape (tokens · groups + 16,), float32 and int32.
    """
    n, cols = x.shape
    tokens, padded = n if n == 1 else -(-n // TOKENS) * TOKENS, -(-cols // UNIT) * UNIT
    if padded != cols:
        x = np.pad(x, ((0, 0), (0, padded - cols)))
    groups = padded // group
    levels = np.zeros((tokens, padded), np.int8)
    scales, sums = np.zeros(tokens * groups + 16, np.float32), np.zeros(tokens * groups + 16, np.int32)
    planes = [plane[: tokens * groups].reshape(tokens, groups) for plane in (scales, sums)]
    run = quantize_q8_0 if form == "Q8_0" else quantize_q8_k
    for_ranges(lambda lo, hi: run(x[lo:hi], levels[lo:hi], planes[0][lo:hi], planes[1][lo:hi]), n, 64)
    return levels, scales, sums


def padded(x: np.ndarray) -> np.ndarray:
    """x with zeros to a multiple of TOKENS rows and of 16 columns."""
    n, cols = x.shape
    return np.ascontiguousarray(np.pad(x, ((0, -n % TOKENS), (0, -cols % LANES))))
