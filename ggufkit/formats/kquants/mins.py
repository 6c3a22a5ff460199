"""What Q2_K, Q4_K and Q5_K share: x ≈ step·q − offset, where step = d·scale and offset = dmin·min of the sub-block.

`P` is a table of float32, one vector of lanes for each of up to 16 sub-blocks: entry j of the row that begins at
`SCALE` is at P[SCALE + 16 j].
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.scale_min_search import grid_level, make_qkx
from ggufkit.formats.scale_search import sum_of_squares, weigh
from ggufkit.formats.tiles import QK_K, nearest_quotient
from ggufkit.kernels.jit import helper, inlined, maker
from ggufkit.kernels.lanes import LANES, any_lane, load, select, splat, store, to_i32, transpose

# Rows of P: scale and min from the search, later their levels, at last step and offset; the pair that gives the
# search's levels; and the sum of the weights.
SCALE, MIN, ISCALE, BASE, WEIGHT, P_SIZE = (k * 16 * LANES for k in range(6))


@maker
def scratch(type_size, grid):
    """Memory for one batch: X, P, Y, two sub-blocks of weights and of levels, all levels, 16 float16."""
    pair = 2 * grid.n * LANES
    return (
        np.empty(QK_K * LANES, np.float32),
        np.empty(P_SIZE, np.float32),
        np.empty(type_size * LANES, np.uint8),
        np.empty(pair, np.float32),
        np.empty(pair, np.float32),
        np.empty(QK_K * LANES, np.uint8),
        np.empty(LANES, np.uint16),
    )


@inlined
def search_pair(X, P, j, W, L, grid):
    """Search scale and min of sub-blocks j and j + 1, whose errors weigh W."""
    a, b = make_qkx(X, j * grid.n * LANES, W, L, grid)
    _put(P, j, a)
    _put(P, j + 1, b)


@helper
def _put(P, j, found):
    store(P, SCALE + j * LANES, found[0])
    store(P, MIN + j * LANES, -found[1])
    store(P, ISCALE + j * LANES, found[2])
    store(P, BASE + j * LANES, found[3])


@inlined
def search_weighted(X, P, importance, at, W, L, grid, factor):
    """Search all sub-blocks; an error weighs importance · √(factor · mean square + x²).

    importance : as from `repeat_importance`; that of lane 0 begins at importance[at].
    """
    sigma2 = splat(factor) * sum_of_squares(X, 0, QK_K) / splat(np.float32(QK_K))
    for j in range(0, QK_K // grid.n, 2):
        for i in range(0, 2 * grid.n, LANES):
            transpose(importance, at + j * grid.n + i, QK_K, W, i * LANES)
        for k in range(2):
            sum_w = weigh(X, (j + k) * grid.n * LANES, grid.n, sigma2, W[k * grid.n * LANES : (k + 1) * grid.n * LANES])
            store(P, WEIGHT + (j + k) * LANES, sum_w)
        search_pair(X, P, j, W, L, grid)


@helper
def quantize_weights(X, P, q, grid):
    """Levels of all weights for the steps and offsets in P; q: (256, 16) uint8.

    Where a step is zero (its scale rounds to 0, or the super-block is too small for float16) the levels of the
    search stay, as they do in the reference.
    """
    zero, nmax = splat(np.float32(0)), splat(grid.nmax)
    tile = grid.n * LANES
    for j in range(QK_K // grid.n):
        step, offset = load(P, SCALE + j * LANES), load(P, MIN + j * LANES)
        inverse = splat(np.float32(1)) / step
        for i in range(j * tile, (j + 1) * tile, LANES):
            store(q, i, to_i32(nearest_quotient(load(X, i) + offset, step, inverse, zero, nmax)))
        none = step == zero
        if any_lane(none):
            iscale, base = load(P, ISCALE + j * LANES), load(P, BASE + j * LANES)
            for i in range(j * tile, (j + 1) * tile, LANES):
                found = grid_level(iscale * (load(X, i) - base), grid)
                store(q, i, select(none, to_i32(found), load(q, i)))
