"""Q2_K: x ≈ d·scale·q − dmin·min, with a scale and a min of 4 bits for each of 16 sub-blocks of 16 weights.

    scales    16 bytes, scale in the low, min in the high nibble
    qs        64 bytes, 2 bits a level
    d dmin    2 float16

84 bytes, 2.625 bits per weight.
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.kquants.mins import (
    MIN,
    P_SIZE,
    SCALE,
    WEIGHT,
    quantize_weights,
    scratch,
    search_pair,
    search_weighted,
)
from ggufkit.formats.scale_min_search import Grid
from ggufkit.formats.scale_search import make_qp
from ggufkit.formats.tiles import (
    QK_K,
    load_batch,
    nearest_wrapped,
    put_half,
    repeat_importance,
    store_batch,
)
from ggufkit.kernels.jit import helper, inlined, kernel
from ggufkit.kernels.lanes import (
    LANES,
    fabs,
    flat,
    half_to_float,
    load,
    maximum,
    select,
    splat,
    store,
    to_f32,
    to_i32,
    view,
)

_N, _SUB = 16, 16  # weights per sub-block, sub-blocks per super-block
_TILE = _N * LANES  # elements of one sub-block of the batch
_BYTES = 84

_GRID = Grid(_N, np.float32(3), np.float32(-0.5), np.float32(0.1), 15, use_mad=True, saturates=False)
_WEIGHTED = Grid(_N, np.float32(3), np.float32(-0.9), np.float32(0.05), 36, use_mad=False, saturates=True)

_ZERO, _ONE, _MAX4 = np.float32(0), np.float32(1), np.float32(15)


@kernel
def q2_k_encode(x, out):
    """Encode as quantize_row_q2_K_ref does. x: (rows, cols) float32; out: (rows, cols / 256 · 84) uint8."""
    weights, blocks = flat(x), flat(out)
    X, P, Y, W, L, q, half = scratch(_BYTES, _GRID)
    for first in range(0, weights.size // QK_K, LANES):
        load_batch(weights, first, X)
        _search(X, P, W, L)
        _quantize_scales(P, Y, half)
        quantize_weights(X, P, q, _GRID)
        _pack(q, Y)
        store_batch(Y, _BYTES, blocks, first)


@kernel
def q2_k_encode_weighted(x, importance, out):
    """Encode as quantize_row_q2_K_impl does. importance: (cols,) float32."""
    weights, blocks = flat(x), flat(out)
    X, P, Y, W, L, q, half = scratch(_BYTES, _WEIGHTED)
    repeated = repeat_importance(importance)
    for first in range(0, weights.size // QK_K, LANES):
        load_batch(weights, first, X)
        search_weighted(X, P, repeated, first * QK_K % importance.size, W, L, _WEIGHTED, _ONE)
        _quantize_scales_weighted(P, L, Y, half)
        quantize_weights(X, P, q, _WEIGHTED)
        _pack(q, Y)
        store_batch(Y, _BYTES, blocks, first)


@inlined
def _search(X, P, W, L):
    """Scale and min of each sub-block. An error weighs |x|."""
    for j in range(0, _SUB, 2):
        for i in range(0, 2 * _TILE, LANES):
            store(W, i, fabs(load(X, j * _TILE + i)))
        search_pair(X, P, j, W, L, _GRID)


@helper
def _quantize_scales(P, Y, half):
    """Scales and mins as 0 … 15 of the largest."""
    zero, max4 = splat(_ZERO), splat(_MAX4)
    scale, low = zero, zero
    for i in range(0, _SUB * LANES, LANES):
        scale = maximum(load(P, SCALE + i), scale)
        low = maximum(load(P, MIN + i), low)
    inverse_scale = select(scale > zero, max4 / scale, zero)
    inverse_low = select(low > zero, max4 / low, zero)
    for i in range(0, _SUB * LANES, LANES):
        store(P, SCALE + i, nearest_wrapped(inverse_scale * load(P, SCALE + i)))
        store(P, MIN + i, nearest_wrapped(inverse_low * load(P, MIN + i)))
    _put_scales(P, scale / max4, low / max4, Y, half)


@helper
def _quantize_scales_weighted(P, L, Y, half):
    """Scales and mins for the least weighted error."""
    weights = P[WEIGHT:P_SIZE]
    d = dmin = splat(_ZERO)
    for start in (SCALE, MIN):
        d, dmin = dmin, make_qp(P, start, weights, _SUB, _MAX4, L)
        for i in range(0, _SUB * LANES, LANES):
            store(P, start + i, load(L, i))
    _put_scales(P, d, dmin, Y, half)


@helper
def _put_scales(P, d, dmin, Y, half):
    """Write d, dmin and scales; leave steps and offsets in P.

    scales[j]   mmmmssss   min and scale of sub-block j
    """
    four, nibble = splat(np.int32(4)), splat(np.int32(15))
    d, dmin = put_half(d, half, Y, 80), put_half(dmin, half, Y, 82)
    for j in range(_SUB):
        # A scale that does not fit its nibble spills into the min's, and both are read back as they are stored.
        store(Y, j * LANES, to_i32(load(P, SCALE + j * LANES)) | (to_i32(load(P, MIN + j * LANES)) << four))
        both = load(Y, j * LANES)
        store(P, SCALE + j * LANES, d * to_f32(both & nibble))
        store(P, MIN + j * LANES, dmin * to_f32(both >> four))


@helper
def _pack(q, Y):
    """128 levels a, b, c, d (32 each) to 32 bytes.

    qs[32 j + i]   ddccbbaa   levels 128 j + i, + 32, + 64 and + 96
    """
    levels, packed = view(q, np.int32), view(Y, np.int32)  # four bytes at a time; no bits cross them
    for j in range(2):
        for i in range(0, 32, 4):
            at = (128 * j + i) * 4
            low = load(levels, at) | (load(levels, at + 32 * 4) << splat(np.int32(2)))
            high = load(levels, at + 64 * 4) | (load(levels, at + 96 * 4) << splat(np.int32(2)))
            store(packed, (16 + 32 * j + i) * 4, low | (high << splat(np.int32(4))))


@kernel
def q2_k_decode(blocks, out):
    """Exact. blocks: (n, 84) uint8; out: (n, 256) float32."""
    data, halves, values = flat(blocks), view(blocks, np.uint16), flat(out)
    pair, four, nibble = splat(np.int32(3)), splat(np.int32(4)), splat(np.int32(15))
    T = np.empty(2 * LANES, np.float32)  # steps and offsets of the sub-blocks
    for b in range(blocks.shape[0]):
        at = b * _BYTES
        d, dmin = half_to_float(halves[(at + 80) // 2]), half_to_float(halves[(at + 82) // 2])
        both = load(data, at)
        store(T, 0, splat(d) * to_f32(both & nibble))
        store(T, LANES, splat(dmin) * to_f32(both >> four))
        for j in range(2):
            for half in range(2):
                four_levels = load(data, at + 16 + 32 * j + 16 * half)
                for k in range(4):
                    s = 8 * j + 2 * k + half
                    level = four_levels >> splat(np.int32(2 * k)) & pair
                    store(values, b * QK_K + 16 * s, splat(T[s]) * to_f32(level) - splat(T[LANES + s]))
