"""The search for a scale and a minimum, sixteen sub-blocks at a time; see `scale_search` for scales alone.

`X` and `W` hold one sub-block a lane: weight i of the lanes' sub-blocks is the vector at X[at + 16 i].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ggufkit.formats.tiles import nearest_level
from ggufkit.kernels.jit import CPU_FEATURES, helper, inlined
from ggufkit.kernels.lanes import (
    LANES,
    all_lanes,
    fabs,
    load,
    maximum,
    minimum,
    nearest_int,
    rolled,
    select,
    splat,
    store,
)

_ZERO, _ONE = np.float32(0), np.float32(1)

# How levels are found (see _rounding): from the general to the fast.
_WRAPS, _SATURATES, _BELOW_TOP = 0, 1, 2
_FAR = np.float32(1 << 21)  # half of where nearest_int ends

# Two sub-blocks in one loop hide how long sums wait for themselves. Where sixteen lanes are several registers, those
# of one do, and the sums of two would not fit the registers.
_TOGETHER = "avx512f" in CPU_FEATURES


class Grid(NamedTuple):
    """What a search over scale and minimum tries: inverse scales (nmax + rmin + rdelta·step) / (max − min)."""

    n: int  # weights per sub-block
    nmax: np.float32  # highest level
    rmin: np.float32
    rdelta: np.float32
    nstep: int  # steps 0 … nstep
    use_mad: bool  # absolute instead of squared differences
    saturates: bool  # what becomes of levels far out of range: they saturate (qkx3) or wrap round (qkx2)


@inlined
def make_qkx(X, at, W, L, grid):
    """Scale and minimum of x ≈ scale·l + min, l in 0 … nmax, min ≤ 0, for two neighbouring sub-blocks.

    Tries each inverse scale of the grid: quantize with it, solve the weighted least squares for (scale, min) at
    those levels, and keep the pair if its error is lower. Like the reference, the next steps go on from the
    improved min, which may lie at the maximum or beyond. The sums of one sub-block wait for one another; the
    other one's fill the wait.

    W : (2, n, 16) float32, the weights of the errors. L : scratch of the same size.

    Returns
    -------
    for both: scale, min, and the pair (iscale, base) that gives the levels found: l = grid_level(iscale·(x − base)).

    Source: make_qkx2_quants and make_qkx3_quants, ggml-quants.c.
    """
    tile = grid.n * LANES
    sum_w_a, sum_x_a, hi_a, best_a, found_a = _first_try(X, at, W[:tile], grid)
    sum_w_b, sum_x_b, hi_b, best_b, found_b = _first_try(X, at + tile, W[tile:], grid)
    bottom_a, bottom_b = found_a[1], found_b[1]
    for step in range(grid.nstep + 1):
        levels = grid.rmin + grid.rdelta * np.float32(step) + grid.nmax
        base_a, base_b = found_a[1], found_b[1]
        iscale_a, iscale_b = splat(levels) / (hi_a - base_a), splat(levels) / (hi_b - base_b)
        how_a = _rounding(levels, iscale_a, bottom_a - base_a, hi_a - base_a, grid)
        how_b = _rounding(levels, iscale_b, bottom_b - base_b, hi_b - base_b, grid)
        a, b = (X, at, W, 0, iscale_a, base_a), (X, at + tile, W, tile, iscale_b, base_b)
        fit_a, fit_b = _fit(a, b, (sum_w_a, sum_x_a), (sum_w_b, sum_x_b), L, grid, how_a, how_b)
        D_a, scale_a, lo_a = fit_a
        D_b, scale_b, lo_b = fit_b
        error_a, error_b = _errors(a, b, fit_a, fit_b, L, grid)
        better_a, better_b = (splat(_ZERO) < D_a) & (error_a < best_a), (splat(_ZERO) < D_b) & (error_b < best_b)
        best_a, best_b = select(better_a, error_a, best_a), select(better_b, error_b, best_b)
        found_a = _keep(better_a, (scale_a, lo_a, iscale_a, base_a), found_a)
        found_b = _keep(better_b, (scale_b, lo_b, iscale_b, base_b), found_b)
    return found_a, found_b


@helper
def _first_try(X, at, W, grid):
    """Σ w, Σ w·x, maximum; and error and what is found with scale and min from minimum to maximum."""
    zero, nmax = splat(_ZERO), splat(grid.nmax)
    lo, hi, sum_w, sum_x = load(X, at), load(X, at), zero, zero
    for i in range(0, grid.n * LANES, LANES):
        v, w = load(X, at + i), load(W, i)
        lo, hi = minimum(v, lo), maximum(v, hi)
        sum_w = sum_w + w
        sum_x = sum_x + w * v
    lo = select(lo > zero, zero, lo)  # a minimum of -0.0 stays
    iscale = nmax / (hi - lo)
    scale = splat(_ONE) / iscale
    error = zero
    for i in range(0, grid.n * LANES, LANES):
        v = load(X, at + i)
        level = _level(iscale * (v - lo), grid, _SATURATES)
        error = error + _error(scale * level + lo - v, load(W, i), grid)
    # All weights the same and not positive: level 0 of scale 0, and no other try has a lower error than 0.
    # An infinite iscale (max − min is denormal) rounds every weight to level 0, too.
    constant, finite = hi == lo, iscale < splat(np.float32(np.inf))
    scale, error = select(constant, zero, scale), select(constant, zero, error)
    return sum_w, sum_x, hi, error, (scale, lo, select(finite, iscale, zero), lo)


@inlined
def _rounding(levels, iscale, least, most, grid):
    """How the levels of v = iscale·(x − base) are found: least and most are the limits of x − base.

    Where no v is beyond `levels` by more than its rounding, the highest may need no cap; the lowest may be negative.
    """
    ordinary = (most > splat(_ZERO)) & (iscale * maximum(most, fabs(least)) < splat(_FAR))
    if all_lanes(ordinary):
        return _BELOW_TOP if levels < grid.nmax + np.float32(0.4) else _SATURATES
    return _SATURATES if grid.saturates else _WRAPS


@inlined
def _fit(a, b, sums_a, sums_b, L, grid, how_a, how_b):
    """Quantize both sub-blocks and fit scale and min to the levels; see _least_squares."""
    if _TOGETHER:
        how = min(how_a, how_b)
        if how == _BELOW_TOP:
            l_a, l_b = _add_levels_of_both(a, b, L, grid, _BELOW_TOP)
        elif how == _SATURATES:
            l_a, l_b = _add_levels_of_both(a, b, L, grid, _SATURATES)
        else:
            l_a, l_b = _add_levels_of_both(a, b, L, grid, _WRAPS)
        return _least_squares(sums_a, l_a), _least_squares(sums_b, l_b)
    fit_a = _least_squares(sums_a, _add_levels_of(a, L, grid, how_a))
    return fit_a, _least_squares(sums_b, _add_levels_of(b, L, grid, how_b))


@inlined
def _add_levels_of_both(a, b, L, grid, how):
    sums_a = sums_b = (splat(_ZERO), splat(_ZERO), splat(_ZERO))
    for i in range(0, grid.n * LANES, LANES):
        sums_a = _add_level_at(sums_a, a, i, L, grid, how)
        sums_b = _add_level_at(sums_b, b, i, L, grid, how)
    return sums_a, sums_b


@inlined
def _add_levels_of(a, L, grid, how):
    if how == _BELOW_TOP:
        return _add_levels(a, L, grid, _BELOW_TOP)
    if how == _SATURATES:
        return _add_levels(a, L, grid, _SATURATES)
    return _add_levels(a, L, grid, _WRAPS)


@inlined
def _add_levels(a, L, grid, how):
    sums = (splat(_ZERO), splat(_ZERO), splat(_ZERO))
    for i in range(0, grid.n * LANES, LANES):
        rolled()
        sums = _add_level_at(sums, a, i, L, grid, how)
    return sums


@inlined
def _add_level_at(sums, block, i, L, grid, how):
    """Quantize weight i of a sub-block to L and add w·l, w·l² and w·l·x to the sums."""
    X, at, W, to, iscale, base = block
    v = load(X, at + i)
    level = _level(iscale * (v - base), grid, how)
    store(L, to + i, level)
    wl = load(W, to + i) * level
    return sums[0] + wl, sums[1] + wl * level, sums[2] + wl * v


@inlined
def _errors(a, b, fit_a, fit_b, L, grid):
    """The errors of both sub-blocks with the fitted scale and min."""
    error_a = error_b = splat(_ZERO)
    if _TOGETHER:
        for i in range(0, grid.n * LANES, LANES):
            error_a, error_b = _add_error(error_a, a, i, fit_a, L, grid), _add_error(error_b, b, i, fit_b, L, grid)
    else:
        for i in range(0, grid.n * LANES, LANES):
            error_a = _add_error(error_a, a, i, fit_a, L, grid)
        for i in range(0, grid.n * LANES, LANES):
            error_b = _add_error(error_b, b, i, fit_b, L, grid)
    return error_a, error_b


@inlined
def _add_error(error, block, i, fit, L, grid):
    X, at, W, to, _, _ = block
    return error + _error(fit[1] * load(L, to + i) + fit[2] - load(X, at + i), load(W, to + i), grid)


@helper
def _least_squares(sums, sums_of_levels):
    """Determinant, scale and min of the weighted fit; min ≤ 0. Useless unless the determinant is positive.

    The sums of w and w·x, and those of w·l, w·l² and w·l·x.
    """
    sum_w, sum_x = sums
    sum_l, sum_l2, sum_xl = sums_of_levels
    D = sum_w * sum_l2 - sum_l * sum_l
    scale = (sum_w * sum_xl - sum_x * sum_l) / D
    lo = (sum_l2 * sum_x - sum_l * sum_xl) / D
    positive = lo > splat(_ZERO)
    return D, select(positive, sum_xl / sum_l2, scale), select(positive, splat(_ZERO), lo)


@helper
def _error(d, w, grid):
    return w * (fabs(d) if grid.use_mad else d * d)


@helper
def _keep(better, new, old):
    return (
        select(better, new[0], old[0]),
        select(better, new[1], old[1]),
        select(better, new[2], old[2]),
        select(better, new[3], old[3]),
    )


@helper
def grid_level(v, grid):
    """The level of v = iscale·(x − base) in the steps of make_qkx."""
    return _level(v, grid, _SATURATES if grid.saturates else _WRAPS)


@inlined
def _level(v, grid, how):
    zero, nmax = splat(_ZERO), splat(grid.nmax)
    if how == _BELOW_TOP:
        return nearest_int(maximum(v, zero))
    if how == _SATURATES:
        return nearest_int(minimum(maximum(v, zero), nmax))
    return nearest_level(v, zero, nmax)
