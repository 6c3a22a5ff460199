"""IQ1_S and IQ1_M: their encoders.

With three levels the best assignment splits the sorted weights in two places: all splits are tried, with the
levels shifted up and down, by means of running sums. Then groups of eight that are not in the codebook take the
best row around them. Sixteen sub-blocks are in the lanes.

Source: quantize_row_iq1_s_impl, quantize_row_iq1_m_impl and iq1_find_best_neighbour2 of ggml-quants.c.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ggufkit.formats.iquants.blocks import (
    NO_IMPORTANCE,
    clear,
    largest_of_8,
    load_sub_blocks,
    odd_code,
    per_super_block,
    sums_of_squares,
    weigh,
    weigh_by_square,
    write_u16,
)
from ggufkit.formats.iquants.grids import OFF_GRID, ROW, neighbours
from ggufkit.formats.iquants.iq1 import DELTA
from ggufkit.kernels.jit import helper, inlined, kernel, maker
from ggufkit.kernels.lanes import (
    LANES,
    any_lane,
    fabs,
    first_lane,
    flat,
    float_to_half,
    gather,
    highest,
    lane_numbers,
    load,
    lowest,
    maximum,
    select,
    splat,
    store,
    to_f32,
    transpose,
    view,
)

# The levels shifted up, UP - 1, UP and UP + 1, and down.
UP, DOWN = DELTA, -DELTA
EPS_S, EPS_M = np.float32(1e-12), np.float32(1e-7)  # GROUP_MAX_EPS_IQ1_S and _IQ1_M
LOWEST = np.float32(-np.finfo(np.float32).max)


class Work(NamedTuple):
    """Arrays in lanes, made once a call; n: weights of a sub-block."""

    X: np.ndarray  # (n, 16) float32
    W: np.ndarray  # (n, 16) float32: how much each weight matters
    natural: np.ndarray  # (512,) float32, scratch for loading
    ranks: np.ndarray  # (n, 16) int32: place of each weight in ascending order
    levels: np.ndarray  # (n, 16) int32: 0, 1, 2
    order: np.ndarray  # (n, 16) int32: which weight is in a place
    sum_x: np.ndarray  # (n + 1, 16) float32: Σ w x over the first places
    sum_w: np.ndarray  # (n + 1, 16) float32: Σ w
    more: np.ndarray  # (4 (n + 1), 16) float32, for sums that depend on one split only
    rows: np.ndarray  # (n / 8, 16) int32: ROW | OFF_GRID
    shifts: np.ndarray  # (n / 8, 16) float32: UP or DOWN
    scales: np.ndarray  # (16,) float32
    codes: np.ndarray  # (16,) int32


@maker
def _new_work(n):
    return Work(
        np.empty(n * LANES, np.float32),
        np.empty(n * LANES, np.float32),
        np.empty(512, np.float32),
        np.empty(n * LANES, np.int32),
        np.empty(n * LANES, np.int32),
        np.empty(n * LANES, np.int32),
        np.empty((n + 1) * LANES, np.float32),
        np.empty((n + 1) * LANES, np.float32),
        np.empty(4 * (n + 1) * LANES, np.float32),
        np.empty(n // 8 * LANES, np.int32),
        np.empty(n // 8 * LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.int32),
    )


@inlined
def _sort(X, ranks, order):
    """ranks: the place of each weight in ascending order, of equal ones the first first; order: the inverse."""
    zero, one = splat(np.int32(0)), splat(np.int32(1))
    for i in range(0, X.size, LANES):
        store(ranks, i, zero)
    for i in range(0, X.size, LANES):
        x, rank = load(X, i), load(ranks, i)
        for j in range(i + LANES, X.size, LANES):
            later_is_less = load(X, j) < x
            rank = rank + select(later_is_less, one, zero)
            store(ranks, j, load(ranks, j) + select(later_is_less, zero, one))
        store(ranks, i, rank)
    for i in range(X.size // LANES):
        for k in range(LANES):
            order[LANES * ranks[LANES * i + k] + k] = i


@inlined
def _gather_weight(values, order, j):
    """The weights of place j."""
    return gather(values, load(order, LANES * j) * splat(np.int32(LANES)) + lane_numbers())


@inlined
def _better(score, sums):
    sum_qx, sum_qq = sums
    return (sum_qq > splat(np.float32(0))) & (sum_qx * sum_qx > score * sum_qq)


@inlined
def _square(factor, level):
    """factor · level², in the reference's order."""
    return factor * splat(level) * splat(level)


