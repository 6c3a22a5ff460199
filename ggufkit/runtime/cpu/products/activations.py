"""Activations as bytes, the way llama.cpp quantizes them for each kind of weight.

    Q8_0   32 at a time: d = max |x| / 127, kept as float16         for Q4_0, Q8_0, IQ4_NL, MXFP4 …
    Q8_K   256 at a time: d = extreme / -127, kept as float32       for the K-quants and IQ4_XS

What a block holds there lies here in planes, with rows padded to a multiple of 256 columns, and zero rows after them:

    levels   (n, cols) int8                    x ≈ scale · level
    scales   (n, cols / group) float32         group: 16 or 32, whatever the weights have
    counts   (n, cols / group) int32           sums of the levels of each group
    sums     (n, cols / group) float32         scale · count
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ggufkit.formats.codec import frozen
from ggufkit.formats.tiles import nearest_wrapped
from ggufkit.kernels.blocks import finite_level
from ggufkit.kernels.dot import TOKENS
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
from ggufkit.kernels.threads import for_ranges
from ggufkit.runtime.cpu.products import UNIT

_RANGE = 1 << 17  # activations that a thread takes at once
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

    x: (n, cols) float32; levels: (n, cols) int8; the others: flat.
    """
    values, bytes_ = x.reshape(-1), levels.reshape(-1)
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
        counts[block] = total(low + high)
        sums[block] = scales[block] * np.float32(counts[block])


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


class Planes(NamedTuple):
    """Quantized rows of activations."""

    levels: np.ndarray
    scales: np.ndarray
    counts: np.ndarray
    sums: np.ndarray


def quantize(x: np.ndarray, form: str, group: int, threads: int | None = None) -> Planes:
    """Rows of activations as planes.

    Parameters
    ----------
    x : array of shape (n, cols), float32, read-only.
    form : ``"Q8_0"`` or ``"Q8_K"``.
    group : 16 or 32 columns that have a scale and a sum of their own.

    Returns
    -------
    levels : array of shape (tokens, cols), int8. One row stays one; more are made a multiple of TOKENS with zeros,
        and columns a multiple of 256.
    scales, counts, sums : arrays of shape (tokens · groups + 16,).
    """
    n, cols = x.shape
    tokens, wide = n if n == 1 else -(-n // TOKENS) * TOKENS, -(-cols // UNIT) * UNIT
    if wide != cols:
        x = frozen(np.pad(x, ((0, 0), (0, wide - cols))))
    groups = wide // group
    levels, counts = np.zeros((tokens, wide), np.int8), np.zeros(tokens * groups + 16, np.int32)
    scales, sums = np.zeros((2, tokens * groups + 16), np.float32)

    planes = Planes(levels, scales, counts, sums)
    if n * wide <= _RANGE:
        _quantize(x, form, group, planes)
    else:
        for_ranges(
            lambda lo, hi: _quantize(x[lo:hi], form, group, _rows_of(planes, lo, hi, groups)),
            n,
            max(1, _RANGE // wide),
            threads,
        )
    return planes


def _rows_of(planes: Planes, lo: int, hi: int, groups: int) -> Planes:
    levels, *flat = planes
    return Planes(levels[lo:hi], *(plane[lo * groups : hi * groups] for plane in flat))


def _quantize(x: np.ndarray, form: str, group: int, planes: Planes) -> None:
    if form == "Q8_0":
        quantize_q8_0(x, *planes)
    else:
        quantize_q8_k(x, group, *planes)


def rounded(x: np.ndarray, form: str) -> np.ndarray:
    """x rounded to ``"F16"`` or ``"BF16"``, in the order of `products.rounded`.

    Returns
    -------
    array of shape (tokens, cols), float32, tokens made a multiple of 4 with zeros. Of 32 columns of BF16 those with
    odd numbers come first.
    """
    n, cols = x.shape
    if form == "F16":
        with np.errstate(over="ignore"):
            x = x.astype(np.float16).astype(np.float32)
    else:
        import ml_dtypes

        pairs = x.astype(ml_dtypes.bfloat16).astype(np.float32).reshape(n, cols // 32, LANES, 2)
        x = pairs[..., ::-1].swapaxes(2, 3).reshape(n, cols)
    return frozen(np.pad(x, ((0, -n % 4), (0, 0))))


def padded(x: np.ndarray) -> np.ndarray:
    """x with zeros to a multiple of TOKENS rows and of 16 columns."""
    n, cols = x.shape
    return frozen(np.pad(x, ((0, -n % TOKENS), (0, -cols % LANES))))
