"""F32, F16, BF16, and rows that were decoded: activations stay float32, and so do the sums.

`lanes_at` and `one_at` are given by the format: sixteen weights, or one, of `data` as float32. The loops are those of
`loops`, with columns in place of units:

    vector    32 columns at a time in two sums of 16 lanes
    few       the same for a few rows of x; what passes of weights, meets them all
    matrix    weights (32, cols / 32, 16) float32 for each panel of 16 rows: of every 32nd column a sum

In all three the products of every 32nd column are added one after the other, and then the 32 sums, neighbours first.
"""

from __future__ import annotations

from types import FunctionType

import numpy as np

from ggufkit.kernels.dot import (
    FEW_COLUMNS,
    FEW_ROWS,
    PANELS,
    TOGETHER,
    TOKENS,
    add_few,
    add_product,
    load_few,
    prefetch,
    store_few,
    sum_pairs_16,
    sum_rows,
    zero_tile,
)
from ggufkit.kernels.jit import inlined, specialised
from ggufkit.kernels.lanes import (
    LANES,
    bits_f32,
    half_to_float,
    lane,
    load,
    load_half,
    multiply_add,
    splat,
    store,
    untranspose,
)
from ggufkit.kernels.shares import take
from ggufkit.runtime.cpu.products import COLUMNS, Product
from ggufkit.runtime.cpu.products.loops import AHEAD, add_pairs, on_lines, put_tile, share

_PACKED = 1 << 17  # weights that stay in a core's cache
_CLOSE = 1 << 12  # activations that stay in its first cache
_AHEAD = 8  # rows of weights that are asked for before they are needed
_FEW = 10  # rows of activations: measured
_ZERO = np.float32(0)

# Bound by each format.
DTYPE = np.float32
lanes_at = one_at = both = load


def vector(turn, data, rows, x, out):
    """out[r] = row r · x. data: flat bytes; x: (1, cols) float32; out: (1, rows) float32."""
    weights, values, result = data.view(DTYPE), x.reshape(-1), out.reshape(-1)
    cols = values.size
    whole = cols - cols % COLUMNS
    W, X = np.zeros(COLUMNS, np.float32), np.zeros(COLUMNS, np.float32)  # the columns that are left
    for i in range(whole, cols):
        X[i - whole] = values[i]
    grain = share(turn, rows, cols * weights.itemsize)
    first = take(turn, grain)
    while first < rows:
        end = min(first + grain, rows)
        for r in range(first, end):
            a = b = splat(_ZERO)
            at = r * cols
            for i in range(0, whole, COLUMNS):
                for k in range(0, COLUMNS * weights.itemsize, 64):
                    prefetch(data, (at + i) * weights.itemsize + AHEAD + k)
                a = multiply_add(lanes_at(weights, at + i), load(values, i), a)
                b = multiply_add(lanes_at(weights, at + i + 16), load(values, i + 16), b)
            if whole < cols:
                for i in range(whole, cols):
                    W[i - whole] = one_at(weights, at + i)
                a = multiply_add(load(W, 0), load(X, 0), a)
                b = multiply_add(load(W, 16), load(X, 16), b)
            result[r] = sum_pairs_16(a) + sum_pairs_16(b)
        grain = share(turn, rows, cols * weights.itemsize)
        first = take(turn, grain)