@helper
def _split_s(work):
    """The best splits of 32 weights: the scale, 128 first + 2 second + (shifted down), negative where there is none.

    Levels of the places before `first` are 0, of those from `second` on 2, of those between 1.
    """
    n = 32
    total_x, total_w = load(work.sum_x, LANES * n), load(work.sum_w, LANES * n)
    for j in range(n + 1):
        above_x, above_w = total_x - load(work.sum_x, LANES * j), total_w - load(work.sum_w, LANES * j)
        store(work.more, LANES * (4 * j), above_x * splat(UP + np.float32(1)))
        store(work.more, LANES * (4 * j + 1), above_x * splat(DOWN + np.float32(1)))
        store(work.more, LANES * (4 * j + 2), _square(above_w, UP + np.float32(1)))
        store(work.more, LANES * (4 * j + 3), _square(above_w, DOWN + np.float32(1)))
    score, scale, code = splat(LOWEST), splat(np.float32(0)), splat(np.int32(-1))
    for first in range(n + 1):
        first_x, first_w = load(work.sum_x, LANES * first), load(work.sum_w, LANES * first)
        up_x, down_x = first_x * splat(UP - np.float32(1)), first_x * splat(DOWN - np.float32(1))
        up_w, down_w = _square(first_w, UP - np.float32(1)), _square(first_w, DOWN - np.float32(1))
        for second in range(first, n + 1):
            between_x = (load(work.sum_x, LANES * second) - first_x) * splat(UP)
            between_w = _square(load(work.sum_w, LANES * second) - first_w, UP)
            at = LANES * 4 * second
            up = up_x + between_x + load(work.more, at), up_w + between_w + load(work.more, at + 2 * LANES)
            down = (
                down_x - between_x + load(work.more, at + LANES),
                down_w + between_w + load(work.more, at + 3 * LANES),
            )
            if not any_lane(_better(score, up) | _better(score, down)):
                continue
            for kind in range(2):
                sums = (up, down)[kind]
                better = _better(score, sums)
                sum_qx, sum_qq = sums
                fit = sum_qx / sum_qq
                scale, score = select(better, fit, scale), select(better, fit * sum_qx, score)
                code = select(better, splat(np.int32(128 * first + 2 * second + kind)), code)
    return scale, code


@inlined
def _assign(work, first, second, turn):
    """Levels from the splits; 2 - level in the lanes `turn`, whose scale is negative."""
    zero, one, two = splat(np.int32(0)), splat(np.int32(1)), splat(np.int32(2))
    for i in range(0, work.X.size, LANES):
        rank = load(work.ranks, i)
        level = select(rank >= first, one, zero) + select(rank >= second, one, zero)
        store(work.levels, i, select(turn, two - level, level))


@inlined
def _errors(points, at, scale, shift, X, W, i):
    """Σ w (scale · q - x)² of sixteen candidates for eight weights, those from i on at intervals of 16."""
    errors = splat(np.float32(0))
    for n in range(8):
        q = to_f32(load(points, at + LANES * n)) + splat(shift)
        difference = splat(scale) * q - splat(X[i])
        errors = errors + splat(W[i]) * difference * difference
        i += np.uint64(LANES)
    return errors


