"""Q3_K and Q6_K: x ≈ d·scale·q, symmetric, with a scale for each of 16 sub-blocks of 16 weights.

          Q3_K: 110 bytes, 3.4375 bits a weight         Q6_K: 210 bytes, 6.5625 bits a weight
low       qs, 64 bytes, bits 0–1 of each level          ql, 128 bytes, bits 0–3
high      hmask, 32 bytes, bit 2 (stored before qs)     qh, 64 bytes, bits 4–5
scales    12 bytes, 6 bits each                         16 int8
d         float16                                       float16
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.kquants.search import make_qx
from ggufkit.formats.kquants.tiles import QK_K, load_batch, nearest_level, nearest_wrapped, put_half, store_batch
from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import (
    LANES,
    any_lane,
    fabs,
    half_to_float,
    load,
    maximum,
    minimum,
    nearest_int,
    select,
    splat,
    store,
    to_f32,
    to_i32,
)

_N, _SUB = 16, 16  # weights a sub-block, sub-blocks a super-block
_TILE = _N * LANES  # elements of one sub-block of the batch
_Q6_BYTES = 210
_ZERO, _SMALLEST = np.float32(0), np.float32(1e-15)


@kernel
def q6_k_encode(x, out):
    """Encode as quantize_row_q6_K_ref does. x: (rows, cols) float32; out: (rows, cols / 256 · 210) uint8."""
    weights, blocks = x.reshape(-1), out.reshape(-1)
    X, S, W = np.empty(QK_K * LANES, np.float32), np.empty(_SUB * LANES, np.float32), np.empty(_TILE, np.float32)
    Y, q, half = np.empty(_Q6_BYTES * LANES, np.uint8), np.empty(QK_K * LANES, np.uint8), np.empty(LANES, np.uint16)
    n = weights.size // QK_K
    for first in range(0, n, LANES):
        count = min(LANES, n - first)
        load_batch(weights, first, count, X)
        for j in range(_SUB):
            for i in range(0, _TILE, LANES):
                v = load(X, j * _TILE + i)
                store(W, i, v * v)
            _search(X, j, W, S, q, np.float32(32))
        _quantize_q6(X, S, Y, q, half)
        _pack_q6(q, Y)
        store_batch(Y, _Q6_BYTES, blocks, first, count)


@kernel
def _search(X, j, W, S, q, nmax):
    """Scale of sub-block j, and its levels + nmax to q: they stay where d·scale turns out to be zero."""
    zero = splat(_ZERO)
    scale, iscale = make_qx(X, j * _TILE, W, nmax)
    store(S, j * LANES, scale)
    bottom, top = splat(-nmax), splat(nmax - np.float32(1))
    for i in range(j * _TILE, (j + 1) * _TILE, LANES):
        level = minimum(maximum(nearest_int(iscale * load(X, i)), bottom), top)
        store(q, i, to_i32(select(iscale == zero, bottom, level) - bottom))


@kernel
def _extreme_scale(S):
    """The scale of largest magnitude, the first of equals."""
    largest, extreme = splat(_ZERO), splat(_ZERO)
    for j in range(_SUB):
        scale = load(S, j * LANES)
        extreme = select(fabs(scale) > largest, scale, extreme)
        largest = maximum(fabs(scale), largest)
    return extreme


@kernel
def _quantize_q6(X, S, Y, q, half):
    """Scales as −128 … 127 of the extreme one, and the levels for them; a super-block of zeros gets zero bytes."""
    zero, none = splat(_ZERO), splat(np.int32(0))
    extreme = _extreme_scale(S)
    empty = fabs(extreme) < splat(_SMALLEST)
    iscale = splat(np.float32(-128)) / extreme
    d = put_half(select(empty, zero, splat(np.float32(1)) / iscale), half, Y, 208)
    for j in range(_SUB):
        scale = minimum(nearest_wrapped(iscale * load(S, j * LANES)), splat(np.float32(127)))
        scale = select(empty, zero, scale)
        store(Y, (192 + j) * LANES, to_i32(scale))
        _quantize_weights(X, j, q, d * scale, np.float32(32))
        if any_lane(empty):
            for i in range(j * _TILE, (j + 1) * _TILE, LANES):
                store(q, i, select(empty, none, load(q, i)))


@kernel
def _quantize_weights(X, j, q, step, nmax):
    """Levels + nmax of sub-block j for the scale as it is stored; those of the search stay where it is zero."""
    bottom, top, none = splat(-nmax), splat(nmax - np.float32(1)), step == splat(_ZERO)
    for i in range(j * _TILE, (j + 1) * _TILE, LANES):
        level = to_i32(nearest_level(load(X, i) / step, bottom, top) - bottom)
        store(q, i, select(none, load(q, i), level))


@kernel
def _pack_q6(q, Y):
    """128 levels a, b, c, d (32 each) to 64 bytes of low and 32 bytes of high bits.

    ql[64 j + i]        CCCCaaaa   bits 0–3 of levels 128 j + i and 128 j + 64 + i
    ql[64 j + 32 + i]   DDDDbbbb   of levels 128 j + 32 + i and 128 j + 96 + i
    qh[32 j + i]        ddccbbaa   bits 4–5 of all four
    """
    levels, packed = q.view(np.int32), Y.view(np.int32)  # four bytes at a time; no bits cross them
    four, nibbles = splat(np.int32(4)), splat(np.int32(0x0F0F0F0F))
    pairs = splat(np.int32(0x03030303))
    for j in range(2):
        for i in range(0, 32, 4):
            at = (128 * j + i) * 4
            a, b = load(levels, at), load(levels, at + 32 * 4)
            c, d = load(levels, at + 64 * 4), load(levels, at + 96 * 4)
            store(packed, (64 * j + i) * 4, (a & nibbles) | ((c & nibbles) << four))
            store(packed, (64 * j + 32 + i) * 4, (b & nibbles) | ((d & nibbles) << four))
            high = (a >> four & pairs) | ((b >> four & pairs) << splat(np.int32(2)))
            high = high | ((c >> four & pairs) << four) | ((d >> four & pairs) << splat(np.int32(6)))
            store(packed, (128 + 32 * j + i) * 4, high)


@kernel
def q6_k_decode(blocks, out):
    """Exact. blocks: (n, 210) uint8; out: (n, 256) float32."""
    data, values = blocks.reshape(-1), out.reshape(-1)
    scales, halves = data.view(np.int8), data.view(np.uint16)
    four, nibble, pair = splat(np.int32(4)), splat(np.int32(15)), splat(np.int32(3))
    for b in range(blocks.shape[0]):
        at = b * _Q6_BYTES
        d = half_to_float(halves[(at + 208) // 2])
        for j in range(2):
            for half in range(2):
                low = load(data, at + 64 * j + 16 * half)
                middle = load(data, at + 64 * j + 32 + 16 * half)
                high = load(data, at + 128 + 32 * j + 16 * half)
                scale, to = at + 192 + 8 * j + half, b * QK_K + 128 * j + 16 * half
                for k in range(4):
                    nibbles = (low, middle, low >> four, middle >> four)[k] & nibble
                    level = (nibbles | ((high >> splat(np.int32(2 * k)) & pair) << four)) - splat(np.int32(32))
                    step = splat(d * np.float32(scales[scale + 2 * k]))
                    store(values, to + 32 * k, step * to_f32(level))
