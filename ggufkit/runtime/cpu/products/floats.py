"""F32, F16, BF16, and rows that were decoded: activations stay float32, and so do the sums.

`lanes_at` and `one_at` are given by the format: sixteen weights, or one, of `data` as float32. The loops are those of
`loops`, with columns in place of units:

    vector    64 columns at a time in four sums of 16 lanes
    few       the same for a few rows of x
    matrix    weights (cols, 16) float32 for each panel of 16 rows
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.dot import PANELS, TOKENS, add_products, prefetch, zero_tile
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
    sum_lanes,
    transpose,
)
from ggufkit.kernels.shares import take
from ggufkit.runtime.cpu.products import Product
from ggufkit.runtime.cpu.products.loops import AHEAD, put_tile, share

_PACKED = 1 << 17  # weights that stay in a core's cache
_ZERO = np.float32(0)

# Bound by each format.
DTYPE = np.float32
lanes_at = one_at = load


def vector(turn, data, rows, x, out):
    """out[r] = row r · x. data: flat bytes; x: (1, cols) float32; out: (1, rows) float32."""
    weights, values, result = data.view(DTYPE), x.reshape(-1), out.reshape(-1)
    cols = values.size
    whole = cols - cols % 64
    grain = share(turn, rows, cols * weights.itemsize)
    first = take(turn, grain)
    while first < rows:
        end = min(first + grain, rows)
        for r in range(first, end):
            a = b = c = d = splat(_ZERO)
            at = r * cols
            for i in range(0, whole, 64):
                for k in range(0, 64 * weights.itemsize, 64):
                    prefetch(data, (at + i) * weights.itemsize + AHEAD + k)
                a = multiply_add(lanes_at(weights, at + i), load(values, i), a)
                b = multiply_add(lanes_at(weights, at + i + 16), load(values, i + 16), b)
                c = multiply_add(lanes_at(weights, at + i + 32), load(values, i + 32), c)
                d = multiply_add(lanes_at(weights, at + i + 48), load(values, i + 48), d)
            rest = _ZERO
            for i in range(whole, cols):
                rest += one_at(weights, at + i) * values[i]
            result[r] = sum_lanes((a + b) + (c + d)) + rest
        grain = share(turn, rows, cols * weights.itemsize)
        first = take(turn, grain)


def few(turn, data, rows, x, out):
    """As `vector` for the n rows of `out`, four at a time; x as in `matrix`."""
    weights, values, columns, n = data.view(DTYPE), x.reshape(-1), x.shape[1], out.shape[0]
    cols = weights.size // rows
    whole = cols - cols % 32
    grain = share(turn, rows, cols * weights.itemsize)
    first = take(turn, grain)
    while first < rows:
        end = min(first + grain, rows)
        for r in range(first, end):
            at = r * cols
            for t in range(0, n, 4):
                # Of fewer than four the last is taken again.
                p, q = t * columns, min(t + 1, n - 1) * columns
                v, w = min(t + 2, n - 1) * columns, min(t + 3, n - 1) * columns
                a = b = c = d = e = f = g = h = splat(_ZERO)
                for i in range(0, whole, 32):
                    if i % 64 == 0:
                        for k in range(0, 64 * weights.itemsize, 64):
                            prefetch(data, (at + i) * weights.itemsize + AHEAD + k)
                    low, high = lanes_at(weights, at + i), lanes_at(weights, at + i + 16)
                    a, b = multiply_add(low, load(values, p + i), a), multiply_add(high, load(values, p + i + 16), b)
                    c, d = multiply_add(low, load(values, q + i), c), multiply_add(high, load(values, q + i + 16), d)
                    e, f = multiply_add(low, load(values, v + i), e), multiply_add(high, load(values, v + i + 16), f)
                    g, h = multiply_add(low, load(values, w + i), g), multiply_add(high, load(values, w + i + 16), h)
                for k, total in enumerate((a + b, c + d, e + f, g + h)):
                    if t + k < n:
                        rest = _ZERO
                        for i in range(whole, cols):
                            rest += one_at(weights, at + i) * values[(t + k) * columns + i]
                        out[t + k, r] = sum_lanes(total) + rest
        grain = share(turn, rows, cols * weights.itemsize)
        first = take(turn, grain)


def matrix(turn, data, rows, x, out):
    """out[t, r] = row r · x[t]. x: (tokens, columns) float32, zeros beyond n and cols; out: (n, rows) float32.

    tokens is a multiple of TOKENS, columns one of 16.
    """
    weights, values, columns = data.view(DTYPE), x.reshape(-1), x.shape[1]
    cols = weights.size // rows
    whole = cols - cols % LANES
    panel_rows = LANES * PANELS
    grain = min(max(_PACKED // columns // panel_rows, 1), 4) * panel_rows
    W = np.zeros(grain * columns, np.float32)
    T, edge = np.zeros(LANES * LANES, np.float32), np.empty(TOKENS * panel_rows, np.float32)
    first = take(turn, grain)
    while first < rows:
        last = min(first + grain, rows)
        panels = (last - first + panel_rows - 1) // panel_rows * PANELS
        for p in range(panels):
            for i in range(0, columns, LANES):
                for k in range(LANES):
                    at = min(first + p * LANES + k, rows - 1) * cols + i
                    if i < whole:
                        store(T, k * LANES, lanes_at(weights, at))
                    else:
                        for j in range(LANES):
                            T[k * LANES + j] = one_at(weights, at + j) if i + j < cols else _ZERO
                transpose(T, 0, LANES, W, (p * columns + i) * LANES)
        for t in range(0, x.shape[0], TOKENS):
            for p in range(0, panels, PANELS):
                totals = zero_tile()
                for i in range(0, columns, 4):
                    w = (p * columns + i) * LANES
                    totals = add_products(totals, W, w, columns * LANES, values, t * columns + i, columns)
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
    prefix = name.lower()
    return Product(
        specialised(vector, f"{prefix}_vector", __file__, **names),
        specialised(few, f"{prefix}_few", __file__, **names),
        specialised(matrix, f"{prefix}_matrix", __file__, **names),
    )


F32 = _products_of("F32", np.float32, load, _f32_one)

PRODUCTS = {
    "F32": F32,
    "F16": _products_of("F16", np.uint16, load_half, _f16_one),
    "BF16": _products_of("BF16", np.uint16, _bf16_lanes, _bf16_one),
}