@inlined
def _choose_rows(work, table, scale):
    """The row of each group: its cell's own, or the best around it. work.shifts says how the levels are shifted."""
    cells, points, candidates = table.cells, table.points, table.rows
    X, W, rows, shifts, scales = work.X, work.W, work.rows, work.shifts, work.scales
    store(scales, 0, scale)
    for group in range(X.size // (8 * LANES)):
        cell = splat(np.int32(0))
        for n in range(8 * group + 7, 8 * group - 1, -1):
            cell = cell * splat(np.int32(3)) + load(work.levels, LANES * n)
        store(rows, LANES * group, gather(cells, cell))
    for c in range(rows.size):
        word = rows[c]
        if word <= ROW:
            continue
        least, position = np.float32(np.finfo(np.float32).max), LANES * (word & 0xFFFF)
        i = np.uint64(c // LANES * 8 * LANES + c % LANES)
        for group in range(np.int64(word & 0xFFFF), np.int64((word & 0xFFFF) + (word >> 16))):
            errors = _errors(points, 8 * LANES * group, scales[c % LANES], shifts[c], X, W, i)
            smallest = lowest(errors)
            if smallest < least:
                least, position = smallest, LANES * group + first_lane(errors == splat(smallest))
        rows[c] = candidates[np.uint64(position)]


@inlined
def _refit(work, packed, scale):
    """The scale that fits the rows, where one of them is not what was wanted and the fit is positive."""
    zero = splat(np.float32(0))
    sum_qx = sum_qq = zero
    any_off = splat(np.int32(0))
    i = 0
    for group in range(work.rows.size // LANES):
        row, shift = load(work.rows, LANES * group), load(work.shifts, LANES * group)
        any_off = any_off | row & splat(np.int32(OFF_GRID))
        for half in range(2):
            word = gather(packed, (row & splat(np.int32(ROW))) * splat(np.int32(2)) + splat(np.int32(half)))
            for _ in range(4):
                # The lowest byte, sign-extended.
                q = to_f32(word << splat(np.int32(24)) >> splat(np.int32(24))) + shift
                word = word >> splat(np.int32(8))
                wq = load(work.W, i) * q
                sum_qx, sum_qq = sum_qx + wq * load(work.X, i), sum_qq + wq * q
                i += LANES
    fits = (any_off > splat(np.int32(0))) & (sum_qx > zero) & (sum_qq > zero)
    return select(fits, sum_qx / sum_qq, scale)


@inlined
def _largest_magnitude(X):
    largest = fabs(load(X, 0))
    for i in range(LANES, X.size, LANES):
        largest = maximum(largest, fabs(load(X, i)))
    return largest


@helper
def _search_s(work, table):
    """Rows, shifts and scales of sixteen sub-blocks of 32: work.rows, work.shifts; returns the scales."""
    zero = splat(np.float32(0))
    _sort(work.X, work.ranks, work.order)
    sum_x = sum_w = zero
    store(work.sum_x, 0, zero)
    store(work.sum_w, 0, zero)
    for j in range(32):
        w, x = _gather_weight(work.W, work.order, j), _gather_weight(work.X, work.order, j)
        sum_x, sum_w = sum_x + w * x, sum_w + w
        store(work.sum_x, LANES * (j + 1), sum_x)
        store(work.sum_w, LANES * (j + 1), sum_w)
    scale, code = _split_s(work)
    dead = (_largest_magnitude(work.X) < splat(EPS_S)) | (code < splat(np.int32(0)))
    turn = scale < zero
    first, second = code >> splat(np.int32(7)), code >> splat(np.int32(1)) & splat(np.int32(63))
    _assign(work, first, second, turn)
    down = (select(turn, code ^ splat(np.int32(1)), code) & splat(np.int32(1)) != splat(np.int32(0))) & ~dead
    shift = select(down, splat(DOWN), splat(UP))
    for group in range(0, work.shifts.size, LANES):
        store(work.shifts, group, shift)
    scale = fabs(scale)
    _choose_rows(work, table, scale)
    scale = _refit(work, table.packed, scale)
    clear(work.rows, dead)
    return select(dead, zero, scale)


@kernel
def _s_encode(x, importance, table, out):
    """x: (rows, cols) float32; importance: (cols,) float32; out: (rows, cols / 256 · 50) uint8."""
    values, data = flat(x), flat(out)
    work = _new_work(32)
    blocks, cols = values.size // 256, importance.size
    for block in range(0, blocks, 2):
        other = min(block + 1, blocks - 1)
        load_sub_blocks(values, 256 * block, 256 * other, work.natural, work.X)
        load_sub_blocks(importance, 256 * block % cols, 256 * other % cols, work.natural, work.W)
        a, b = sums_of_squares(values, 256 * block, 256 * other)
        weigh(work.X, work.W, per_super_block(np.float32(2) * a, np.float32(2) * b) / splat(np.float32(256)))
        scale = _search_s(work, table)
        store(work.scales, 0, scale)
        d, e = largest_of_8(work.scales, 0) / np.float32(15), largest_of_8(work.scales, 8) / np.float32(15)
        store(work.codes, 0, odd_code(scale, per_super_block(d, e), 7))
        _s_write(data, 50 * block, d, work, 0)
        _s_write(data, 50 * other, e, work, 8)


@helper
def _s_write(data, at, d, work, lane):
    """One super-block of 50 bytes from the lanes `lane` … `lane + 7`.

    d d | q0 … q31 | h0 … h7 (uint16)      h = -sssDDDC CCBBBAAA: shift down, scale s, bits 8 to 10 of rows A … D
    """
    write_u16(data, at, float_to_half(d * np.float32(1.125)))
    for j in range(8):
        h = 0
        for group in range(4):
            row = work.rows[16 * group + lane + j] & ROW
            data[at + 2 + 4 * j + group] = np.uint8(row)
            h |= (row >> 8) << (3 * group)
        if d > 0:
            h |= work.codes[lane + j] << 12
            h |= (work.shifts[lane + j] < 0) << 15
        write_u16(data, at + 34 + 2 * j, np.uint16(h))


@inlined
def _sums_of_halves(work):
    """Running sums of w x and w for each half of the sub-blocks of 16, in sorted order.

    sum_x, sum_w: (17, 16) for the first half; more: (2, 17, 16) for the second.
    """
    x0 = x1 = w0 = w1 = splat(np.float32(0))
    for j in range(17):
        store(work.sum_x, LANES * j, x0)
        store(work.sum_w, LANES * j, w0)
        store(work.more, LANES * j, x1)
        store(work.more, LANES * (17 + j), w1)
        if j == 16:
            break
        in_first = load(work.order, LANES * j) < splat(np.int32(8))
        w, x = _gather_weight(work.W, work.order, j), _gather_weight(work.X, work.order, j)
        x0, x1 = select(in_first, x0 + w * x, x0), select(in_first, x1, x1 + w * x)
        w0, w1 = select(in_first, w0 + w, w0), select(in_first, w1, w1 + w)


@helper
def _split_m(work):
    """The best splits of 16 weights: the scale, and 256 first + 8 second + kind, negative where there is none.

    kind: 1 where the second half is shifted down, plus 2 where the first is. Neighbouring levels differ by one, so
    that Σ w q x is the top level times all less the sums below the two splits; likewise for squares.
    """
    top_up, top_down = splat(UP + np.float32(1)), splat(DOWN + np.float32(1))
    # Differences of the squares of neighbouring levels: bottom - middle, middle - top.
    up_1, up_2 = splat((UP - 1) ** 2 - UP**2), splat(UP**2 - (UP + 1) ** 2)
    down_1, down_2 = splat((DOWN - 1) ** 2 - DOWN**2), splat(DOWN**2 - (DOWN + 1) ** 2)
    x0, w0 = load(work.sum_x, LANES * 16), load(work.sum_w, LANES * 16)
    x1, w1 = load(work.more, LANES * 16), load(work.more, LANES * 33)
    score, scale, code = splat(LOWEST), splat(np.float32(0)), splat(np.int32(-1))
    for first in range(17):
        below_x0, below_w0 = load(work.sum_x, LANES * first), load(work.sum_w, LANES * first)
        below_x1, below_w1 = load(work.more, LANES * first), load(work.more, LANES * (17 + first))
        base_up0 = w0 * top_up * top_up + below_w0 * up_1
        base_up1 = w1 * top_up * top_up + below_w1 * up_1
        base_down0 = w0 * top_down * top_down + below_w0 * down_1
        base_down1 = w1 * top_down * top_down + below_w1 * down_1
        for second in range(first, 17):
            cut0, cut1 = below_x0 + load(work.sum_x, LANES * second), below_x1 + load(work.more, LANES * second)
            next_w0, next_w1 = load(work.sum_w, LANES * second), load(work.more, LANES * (17 + second))
            qx_up0, qx_down0 = x0 * top_up - cut0, x0 * top_down - cut0
            qx_up1, qx_down1 = x1 * top_up - cut1, x1 * top_down - cut1
            qq_up0, qq_down0 = base_up0 + next_w0 * up_2, base_down0 + next_w0 * down_2
            qq_up1, qq_down1 = base_up1 + next_w1 * up_2, base_down1 + next_w1 * down_2
            sums = (
                (qx_up0 + qx_up1, qq_up0 + qq_up1),
                (qx_up0 + qx_down1, qq_up0 + qq_down1),
                (qx_down0 + qx_up1, qq_down0 + qq_up1),
                (qx_down0 + qx_down1, qq_down0 + qq_down1),
            )
            # Where none of the four is better than what there is, the first to be better than that is none of them.
            hope = _better(score, sums[0]) | _better(score, sums[1]) | _better(score, sums[2]) | _better(score, sums[3])
            if not any_lane(hope):
                continue
            for kind in range(4):
                better = _better(score, sums[kind])
                sum_qx, sum_qq = sums[kind]
                fit = sum_qx / sum_qq
                scale, score = select(better, fit, scale), select(better, fit * sum_qx, score)
                code = select(better, splat(np.int32(256 * first + 8 * second + kind)), code)
    return scale, code


@helper
def _search_m(work, table):
    """Rows, shifts and scales of sixteen sub-blocks of 16: work.rows, work.shifts; returns the scales."""
    zero, none = splat(np.float32(0)), splat(np.int32(0))
    _sort(work.X, work.ranks, work.order)
    _sums_of_halves(work)
    scale, code = _split_m(work)
    dead = (_largest_magnitude(work.X) < splat(EPS_M)) | (code < none)
    turn = scale < zero
    _assign(work, code >> splat(np.int32(8)), code >> splat(np.int32(3)) & splat(np.int32(31)), turn)
    kind = select(turn, code ^ splat(np.int32(3)), code)
    for group in range(2):
        down = (kind & splat(np.int32(2 - group)) != none) & ~dead
        store(work.shifts, LANES * group, select(down, splat(DOWN), splat(UP)))
    scale = fabs(scale)
    _choose_rows(work, table, scale)
    scale = _refit(work, table.packed, scale)
    clear(work.rows, dead)
    return select(dead, zero, scale)


@inlined
def _refit_super_block(work, points, d):
    """d that fits the rows and scale codes of all 256 weights, summed in order. points: (rows · 8,) int8"""
    sum_qx = sum_qq = np.float32(0)
    for j in range(16):
        factor = np.float32(2 * work.codes[j] + 1)
        for i in range(16):
            c = 16 * (i // 8) + j
            q = (np.float32(points[8 * (work.rows[c] & ROW) + i % 8]) + work.shifts[c]) * factor
            wq = work.W[16 * i + j] * q
            sum_qx += wq * work.X[16 * i + j]
            sum_qq += wq * q
    return sum_qx / sum_qq if sum_qq > 0 else d


@kernel
def _m_encode(x, importance, table, out):
    """x: (rows, cols) float32; importance: (cols,) float32, or (0,) for none; out: (rows, cols / 256 · 56) uint8."""
    values, data = flat(x), flat(out)
    work, points = _new_work(16), view(table.packed, np.int8)
    for block in range(values.size // 256):
        transpose(values, 256 * block, 16, work.X, 0)
        if importance.size:
            transpose(importance, 256 * block % importance.size, 16, work.W, 0)
            sigma2 = np.float32(2) * sums_of_squares(values, 256 * block, 256 * block)[0] / np.float32(256)
            weigh(work.X, work.W, splat(sigma2))
        else:
            weigh_by_square(work.X, work.W)
        scale = _search_m(work, table)
        d = highest(scale) / np.float32(15)
        store(work.codes, 0, odd_code(scale, splat(d), 7))
        _m_write(data, 56 * block, d, work, points)


@helper
def _m_write(data, at, d, work, points):
    """One super-block of 56 bytes.

    q0 … q31 | h0 … h15 | k0 … k3 (uint16)
    h = -BBB-AAA: shift down and bits 8 to 10, of rows A and B of 16 weights
    k = ddddDDDC CCBBBAAA: four scales, and four bits of the float16 d, the lowest in k0
    """
    for j in range(16):
        a, b = work.rows[j] & ROW, work.rows[16 + j] & ROW
        h = a >> 8 | b >> 8 << 4
        if d > 0:
            h |= (work.shifts[j] < 0) << 3 | (work.shifts[16 + j] < 0) << 7
        data[at + 2 * j], data[at + 2 * j + 1] = np.uint8(a), np.uint8(b)
        data[at + 32 + j] = np.uint8(h)
    data[at + 48 : at + 56] = 0
    if d == 0:
        return
    half = np.int64(float_to_half(_refit_super_block(work, points, d) * np.float32(1.1125)))
    for k in range(4):
        codes = 0
        for j in range(4):
            codes |= work.codes[4 * k + j] << (3 * j)
        write_u16(data, at + 48 + 2 * k, np.uint16((half >> (4 * k) & 15) << 12 | codes))


def iq1_s_encode_weighted(x: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 → IQ1_S with importance, (cols,) float32. out: (rows, cols / 256 · 50) uint8."""
    _s_encode(x, importance, neighbours("IQ1_S"), out)


def iq1_m_encode(x: np.ndarray, out: np.ndarray) -> None:
    """float32 → IQ1_M. x: (rows, cols) float32; out: (rows, cols / 256 · 56) uint8."""
    _m_encode(x, NO_IMPORTANCE, neighbours("IQ1_S"), out)


def iq1_m_encode_weighted(x: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 → IQ1_M with importance, (cols,) float32."""
    _m_encode(x, importance, neighbours("IQ1_S"), out)
