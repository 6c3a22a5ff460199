"""The searches for scales, sixteen sub-blocks at a time; each lane does exactly what llama.cpp does to one.

`X` and `W` hold one sub-block a lane: weight i of the lanes' sub-blocks is the vector at X[at + 16 i].
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.tiles import nearest_level, nearest_wrapped
from ggufkit.kernels.jit import helper, inlined
from ggufkit.kernels.lanes import (
    LANES,
    any_lane,
    fabs,
    load,
    maximum,
    minimum,
    nearest_int,
    select,
    splat,
    sqrt,
    store,
    to_f32,
    to_i32,
)

_ZERO, _ONE = np.float32(0), np.float32(1)
_GROUP_MAX_EPS = np.float32(1e-15)


@helper
def sum_of_squares(X, at, n):
    """Σ x² of n weights, in their order."""
    total = splat(_ZERO)
    for i in range(at, at + n * LANES, LANES):
        v = load(X, i)
        total = total + v * v
    return total


@helper
def weigh(X, at, n, sigma2, W):
    """Turn the importance of n weights in W into the weight of an error, importance · √(sigma2 + x²); their sum."""
    total = splat(_ZERO)
    for i in range(0, n * LANES, LANES):
        v = load(X, at + i)
        w = load(W, i) * sqrt(sigma2 + v * v)
        store(W, i, w)
        total = total + w
    return total


@helper
def make_qx(X, a, b, W, n, nmax):
    """Scale of x ≈ scale·l, l in −nmax … nmax − 1, of n weights, for two sub-blocks: those at X[a] and X[b].

    The weight of largest magnitude first gets level −nmax, then 18 inverse scales around that one are tried. The
    sums of one sub-block fill the wait of the other's.

    W : (2, 2, n, 16) float32: for both, the weights w of the errors, and room for w·x.

    Returns
    -------
    for both: scale and the iscale that gives the levels found: l = nearest(iscale·x); both 0 where all weights are
    below 1e-15, whose level is −nmax.

    Source: make_qx_quants with rmse_type 1, ggml-quants.c.
    """
    tile = n * LANES
    for i in range(0, tile, LANES):
        store(W, tile + i, load(W, i) * load(X, a + i))
        store(W, 3 * tile + i, load(W, 2 * tile + i) * load(X, b + i))
    largest = extreme(X, a, n), extreme(X, b, n)
    zero, iscale = splat(_ZERO), (splat(-nmax) / largest[0], splat(-nmax) / largest[1])
    sums = _fit_pair(X, a, b, W, n, nmax, iscale, False, True)
    found = _first_scale(sums[0], iscale[0]), _first_scale(sums[1], iscale[1])
    # |iscale·x| ≤ nmax + 0.1·step: below −5 no level can be beyond the last one, below 5 none beyond the first.
    found = _try_scales(X, a, b, W, n, nmax, largest, range(-9, -5), False, False, found)
    found = _try_scales(X, a, b, W, n, nmax, largest, range(-5, 5), False, True, found)
    found = _try_scales(X, a, b, W, n, nmax, largest, range(5, 10), True, True, found)
    nothing = fabs(largest[0]) < splat(_GROUP_MAX_EPS), fabs(largest[1]) < splat(_GROUP_MAX_EPS)
    return (
        (select(nothing[0], zero, found[0][0]), select(nothing[0], zero, found[0][2])),
        (select(nothing[1], zero, found[1][0]), select(nothing[1], zero, found[1][2])),
    )


@inlined
def _first_scale(sums, iscale):
    scale = select(sums[1] == splat(_ZERO), splat(_ZERO), sums[0] / sums[1])
    return scale, scale * sums[0], iscale


@inlined
def _try_scales(X, a, b, W, n, nmax, largest, steps, cap_low, cap_high, found):
    for step in steps:
        if step != 0:
            factor = splat(-(nmax + np.float32(0.1) * np.float32(step)))
            iscale = factor / largest[0], factor / largest[1]
            sums = _fit_pair(X, a, b, W, n, nmax, iscale, cap_low, cap_high)
            found = _better_scale(sums[0], iscale[0], found[0]), _better_scale(sums[1], iscale[1], found[1])
    return found


@inlined
def _better_scale(sums, iscale, found):
    sum_lx, sum_l2 = sums
    scale, best, best_iscale = found
    better = (sum_l2 > splat(_ZERO)) & (sum_lx * sum_lx > best * sum_l2)
    scale = select(better, sum_lx / sum_l2, scale)
    return scale, select(better, scale * sum_lx, best), select(better, iscale, best_iscale)


@inlined
def _fit_pair(X, a, b, W, n, nmax, iscale, cap_low, cap_high):
    """The sums Σ w·x·l and Σ w·l² of both at the levels that `iscale` gives."""
    zero, tile = splat(_ZERO), n * LANES
    sums_a = sums_b = zero, zero
    for i in range(0, tile, LANES):
        sums_a = _add_level(sums_a, load(X, a + i), W, i, tile, nmax, iscale[0], cap_low, cap_high)
        sums_b = _add_level(sums_b, load(X, b + i), W, 2 * tile + i, tile, nmax, iscale[1], cap_low, cap_high)
    return sums_a, sums_b


@inlined
def _add_level(sums, v, W, i, tile, nmax, iscale, cap_low, cap_high):
    level = nearest_int(iscale * v)
    if cap_high:
        level = minimum(level, splat(nmax - _ONE))
    if cap_low:
        level = maximum(level, splat(-nmax))
    return sums[0] + load(W, tile + i) * level, sums[1] + load(W, i) * level * level


@helper
def extreme(X, at, n):
    """The number of largest magnitude of n, the first of equals."""
    low = high = load(X, at)
    for i in range(at + LANES, at + n * LANES, LANES):
        v = load(X, i)
        low, high = minimum(v, low), maximum(v, high)
    if not any_lane(high == -low):
        return select(high > -low, high, low)
    largest = splat(_ZERO)
    for i in range(at, at + n * LANES, LANES):
        v = load(X, i)
        largest = select(fabs(v) > fabs(largest), v, largest)
    return largest


@helper
def store_levels(X, at, n, iscale, nmax, q):
    """The levels + nmax that make_qx found for n weights; q: uint8, laid out like X."""
    bottom, top = splat(-nmax), splat(nmax - _ONE)
    for i in range(at, at + n * LANES, LANES):
        level = minimum(maximum(nearest_int(iscale * load(X, i)), bottom), top)
        store(q, i, to_i32(select(iscale == splat(_ZERO), bottom, level) - bottom))


@helper
def start_q3(X, at, L):
    """The scale with which make_q3 starts, and the lanes where it goes on: in the others no level would move."""
    largest, sum_lx, sum_l2 = _first_levels_q3(X, at, L)
    moves = sum_l2 < splat(_ZERO)  # in no lane
    for i in range(0, 16 * LANES, LANES):
        v, level = load(X, at + i), load(L, i)
        w = v * v
        rest_lx, rest_l2 = sum_lx - w * v * level, sum_l2 - w * level * level
        above, below = _leaves_level_q3(v * rest_l2, rest_lx, level)
        moves = moves | above | below
    nothing = fabs(largest) < splat(_GROUP_MAX_EPS)
    return select((sum_l2 > splat(_ZERO)) & ~nothing, sum_lx / sum_l2, splat(_ZERO)), moves & ~nothing


@inlined
def _leaves_level_q3(a, b, level):
    """Whether nearest_level(a / b, −4, 3) could be above `level` or below it, if b is positive.

    It is not where a / b is within 0.499: the roundings of product, difference and quotient are below 10⁻⁵, and
    where numbers are subnormal those of products with levels are none. Huge quotients wrap round: any level may do.
    """
    off = a - level * b
    positive, huge = b > splat(_ZERO), fabs(off) >= splat(np.float32(1 << 20)) * b
    above = (off >= splat(np.float32(0.499)) * b) & ((level < splat(np.float32(3))) | huge)
    below = (off <= splat(np.float32(-0.499)) * b) & ((level > splat(np.float32(-4))) | huge)
    return positive & above, positive & below


@helper
def _first_levels_q3(X, at, L):
    """The weight of largest magnitude, and Σ w·x·l and Σ w·l² for the levels in L: that weight gets −4."""
    bottom, top = splat(np.float32(-4)), splat(np.float32(3))
    largest = extreme(X, at, 16)
    iscale = bottom / largest
    sum_lx, sum_l2 = splat(_ZERO), splat(_ZERO)
    for i in range(0, 16 * LANES, LANES):
        v = load(X, at + i)
        w, level = v * v, minimum(maximum(nearest_int(iscale * v), bottom), top)
        store(L, i, level)
        sum_lx = sum_lx + w * v * level
        sum_l2 = sum_l2 + w * level * level
    return largest, sum_lx, sum_l2


@helper
def make_q3(X, at, L):
    """Scale of x ≈ scale·l, l in −4 … 3, of 16 weights; an error weighs x². Writes the levels to L.

    Starts from level −4 for the weight of largest magnitude, then moves single levels while that helps, at most
    five rounds.

    Source: make_q3_quants, ggml-quants.c.
    """
    zero, one, bottom, top = splat(_ZERO), splat(_ONE), splat(np.float32(-4)), splat(np.float32(3))
    largest, sum_lx, sum_l2 = _first_levels_q3(X, at, L)
    nothing = fabs(largest) < splat(_GROUP_MAX_EPS)
    for _ in range(5):
        changed = zero > top  # in no lane
        for i in range(0, 16 * LANES, LANES):
            v, level = load(X, at + i), load(L, i)
            w = v * v
            wx = w * v
            rest_lx, rest_l2 = sum_lx - wx * level, sum_l2 - w * level * level
            a = v * rest_l2
            above, below = _leaves_level_q3(a, rest_lx, level)
            move = above | below
            if any_lane(move):
                # The next level, most of the time; that takes no division.
                moved = level + select(above, one, select(below, -one, zero))
                above, below = _leaves_level_q3(a, rest_lx, moved)
                if any_lane(move & (above | below)):
                    moved = nearest_level(a / rest_lx, bottom, top)
                    move = (rest_lx > zero) & (moved != level)
                rest_lx, rest_l2 = rest_lx + wx * moved, rest_l2 + w * moved * moved
                move = move & (rest_l2 > zero) & (rest_lx * rest_lx * sum_l2 > sum_lx * sum_lx * rest_l2)
                store(L, i, select(move, moved, level))
                sum_lx, sum_l2 = select(move, rest_lx, sum_lx), select(move, rest_l2, sum_l2)
                changed = changed | move
        # A lane without a change repeats itself, so it may go on until all lanes are done.
        if not any_lane(changed):
            break
    for i in range(0, 16 * LANES, LANES):
        store(L, i, select(nothing, bottom, load(L, i)))
    return select((sum_l2 > zero) & ~nothing, sum_lx / sum_l2, zero)


@helper
def make_qp(P, at, weights, n, nmax, levels):
    """Scale of x ≈ scale·l, l in 0 … nmax, for the n scales (or mins) x of a super-block; for weighted searches.

    Picks the best of nine inverse scales around nmax / max, then lets single levels move while that helps. Writes
    the levels, bytes as in the reference (a negative one wraps round), and returns the scale.

    P, weights, levels : float32, value i of the lanes' super-blocks at P[at + 16 i], weights[16 i], levels[16 i].

    Source: make_qp_quants, ggml-quants.c.
    """
    zero, one, cap = splat(_ZERO), splat(_ONE), splat(nmax)
    largest = zero
    for i in range(n):
        largest = maximum(load(P, at + i * LANES), largest)
    nothing = largest < splat(_GROUP_MAX_EPS)

    iscale = cap / largest
    scale = one / iscale
    best = zero
    for i in range(n):
        v = load(P, at + i * LANES)
        d = v - scale * byte(nearest_wrapped(iscale * v))
        best = best + load(weights, i * LANES) * d * d
    for step in range(-4, 5):
        if step != 0:
            this_iscale = splat(np.float32(0.1) * np.float32(step) + nmax) / largest
            this_scale = one / this_iscale
            error = zero
            for i in range(n):
                v = load(P, at + i * LANES)
                d = v - this_scale * minimum(nearest_wrapped(this_iscale * v), cap)
                error = error + load(weights, i * LANES) * d * d
            better = error < best
            best = select(better, error, best)
            iscale = select(better, this_iscale, iscale)

    sum_lx, sum_l2 = zero, zero
    for i in range(n):
        v, w = load(P, at + i * LANES), load(weights, i * LANES)
        level = minimum(nearest_wrapped(iscale * v), cap)
        store(levels, i * LANES, byte(level))
        sum_lx = sum_lx + w * v * level
        sum_l2 = sum_l2 + w * level * level
    for _ in range(5):
        changed = zero > one  # in no lane
        for i in range(n):
            v, w, level = load(P, at + i * LANES), load(weights, i * LANES), load(levels, i * LANES)
            rest_lx, rest_l2 = sum_lx - w * v * level, sum_l2 - w * level * level
            moved = minimum(nearest_wrapped(v * rest_l2 / rest_lx), cap)
            move = (rest_lx > zero) & (rest_l2 > zero) & (moved != level)
            rest_lx, rest_l2 = rest_lx + w * v * moved, rest_l2 + w * moved * moved
            move = move & (rest_lx * rest_lx * sum_l2 > sum_lx * sum_lx * rest_l2)
            store(levels, i * LANES, select(move, byte(moved), level))
            sum_lx, sum_l2 = select(move, rest_lx, sum_lx), select(move, rest_l2, sum_l2)
            changed = changed | move
        # A lane without a change repeats itself, so it may go on until all lanes are done.
        if not any_lane(changed):
            break
    for i in range(n):
        store(levels, i * LANES, select(nothing, zero, load(levels, i * LANES)))
    return select((sum_l2 > zero) & ~nothing, sum_lx / sum_l2, zero)


@helper
def byte(level):
    """A whole number as a uint8 would keep it."""
    return to_f32(to_i32(level) & splat(np.int32(255)))


@helper
def sbyte(level):
    """A whole number as an int8 would keep it."""
    return to_f32(to_i32(level) << splat(np.int32(24)) >> splat(np.int32(24)))
