"""The loops around `unpack`: one row of activations, or many, times rows of blocks.

Names in capitals and those below are given by the format (see `specialised`):

    unpack(data, at, last, U)    a unit from byte `at` on: levels to U, scales and mins in lanes.
                                 `last` is where the row's last block starts
    unpack_rows(data, at, stride, last, W, to, jump, S, M, s)
                                 the same of sixteen rows, each `stride` bytes after the one before, in lanes: of
                                 group g levels from W[to + jump g] on, four columns of all rows after the other,
                                 scales from S[s + 16 g] on, mins, if there are any, from M[s + 16 g] on
    BLOCK, BYTES     columns and bytes of a block of the format
    GROUP            weights that share a scale: 16 or 32
    STEP             columns in an int32 of the weights of `matrix`, four bytes or two words
    OFFSET           the level that means zero, or -1 if groups have mins
    begin            what sums of products start with: what OFFSET takes off, or nothing
    dot, tile, tile_few, tile_two    products of weights of its range (see `kernels.dot.bodies`)
    pack             lays out a tile's weights
    group_sums       the sums of groups from those of lanes
    sum_groups       the sum of what the lanes of all groups have

Threads that call a kernel with the same `turn` share its rows: each takes some when it has done its last (see
`kernels.threads`). Every output is made by one thread from start to end, so the bytes do not depend on who
takes what.

    vector    a row of weights at a time. 64 columns meet in the 16 lanes of a sum of int32, which is exact; these are
              added to a sum for each group, which meets the group's scale in a lane of its own.
    few       for a few rows of activations, as a batch of conversations has. Sixteen rows of weights in lanes, some of
              them; one unit of theirs is unpacked, meets all activations, then the next. A vector of sums for each
              group waits in the core's first cache.
    matrix    sixteen rows of weights in lanes. A block of rows is unpacked once, transposed, and stays in the core's
              cache while all activations pass by.

              16 rows   levels (groups, units, GROUP / STEP, 16, STEP)   scales, mins (units, groups, 16)

All three add the same numbers in the same order, so that a row of activations gives the same bits whatever others are
multiplied with it: of group g of each unit, one unit after the other, s[g] = s[g] + sum of products · scale (and less
the min), and then the groups' sums, neighbours first:

    ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]))     of eight
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ggufkit.formats.table import format_by_name
from ggufkit.kernels.dot import (
    FEW_PANELS,
    PANELS,
    TOGETHER,
    TOKENS,
    WIDE,
    add_dots,
    add_dots_less,
    add_scaled,
    add_tile,
    columns_of_step,
    dot_bytes,
    dot_tile,
    dot_wide,
    group_sums_2,
    group_sums_4,
    load_bytes,
    mix,
    pack_steps,
    prefetch,
    store_tile,
    subtract_scaled,
    sum_pairs_8,
    sum_pairs_16,
    zero_tile,
)
from ggufkit.kernels.jit import helper, inlined, maker, specialised
from ggufkit.kernels.lanes import LANES, load, multiply_add, splat, store, to_f32, transpose
from ggufkit.kernels.shares import take
from ggufkit.runtime.cpu.products import UNIT, Product

QUADS = UNIT // 4  # int32 of four levels
LEAST, MOST = 1 << 16, 1 << 20  # bytes of blocks that a thread takes at once
AHEAD = 4096  # bytes of blocks that are asked for before they are needed: a page, where the CPU's own look-ahead ends
_PACKED = 1 << 19  # levels that stay in a core's cache

_ZERO, _LESS = np.float32(0), np.float32(-1)

# Bound by each format.
BLOCK = BYTES = GROUP = OFFSET = STEP = 0
unpack: Any = None
begin: Any = None
dot: Any = None
tile: Any = None
pack: Any = None
group_sums: Any = None
sum_groups: Any = None
tile_few: Any = None
tile_two: Any = None
unpack_rows: Any = None


@maker
def on_lines(count):
    """`np.empty(count, np.float32)` from the start of a cache line on: a vector that lies across two is read twice."""
    array = np.empty(count + LANES, np.float32)
    first = -array.ctypes.data % 64 // 4
    return array[first : first + count]


@inlined
def share(turn, rows, row_bytes):
    """How many of the rows that are left to take: large shares, as memory is slow at the start of each, but no one
    should have a large one left when the others are done.
    """
    left, threads = max(rows - turn[0], 0), turn[1]
    return max(1, min(max(left // (2 * threads) * row_bytes, LEAST), MOST) // row_bytes)


@inlined
def share_of_many(turn, rows, least, most):
    """The same where many activations come by: `most`, and towards the end fewer, so that no one waits long for
    another; a multiple of `least`.
    """
    left, threads = max(rows - turn[0], 0), turn[1]
    return most if threads == 1 else max(least, min(most, left // (2 * threads)) // least * least)


def vector(turn, data, rows, levels, scales, sums, out):
    """out[r] = row r · x. data: flat bytes of the blocks; levels: (1, cols) int8; out: (1, rows) float32.

    scales: float32; sums: float32 (scale · sum of levels) if groups have mins, and not read otherwise. Both flat,
    with 16 elements more than groups.
    """
    units, blocks = levels.shape[1] // UNIT, data.size // (rows * BYTES)
    x, result, groups = levels.reshape(-1), out.reshape(-1), UNIT // GROUP
    U = np.zeros(UNIT, np.uint8)
    start = np.empty(x.size // 4, np.int32)
    if OFFSET > 0:
        _start_lanes(x, OFFSET, start)
    grain = share(turn, rows, blocks * BYTES)
    first = take(turn, grain)
    while first < rows:
        end = min(first + grain, rows)
        for r in range(first, end):
            total = splat(_ZERO)
            for u in range(units):
                at, last = (r * blocks + u * (UNIT // BLOCK)) * BYTES, (r * blocks + blocks - 1) * BYTES
                for k in range(0, UNIT // BLOCK * BYTES, 64):
                    prefetch(data, at + AHEAD + k)
                scale, least = unpack(data, at, last, U)
                i, q = u * UNIT, u * QUADS
                a = dot(begin(start, q), load_bytes(U, 0), load_bytes(x, i))
                b = dot(begin(start, q + 16), load_bytes(U, 64), load_bytes(x, i + 64))
                c = dot(begin(start, q + 32), load_bytes(U, 128), load_bytes(x, i + 128))
                d = dot(begin(start, q + 48), load_bytes(U, 192), load_bytes(x, i + 192))
                total = multiply_add(to_f32(group_sums(a, b, c, d)), scale * load(scales, u * groups), total)
                if OFFSET < 0:
                    total = multiply_add(least * splat(_LESS), load(sums, u * groups), total)
            result[r] = sum_groups(total)
        grain = share(turn, rows, blocks * BYTES)
        first = take(turn, grain)


@helper
def _start_lanes(x, offset, start):
    """start[k] = -offset · Σ x[4 k + i]."""
    ones, none = splat(np.int32(0x01010101)), splat(np.int32(0))
    for i in range(0, x.size, 64):
        store(start, i // 4, splat(np.int32(-offset)) * dot_bytes(none, ones, load_bytes(x, i)))


@inlined
def _start_at(start, at):
    return load(start, at)


@inlined
def _start_none(start, at):
    return splat(np.int32(0))


def few(turn, data, rows, levels, scales, sums, out):
    """As `vector` for the n rows of `out`: panels of sixteen rows are unpacked, a unit at a time, and meet them all.

    levels: (tokens, cols) int8, tokens a multiple of TOGETHER; scales: float32 as in `vector`; sums: float32 if groups
    have mins, int32 (sums of levels) if OFFSET is above 0, and not read if it is 0.
    """
    n, tokens, units, blocks = out.shape[0], levels.shape[0], levels.shape[1] // UNIT, data.size // (rows * BYTES)
    groups, steps, step = UNIT // GROUP, GROUP // 4, GROUP // 4 * LANES
    stride, row_bytes, unit_bytes = units * groups, blocks * BYTES, UNIT // BLOCK * BYTES
    panel, s_panel = LANES * QUADS, groups * LANES
    W = on_lines(FEW_PANELS * panel).view(np.int32)
    S, M = on_lines(FEW_PANELS * s_panel), on_lines(FEW_PANELS * s_panel)
    tile_size = TOGETHER * FEW_PANELS * LANES
    totals = on_lines(tokens // TOGETHER * groups * tile_size)
    # Of each TOGETHER tokens four columns, a group's scale, its sum side by side.
    result = out.reshape(-1)
    x, width = levels.reshape(-1).view(np.int32), units * QUADS
    X, scales_of = on_lines(tokens * width).view(np.int32), on_lines(tokens * stride + 4 * LANES)
    sums_of = on_lines(tokens * stride + 4 * LANES).view(sums.dtype)
    for t in range(0, tokens, TOGETHER):
        for i in range(0, width, LANES):
            mix(x, t * width + i, width, X, t * width + TOGETHER * i)
        for i in range(0, stride, LANES):
            mix(scales, t * stride + i, stride, scales_of, t * stride + TOGETHER * i)
            if OFFSET:
                mix(sums, t * stride + i, stride, sums_of, t * stride + TOGETHER * i)
    if OFFSET > 0:
        for i in range(0, tokens * stride, LANES):
            store(sums_of, i, load(sums_of, i) * splat(np.int32(-OFFSET)))
    # Rows are in lanes, the last ones of all again where fewer are left; of less than sixteen each in all lanes.
    lanes, apart = (LANES, row_bytes) if rows >= LANES else (1, 0)
    # Bytes to ask for, half before panels and half with tiles: what is asked for at once keeps the core waiting.
    before = LANES * unit_bytes // 2
    ahead = FEW_PANELS * before // (groups * (tokens // TOGETHER))
    grain = panels_of(share(turn, rows, row_bytes))
    first = take(turn, grain)
    while first < rows:
        end = min(first + grain, rows)
        for top in range(first, end, FEW_PANELS * lanes):
            totals[:] = _ZERO
            soon = (top + FEW_PANELS * LANES) * row_bytes
            for u in range(units):
                for p in range(FEW_PANELS):
                    r = min(top + p * lanes, rows - lanes)
                    at, last = r * row_bytes + u * unit_bytes, (r * blocks + blocks - 1) * BYTES
                    for i in range(0, before, 64):
                        prefetch(data, soon + i)
                    soon += before
                    unpack_rows(data, at, apart, last, W, p * panel, step, S, M, p * s_panel)
                for t in range(0, tokens, TOGETHER):
                    for g in range(groups):
                        for i in range(0, ahead, 64):
                            prefetch(data, soon + i)
                        soon += ahead
                        to = (t // TOGETHER * groups + g) * tile_size
                        xw = t * width + (u * QUADS + g * steps) * TOGETHER
                        xs, s = t * stride + (u * groups + g) * TOGETHER, g * LANES
                        if n - t > 2:
                            dots = tile_few(W, g * step, panel, X, xw, 1, sums_of, xs, 1)
                            if OFFSET < 0:
                                add_dots_less(totals, to, dots, S, s, s_panel, scales_of, xs, M, sums_of)
                            else:
                                add_dots(totals, to, dots, S, s, s_panel, scales_of, xs)
                        else:
                            two = tile_two(W, g * step, panel, X, xw, 1, sums_of, xs, 1)
                            if OFFSET < 0:
                                add_dots_less(totals, to, two, S, s, s_panel, scales_of, xs, M, sums_of)
                            else:
                                add_dots(totals, to, two, S, s, s_panel, scales_of, xs)
            for t in range(n):
                at = t // TOGETHER * groups * tile_size + t % TOGETHER * FEW_PANELS * LANES
                for p in range(FEW_PANELS):
                    _sum_groups_of(totals, at + p * LANES, tile_size, groups)
                    here, r = top + p * lanes, min(top + p * lanes, rows - lanes)
                    if here == r and here + LANES <= end:
                        store(result, t * rows + here, load(totals, at + p * LANES))
                    else:
                        for k in range(here, min(here + lanes, end)):
                            result[t * rows + k] = totals[at + p * LANES + k - r]
        grain = panels_of(share(turn, rows, row_bytes))
        first = take(turn, grain)


@helper
def panels_of(rows):
    """So many rows, made whole panels."""
    some = FEW_PANELS * LANES
    return (rows + some - 1) // some * some


@helper
def _sum_groups_of(totals, at, apart, groups):
    """Make a group's vector the sum of those of all groups: neighbours, then neighbouring sums, …"""
    while groups > 1:
        groups //= 2
        for k in range(groups):
            pair = at + 2 * k * apart
            store(totals, at + k * apart, load(totals, pair) + load(totals, pair + apart))


