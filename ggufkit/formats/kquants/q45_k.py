"""Q4_K and Q5_K: x ≈ d·scale·q − dmin·min, with a scale and a min of 6 bits for each of 8 sub-blocks of 32 weights.

              Q4_K: 144 bytes, 4.5 bits per weight     Q5_K: 176 bytes, 5.5 bits per weight
    d dmin    2 float16                              2 float16
    scales    12 bytes                               12 bytes
    qh                                               32 bytes, bit 4 of each level
    qs        128 bytes                              128 bytes, bits 0–3

Both are one algorithm; only the levels' range and the packing differ.
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
from ggufkit.formats.scale_search import byte, make_qp, sum_of_squares
from ggufkit.formats.tiles import (
    QK_K,
    load_batch,
    nearest_wrapped,
    put_half,
    repeat_importance,
    store_batch,
)
from ggufkit.kernels.jit import CPU_FEATURES, helper, inlined, kernel
from ggufkit.kernels.lanes import (
    LANES,
    fabs,
    flat,
    half_to_float,
    lane,
    lane_numbers,
    load,
    maximum,
    minimum,
    permute,
    select,
    splat,
    sqrt,
    store,
    store_out,
    to_f32,
    to_i32,
    view,
)

_N, _SUB = 32, 8  # weights per sub-block, sub-blocks per super-block
_TILE = _N * LANES  # elements of one sub-block of the batch
_Q4_BYTES, _Q5_BYTES = 144, 176

_Q4 = Grid(_N, np.float32(15), np.float32(-1), np.float32(0.1), 20, use_mad=False, saturates=False)
_Q5 = Grid(_N, np.float32(31), np.float32(-0.5), np.float32(0.1), 15, use_mad=False, saturates=False)
_Q4_WEIGHTED = Grid(_N, np.float32(15), np.float32(-0.9), np.float32(0.05), 36, use_mad=False, saturates=True)
_Q5_WEIGHTED = Grid(_N, np.float32(31), np.float32(-0.9), np.float32(0.05), 36, use_mad=False, saturates=True)

# Whether looking up one of sixteen numbers is one instruction.
_TABLES = "avx512f" in CPU_FEATURES

_ZERO, _MAX6 = np.float32(0), np.float32(63)


@kernel
def _encode(x, out):
    """Encode as quantize_row_q4_K_ref and quantize_row_q5_K_ref do; the size of `out` says which.

    x: (rows, cols) float32; out: (rows, cols / 256 · 144 or 176) uint8.
    """
    weights, blocks, type_size = flat(x), flat(out), out.shape[1] * QK_K // x.shape[1]
    grid = _Q4 if type_size == _Q4_BYTES else _Q5
    X, P, Y, W, L, q, half = scratch(type_size, grid)
    for first in range(0, weights.size // QK_K, LANES):
        load_batch(weights, first, X)
        _search(X, P, W, L, grid)
        _quantize_scales(P, Y, half)
        quantize_weights(X, P, q, grid)
        _pack(q, Y, type_size)
        store_batch(Y, type_size, blocks, first)


@kernel
def _encode_weighted(x, importance, out):
    """Encode as quantize_row_q4_K_impl and quantize_row_q5_K_impl do. importance: (cols,) float32."""
    weights, blocks, type_size = flat(x), flat(out), out.shape[1] * QK_K // x.shape[1]
    grid = _Q4_WEIGHTED if type_size == _Q4_BYTES else _Q5_WEIGHTED
    X, P, Y, W, L, q, half = scratch(type_size, grid)
    repeated = repeat_importance(importance)
    for first in range(0, weights.size // QK_K, LANES):
        load_batch(weights, first, X)
        search_weighted(X, P, repeated, first * QK_K % importance.size, W, L, grid, np.float32(2))
        _quantize_scales_weighted(P, L, Y, half, type_size)
        quantize_weights(X, P, q, grid)
        _pack(q, Y, type_size)
        store_batch(Y, type_size, blocks, first)


q4_k_encode = q5_k_encode = _encode
q4_k_encode_weighted = q5_k_encode_weighted = _encode_weighted


@inlined
def _search(X, P, W, L, grid):
    """Scale and min of each sub-block. An error weighs rms + |x|; the rms is the sub-block's."""
    for j in range(0, _SUB, 2):
        for k in range(2):
            at = (j + k) * _TILE
            rms = sqrt(sum_of_squares(X, at, _N) / splat(np.float32(_N)))
            for i in range(0, _TILE, LANES):
                store(W, k * _TILE + i, rms + fabs(load(X, at + i)))
        search_pair(X, P, j, W, L, grid)


