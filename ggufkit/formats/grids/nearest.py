"""What kernels that round sixteen rows of a matrix at a time have in common: the nearest of what a grid has.

Row k of a tile is in lane k. Rows do not know of one another, so every lane does what a row alone would. All arrays but
the tables are flat, in tiles of sixteen rows:

    column c of tile t         16 numbers from (t · columns + c) · 16 on
    sub-block s, block b       the same with the number of sub-blocks, or blocks, in place of columns
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ggufkit.kernels.jit import helper, inlined
from ggufkit.kernels.lanes import (
    fabs,
    fma,
    gather,
    load,
    maximum,
    minimum,
    nearest_int,
    permute,
    select,
    splat,
    store,
)

__all__ = [
    "LITTLE",
    "MUCH",
    "ONE",
    "TWO",
    "ZERO",
    "Chosen",
    "Tables",
    "inverse_of",
    "nearest_rows",
    "nearest_unit",
    "row_norms",
    "step_of",
]

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
MUCH, LITTLE = np.float32(3e38), np.float32(1e-30)


class Tables(NamedTuple):
    """A grid's tables, float32: `steps`; `levels`, 16 or more; `middles`; the codebook's rows, flat."""

    steps: np.ndarray
    levels: np.ndarray
    middles: np.ndarray
    book: np.ndarray


class Chosen(NamedTuple):
    """What has been chosen for the columns of a chunk, in tiles.

    values, units : of each column, float32. d, dmin : of each block, float32. scales, mins : of each sub-block, int32.
    rows : of the codebook, for each 4 or 8 columns, int32. signs : of each 8 columns, int32.
    """

    values: np.ndarray
    units: np.ndarray
    d: np.ndarray
    dmin: np.ndarray
    scales: np.ndarray
    mins: np.ndarray
    rows: np.ndarray
    signs: np.ndarray


@inlined
def nearest_unit(v, g, t):
    """The level nearest to v."""
    if g.spacing != ZERO:
        i = (v - splat(g.first)) * splat(ONE / g.spacing)
        i = nearest_int(minimum(maximum(i, splat(ZERO)), splat(np.float32(g.levels - 1))))
        return splat(g.first) + i * splat(g.spacing)
    index = splat(np.int32(0))
    for k in range(g.levels - 1):
        index = select(v > splat(t.middles[k]), index + splat(np.int32(1)), index)
    return permute(load(t.levels, 0), index)


@inlined
def inverse_of(step):
    return select(fabs(step) > splat(ZERO), splat(ONE) / step, splat(ZERO))


@inlined
def step_of(d, scale, g, t):
    return d * gather(t.steps, scale - splat(np.int32(g.low)))


@helper
def row_norms(weight, g, t, columns, out):
    """Σ w b² of every row of the codebook at every group: (columns / dims, rows)."""
    rows = t.book.shape[0] // g.dims
    for group in range(columns // g.dims):
        for r in range(rows):
            total = ZERO
            for k in range(g.dims):
                b = t.book[r * g.dims + k]
                total += weight[group * g.dims + k] * b * b
            out[group * rows + r] = total


@helper
def _best_of_8(a, book, norms, at, rows):
    """The row with the least norm + a · row; a: (8, 16)."""
    a0, a1, a2, a3 = load(a, 0), load(a, 16), load(a, 32), load(a, 48)
    a4, a5, a6, a7 = load(a, 64), load(a, 80), load(a, 96), load(a, 112)
    best, found = splat(MUCH), splat(np.int32(0))
    for r in range(rows):
        o = r * 8
        x = fma(a0, splat(book[o]), splat(norms[at + r]))
        y = a1 * splat(book[o + 1])
        x, y = fma(a2, splat(book[o + 2]), x), fma(a3, splat(book[o + 3]), y)
        x, y = fma(a4, splat(book[o + 4]), x), fma(a5, splat(book[o + 5]), y)
        x, y = fma(a6, splat(book[o + 6]), x), fma(a7, splat(book[o + 7]), y)
        cost = x + y
        better = cost < best
        best, found = select(better, cost, best), select(better, splat(np.int32(r)), found)
    return found


@helper
def _best_of_4(a, first, book, norms, at, rows):
    """The same for four numbers from `first` on."""
    a0, a1, a2, a3 = load(a, first), load(a, first + 16), load(a, first + 32), load(a, first + 48)
    best, found = splat(MUCH), splat(np.int32(0))
    for r in range(rows):
        o = r * 4
        x = fma(a0, splat(book[o]), splat(norms[at + r]))
        y = a1 * splat(book[o + 1])
        cost = fma(a2, splat(book[o + 2]), x) + fma(a3, splat(book[o + 3]), y)
        better = cost < best
        best, found = select(better, cost, best), select(better, splat(np.int32(r)), found)
    return found


@helper
def nearest_rows(x, at, weight, c, step, g, t, norms, a, units, rows):
    """Signed codebook rows for eight columns from c on: their signs.

    x : flat, the columns' numbers from `at` on. weight : of the chunk's columns. norms : of `row_norms`.
    a : scratch (8, 16). units : (8, 16), and rows : (8 / dims, 16) int32, to write.
    """
    inverse = inverse_of(step)
    signs, odd = splat(np.int32(0)), splat(np.int32(0))
    least, weakest = splat(MUCH), splat(np.int32(0))
    one = splat(np.int32(1))
    for k in range(8):
        v = load(x, at + 16 * k)
        negative = v < splat(ZERO)
        signs = select(negative, signs | splat(np.int32(1 << k)), signs)
        odd = select(negative, odd ^ one, odd)
        cost = v * v * splat(weight[c + k])
        less = cost < least
        least, weakest = select(less, cost, least), select(less, splat(np.int32(k)), weakest)
        store(a, 16 * k, fabs(v) * inverse)
    if g.even:
        # Turn the sign that costs least where the number of minus signs is odd.
        turn = odd == one
        signs = select(turn, signs ^ (one << weakest), signs)
        for k in range(8):
            v = load(a, 16 * k)
            store(a, 16 * k, select(turn & (weakest == splat(np.int32(k))), -v, v))
    for k in range(8):
        store(a, 16 * k, load(a, 16 * k) * splat(-TWO * weight[c + k]))
    count = t.book.shape[0] // g.dims
    parts = 8 // g.dims
    for part in range(parts):
        group = (c // 8 * parts + part) * count
        if g.dims == 8:
            found = _best_of_8(a, t.book, norms, group, count)
        else:
            found = _best_of_4(a, 64 * part, t.book, norms, group, count)
        store(rows, 16 * part, found)
        first = found * splat(np.int32(g.dims))
        for k in range(g.dims):
            i = part * g.dims + k
            b = gather(t.book, first + splat(np.int32(k)))
            minus = (signs & splat(np.int32(1 << i))) != splat(np.int32(0))
            store(units, 16 * i, select(minus, -b, b))
    return signs
