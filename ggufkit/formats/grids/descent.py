"""Descent's kernel: moves of single numbers that lower the loss of a row.

With Γ = (W − V) H, changing the entries S of a row of V by δ changes its loss by −2 δ·Γ_S + δ H_SS δᵀ. Levels, rows of
the codebook, scales, mins, d and dmin are moved where that is below zero. See `nearest` for how arrays lie.

Source: Behdin et al., "QuantEase", 2023.
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.grids.nearest import (
    LITTLE,
    ONE,
    TWO,
    ZERO,
    inverse_of,
    nearest_rows,
    nearest_unit,
    row_norms,
    step_of,
)
from ggufkit.kernels.jit import helper, inlined, kernel
from ggufkit.kernels.lanes import (
    any_lane,
    fabs,
    fma,
    load,
    load_half,
    maximum,
    minimum,
    nearest_int,
    select,
    splat,
    store,
    store_half,
    to_f32,
    to_i32,
)

__all__ = ["descend_block"]


@inlined
def _pass_on(y, base, change, s, count, H, columns, first, last):
    """y −= changes of `count` columns from s on, times H, at the columns first:last."""
    for k in range(first, last, 4):
        to = base + 16 * k
        y0, y1, y2, y3 = load(y, to), load(y, to + 16), load(y, to + 32), load(y, to + 48)
        for c in range(count):
            e, f = -load(change, 16 * c), (s + c) * columns + k
            y0, y1 = fma(e, splat(H[f]), y0), fma(e, splat(H[f + 1]), y1)
            y2, y3 = fma(e, splat(H[f + 2]), y2), fma(e, splat(H[f + 3]), y3)
        store(y, to, y0)
        store(y, to + 16, y1)
        store(y, to + 32, y2)
        store(y, to + 48, y3)


@helper
def _move_level(y, here, base, c, s, g, t, H, columns, step, inverse, offset, q):
    """The level that is best for one column, the others given; how much its value changes."""
    value = load(q.values, here)
    target = value + load(y, here) / splat(H[c * columns + c])
    unit = nearest_unit((target + offset) * inverse, g, t)
    unit = select(fabs(step) > splat(ZERO), unit, load(q.units, here))
    new = step * unit - offset
    change = new - value
    if any_lane(change != splat(ZERO)):
        store(q.units, here, unit)
        store(q.values, here, new)
        for k in range(s, s + g.sub):
            to = base + 16 * k
            store(y, to, fma(-change, splat(H[c * columns + k]), load(y, to)))
    return change


@helper
def _move_rows(y, here, base, c, s, g, t, H, pairs, columns, step, norms, targets, a, units, rows, change, q):
    """Other codebook rows for eight columns from c on, where that is better: of two candidates.

    pairs : for each group the inverse of H's part, 64 numbers; then two weights for each column.
    change : (8, 16), what it does to the values.
    """
    parts = 8 // g.dims
    group = (base // 16 + c) // 8
    best = splat(ZERO)
    for k in range(8):
        store(change, 16 * k, splat(ZERO))
    inverses = columns * 8
    size = norms.shape[0] // 2
    for candidate in range(2):
        weight = pairs[inverses + candidate * columns : inverses + (candidate + 1) * columns]
        for i in range(8):
            pull = splat(ZERO)
            if candidate == 0:
                for k in range(8):
                    pull = fma(load(y, here + 16 * k), splat(pairs[(c // 8 * 8 + k) * 8 + i]), pull)
            else:
                pull = load(y, here + 16 * i) / splat(TWO * H[(c + i) * columns + c + i])
            store(targets, 16 * i, load(q.values, here + 16 * i) + pull)
        signs = nearest_rows(
            targets, 0, weight, c, step, g, t, norms[candidate * size : (candidate + 1) * size], a, units, rows
        )
        cost = splat(ZERO)
        for i in range(8):
            store(targets, 16 * i, step * load(units, 16 * i) - load(q.values, here + 16 * i))
        for i in range(8):
            total = splat(ZERO)
            for k in range(8):
                total = fma(load(targets, 16 * k), splat(H[(c + i) * columns + c + k]), total)
            cost = fma(total - splat(TWO) * load(y, here + 16 * i), load(targets, 16 * i), cost)
        better = (cost < best) & (step > splat(ZERO))
        if any_lane(better):
            best = select(better, cost, best)
            store(q.signs, group * 16, select(better, signs, load(q.signs, group * 16)))
            for part in range(parts):
                to = (group * parts + part) * 16
                store(q.rows, to, select(better, load(rows, 16 * part), load(q.rows, to)))
            for i in range(8):
                store(change, 16 * i, select(better, load(targets, 16 * i), load(change, 16 * i)))
                to = here + 16 * i
                store(q.units, to, select(better, load(units, 16 * i), load(q.units, to)))
    if any_lane(best < splat(ZERO)):
        for i in range(8):
            store(q.values, here + 16 * i, step * load(q.units, here + 16 * i))
        _pass_on(y, base, change, c, 8, H, columns, s, s + g.sub)


@helper
def _move_scale(y, base, s, j, g, t, H, columns, d, m, z, change, q):
    """Another integer scale and min for the sub-block from s on.

    With a the change of the step and o that of the offset, the loss changes by
    −2 (a p − o r) + a² A − 2 a o C + o² B, where p = u·y, r = Σ y, A = u H uᵀ, C = Σ u H, B = Σ H of the sub-block.

    z : scratch (sub, 16), uH. change : (sub, 16), to which the change of the values is added.
    """
    here = base + 16 * s
    A, C, B, p, r = splat(ZERO), splat(ZERO), ZERO, splat(ZERO), splat(ZERO)
    for i in range(g.sub):
        total, row = splat(ZERO), ZERO
        for k in range(g.sub):
            h = H[(s + k) * columns + s + i]
            total = fma(load(q.units, here + 16 * k), splat(h), total)
            row += h
        u, v = load(q.units, here + 16 * i), load(y, here + 16 * i)
        store(z, 16 * i, total)
        A, C, p, r = fma(total, u, A), C + total, fma(u, v, p), r + v
        B += row
    scale, low = load(q.scales, j), to_f32(load(q.mins, j))
    step = step_of(d, scale, g, t)
    inverse_m, per_b = inverse_of(m), splat(ONE / max(B, LITTLE))
    if g.mins:
        det = A * splat(B) - C * C
        ideal = (p * splat(B) - r * C) / det
        ideal = select(det > splat(LITTLE), ideal, splat(ZERO))
    else:
        ideal = select(splat(LITTLE) < A, p / A, splat(ZERO))
    centre = to_f32(scale)
    if g.slope != ZERO:
        centre = ((step + ideal) * inverse_of(d) - splat(g.base)) * splat(ONE / g.slope)
        centre = minimum(maximum(centre, splat(np.float32(g.low))), splat(np.float32(g.high)))
        centre = nearest_int(centre - splat(np.float32(0.5)))
    best, found, found_low = splat(ZERO), scale, low
    for candidate in range(3):
        tried = scale
        if candidate:
            beyond = np.float32(candidate - 1) if g.slope != ZERO else np.float32(2 * candidate - 3)
            tried = to_i32(
                minimum(maximum(centre + splat(beyond), splat(np.float32(g.low))), splat(np.float32(g.high)))
            )
        new = step_of(d, tried, g, t)
        change_step, n = new - step, low
        if g.mins:
            wanted = (C * change_step - r) * per_b * inverse_m
            n = nearest_int(minimum(maximum(low + wanted, splat(ZERO)), splat(np.float32(g.mins))))
        o = m * n - m * low
        cost = change_step * change_step * A - splat(TWO) * change_step * o * C + o * o * splat(B)
        cost = cost - splat(TWO) * (change_step * p - o * r)
        better = (cost < best) & (fabs(new) > splat(ZERO))
        best = select(better, cost, best)
        found, found_low = select(better, tried, found), select(better, n, found_low)
    if any_lane(best < splat(ZERO)):
        store(q.scales, j, found)
        store(q.mins, j, to_i32(found_low))
        step, offset = step_of(d, found, g, t), m * found_low
        for i in range(g.sub):
            to = here + 16 * i
            new = step * load(q.units, to) - offset
            store(change, 16 * i, load(change, 16 * i) + new - load(q.values, to))
            store(q.values, to, new)


@helper
def _refit(y, base, at, b, g, t, H, columns, z, lows, zh, lh, half, change, q):
    """d and dmin of the block from `at` on by least squares, as float16, where that is better.

    z, lows : (block, 16), what a change of d, or of dmin, does to the values. zh, lh : the same, times H.
    """
    d, m = load(q.d, b), load(q.dmin, b)
    subs = columns // g.sub
    tile = base // (columns * 16)
    for s in range(0, g.block, g.sub):
        j = (tile * subs + (at + s) // g.sub) * 16
        step, low = step_of(splat(ONE), load(q.scales, j), g, t), -to_f32(load(q.mins, j))
        for i in range(s, s + g.sub):
            store(z, 16 * i, step * load(q.units, base + 16 * (at + i)))
            store(lows, 16 * i, low)
    A, C, B, p, r = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
    for i in range(g.block):
        store(zh, 16 * i, splat(ZERO))
        store(lh, 16 * i, splat(ZERO))
    _add_products(zh, z, at, g.block, H, columns)
    if g.offsets:
        _add_products(lh, lows, at, g.block, H, columns)
    for i in range(g.block):
        u, low, v = load(z, 16 * i), load(lows, 16 * i), load(y, base + 16 * (at + i))
        A, p = fma(load(zh, 16 * i), u, A), fma(u, v, p)
        C, B, r = fma(load(zh, 16 * i), low, C), fma(load(lh, 16 * i), low, B), fma(low, v, r)
    if g.offsets:
        det = A * B - C * C
        sound = det > splat(np.float32(1e-12)) * A * maximum(B, splat(np.float32(1e-12)))
        more, less = (
            select(sound, (p * B - r * C) / det, splat(ZERO)),
            select(sound, (A * r - C * p) / det, splat(ZERO)),
        )
    else:
        more, less = select(splat(LITTLE) < A, p / A, splat(ZERO)), splat(ZERO)
    store_half(half, 0, d + more)
    new_d = load_half(half, 0)
    new_m = m + less
    if g.mins:
        new_m = maximum(new_m, splat(ZERO))
    store_half(half, 0, new_m)
    new_m = load_half(half, 0)
    more, less = new_d - d, new_m - m
    cost = more * more * A + splat(TWO) * more * less * C + less * less * B - splat(TWO) * (more * p + less * r)
    good = (cost < splat(ZERO)) & (new_d * d > splat(ZERO))
    if any_lane(good):
        new_d, new_m = select(good, new_d, d), select(good, new_m, m)
        store(q.d, b, new_d)
        store(q.dmin, b, new_m)
        for s in range(0, g.block, g.sub):
            j = (tile * subs + (at + s) // g.sub) * 16
            step, offset = step_of(new_d, load(q.scales, j), g, t), new_m * to_f32(load(q.mins, j))
            for i in range(s, s + g.sub):
                to = base + 16 * (at + i)
                new = step * load(q.units, to) - offset
                store(change, 16 * i, new - load(q.values, to))
                store(q.values, to, new)
        if at + g.block < columns:
            _pass_on(y, base, change, at, g.block, H, columns, at + g.block, columns)


@inlined
def _add_products(out, z, at, count, H, columns):
    """out += z H of the columns at:at + count; (count, 16) each."""
    for k in range(0, count, 4):
        y0, y1, y2, y3 = load(out, 16 * k), load(out, 16 * k + 16), load(out, 16 * k + 32), load(out, 16 * k + 48)
        for c in range(count):
            e, f = load(z, 16 * c), (at + c) * columns + at + k
            y0, y1 = fma(e, splat(H[f]), y0), fma(e, splat(H[f + 1]), y1)
            y2, y3 = fma(e, splat(H[f + 2]), y2), fma(e, splat(H[f + 3]), y3)
        store(out, 16 * k, y0)
        store(out, 16 * k + 16, y1)
        store(out, 16 * k + 32, y2)
        store(out, 16 * k + 48, y3)


@kernel
def descend_block(y, H, pairs, g, t, q):
    """One sweep over the columns of a chunk: every move that lowers the loss.

    Parameters
    ----------
    y : Γ of the chunk, in tiles; used up.
    H : (columns, columns) flat, the chunk's part.
    pairs : of a codebook, see `_move_rows`.
    g, t : `Shape` and `Tables` of the grid.
    q : `Chosen`, changed.
    """
    columns = int(np.sqrt(H.shape[0]))
    tiles, subs, blocks = y.shape[0] // (16 * columns), columns // g.sub, columns // g.block
    width = 8 if g.dims else 1
    change, z = np.empty(16 * g.block, np.float32), np.empty(16 * g.block, np.float32)
    lows, zh, lh = (
        np.empty(16 * g.block, np.float32),
        np.empty(16 * g.block, np.float32),
        np.empty(16 * g.block, np.float32),
    )
    a, units, targets = np.empty(128, np.float32), np.empty(128, np.float32), np.empty(128, np.float32)
    moved, rows, half = np.empty(128, np.float32), np.empty(32, np.int32), np.empty(16, np.uint16)
    size = columns // g.dims * (t.book.shape[0] // g.dims) if g.dims else 1
    norms = np.empty(2 * size, np.float32)
    if g.dims:
        for i in range(2):
            weight = pairs[columns * (8 + i) : columns * (9 + i)]
            row_norms(weight, g, t, columns, norms[i * size : (i + 1) * size])
    for tile in range(tiles):
        base = tile * columns * 16
        for at in range(0, columns, g.block):
            b = (tile * blocks + at // g.block) * 16
            d, m = load(q.d, b), load(q.dmin, b)
            for s in range(at, at + g.block, g.sub):
                j = (tile * subs + s // g.sub) * 16
                step, offset = step_of(d, load(q.scales, j), g, t), m * to_f32(load(q.mins, j))
                inverse = inverse_of(step)
                for c in range(s, s + g.sub, width):
                    here = base + 16 * c
                    if g.dims:
                        _move_rows(
                            y, here, base, c, s, g, t, H, pairs, columns, step, norms, targets, a, units, rows, moved, q
                        )
                        for i in range(8):
                            store(change, 16 * (c - s + i), load(moved, 16 * i))
                    else:
                        moves = _move_level(y, here, base, c, s, g, t, H, columns, step, inverse, offset, q)
                        store(change, 16 * (c - s), moves)
                if g.high > g.low or g.mins:
                    for i in range(g.sub):
                        store(zh, 16 * i, load(change, 16 * i))
                    _move_scale(y, base, s, j, g, t, H, columns, d, m, z, change, q)
                    for i in range(g.sub):
                        store(zh, 16 * i, load(change, 16 * i) - load(zh, 16 * i))
                    _pass_on(y, base, zh, s, g.sub, H, columns, s, s + g.sub)
                _pass_on(y, base, change, s, g.sub, H, columns, 0, s)
                _pass_on(y, base, change, s, g.sub, H, columns, s + g.sub, columns)
            if not g.fixed:
                _refit(y, base, at, b, g, t, H, columns, z, lows, zh, lh, half, change, q)
