"""The loops of `loops` for super-blocks whose groups have whole numbers as scales: w = d · scale · level.

Products of a super-block stay whole numbers, whatever the order; its sum meets floats once:

    total = total + sum · (d · scale of the activations)         one super-block after the other

so a row of activations gives the same bits whatever others are multiplied with it. Names given by the format:

    unpack(data, at, U)    a super-block from byte `at` on: levels from 0 on to U, in the order of `dot_unit`; d in all
                           lanes, and int32 scales of the groups
    unpack_rows(data, at, stride, W, S)
                           the same of sixteen rows, each `stride` bytes after the one before, in lanes: levels with
                           their signs, four columns of all rows after the other, int32 scales of each group; d
    BYTES, GROUP     bytes of a super-block; weights that share a scale
    OFFSET           what is added to levels in U
    TURNED           whether tiles want activations with 128 added (see `kernels.dot.scaled`)
    ASKS             whether tiles of `few` ask for bytes
    dot, start, tile, tile_few, tile_more, tile_two, sum_of_group    see there

    vector    a row of weights at a time
    few       sixteen rows of weights: a super-block of theirs is unpacked and meets all activations, then the next
    matrix    a block of rows is unpacked once and stays in the core's cache while all activations pass by, some at a
              time, whose sums wait in memory; `pairs` has another for wide levels
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np

from ggufkit.formats.table import format_by_name
from ggufkit.kernels.dot import (
    FEW_PANELS,
    PANELS,
    TOGETHER,
    TOKENS,
    add_dots,
    add_scaled,
    asks_ahead,
    dot_unit,
    factors_of,
    fold_units,
    load_bytes,
    load_tile,
    mix,
    prefetch,
    start_of,
    store_bytes,
    store_tile,
    sum_group,
    tile_unit,
    turn_bytes,
    turns,
)
from ggufkit.kernels.dot.pairs import uses_pairs
from ggufkit.kernels.jit import inlined, maker, specialised
from ggufkit.kernels.lanes import LANES, lane, load, splat, store
from ggufkit.kernels.shares import take
from ggufkit.runtime.cpu.products import UNIT, Layout, Product, pairs
from ggufkit.runtime.cpu.products.loops import AHEAD, on_lines, panels_of, put_tile, share, share_of_many

QUADS = UNIT // 4  # int32 of four levels

_BLOCK = 8 * TOKENS  # rows of activations that meet a super-block of sixteen rows while that is in the first cache

_ZERO = np.float32(0)

# Bound by each format.
BYTES = GROUP = OFFSET = TURNED = ASKS = 0
unpack: Any = None
unpack_rows: Any = None
dot: Any = None
start: Any = None
tile: Any = None
tile_few: Any = None
tile_more: Any = None  # which asks for no bytes
tile_two: Any = None
sum_of_group: Any = None
unpack_panel: Any = None


@maker
def _by_eights(x):
    """Of 32 columns eight, and of the next 32, …; then the next eight of each 32."""
    eights = np.empty(x.size // 8, np.int64)
    source = x.view(np.int64)
    for u in range(0, eights.size, 32):
        for k in range(32):
            eights[u + k] = source[u + k % 8 * 4 + k // 8]
    return eights.view(np.int8)


def vector(turn, data, rows, levels, scales, sums, out):
    """out[r] = row r · x. data: flat bytes of the blocks; levels: (1, cols) int8; out: (1, rows) float32.

    scales: float32, of each 256 activations; sums: not read.
    """
    units = levels.shape[1] // UNIT
    x, result = levels.reshape(-1), out.reshape(-1)
    U = np.zeros(UNIT, np.uint8)
    starts = np.empty(x.size // 4, np.int32)
    if GROUP == 32:
        x = _by_eights(x)
    if OFFSET:
        for i in range(0, x.size, 64):
            store(starts, i // 4, start(load_bytes(x, i)))
    if OFFSET and GROUP == 32:
        for i in range(0, starts.size, QUADS):
            pairs = load(starts, i) + load(starts, i + 16), load(starts, i + 32) + load(starts, i + 48)
            store(starts, i, pairs[0] + pairs[1])
    # Sums in lanes and scales of a row's super-blocks; four of them are added up at once.
    T, D = np.zeros((units + 3) * LANES, np.int32), np.zeros(units + 3, np.float32)
    grain = share(turn, rows, units * BYTES)
    first = take(turn, grain)
    while first < rows:
        for r in range(first, min(first + grain, rows)):
            for u in range(units):
                at = (r * units + u) * BYTES
                for k in range(0, BYTES, 64):
                    prefetch(data, at + AHEAD + k)
                d, factors = unpack(data, at, U)
                store(T, u * LANES, dot(U, x, u * UNIT, starts, u * QUADS, factors_of(factors)))
                D[u] = lane(d, 0)
            products = _ZERO
            for u in range(0, units, 4):
                products = fold_units(products, T, u * LANES, D, u, scales, u)
            result[r] = products
        grain = share(turn, rows, units * BYTES)
        first = take(turn, grain)


def unpack_panel_of(data, row_bytes, r, rows, u, edge, W, S, F, f, starts, s, soon):
    """Super-block u of rows r … r + 15, the last one again where these end: W and S of `unpack_rows`; d.

    Factors of each group go to F[f …], what sums start with to starts[s …]. Half as many bytes as it has are asked for
    from `data[soon]` on, some with each group: what is asked for at once keeps the core waiting.
    """
    blocks, at, stride = data, r * row_bytes + u * BYTES, row_bytes
    if r + LANES > rows:
        for k in range(LANES):
            begin = min(r + k, rows - 1) * row_bytes + u * BYTES
            for i in range(BYTES):
                edge[k * BYTES + i] = data[begin + i]
        blocks, at, stride = edge, 0, BYTES
    d = unpack_rows(blocks, at, stride, W, S)
    begin, step = splat(np.int32(0)), LANES * BYTES // 2 // (UNIT // GROUP)
    for g in range(UNIT // GROUP):
        for i in range(0, step, 64):
            prefetch(data, soon + g * step + i)
        factors = factors_of(load(S, g * LANES))
        store(F, f + g * LANES, factors)
        if TURNED:
            begin = sum_of_group(begin, W, g * (GROUP // 4) * LANES, factors)
    store(starts, s, begin)
    return d


def few(turn, data, rows, levels, scales, sums, out):
    """As `vector` for the n rows of `out`. levels: (tokens, cols) int8, tokens a multiple of TOGETHER."""
    n, tokens, units, groups = out.shape[0], levels.shape[0], levels.shape[1] // UNIT, UNIT // GROUP
    row_bytes, panel, s_panel = units * BYTES, LANES * QUADS, groups * LANES
    W, edge = on_lines(FEW_PANELS * panel).view(np.int32), np.empty(LANES * BYTES + 64, np.uint8)
    S, F = on_lines(s_panel).view(np.int32), on_lines(FEW_PANELS * s_panel).view(np.int32)
    D, starts = on_lines(FEW_PANELS * LANES), on_lines(FEW_PANELS * LANES).view(np.int32)
    tile_size = TOGETHER * FEW_PANELS * LANES
    totals = on_lines(tokens // TOGETHER * tile_size)
    # Of each TOGETHER tokens four columns, and scales, side by side.
    result = out.reshape(-1)
    x, width = levels.reshape(-1).view(np.int32), units * QUADS
    X, scales_of = on_lines(tokens * width).view(np.int32), on_lines(tokens * units + 4 * LANES)
    for t in range(0, tokens, TOGETHER):
        for i in range(0, width, LANES):
            mix(x, t * width + i, width, X, t * width + TOGETHER * i)
        for i in range(0, units, LANES):
            mix(scales, t * units + i, units, scales_of, t * units + TOGETHER * i)
    if TURNED:
        for i in range(0, tokens * width, LANES):
            store(X, i, turn_bytes(load(X, i)))
    before = LANES * BYTES // 2  # bytes to ask for while a panel is unpacked; as many again while it is multiplied
    grain = panels_of(share(turn, rows, row_bytes))
    first = take(turn, grain)
    while first < rows:
        end = min(first + grain, rows)
        for top in range(first, end, FEW_PANELS * LANES):
            totals[:] = _ZERO
            soon = (top + FEW_PANELS * LANES) * row_bytes
            for u in range(units):
                for p in range(FEW_PANELS):
                    r = min(top + p * LANES, rows)
                    d = unpack_panel(
                        data, row_bytes, r, rows, u, edge, W[p * panel :], S, F, p * s_panel, starts, p * LANES, soon
                    )
                    soon += before
                    store(D, p * LANES, d)
                if not ASKS:
                    for i in range(0, FEW_PANELS * before, 64):
                        prefetch(data, soon + i)
                for t in range(0, tokens, TOGETHER):
                    to, xw, xs = t // TOGETHER * tile_size, t * width + u * QUADS * TOGETHER, t * units + u * TOGETHER
                    if t > 0 and n - t > 2:
                        more = tile_more(W, 0, panel, X, xw, 1, F, 0, s_panel, starts, 0, LANES, data, soon)
                        add_dots(totals, to, more, D, 0, LANES, scales_of, xs)
                    elif n - t > 2:
                        dots = tile_few(W, 0, panel, X, xw, 1, F, 0, s_panel, starts, 0, LANES, data, soon)
                        add_dots(totals, to, dots, D, 0, LANES, scales_of, xs)
                    else:
                        two = tile_two(W, 0, panel, X, xw, 1, F, 0, s_panel, starts, 0, LANES, data, soon)
                        add_dots(totals, to, two, D, 0, LANES, scales_of, xs)
                soon += FEW_PANELS * before
            for t in range(n):
                for p in range(FEW_PANELS):
                    at = t // TOGETHER * tile_size + (t % TOGETHER * FEW_PANELS + p) * LANES
                    r = top + p * LANES
                    if r + LANES <= end:
                        store(result, t * rows + r, load(totals, at))
                    else:
                        for k in range(r, end):
                            result[t * rows + k] = totals[at + k - r]
        grain = panels_of(share(turn, rows, row_bytes))
        first = take(turn, grain)


def lay(levels, first, last, x, starts):
    """Activations as `matrix` reads them, tiles `first` … `last` - 1.

    levels: (tokens, cols) int8; x: (units, tiles, 1, TOKENS, QUADS) int32, written; starts: none.
    """
    tokens, cols = levels.shape
    bytes_, to = levels.reshape(-1), x.reshape(-1).view(np.int8)
    for t in range(first * TOKENS, last * TOKENS):
        for u in range(cols // UNIT):
            for i in range(0, UNIT, 64):
                some = load_bytes(bytes_, t * cols + u * UNIT + i)
                store_bytes(to, (u * tokens + t) * UNIT + i, turn_bytes(some) if TURNED else some)


def matrix(turn, data, rows, x, scales, starts, out):
    """out[t, r] = row r · x[t]. x: see `lay`; out: (n, rows) float32."""
    units, tokens = x.shape[0], x.shape[1] * TOKENS
    row_bytes, groups, panel_rows = units * BYTES, UNIT // GROUP, LANES * PANELS
    most = 8 * panel_rows
    W, S = np.empty(most * units * QUADS, np.int32), np.empty(groups * LANES, np.int32)
    F = np.empty(most * units * groups, np.int32)
    D, B = np.empty(most * units, np.float32), np.empty(most * units, np.int32)
    edge, corner = np.empty(LANES * BYTES + 64, np.uint8), np.empty(TOKENS * panel_rows, np.float32)
    words, sums = x.reshape(-1), np.empty(_BLOCK * panel_rows, np.float32)
    grain = share_of_many(turn, rows, panel_rows, most)
    first = take(turn, grain)
    while first < rows:
        last = min(first + grain, rows)
        panels = (last - first + panel_rows - 1) // panel_rows * PANELS
        for p in range(panels):
            r = min(first + p * LANES, rows)
            for u in range(units):
                k = p * units + u
                soon = (r + LANES) * row_bytes + u * LANES * BYTES
                w, f = k * QUADS * LANES, k * groups * LANES
                d = unpack_panel(data, row_bytes, r, rows, u, edge, W[w:], S, F, f, B, k * LANES, soon)
                store(D, k * LANES, d)
        for top in range(0, tokens, _BLOCK):
            end = min(top + _BLOCK, tokens)
            for p in range(0, panels, PANELS):
                sums[:] = _ZERO
                for u in range(units):
                    k = p * units + u
                    w, f, s = k * QUADS * LANES, k * groups * LANES, k * LANES
                    for t in range(top, end, TOKENS):
                        at, to = (u * tokens + t) * QUADS, (t - top) * panel_rows
                        dots = tile(
                            W, w, units * QUADS * LANES, words, at, QUADS,
                            F, f, units * groups * LANES, B, s, units * LANES, words, 0,
                        )  # fmt: skip
                        totals = load_tile(sums, to, panel_rows)
                        totals = add_scaled(totals, dots, D, s, units * LANES, scales, t * units + u, units)
                        store_tile(sums, to, panel_rows, totals)
                for t in range(top, end, TOKENS):
                    totals = load_tile(sums, (t - top) * panel_rows, panel_rows)
                    put_tile(totals, t, first + p * LANES, corner, out)
        grain = share_of_many(turn, rows, panel_rows, most)
        first = take(turn, grain)


def products_of(
    name: str,
    source: str,
    unpack: Callable[..., Any],
    unpack_rows: Callable[..., Any],
    *,
    top: int,
    group: int,
    offset: int,
) -> Product:
    """The kernels of a format; levels are -top … top, or WIDE."""
    size = format_by_name(name).type_size
    ahead = FEW_PANELS * LANES * size // 2 if asks_ahead() else 0
    names: dict[str, Any] = {
        "unpack": unpack,
        "unpack_rows": unpack_rows,
        "dot": dot_unit(group, top, bool(offset)),
        "start": start_of(offset),
        "TURNED": int(turns(top)),
        "tile": tile_unit(group, top),
        "tile_few": tile_unit(group, top, TOGETHER, FEW_PANELS, TOGETHER, ahead),
        "tile_more": tile_unit(group, top, TOGETHER, FEW_PANELS, TOGETHER),
        "tile_two": tile_unit(group, top, 2, FEW_PANELS, TOGETHER, ahead),
        "sum_of_group": sum_group(group, top),
        "ASKS": int(asks_ahead()),
        "BYTES": size,
        "GROUP": group,
        "OFFSET": offset,
    }
    names["unpack_panel"] = inlined(FunctionType(unpack_panel_of.__code__, {**globals(), **names}, "unpack_panel"))
    prefix = name.lower()
    many = pairs.matrix if uses_pairs(top) else matrix
    return Product(
        specialised(vector, f"{prefix}_vector", source, **names),
        specialised(few, f"{prefix}_few", source, **names),
        specialised(many, f"{prefix}_matrix", source, **names),
        "Q8_K",
        UNIT,
        layout=_layout(uses_pairs(top), names["TURNED"]),
    )


@functools.cache
def _layout(in_pairs: bool, turned: int) -> Layout:
    if in_pairs:
        laid = specialised(pairs.lay, "lay_pairs", __file__)
        return Layout(laid, 2 * TOKENS, pairs.PRODUCTS, pairs.WORDS, pairs.SUMS)
    return Layout(specialised(lay, f"lay_{turned}", __file__, TURNED=turned), TOKENS, 1, QUADS, 0)