@helper
def _quantize_scales(P, Y, half):
    """Scales and mins as 0 … 63 of the largest; writes d, dmin and scales."""
    zero, max6 = splat(_ZERO), splat(_MAX6)
    scale, low = zero, zero
    for j in range(_SUB):
        scale = maximum(load(P, SCALE + j * LANES), scale)
        low = maximum(load(P, MIN + j * LANES), low)
    inverse_scale = select(scale > zero, max6 / scale, zero)
    inverse_low = select(low > zero, max6 / low, zero)
    # The reference keeps a level in a byte before it caps it at 63.
    for i in range(0, _SUB * LANES, LANES):
        store(P, SCALE + i, minimum(byte(nearest_wrapped(inverse_scale * load(P, SCALE + i))), max6))
        store(P, MIN + i, minimum(byte(nearest_wrapped(inverse_low * load(P, MIN + i))), max6))
    _put_scales(P, scale / max6, low / max6, Y, half)


@helper
def _quantize_scales_weighted(P, L, Y, half, type_size):
    """Scales and mins for the least weighted error; Q5_K caps their levels at 63, Q4_K does not."""
    weights, cap = P[WEIGHT:P_SIZE], splat(_MAX6 if type_size == _Q5_BYTES else np.float32(255))
    d = dmin = splat(_ZERO)
    for start in (SCALE, MIN):
        d, dmin = dmin, make_qp(P, start, weights, _SUB, _MAX6, L)
        for i in range(0, _SUB * LANES, LANES):
            store(P, start + i, minimum(load(L, i), cap))
    _put_scales(P, d, dmin, Y, half)


@helper
def _put_scales(P, d, dmin, Y, half):
    """Write d, dmin and scales; leave steps and offsets in P.

    Levels 0 … 63 of scales and mins to 12 bytes; j < 4:

    scales[j]       SSssssss   bits 4–5 of scale j + 4, scale j
    scales[4 + j]   MMmmmmmm   bits 4–5 of min j + 4, min j
    scales[8 + j]   mmmmssss   bits 0–3 of min j + 4 and of scale j + 4
    """
    four, six, nibble = splat(np.int32(4)), splat(np.int32(6)), splat(np.int32(15))
    for j in range(4):
        scale, scale4 = to_i32(load(P, SCALE + j * LANES)), to_i32(load(P, SCALE + (j + 4) * LANES))
        low, low4 = to_i32(load(P, MIN + j * LANES)), to_i32(load(P, MIN + (j + 4) * LANES))
        store(Y, (4 + j) * LANES, scale | (scale4 >> four << six))
        store(Y, (8 + j) * LANES, low | (low4 >> four << six))
        store(Y, (12 + j) * LANES, (scale4 & nibble) | ((low4 & nibble) << four))
    d, dmin = put_half(d, half, Y, 0), put_half(dmin, half, Y, 2)
    # The same bytes read back: a level of Q4_K beyond 63 spills into its neighbour.
    low6 = splat(np.int32(63))
    for j in range(4):
        a, b, c = load(Y, (4 + j) * LANES), load(Y, (8 + j) * LANES), load(Y, (12 + j) * LANES)
        store(P, SCALE + j * LANES, d * to_f32(a & low6))
        store(P, MIN + j * LANES, dmin * to_f32(b & low6))
        store(P, SCALE + (4 + j) * LANES, d * to_f32((c & nibble) | (a >> six << four)))
        store(P, MIN + (4 + j) * LANES, dmin * to_f32((c >> four) | (b >> six << four)))