def few(turn, data, rows, x, out):
    """As `vector` for the n rows of x and `out`, TOGETHER at a time.

    Sixteen rows of weights take their products with so many columns as stay close to the core, then with the next.
    """
    weights, values, result = data.view(DTYPE), x.reshape(-1), out.reshape(-1)
    n, cols = x.shape
    whole, width = cols - cols % COLUMNS, (cols + COLUMNS - 1) // COLUMNS * COLUMNS
    tokens = (n + TOGETHER - 1) // TOGETHER * TOGETHER
    X, W, edge = on_lines(tokens * width), np.zeros(COLUMNS, np.float32), np.empty(LANES, np.float32)
    X[:] = _ZERO
    for t in range(n):
        for i in range(cols):
            X[t * width + i] = values[t * cols + i]
    chunk, row = _CLOSE // tokens // COLUMNS * COLUMNS, tokens * COLUMNS
    sums = on_lines(LANES * row)  # 32 for each row of weights and of x
    grain = share(turn, rows, cols * weights.itemsize)
    first = take(turn, grain)
    while first < rows:
        end = min(first + grain, rows)
        for top in range(first, end, LANES):
            bottom = min(top + LANES, end)
            sums[:] = _ZERO
            for begin in range(0, whole, chunk):
                for r in range(top, bottom, FEW_ROWS):
                    at, other = r * cols, min(r + 1, bottom - 1) * cols
                    for t in range(0, tokens, TOGETHER):
                        for part in range(0, COLUMNS, FEW_COLUMNS):
                            to = (r - top) * row + t * COLUMNS + part
                            totals = load_few(sums, to, row, COLUMNS)
                            for i in range(begin + part, min(begin + chunk, whole), COLUMNS):
                                for k in range(0, FEW_COLUMNS * weights.itemsize, 64):
                                    for later in range(_AHEAD, _AHEAD + FEW_ROWS):
                                        prefetch(data, (at + later * cols + i) * weights.itemsize + k)
                                totals = add_few(totals, both(weights, at + i, other + i), X, t * width + i, width)
                            store_few(sums, to, row, COLUMNS, totals)
            for r in range(top, bottom if whole < cols else top):
                for i in range(whole, cols):  # the columns that are left
                    W[i - whole] = one_at(weights, r * cols + i)
                for i in range(0, row, LANES):
                    at = (r - top) * row + i
                    left = load(X, i // COLUMNS * width + whole + i % COLUMNS)
                    store(sums, at, multiply_add(load(W, i % COLUMNS), left, load(sums, at)))
            for t in range(n):
                total = sum_rows(sums, t * COLUMNS, row) + sum_rows(sums, t * COLUMNS + LANES, row)
                if bottom - top == LANES:
                    store(result, t * rows + top, total)
                else:
                    store(edge, 0, total)
                    for r in range(top, bottom):
                        result[t * rows + r] = edge[r - top]
        grain = share(turn, rows, cols * weights.itemsize)
        first = take(turn, grain)


def _both_weights(weights, at, other):
    """Those of a tile of `few`."""
    if FEW_ROWS == 1:
        return (lanes_at(weights, at),)
    return (
        lanes_at(weights, at),
        lanes_at(weights, at + LANES),
        lanes_at(weights, other),
        lanes_at(weights, other + LANES),
    )


def matrix(turn, data, rows, x, out):
    """out[t, r] = row r · x[t]. x: (tokens, 32, columns / 32) float32, zeros beyond n and cols; out: (n, rows) float32.

    tokens is a multiple of TOKENS.
    """
    weights, values, runs = data.view(DTYPE), x.reshape(-1), x.shape[2]
    cols, columns = weights.size // rows, COLUMNS * runs
    whole = cols - cols % LANES
    panel_rows = LANES * PANELS
    grain = min(max(_PACKED // columns // panel_rows, 1), 4) * panel_rows
    # Columns lie an odd number of vectors apart: by a power of two they would push each other out of the caches.
    apart = runs | 1
    panel = COLUMNS * apart * LANES
    W = np.zeros(grain // LANES * panel, np.float32)
    T, edge = np.zeros(LANES * COLUMNS, np.float32), np.empty(TOKENS * panel_rows, np.float32)
    waiting = np.empty(6 * edge.size, np.float32)
    first = take(turn, grain)
    while first < rows:
        last = min(first + grain, rows)
        panels = (last - first + panel_rows - 1) // panel_rows * PANELS
        for p in range(panels):
            for run in range(runs):
                for k in range(LANES):
                    at = min(first + p * LANES + k, rows - 1) * cols
                    for half in range(0, COLUMNS, LANES):
                        i, to = run * COLUMNS + half, (half + k) * LANES
                        if i < whole:
                            store(T, to, lanes_at(weights, at + i))
                        else:
                            for j in range(LANES):
                                T[to + j] = one_at(weights, at + i + j) if i + j < cols else _ZERO
                for half in range(0, COLUMNS, LANES):
                    untranspose(T, half * LANES, W, p * panel + (half * apart + run) * LANES, apart * LANES)
        for t in range(0, x.shape[0], TOKENS):
            for p in range(0, panels, PANELS):
                for c in range(COLUMNS):
                    totals = zero_tile()
                    for k in range(runs):
                        at, to = p * panel + (c * apart + k) * LANES, t * columns + c * runs + k
                        totals = add_product(totals, W, at, panel, values, to, columns)
                    totals = add_pairs(totals, c, waiting, edge.size)
                put_tile(totals, t, first + p * LANES, edge, out)
        first = take(turn, grain)


@inlined
def _f32_one(weights, at):
    return weights[at]


@inlined
def _f16_one(weights, at):
    return half_to_float(weights[at])


@inlined
def _bf16_lanes(weights, at):
    return bits_f32(load(weights, at) << splat(np.int32(16)))


@inlined
def _bf16_one(weights, at):
    return lane(bits_f32(splat(np.int32(weights[at]) << np.int32(16))), 0)


def _products_of(name: str, dtype: type, lanes: object, one: object) -> Product:
    names = {"DTYPE": dtype, "lanes_at": lanes, "one_at": one}
    both = FunctionType(_both_weights.__code__, {**_both_weights.__globals__, **names}, "both")
    names["both"] = inlined(both)
    prefix = name.lower()
    return Product(
        specialised(vector, f"{prefix}_vector", __file__, **names),
        specialised(few, f"{prefix}_few", __file__, **names),
        specialised(matrix, f"{prefix}_matrix", __file__, **names),
        few_rows=_FEW,
    )


F32 = _products_of("F32", np.float32, load, _f32_one)

PRODUCTS = {
    "F32": F32,
    "F16": _products_of("F16", np.uint16, load_half, _f16_one),
    "BF16": _products_of("BF16", np.uint16, _bf16_lanes, _bf16_one),
}
