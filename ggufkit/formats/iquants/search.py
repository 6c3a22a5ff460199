"""What the IQ2 and IQ3 encoders share: the search for a scale and codebook rows of sixteen sub-blocks at once.

A sub-block is tried with one scale after the other. A trial rounds every weight, which gives a cell of the codebook
for each group of four or eight, and takes that cell's row, or the best of the rows around it: the candidate q with
the smallest Σ a (scale · q - x)². The best scale for those rows is the weighted least-squares one, and the trial
with the smallest error wins. Then one more round with its scale may still improve the rows.

Most of the work would be in comparing candidates, but from one trial to the next nine of ten cells stay the same,
and so does, nearly always, the best of their candidates. How long it does is computed along with it: see `_lasts`.

Sub-blocks are in the lanes, except where candidates are compared: there those are.

Source: quantize_row_iq2_xxs_impl … quantize_row_iq3_s_impl and iq2_find_best_neighbour of ggml-quants.c.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ggufkit.formats.iquants.blocks import nearest_code
from ggufkit.formats.iquants.grids import OFF_GRID, ROW
from ggufkit.kernels.jit import inlined, maker
from ggufkit.kernels.lanes import (
    LANES,
    fabs,
    first_lane,
    gather,
    highest,
    lane,
    load,
    lowest,
    mask_bits,
    maximum,
    minimum,
    select,
    splat,
    sqrt,
    store,
    to_f32,
)


class Plan(NamedTuple):
    """What a format searches. Numbers of the codebook go from 1 to `top`: 1, 3, … 2 · base - 1."""

    dims: int  # weights a row of the codebook
    groups: int  # rows per sub-block
    base: int  # levels per weight
    trials: int  # scales tried to either side of the one that fits the largest weight
    step: np.float32  # by how much the number for the largest weight differs from one trial to the next
    polish: int  # which rows the last round may change: OFF_GRID_ROWS, ALL_IF_ANY or ALL


OFF_GRID_ROWS, ALL_IF_ANY, ALL = 0, 1, 2


class Work(NamedTuple):
    """Arrays in lanes, made once a call. "weights" and "groups" are those of a sub-block."""

    natural: np.ndarray  # (512,) float32, scratch for loading
    X: np.ndarray  # (weights, 16) float32: what to encode; magnitudes, a few of them negative for parity's sake
    W: np.ndarray  # (weights, 16) float32: how much each matters
    A: np.ndarray  # (weights, 16) float32: √W, by which candidates are compared
    signs: np.ndarray  # (weights / 8, 16) int32, bit i for weight i of eight
    best: np.ndarray  # (groups, 16) int32: ROW | OFF_GRID of the best trial
    rows: np.ndarray  # (groups, 16) int32: of the trial at hand
    cells: np.ndarray  # (groups, 16) int32, see grids.Neighbours
    known: np.ndarray  # (groups, 16) int32: the cells that `rows` and `until` belong to
    until: np.ndarray  # (groups, 16) float32: down to which scale `rows` is the best of `known`
    margin: np.ndarray  # (groups, 16) float32: see _lasts
    scales: np.ndarray  # (16,) float32
    codes: np.ndarray  # (16,) int32
    todo: np.ndarray  # (groups · 16 + 1,) int32


@maker
def new_work(weights, groups):
    return Work(
        np.empty(512, np.float32),
        np.empty(weights * LANES, np.float32),
        np.empty(weights * LANES, np.float32),
        np.empty(weights * LANES, np.float32),
        np.empty(weights // 8 * LANES, np.int32),
        np.empty(groups * LANES, np.int32),
        np.empty(groups * LANES, np.int32),
        np.empty(groups * LANES, np.int32),
        np.empty(groups * LANES, np.int32),
        np.empty(groups * LANES, np.float32),
        np.empty(groups * LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.int32),
        np.empty(groups * LANES + 1, np.int32),
    )


# ---- Candidates of one cell: they are in the lanes --------------------------------------------------------------


@inlined
def _errors(points, at, dims, scale, X, A, i):
    """Σ a (scale · q - x)² of sixteen candidates. points[at …]: (dims, 16) int8

    i: index of the first weight in X and A; the others follow at intervals of 16. It is unsigned, so that Numba
    does not ask whether it counts from the end.
    """
    errors = splat(np.float32(0))
    for n in range(dims):
        difference = splat(scale) * to_f32(load(points, at + LANES * n)) - splat(X[i])
        errors = errors + splat(A[i]) * difference * difference
        i += np.uint64(LANES)
    return errors


@inlined
def _parabola(points, at, dims, X, A, i):
    """p and r of sixteen candidates: Σ a (scale · q - x)² is scale² p - 2 scale r + Σ a x²."""
    p = r = splat(np.float32(0))
    for n in range(dims):
        q, a = to_f32(load(points, at + LANES * n)), splat(A[i])
        aq = a * q
        p, r = p + aq * q, r + aq * splat(X[i])
        i += np.uint64(LANES)
    return p, r


@inlined
def _lasts(points, rows, dims, first, last, position, scale, margin, X, A, i):
    """The smallest scale down to which a candidate stays the best, given that it is at `scale`; else infinity.

    Its lead over another candidate is scale · (scale · (p - p₀) - 2 (r - r₀)), and the bracket is linear: if it
    is positive at two scales then also between them. The reference compares rounded errors, so that the lead must
    be more than what all roundings together can amount to: `margin`, see _margins.
    """
    at = first + position // LANES
    p, r = _parabola(points, dims * LANES * at, dims, X, A, i)
    best = splat(lane(p, position % LANES)), splat(lane(r, position % LANES))
    row = splat(np.int32(rows[np.uint64(LANES * first + position)]))
    smallest = _limit(p, r, load(rows, LANES * at) == row, best, scale, margin)
    for group in range(first, last):
        if group != at:
            p, r = _parabola(points, dims * LANES * group, dims, X, A, i)
            limit = _limit(p, r, load(rows, LANES * group) == row, best, scale, margin)
            smallest = maximum(smallest, limit)
    return highest(smallest)


@inlined
def _limit(p, r, is_best, best, scale, margin):
    """Down to which scale the best candidate leads sixteen others; 0 for itself."""
    zero, never = splat(np.float32(0)), splat(np.float32(np.inf))
    slope, offset = p - best[0], splat(np.float32(2)) * (r - best[1]) + splat(margin)
    limit = select(slope > zero, offset / slope, select(splat(scale) * slope > offset, zero, never))
    return select(is_best, zero, limit)


@inlined
def _compare(points, dims, first, last, scale, X, A, i):
    """Position of the first candidate with the smallest error among the groups `first` … `last - 1`."""
    least, position = np.float32(np.finfo(np.float32).max), 0
    for group in range(first, last):
        errors = _errors(points, dims * LANES * group, dims, scale, X, A, i)
        smallest = lowest(errors)
        if smallest < least:
            least, position = smallest, LANES * (group - first) + first_lane(errors == splat(smallest))
    return position


# ---- Trials: sub-blocks are in the lanes ------------------------------------------------------------------------


@inlined
def _margins(work, plan, largest_scale, smallest_scale):
    """What the lead over another candidate, divided by the scale, must exceed for rounding not to matter.

    With u = 2⁻²⁴ and B = Σ a (scale · top + |x|)², a computed error is off by less than 13 u B, and the bracket of
    `_lasts`, times the scale, by less than 24 u B; twice the one and the other are less than 2⁻¹⁸ B. Taken are
    2⁻¹⁵ B / scale, B with the largest and the divisor with the smallest scale of all trials. That counts relative
    errors only; where numbers are so small or so large that there are others, the margin is infinite.
    """
    tiny, huge = splat(np.float32(2.0**-100)), splat(np.float32(2.0**100))
    one, infinite = splat(np.float32(1)), splat(np.float32(np.inf))
    furthest = largest_scale * splat(np.float32(2 * plan.base - 1))
    i = 0
    for group in range(plan.groups):
        bound = sum_a = reach = splat(np.float32(0))
        for _ in range(plan.dims):
            a, far = load(work.A, i), furthest + fabs(load(work.X, i))
            bound, sum_a, reach = bound + a * far * far, sum_a + a, maximum(reach, far)
            i += LANES
        sound = (bound > tiny * (one + reach) * (one + reach)) & (bound < huge) & (sum_a < huge)
        margin = splat(np.float32(2.0**-15)) * bound / smallest_scale
        store(work.margin, LANES * group, select(sound, margin, infinite))


@inlined
def _round_to_cells(work, plan, inverse):
    """Round the weights over the scale 1 / inverse: the cell of each group."""
    one, half = splat(np.float32(1)), splat(np.float32(0.5))
    zero, last, base = splat(np.int32(0)), splat(np.int32(plan.base - 1)), splat(np.int32(plan.base))
    for group in range(plan.groups):
        cell = zero
        for i in range(plan.dims * group + plan.dims - 1, plan.dims * group - 1, -1):
            level = nearest_code(half * (inverse * load(work.X, LANES * i) - one))
            cell = cell * base + maximum(zero, minimum(last, level))
        store(work.cells, LANES * group, cell)


@inlined
def _look_up(work, plan, cells, scale):
    """Take the rows of cells that are rows, and keep those that last. Returns how many others are in `todo`."""
    count = np.uint64(0)  # as an index it is not asked whether it counts from the end
    for c in range(0, LANES * plan.groups, LANES):
        cell = load(work.cells, c)
        found = gather(cells, cell)
        is_row = found <= splat(np.int32(ROW))
        lasts = (cell == load(work.known, c)) & (scale >= load(work.until, c))
        store(work.rows, c, select(is_row, found, load(work.rows, c)))
        store(work.known, c, cell)
        left = mask_bits(~(is_row | lasts))
        for k in range(LANES):
            work.todo[count] = c + k
            count += np.uint64(left >> k & 1)
    store(work.scales, 0, scale)
    return np.int64(count)


@inlined
def _choose(work, dims, table, count, lasting):
    """Compare the candidates of the `count` cells in `todo`; with `lasting`, also find how long they stay best."""
    X, A, cells, points, candidates = work.X, work.A, table.cells, table.points, table.rows
    for t in range(count):
        c = np.int64(work.todo[t])
        at = np.uint64(c)
        word = cells[np.uint32(work.cells[at])]
        first, last = np.int64(word & 0xFFFF), np.int64((word & 0xFFFF) + (word >> 16))
        scale, i = work.scales[np.uint64(c % LANES)], np.uint64(c // LANES * LANES * dims + c % LANES)
        position = _compare(points, dims, first, last, scale, X, A, i)
        work.rows[at] = candidates[np.uint64(LANES * first + position)]
        if lasting:
            margin = work.margin[at]
            work.until[at] = _lasts(points, candidates, dims, first, last, position, scale, margin, X, A, i)


@inlined
def _moments(work, plan, packed, rows):
    """Σ w x q and Σ w q q for the numbers q of the given rows."""
    sum_xq = sum_qq = splat(np.float32(0))
    quarters = plan.dims // 4
    i = 0
    for group in range(plan.groups):
        row = load(rows, LANES * group) & splat(np.int32(ROW))
        for quarter in range(quarters):
            word = gather(packed, row * splat(np.int32(quarters)) + splat(np.int32(quarter)))
            for _ in range(4):
                q = to_f32(word & splat(np.int32(255)))
                word = word >> splat(np.int32(8))
                w, x = load(work.W, i), load(work.X, i)
                sum_xq = sum_xq + w * x * q
                sum_qq = sum_qq + w * q * q
                i += LANES
    return sum_xq, sum_qq


@inlined
def _scale_of_trial(plan, trial, largest):
    """1 / scale of a trial, and the scale."""
    inverse = splat(np.float32(2 * plan.base - 1) + np.float32(trial) * plan.step) / largest
    return inverse, splat(np.float32(1)) / inverse


@inlined
def search(work, plan, table, largest, scale):
    """Find the scale of sixteen sub-blocks, and the codebook rows of their groups: work.best.

    largest : the weight about which scales are tried, such that it becomes the largest number of the codebook.
    scale : what to return where no trial is any good.

    Reads work.X and work.W.
    """
    zero = splat(np.float32(0))
    # Row 0 is cell 0 in every format; ALL_IF_ANY counts it as one that the last round may change.
    start = splat(np.int32(OFF_GRID if plan.polish == ALL_IF_ANY else 0))
    for i in range(0, LANES * plan.groups, LANES):
        store(work.best, i, start)
        store(work.known, i, splat(np.int32(-1)))
    for i in range(0, work.W.size, LANES):
        store(work.A, i, sqrt(load(work.W, i)))
    _, smallest_scale = _scale_of_trial(plan, plan.trials, largest)
    _, largest_scale = _scale_of_trial(plan, -plan.trials, largest)
    _margins(work, plan, largest_scale, smallest_scale)
    best = zero
    for trial in range(-plan.trials, plan.trials + 1):  # from the largest scale to the smallest
        inverse, trial_scale = _scale_of_trial(plan, trial, largest)
        _round_to_cells(work, plan, inverse)
        count = _look_up(work, plan, table.cells, trial_scale)
        _choose(work, plan.dims, table, count, trial < plan.trials)
        sum_xq, sum_qq = _moments(work, plan, table.packed, work.rows)
        better = (sum_qq > zero) & (sum_xq * sum_xq > best * sum_qq)
        scale = select(better, sum_xq / sum_qq, scale)
        best = select(better, scale * sum_xq, best)
        for i in range(0, LANES * plan.groups, LANES):
            store(work.best, i, select(better, load(work.rows, i), load(work.best, i)))
    return _polish(work, plan, table, scale)


@inlined
def _polish(work, plan, table, scale):
    """Round once more with the best scale. Returns the scale that fits the rows then."""
    zero, off = splat(np.float32(0)), splat(np.int32(OFF_GRID))
    any_off = splat(np.int32(OFF_GRID if plan.polish == ALL else 0))
    for i in range(0, LANES * plan.groups, LANES):
        any_off = any_off | load(work.best, i) & off
        store(work.known, i, splat(np.int32(-1)))
    improve = (any_off == off) & (scale > zero)
    _round_to_cells(work, plan, splat(np.float32(1)) / scale)
    count = _look_up(work, plan, table.cells, scale)
    _choose(work, plan.dims, table, count, False)
    for i in range(0, LANES * plan.groups, LANES):
        old = load(work.best, i)
        change = improve
        if plan.polish == OFF_GRID_ROWS:
            change = improve & (old & off == off)
        store(work.best, i, select(change, load(work.rows, i), old))
    sum_xq, sum_qq = _moments(work, plan, table.packed, work.best)
    return select(improve & (sum_qq > zero), sum_xq / sum_qq, scale)
