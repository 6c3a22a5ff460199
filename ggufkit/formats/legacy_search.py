"""Q4_0, Q4_1, Q5_0 and Q5_1 with importance: the scales are searched for.

Eight blocks of 32 weights count as a super-block here, so that sixteen of those are encoded at a time like K-quants:
block 8 k + j of a batch is sub-block j in lane k.

Source: quantize_row_q4_0_impl … of ggml-quants.c.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ggufkit.formats.scale_min_search import Grid, grid_level, make_qkx
from ggufkit.formats.scale_search import make_qx, store_levels, weigh
from ggufkit.formats.tiles import QK_K, load_batch, put_half, repeat_importance, store_batch
from ggufkit.kernels.jit import helper, kernel, maker
from ggufkit.kernels.lanes import (
    LANES,
    flat,
    load,
    splat,
    store,
    to_i32,
    transpose,
    view,
)

_N, _BLOCKS = 32, 8  # weights per block, blocks per lane
_TILE = _N * LANES  # elements of one block of each lane

_Q4_1 = Grid(_N, np.float32(15), np.float32(-0.9), np.float32(0.05), 36, use_mad=False, saturates=True)
_Q5_1 = Grid(_N, np.float32(31), np.float32(-0.9), np.float32(0.05), 36, use_mad=False, saturates=True)


class Batch(NamedTuple):
    """Memory for sixteen times eight blocks."""

    X: np.ndarray  # (256, 16) float32: weights
    W: np.ndarray  # (4, 32, 16) float32: the weights of errors in two blocks, as the searches want them
    L: np.ndarray  # (2, 32, 16) float32, scratch
    q: np.ndarray  # (256, 16) uint8: levels
    Y: np.ndarray  # (8 type_size, 16) uint8: the blocks
    half: np.ndarray  # (16,) uint16


@maker
def _new_batch(type_size):
    return Batch(
        np.empty(QK_K * LANES, np.float32),
        np.empty(4 * _TILE, np.float32),
        np.empty(2 * _TILE, np.float32),
        np.empty(QK_K * LANES, np.uint8),
        np.empty(_BLOCKS * type_size * LANES, np.uint8),
        np.empty(LANES, np.uint16),
    )


@kernel
def _symmetric_encode(x, importance, out):
    """Q4_0 and Q5_0, by the size of `out`: d minimises the weighted squared error over nineteen ways to round."""
    weights, blocks, type_size = flat(x), flat(out), out.shape[1] * _N // x.shape[1]
    middle = np.float32(8 if type_size == 18 else 16)
    batch, means, repeated = _new_batch(type_size), _mean_squares(x), repeat_importance(importance)
    for first in range(0, -(-weights.size // QK_K), LANES):
        load_batch(weights, first, batch.X)
        for j in range(0, _BLOCKS, 2):
            _weigh(batch, j, 0, repeated, means, first, importance.size)
            _weigh(batch, j + 1, 2, repeated, means, first, importance.size)
            a, b = make_qx(batch.X, j * _TILE, (j + 1) * _TILE, batch.W, _N, middle)
            _put_symmetric(batch, j, a, middle, type_size)
            _put_symmetric(batch, j + 1, b, middle, type_size)
        store_batch(batch.Y, _BLOCKS * type_size, blocks, first)


@kernel
def _offset_encode(x, importance, out):
    """Q4_1 and Q5_1, by the size of `out`: d and m minimise the weighted squared error over 37 ways to round."""
    weights, blocks, type_size = flat(x), flat(out), out.shape[1] * _N // x.shape[1]
    grid = _Q4_1 if type_size == 20 else _Q5_1
    batch, means, repeated = _new_batch(type_size), _mean_squares(x), repeat_importance(importance)
    for first in range(0, -(-weights.size // QK_K), LANES):
        load_batch(weights, first, batch.X)
        for j in range(0, _BLOCKS, 2):
            _weigh(batch, j, 0, repeated, means, first, importance.size)
            _weigh(batch, j + 1, 1, repeated, means, first, importance.size)
            a, b = make_qkx(batch.X, j * _TILE, batch.W, batch.L, grid)
            _put_offset(batch, j, a, grid, type_size)
            _put_offset(batch, j + 1, b, grid, type_size)
        store_batch(batch.Y, _BLOCKS * type_size, blocks, first)


q4_0_encode_weighted = q5_0_encode_weighted = _symmetric_encode
q4_1_encode_weighted = q5_1_encode_weighted = _offset_encode


@maker
def _mean_squares(x):
    """Σ w² / cols of each row, added up in the order of the row; rows in lanes. Padded to whole vectors."""
    rows, cols = x.shape
    values = flat(x)
    means = np.empty((rows + LANES - 1) // LANES * LANES, np.float32)
    tile, columns = np.empty(LANES * LANES, np.float32), np.empty(LANES * LANES, np.float32)
    for first in range(0, rows, LANES):
        squares = splat(np.float32(0))
        for j in range(0, cols, LANES):
            for k in range(LANES):
                store(tile, LANES * k, load(values, min(first + k, rows - 1) * cols + j))
            transpose(tile, 0, LANES, columns, 0)
            for i in range(0, LANES * LANES, LANES):
                v = load(columns, i)
                squares = squares + v * v
        store(means, first, squares / splat(np.float32(cols)))
    return means


@helper
def _weigh(batch, j, k, importance, means, first, cols):
    """The weights of errors in block j to batch.W[k]: importance · √(mean square of the row + x²)."""
    W, start = batch.W[k * _TILE : (k + 1) * _TILE], first * QK_K + j * _N
    for lane in range(LANES):
        batch.L[lane] = means[min((start + lane * QK_K) // cols, means.size - 1)]
    for i in range(0, _N, LANES):
        transpose(importance, first * QK_K % cols + j * _N + i, QK_K, W, i * LANES)
    weigh(batch.X, j * _TILE, _N, load(batch.L, 0), W)


@helper
def _put_symmetric(batch, j, found, middle, type_size):
    """Block j from what make_qx found."""
    d, iscale = found
    store_levels(batch.X, j * _TILE, _N, iscale, middle, batch.q)
    put_half(d, batch.half, batch.Y, j * type_size)
    _pack(batch, j, type_size)


@helper
def _put_offset(batch, j, found, grid, type_size):
    """Block j from what make_qkx found."""
    scale, lo, iscale, base = found
    for i in range(j * _TILE, (j + 1) * _TILE, LANES):
        store(batch.q, i, to_i32(grid_level(iscale * (load(batch.X, i) - base), grid)))
    put_half(scale, batch.half, batch.Y, j * type_size)
    put_half(lo, batch.half, batch.Y, j * type_size + 2)
    _pack(batch, j, type_size)


@helper
def _pack(batch, j, type_size):
    """`qs` of block j, the last sixteen bytes, and `qh`, the four before, of formats with five bits; see `legacy`."""
    levels, packed = view(batch.q, np.int32), view(batch.Y, np.int32)  # four bytes at a time; no bits cross them
    four, nibbles, one = splat(np.int32(4)), splat(np.int32(0x0F0F0F0F)), splat(np.int32(1))
    qs = (j + 1) * type_size - 16
    for i in range(0, 16, 4):
        a, b = load(levels, (j * _N + i) * 4), load(levels, (j * _N + i + 16) * 4)
        store(packed, (qs + i) * 4, (a & nibbles) | ((b & nibbles) << four))
    if type_size in (22, 24):
        for byte in range(4):
            bits = splat(np.int32(0))
            for t in range(8):
                level = load(batch.q, (j * _N + 8 * byte + t) * LANES)
                bits = bits | (level >> four & one) << splat(np.int32(t))
            store(batch.Y, (qs - 4 + byte) * LANES, bits)
