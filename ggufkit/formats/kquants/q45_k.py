"""Q4_K and Q5_K: x ≈ d·scale·q − dmin·min, with a scale and a min of 6 bits for each of 8 sub-blocks of 32 weights.

          Q4_K: 144 bytes, 4.5 bits a weight     Q5_K: 176 bytes, 5.5 bits a weight
d dmin    2 float16                              2 float16
scales    12 bytes                               12 bytes
qh                                               32 bytes, bit 4 of each level
qs        128 bytes                              128 bytes, bits 0–3
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.kquants.search import Grid, make_qkx2
from ggufkit.formats.kquants.tiles import (
    QK_K,
    get_half,
    load_batch,
    nearest_integer,
    nearest_level,
    put_half,
    store_batch,
)
from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import (
    LANES,
    any_lane,
    fabs,
    half_to_float,
    load,
    maximum,
    minimum,
    select,
    splat,
    sqrt,
    store,
    to_f32,
    to_i32,
)

_N, _SUB = 32, 8  # weights a sub-block, sub-blocks a super-block
_Q4_BYTES, _Q5_BYTES = 144, 176
_Q4_GRID = Grid(_N, np.float32(15), np.float32(-1), np.float32(0.1), 20, False)
_Q5_GRID = Grid(_N, np.float32(31), np.float32(-0.5), np.float32(0.1), 15, False)

# What the search found, for sub-block j of the 16 super-blocks at P[… + 16 j].
_SCALE, _MIN, _ISCALE, _BASE, _FOUND = (k * _SUB * LANES for k in range(5))

_ZERO, _MAX6 = np.float32(0), np.float32(63)
_NIBBLES = np.int32(0x0F0F0F0F)


@kernel
def q4_k_encode(x, out):
    """Encode as quantize_row_q4_K_ref does. x: (rows, cols) float32; out: (rows, cols / 256 · 144) uint8."""
    weights, blocks = x.reshape(-1), out.reshape(-1)
    X, P, scratch = (
        np.empty(QK_K * LANES, np.float32),
        np.empty(_FOUND, np.float32),
        np.empty(2 * _N * LANES, np.float32),
    )
    Y, q, half = np.empty(_Q4_BYTES * LANES, np.uint8), np.empty(QK_K * LANES, np.uint8), np.empty(LANES, np.uint16)
    n = weights.size // QK_K
    for first in range(0, n, LANES):
        count = min(LANES, n - first)
        load_batch(weights, first, count, X)
        _search(X, P, scratch, _Q4_GRID)
        _quantize_scales(P, Y, half)
        _quantize_weights(X, P, Y, q, half, _Q4_GRID.nmax)
        _pack_q4(q, Y)
        store_batch(Y, _Q4_BYTES, blocks, first, count)


@kernel
def _search(X, P, scratch, grid):
    """Scale and min of each sub-block. An error weighs rms + |x|; the rms is the sub-block's."""
    W, L = scratch[: _N * LANES], scratch[_N * LANES :]
    for j in range(_SUB):
        at = j * _N * LANES
        sum_x2 = splat(_ZERO)
        for i in range(_N):
            v = load(X, at + i * LANES)
            sum_x2 = sum_x2 + v * v
        rms = sqrt(sum_x2 / splat(np.float32(_N)))
        for i in range(_N):
            store(W, i * LANES, rms + fabs(load(X, at + i * LANES)))
        scale, low, iscale, base = make_qkx2(X, at, W, L, grid)
        store(P, _SCALE + j * LANES, scale)
        store(P, _MIN + j * LANES, low)
        store(P, _ISCALE + j * LANES, iscale)
        store(P, _BASE + j * LANES, base)