@helper
def _pack(q, Y, type_size):
    """Two sub-blocks to 32 bytes, sub-block 2j in the low nibbles; bit 4 of level 32 s + i to bit s of a byte.

    qs[32 j + i]   BBBBaaaa   bits 0–3: a = level 64 j + i, B = level 64 j + 32 + i
    qh[i]          76543210   bit 4 of level 32 s + i at bit s (Q5_K)
    """
    levels, packed = view(q, np.int32), view(Y, np.int32)  # four bytes at a time; no bits cross them
    four, nibbles, ones = splat(np.int32(4)), splat(np.int32(0x0F0F0F0F)), splat(np.int32(0x01010101))
    qs = type_size - 128
    for i in range(0, _N, 4):
        high = splat(np.int32(0))
        for j in range(4):
            a, b = load(levels, (64 * j + i) * 4), load(levels, (64 * j + 32 + i) * 4)
            store(packed, (qs + 32 * j + i) * 4, (a & nibbles) | ((b & nibbles) << four))
            high = high | ((a >> four & ones) << splat(np.int32(2 * j)))
            high = high | ((b >> four & ones) << splat(np.int32(2 * j + 1)))
        if type_size == _Q5_BYTES:
            store(packed, (16 + i) * 4, high)


@kernel
def _decode(blocks, out):
    """Exact. blocks: (n, 144 or 176) uint8; out: (n, 256) float32."""
    type_size = blocks.shape[1]
    data, halves, values = flat(blocks), view(blocks, np.uint16), flat(out)
    four, nibble, sixteen = splat(np.int32(4)), splat(np.int32(15)), splat(np.int32(16))
    for b in range(blocks.shape[0]):
        at = b * type_size
        d, dmin = half_to_float(halves[at // 2]), half_to_float(halves[at // 2 + 1])
        early, late = _steps_and_offsets(data, at + 4, d, dmin)
        for j in range(4):
            factors, k = early if j < 2 else late, 2 * (j % 2)
            step_a, step_b = splat(lane(factors, k)), splat(lane(factors, k + 1))
            offset_a, offset_b = splat(lane(factors, k + 4)), splat(lane(factors, k + 5))
            to = b * QK_K + 64 * j
            if type_size == _Q4_BYTES and _TABLES:
                numbers = to_f32(lane_numbers())
                values_a, values_b = step_a * numbers - offset_a, step_b * numbers - offset_b
                first, second = load(data, at + 16 + 32 * j), load(data, at + 32 + 32 * j)
                store_out(values, to, permute(values_a, first & nibble))
                store_out(values, to + 16, permute(values_a, second & nibble))
                store_out(values, to + 32, permute(values_b, first >> four))
                store_out(values, to + 48, permute(values_b, second >> four))
                continue
            for i in range(0, _N, LANES):
                both = load(data, at + type_size - 128 + 32 * j + i)
                level_a, level_b = both & nibble, both >> four
                if type_size == _Q5_BYTES:
                    high = load(data, at + 16 + i) << four >> splat(np.int32(2 * j))
                    level_a = level_a | (high & sixteen)
                    level_b = level_b | (high >> splat(np.int32(1)) & sixteen)
                store_out(values, to + i, step_a * to_f32(level_a) - offset_a)
                store_out(values, to + i + 32, step_b * to_f32(level_b) - offset_b)


q4_k_decode = q5_k_decode = _decode


@inlined
def _steps_and_offsets(data, at, d, dmin):
    """d·scale in lanes 0 … 3, dmin·min in lanes 4 … 7: of sub-blocks 0 … 3, and of 4 … 7.

    They stay in registers: written to memory, they would wait behind the weights that wait for the cache.

    scales   data[at]  0 … 3  hhssssss    4 … 7  hhmmmmmm    8 … 11  MMMMSSSS    late scale hhSSSS, late min hhMMMM
    """
    first_four = lane_numbers() < splat(np.int32(4))
    factor = select(first_four, splat(d), splat(dmin))
    four, six = splat(np.int32(4)), splat(np.int32(6))
    low6, nibble = splat(np.int32(63)), splat(np.int32(15))
    six_bits = load(data, at)
    four_bits = select(first_four, load(data, at + 8) & nibble, load(data, at + 4) >> four)  # both: bytes 8 … 11
    return factor * to_f32(six_bits & low6), factor * to_f32(four_bits | (six_bits >> six << four))
