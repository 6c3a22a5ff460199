"""The searches for scales, sixteen sub-blocks at a time; each lane does exactly what llama.cpp does to one.

`X` and `W` hold one sub-block a lane: weight i of the lanes' sub-blocks is the vector at X[at + 16 i].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ggufkit.formats.kquants.tiles import nearest_level
from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import LANES, fabs, load, maximum, minimum, nearest_int, select, splat, store

_ZERO, _ONE = np.float32(0), np.float32(1)
_GROUP_MAX_EPS = np.float32(1e-15)


class Grid(NamedTuple):
    """What a search over scale and minimum tries: inverse scales (nmax + rmin + rdelta·step) / (max − min)."""

    n: int  # weights a sub-block
    nmax: np.float32  # highest level
    rmin: np.float32
    rdelta: np.float32
    nstep: int  # steps 0 … nstep
    use_mad: bool  # absolute instead of squared differences


@kernel
def make_qkx2(X, at, W, L, grid):
    """Scale and minimum of x ≈ scale·l + min, l in 0 … nmax, min ≤ 0.

    Tries each inverse scale of the grid: quantize with it, solve the weighted least squares for (scale, min) at
    those levels, and keep the pair if its error is lower. Like the reference, the next steps go on from the
    improved min.

    Returns
    -------
    scale, −min, and the pair (iscale, base) that gives the levels found: l = nearest(iscale·(x − base)).

    Source: make_qkx2_quants, ggml-quants.c.
    """
    zero, one, nmax = splat(_ZERO), splat(_ONE), splat(grid.nmax)
    v, w = load(X, at), load(W, 0)
    lo, hi, sum_w, sum_x = v, v, w, w * v
    for i in range(1, grid.n):
        v, w = load(X, at + i * LANES), load(W, i * LANES)
        lo, hi = minimum(v, lo), maximum(v, hi)
        sum_w = sum_w + w
        sum_x = sum_x + w * v
    lo = minimum(lo, zero)
    lowest, constant = lo, hi == lo

    iscale = nmax / (hi - lo)
    scale = one / iscale
    best = zero
    for i in range(grid.n):
        v = load(X, at + i * LANES)
        d = scale * nearest_level(iscale * (v - lo), zero, nmax) + lo - v
        d = fabs(d) if grid.use_mad else d * d
        best = best + load(W, i * LANES) * d
    best_iscale, best_base = iscale, lo

    for step in range(grid.nstep + 1):
        iscale = splat(grid.rmin + grid.rdelta * np.float32(step) + grid.nmax) / (hi - lo)
        sum_l, sum_l2, sum_xl = zero, zero, zero
        for i in range(grid.n):
            v = load(X, at + i * LANES)
            level = nearest_level(iscale * (v - lo), zero, nmax)
            store(L, i * LANES, level)
            wl = load(W, i * LANES) * level
            sum_l = sum_l + wl
            sum_l2 = sum_l2 + wl * level
            sum_xl = sum_xl + wl * v
        D = sum_w * sum_l2 - sum_l * sum_l
        this_scale = (sum_w * sum_xl - sum_x * sum_l) / D
        this_lo = (sum_l2 * sum_x - sum_l * sum_xl) / D
        positive = this_lo > zero
        this_scale = select(positive, sum_xl / sum_l2, this_scale)
        this_lo = select(positive, zero, this_lo)
        error = zero
        for i in range(grid.n):
            d = this_scale * load(L, i * LANES) + this_lo - load(X, at + i * LANES)
            d = fabs(d) if grid.use_mad else d * d
            error = error + load(W, i * LANES) * d
        better = (zero < D) & (error < best)
        best = select(better, error, best)
        best_iscale = select(better, iscale, best_iscale)
        best_base = select(better, lo, best_base)
        scale = select(better, this_scale, scale)
        lo = select(better, this_lo, lo)

    return (
        select(constant, zero, scale),
        -select(constant, lowest, lo),
        select(constant, zero, best_iscale),
        select(constant, zero, best_base),
    )


@kernel
def make_qx(X, at, W, nmax):
    """Scale of x ≈ scale·l, l in −nmax … nmax − 1, of 16 weights.

    The weight of largest magnitude first gets level −nmax, then 18 inverse scales around that one are tried.

    Returns
    -------
    scale and the iscale that gives the levels found: l = nearest(iscale·x); both 0 where all weights are below
    1e-15, whose level is −nmax.

    Source: make_qx_quants, ggml-quants.c.
    """
    zero, bottom, top = splat(_ZERO), splat(-nmax), splat(nmax - _ONE)
    largest, extreme = zero, zero
    for i in range(16):
        v = load(X, at + i * LANES)
        magnitude = fabs(v)
        extreme = select(magnitude > largest, v, extreme)
        largest = maximum(magnitude, largest)

    iscale = bottom / extreme
    sum_lx, sum_l2 = _fit(X, at, W, iscale, bottom, top)
    scale = select(sum_l2 == zero, zero, sum_lx / sum_l2)
    best, best_iscale = scale * sum_lx, iscale
    for step in range(-9, 10):
        if step != 0:
            iscale = splat(-(nmax + np.float32(0.1) * np.float32(step))) / extreme
            sum_lx, sum_l2 = _fit(X, at, W, iscale, bottom, top)
            better = (sum_l2 > zero) & (sum_lx * sum_lx > best * sum_l2)
            scale = select(better, sum_lx / sum_l2, scale)
            best = select(better, scale * sum_lx, best)
            best_iscale = select(better, iscale, best_iscale)
    nothing = largest < splat(_GROUP_MAX_EPS)
    return select(nothing, zero, scale), select(nothing, zero, best_iscale)


@kernel
def _fit(X, at, W, iscale, bottom, top):
    """The sums Σ w·x·l and Σ w·l² at the levels that `iscale` gives."""
    sum_lx, sum_l2 = splat(_ZERO), splat(_ZERO)
    for i in range(16):
        v, w = load(X, at + i * LANES), load(W, i * LANES)
        level = minimum(maximum(nearest_int(iscale * v), bottom), top)
        sum_lx = sum_lx + w * v * level
        sum_l2 = sum_l2 + w * level * level
    return sum_lx, sum_l2