@kernel
def _quantize_scales(P, Y, half):
    """Scales and mins as 0 … 63 of the largest; writes d, dmin and scales."""
    zero, max6 = splat(_ZERO), splat(_MAX6)
    scale, low = zero, zero
    for j in range(_SUB):
        scale = maximum(load(P, _SCALE + j * LANES), scale)
        low = maximum(load(P, _MIN + j * LANES), low)
    inverse_scale = select(scale > zero, max6 / scale, zero)
    inverse_low = select(low > zero, max6 / low, zero)
    for j in range(_SUB // 2):
        _pack_scales(
            Y,
            j,
            _level6(inverse_scale, load(P, _SCALE + j * LANES)),
            _level6(inverse_scale, load(P, _SCALE + (j + 4) * LANES)),
            _level6(inverse_low, load(P, _MIN + j * LANES)),
            _level6(inverse_low, load(P, _MIN + (j + 4) * LANES)),
        )
    put_half(scale / max6, half, Y, 0)
    put_half(low / max6, half, Y, 2)


@kernel
def _level6(inverse, value):
    """The reference keeps the level in a byte before it caps it at 63."""
    return minimum(nearest_integer(inverse * value) & splat(np.int32(255)), splat(np.int32(63)))


@kernel
def _pack_scales(Y, j, scale, scale4, low, low4):
    """Scales and mins j and j + 4 (j < 4), int32 lanes, to the three bytes that hold them.

    byte 4 + j    SSssssss   bits 4–5 of scale j + 4, scale j
    byte 8 + j    MMmmmmmm   bits 4–5 of min j + 4, min j
    byte 12 + j   mmmmssss   bits 0–3 of min j + 4 and of scale j + 4
    """
    four, six, nibble = splat(np.int32(4)), splat(np.int32(6)), splat(np.int32(15))
    store(Y, (4 + j) * LANES, scale | (scale4 >> four << six))
    store(Y, (8 + j) * LANES, low | (low4 >> four << six))
    store(Y, (12 + j) * LANES, (scale4 & nibble) | ((low4 & nibble) << four))


@kernel
def _scale_and_min(Y, j):
    """Scale and min of sub-block j as int32 lanes (get_scale_min_k4)."""
    four, six = splat(np.int32(4)), splat(np.int32(6))
    if j < 4:
        mask = splat(np.int32(63))
        return load(Y, (4 + j) * LANES) & mask, load(Y, (8 + j) * LANES) & mask
    both = load(Y, (8 + j) * LANES)
    scale = (both & splat(np.int32(15))) | (load(Y, j * LANES) >> six << four)
    return scale, (both >> four) | (load(Y, (4 + j) * LANES) >> six << four)


@kernel
def _quantize_weights(X, P, Y, q, half, highest):
    """Levels of all weights for the scales as they are stored; q: (256, 16) uint8.

    Where d·scale is zero (a scale that rounds to 0, or a super-block too small for float16) the levels of the
    search stay, as they do in the reference.
    """
    zero, nmax = splat(_ZERO), splat(highest)
    d, dmin = get_half(Y, 0, half), get_half(Y, 2, half)
    for j in range(_SUB):
        scale, low = _scale_and_min(Y, j)
        step, offset = d * to_f32(scale), dmin * to_f32(low)
        for i in range(j * _N * LANES, (j + 1) * _N * LANES, LANES):
            store(q, i, to_i32(nearest_level((load(X, i) + offset) / step, zero, nmax)))
        none = step == zero
        if any_lane(none):
            iscale, base = load(P, _ISCALE + j * LANES), load(P, _BASE + j * LANES)
            for i in range(j * _N * LANES, (j + 1) * _N * LANES, LANES):
                found = to_i32(nearest_level(iscale * (load(X, i) - base), zero, nmax))
                store(q, i, select(none, found, load(q, i)))


@kernel
def _pack_q4(q, Y):
    """Two sub-blocks to 32 bytes, sub-block 2j in the low nibbles.

    qs[32 j + i]   BBBBaaaa   a = level 64 j + i, B = level 64 j + 32 + i
    """
    levels, packed = q.view(np.int32), Y.view(np.int32)  # four bytes at a time; no bits cross them
    for j in range(4):
        for i in range(0, _N, 4):
            a, b = load(levels, (64 * j + i) * 4), load(levels, (64 * j + 32 + i) * 4)
            store(packed, (16 + 32 * j + i) * 4, a | (b << splat(np.int32(4))))


@kernel
def q4_k_decode(blocks, out):
    """Exact. blocks: (n, 144) uint8; out: (n, 256) float32."""
    data, halves, values = blocks.reshape(-1), blocks.reshape(-1).view(np.uint16), out.reshape(-1)
    four, nibble = splat(np.int32(4)), splat(np.int32(15))
    for b in range(blocks.shape[0]):
        at = b * _Q4_BYTES
        d, dmin = half_to_float(halves[at // 2]), half_to_float(halves[at // 2 + 1])
        for j in range(4):
            step_a, low_a = _step_and_min(data, at + 4, 2 * j, d, dmin)
            step_b, low_b = _step_and_min(data, at + 4, 2 * j + 1, d, dmin)
            for i in range(0, _N, LANES):
                byte = load(data, at + 16 + 32 * j + i)
                to = b * QK_K + 64 * j + i
                store(values, to, step_a * to_f32(byte & nibble) - low_a)
                store(values, to + 32, step_b * to_f32(byte >> four) - low_b)


@kernel
def _step_and_min(data, at, j, d, dmin):
    """d·scale and dmin·min of sub-block j in all lanes; the 12 bytes of scales start at data[at]."""
    if j < 4:
        scale, low = data[at + j] & 63, data[at + 4 + j] & 63
    else:
        scale = (data[at + 4 + j] & 15) | (data[at + j - 4] >> 6 << 4)
        low = (data[at + 4 + j] >> 4) | (data[at + j] >> 6 << 4)
    return splat(d * np.float32(scale)), splat(dmin * np.float32(low))
