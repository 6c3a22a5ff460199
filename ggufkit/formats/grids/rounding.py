"""GPTQ's kernel: columns one after the other, each error fed on to the columns to come.

At each sub-block the scale and min are searched again on what the weights have become. Of a codebook eight columns are
chosen at once. See `nearest` for how arrays lie.

Source: Frantar et al., "GPTQ", 2022; Chee et al., "QuIP", 2023 (LDLQ).
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.grids.nearest import MUCH, ZERO, inverse_of, nearest_rows, nearest_unit, row_norms, step_of
from ggufkit.kernels.jit import helper, inlined, kernel
from ggufkit.kernels.lanes import (
    fabs,
    fma,
    load,
    maximum,
    minimum,
    nearest_int,
    select,
    splat,
    store,
    to_f32,
    to_i32,
)

__all__ = ["round_block"]


@inlined
def _min_for(x, at, weight, s, g, t, step, inverse, m, low):
    """The integer min that fits a sub-block's levels with this step best, in two rounds."""
    total = ZERO
    for c in range(g.sub):
        total += weight[s + c]
    divisor = inverse_of(m * splat(total))
    for _ in range(2):
        pull = splat(ZERO)
        offset = m * low
        for c in range(g.sub):
            v = load(x, at + 16 * c)
            unit = nearest_unit((v + offset) * inverse, g, t)
            pull = fma(step * unit - v, splat(weight[s + c]), pull)
        low = nearest_int(minimum(maximum(pull * divisor, splat(ZERO)), splat(np.float32(g.mins))))
    return low


@helper
def _error(x, at, weight, s, g, t, step, offset, norms, a, units, rows):
    """Σ w (x − v)² of a sub-block that is rounded with this step and offset."""
    total, inverse = splat(ZERO), inverse_of(step)
    if g.dims:
        for c in range(0, g.sub, 8):
            nearest_rows(x, at + 16 * c, weight, s + c, step, g, t, norms, a, units, rows)
            for k in range(8):
                e = load(x, at + 16 * (c + k)) - step * load(units, 16 * k)
                total = fma(e * e, splat(weight[s + c + k]), total)
    else:
        for c in range(g.sub):
            v = load(x, at + 16 * c)
            e = v - (step * nearest_unit((v + offset) * inverse, g, t) - offset)
            total = fma(e * e, splat(weight[s + c]), total)
    return total


@inlined
def _feed(x, base, E, s, g, feed, columns):
    """What the errors E of a sub-block, (sub, 16), do to the columns behind it."""
    for k in range(s + g.sub, columns, 4):
        to = base + 16 * k
        x0, x1, x2, x3 = load(x, to), load(x, to + 16), load(x, to + 32), load(x, to + 48)
        for c in range(g.sub):
            e, f = load(E, 16 * c), (s + c) * columns + k
            x0, x1 = fma(e, splat(feed[f]), x0), fma(e, splat(feed[f + 1]), x1)
            x2, x3 = fma(e, splat(feed[f + 2]), x2), fma(e, splat(feed[f + 3]), x3)
        store(x, to, x0)
        store(x, to + 16, x1)
        store(x, to + 32, x2)
        store(x, to + 48, x3)


@kernel
def round_block(x, feed, weight, at, g, t, q):
    """Round the columns of the block from `at` on of a chunk, whose d, dmin, scales and mins are there to begin with.

    Parameters
    ----------
    x : the current weights of the chunk, in tiles; columns to come take the errors.
    feed : (columns, columns) flat: −U_jk / U_jj, what a column's error does to later ones.
    weight : (columns,): 1 / U_jj².
    g, t : `Shape` and `Tables` of the grid.
    q : `Chosen`, changed.
    """
    columns = weight.shape[0]
    tiles, subs, blocks = x.shape[0] // (16 * columns), columns // g.sub, columns // g.block
    width, parts = (8, 8 // g.dims) if g.dims else (1, 1)
    E, a = np.empty(16 * g.sub, np.float32), np.empty(128, np.float32)
    units, rows = np.empty(128, np.float32), np.empty(32, np.int32)
    norms = np.empty(columns // g.dims * (t.book.shape[0] // g.dims) if g.dims else 1, np.float32)
    if g.dims:
        row_norms(weight, g, t, columns, norms)
    for tile in range(tiles):
        base = tile * columns * 16
        b = (tile * blocks + at // g.block) * 16
        d, m = load(q.d, b), load(q.dmin, b)
        for s in range(at, at + g.block, g.sub):
            here, j = base + 16 * s, (tile * subs + s // g.sub) * 16
            given, low = load(q.scales, j), to_f32(load(q.mins, j))
            scale = given
            if g.radius:
                least, found_low = splat(MUCH), low
                for change in range(-g.radius, g.radius + 1):
                    tried = minimum(
                        maximum(given + splat(np.int32(change)), splat(np.int32(g.low))), splat(np.int32(g.high))
                    )
                    step, n = step_of(d, tried, g, t), low
                    if g.mins:
                        n = _min_for(x, here, weight, s, g, t, step, inverse_of(step), m, low)
                    error = _error(x, here, weight, s, g, t, step, m * n, norms, a, units, rows)
                    better = (error < least) & (fabs(step) > splat(ZERO))
                    least, found_low = select(better, error, least), select(better, n, found_low)
                    scale = select(better, tried, scale)
                low = found_low
                store(q.scales, j, scale)
                store(q.mins, j, to_i32(low))
            step, offset = step_of(d, scale, g, t), m * low
            inverse = inverse_of(step)
            for c in range(0, g.sub, width):
                if g.dims:
                    signs = nearest_rows(x, here + 16 * c, weight, s + c, step, g, t, norms, a, units, rows)
                    group = (base // 16 + s + c) // 8
                    store(q.signs, group * 16, signs)
                    for part in range(parts):
                        store(q.rows, (group * parts + part) * 16, load(rows, 16 * part))
                else:
                    store(units, 0, nearest_unit((load(x, here + 16 * c) + offset) * inverse, g, t))
                for i in range(c, c + width):
                    unit = load(units, 16 * (i - c))
                    value = step * unit - offset
                    e = load(x, here + 16 * i) - value
                    store(q.units, here + 16 * i, unit)
                    store(q.values, here + 16 * i, value)
                    store(E, 16 * i, e)
                    for k in range(i + 1, g.sub):
                        to = here + 16 * k
                        store(x, to, fma(e, splat(feed[(s + i) * columns + s + k]), load(x, to)))
            _feed(x, base, E, s, g, feed, columns)