def matrix(turn, data, rows, levels, scales, sums, out):
    """out[t, r] = row r · x[t]. levels: (tokens, cols) int8, tokens a multiple of TOKENS; out: (n, rows) float32.

    scales: float32 as in `vector`; sums: float32 (scale · sum of levels) if groups have mins, int32 (-OFFSET · sum of
    levels) if OFFSET is above 0, and not read if it is 0.
    """
    units, blocks, cols = levels.shape[1] // UNIT, data.size // (rows * BYTES), levels.shape[1]
    # int32: of a unit of a row, of a group of a row, of a group of a panel
    quads, steps, step = UNIT // STEP, GROUP // STEP, GROUP // STEP * LANES
    groups = UNIT // GROUP
    stride = units * groups  # groups of a row
    panel_rows = LANES * PANELS
    most = min(max(_PACKED * STEP // 4 // cols // panel_rows, 1) * panel_rows, 8 * panel_rows)
    W = np.empty(most * units * quads, np.int32)
    scales_of, mins_of = np.empty(most * units * LANES, np.float32), np.empty(most * units * LANES, np.float32)
    U, S, M = np.zeros(LANES * UNIT, np.uint8), np.zeros(LANES * LANES, np.float32), np.zeros(LANES * LANES, np.float32)
    bytes_, edge = levels.reshape(-1), np.empty(TOKENS * panel_rows, np.float32)
    words = np.empty(TOKENS * cols if STEP == 2 else 0, np.int16)  # the activations of a row of tiles
    x = words.view(np.int32) if STEP == 2 else bytes_.view(np.int32)
    waiting = np.empty(5 * edge.size, np.float32)
    grain = share_of_many(turn, rows, panel_rows, most)
    first = take(turn, grain)
    while first < rows:
        last = min(first + grain, rows)
        panels = (last - first + panel_rows - 1) // panel_rows * PANELS
        for p in range(panels):
            for u in range(units):
                for k in range(LANES):
                    r = min(first + p * LANES + k, rows - 1)
                    at, end = (r * blocks + u * (UNIT // BLOCK)) * BYTES, (r * blocks + blocks - 1) * BYTES
                    scale, least = unpack(data, at, end, U[k * UNIT :])
                    store(S, k * LANES, scale)
                    if OFFSET < 0:
                        store(M, k * LANES, least)
                for g in range(0, groups, 64 // GROUP):
                    to = ((p * groups + g) * units + u) * step
                    pack(U.view(np.int32), g * GROUP // 4, UNIT // 4, W, to, units * step)
                transpose(S, 0, LANES, scales_of, (p * units + u) * LANES * LANES)
                if OFFSET < 0:
                    transpose(M, 0, LANES, mins_of, (p * units + u) * LANES * LANES)
        for t in range(0, levels.shape[0], TOKENS):
            if STEP == 2:
                for i in range(0, TOKENS * cols, LANES):
                    store(words, i, load(bytes_, t * cols + i))
            first_token = 0 if STEP == 2 else t
            for p in range(0, panels, PANELS):
                for g in range(groups):
                    totals = zero_tile()
                    for u in range(units):
                        w = ((p * groups + g) * units + u) * step
                        s = (p * units + u) * LANES * LANES + g * LANES
                        xw = (first_token * units + u) * quads + g * steps
                        xs = t * stride + u * groups + g
                        dots = tile(W, w, units * quads * LANES, x, xw, units * quads, sums, xs, stride)
                        totals = add_scaled(totals, dots, scales_of, s, units * LANES * LANES, scales, xs, stride)
                        if OFFSET < 0:
                            totals = subtract_scaled(totals, mins_of, s, units * LANES * LANES, sums, xs, stride)
                    totals = add_pairs(totals, g, waiting, edge.size)
                put_tile(totals, t, first + p * LANES, edge, out)
        grain = share_of_many(turn, rows, panel_rows, most)
        first = take(turn, grain)


@inlined
def add_pairs(totals, k, waiting, size):
    """Tile k of a row of tiles, with those before that are added up with it; the last has all.

    waiting: tiles of `size` numbers, the sum of one, two, four … of them.
    """
    at = 0
    while k % 2:
        totals = add_tile(totals, waiting, at, LANES * PANELS)
        k, at = k // 2, at + size
    store_tile(waiting, at, LANES * PANELS, totals)
    return totals


@helper
def put_tile(totals, t, r, edge, out):
    """Write a tile to out[t:, r:], or what of it lies within."""
    n, rows = out.shape
    if t + TOKENS <= n and r + LANES * PANELS <= rows:
        store_tile(out.reshape(-1), t * rows + r, rows, totals)
        return
    store_tile(edge, 0, LANES * PANELS, totals)
    for i in range(min(TOKENS, n - t)):
        for k in range(min(LANES * PANELS, rows - r)):
            out[t + i, r + k] = edge[i * LANES * PANELS + k]


def products_of(
    name: str,
    source: str,
    unpack: Callable[..., Any],
    unpack_rows: Callable[..., Any],
    *,
    form: str,
    top: int,
    group: int = 32,
    offset: int | None = None,
) -> Product:
    """The kernels of a format; `top` is the highest level, or WIDE."""
    format = format_by_name(name)
    names: dict[str, Any] = {
        "unpack": unpack,
        "unpack_rows": unpack_rows,
        "begin": _start_at if offset else _start_none,
        "dot": dot_wide if top == WIDE else dot_bytes,
        "pack": pack_steps(group, top),
        "STEP": columns_of_step(top),
        "tile": dot_tile(group, top, bool(offset)),
        "tile_few": dot_tile(group, top, bool(offset), TOGETHER, FEW_PANELS, TOGETHER),
        "tile_two": dot_tile(group, top, bool(offset), 2, FEW_PANELS, TOGETHER),
        "BLOCK": format.block_size,
        "BYTES": format.type_size,
        "GROUP": group,
        "group_sums": group_sums_2 if group == 32 else group_sums_4,
        "sum_groups": sum_pairs_8 if group == 32 else sum_pairs_16,
        "OFFSET": -1 if offset is None else offset,
    }
    prefix = name.lower()
    return Product(
        specialised(vector, f"{prefix}_vector", source, **names),
        specialised(few, f"{prefix}_few", source, **names),
        specialised(matrix, f"{prefix}_matrix", source, **names),
        form,
        group,
        offset,
    )
