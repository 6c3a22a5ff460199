"""Q3_K and Q6_K: x ≈ d·scale·q, symmetric, with a scale for each of 16 sub-blocks of 16 weights.

              Q3_K: 110 bytes, 3.4375 bits per weight         Q6_K: 210 bytes, 6.5625 bits per weight
    low       qs, 64 bytes, bits 0–1 of each level          ql, 128 bytes, bits 0–3
    high      hmask, 32 bytes, bit 2 (stored before qs)     qh, 64 bytes, bits 4–5
    scales    12 bytes, 6 bits each                         16 int8
    d         float16                                       float16

Levels are stored plus 4 and plus 32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ggufkit.formats.scale_search import (
    extreme,
    make_q3,
    make_qx,
    sbyte,
    start_q3,
    store_levels,
    sum_of_squares,
    weigh,
)
from ggufkit.formats.tiles import (
    QK_K,
    load_batch,
    nearest_quotient,
    nearest_wrapped,
    put_half,
    repeat_importance,
    store_batch,
)
from ggufkit.kernels.jit import helper, kernel, maker
from ggufkit.kernels.lanes import (
    LANES,
    any_lane,
    fabs,
    flat,
    half_to_float,
    load,
    mask_bits,
    maximum,
    minimum,
    nearest_int,
    select,
    splat,
    store,
    to_f32,
    to_i32,
    transpose,
    view,
)

_N, _SUB = 16, 16  # weights per sub-block, sub-blocks per super-block
_TILE = _N * LANES  # elements of one sub-block of the batch
_Q3_BYTES, _Q6_BYTES = 110, 210
_ZERO, _SMALLEST = np.float32(0), np.float32(1e-15)


class Batch(NamedTuple):
    """Memory for sixteen super-blocks."""

    X: np.ndarray  # (256, 16) float32: weights
    S: np.ndarray  # (16, 16) float32: scales of the sub-blocks, later their levels
    inverse: np.ndarray  # (16, 16) float32: what gives the levels of the search, see make_qx
    W: np.ndarray  # (2, 2, 16, 16) float32: the weights of errors in two sub-blocks; see make_qx
    q: np.ndarray  # (256, 16) uint8: levels + nmax
    Y: np.ndarray  # (type_size, 16) uint8: the blocks
    half: np.ndarray  # (16,) uint16


@maker
def _new_batch(type_size):
    return Batch(
        np.empty(QK_K * LANES, np.float32),
        np.empty(_SUB * LANES, np.float32),
        np.empty(_SUB * LANES, np.float32),
        np.empty(4 * _TILE, np.float32),
        np.empty(QK_K * LANES, np.uint8),
        np.empty(type_size * LANES, np.uint8),
        np.empty(LANES, np.uint16),
    )


# ---- Q3_K -------------------------------------------------------------------------------------------------------


@kernel
def q3_k_encode(x, out):
    """Encode as quantize_row_q3_K_ref does. x: (rows, cols) float32; out: (rows, cols / 256 · 110) uint8."""
    weights, blocks, batch = flat(x), flat(out), _new_batch(_Q3_BYTES)
    levels, todo = np.empty(_TILE, np.float32), np.empty(_SUB * LANES + 1, np.int32)
    for first in range(0, weights.size // QK_K, LANES):
        load_batch(weights, first, batch.X)
        _search_q3(batch, weights, first, levels, todo)
        d = put_half(_quantize_scales_q3(batch.S), batch.half, batch.Y, 108)
        _finish_q3(batch, d, levels)
        store_batch(batch.Y, _Q3_BYTES, blocks, first)


@kernel
def q3_k_encode_weighted(x, importance, out):
    """Encode as quantize_row_q3_K_impl does. importance: (cols,) float32."""
    weights, blocks, batch = flat(x), flat(out), _new_batch(_Q3_BYTES)
    repeated, sum_w = repeat_importance(importance), np.zeros(4 * _SUB * LANES, np.float32)
    for first in range(0, weights.size // QK_K, LANES):
        load_batch(weights, first, batch.X)
        sigma2 = splat(np.float32(2)) * sum_of_squares(batch.X, 0, QK_K) / splat(np.float32(QK_K))
        for j in range(0, _SUB, 2):
            for k in range(2):
                W = batch.W[2 * k * _TILE :]
                transpose(repeated, first * QK_K % importance.size + (j + k) * _N, QK_K, W, 0)
                store(sum_w, (j + k) * LANES, weigh(batch.X, (j + k) * _TILE, _N, sigma2, W))
            _search_pair(batch, j, np.float32(4))
        d = put_half(_quantize_scales_q3_weighted(batch.S, sum_w), batch.half, batch.Y, 108)
        _finish_q3(batch, d, None)
        store_batch(batch.Y, _Q3_BYTES, blocks, first)


@helper
def _search_q3(batch, weights, first, levels, todo):
    """Scales of all sub-blocks. Five of six are settled at once; the others are gathered, sixteen a vector again."""
    n = 0
    for j in range(_SUB):
        scale, unsettled = start_q3(batch.X, j * _TILE, levels)
        store(batch.S, j * LANES, scale)
        bits = mask_bits(unsettled)
        for k in range(LANES):
            todo[n] = j * LANES + k
            n += bits >> k & 1
    natural, X = batch.W[:_TILE], batch.W[_TILE : 2 * _TILE]
    for t in range(0, n, LANES):
        for k in range(LANES):
            j, lane = divmod(todo[min(t + k, n - 1)], LANES)
            store(natural, k * LANES, load(weights, (first + lane) * QK_K + j * _N))
        transpose(natural, 0, LANES, X, 0)
        store(natural, 0, make_q3(X, 0, levels))
        for k in range(min(LANES, n - t)):
            batch.S[todo[t + k]] = natural[k]


@helper
def _quantize_scales_q3(S):
    """Scales as −32 … 31 of the extreme one, in S; returns d."""
    zero, one, bottom = splat(_ZERO), splat(np.float32(1)), splat(np.float32(-32))
    largest = extreme(S, 0, _SUB)
    empty, iscale = largest == zero, bottom / largest
    for i in range(0, _SUB * LANES, LANES):
        # The reference rounds to an int8 before it caps.
        level = sbyte(nearest_wrapped(iscale * load(S, i)))
        level = minimum(maximum(level, bottom), splat(np.float32(31)))
        # Twelve zero bytes, which is what an empty super-block gets, mean −32.
        store(S, i, select(empty, bottom, level))
    return select(empty, zero, one / iscale)


@helper
def _quantize_scales_q3_weighted(S, sum_w):
    """The same by a search."""
    (d, iscale), _ = make_qx(S, 0, 0, sum_w, _SUB, np.float32(32))
    bottom, top = splat(np.float32(-32)), splat(np.float32(31))
    for i in range(0, _SUB * LANES, LANES):
        level = minimum(maximum(nearest_int(iscale * load(S, i)), bottom), top)
        store(S, i, select(iscale == splat(_ZERO), bottom, level))
    return d


@helper
def _finish_q3(batch, d, levels):
    """Levels of the weights for the scales as they are stored, and all bytes but d. levels: scratch; None if weighted

    Where d·scale is zero the levels of the search stay.
    """
    for j in range(_SUB):
        step = d * load(batch.S, j * LANES)
        if any_lane(step == splat(_ZERO)):
            if levels is None:
                _levels_of_search(batch, j, np.float32(4))
            else:
                make_q3(batch.X, j * _TILE, levels)
                for i in range(0, _TILE, LANES):
                    store(batch.q, j * _TILE + i, to_i32(load(levels, i) + splat(np.float32(4))))
        _quantize_weights(batch, j, step, np.float32(4))
    _pack_scales_q3(batch.S, batch.Y)
    _pack_q3(batch.q, batch.Y)


# ---- Q6_K -------------------------------------------------------------------------------------------------------


@kernel
def q6_k_encode(x, out):
    """Encode as quantize_row_q6_K_ref does. x: (rows, cols) float32; out: (rows, cols / 256 · 210) uint8."""
    _encode_q6(x, None, out)


@kernel
def q6_k_encode_weighted(x, importance, out):
    """Encode as quantize_row_q6_K_impl does. importance: (cols,) float32."""
    _encode_q6(x, importance, out)


@maker
def _encode_q6(x, importance, out):
    """An error weighs the importance, or x² without one."""
    weights, blocks, batch = flat(x), flat(out), _new_batch(_Q6_BYTES)
    repeated = batch.X if importance is None else repeat_importance(importance)
    for first in range(0, weights.size // QK_K, LANES):
        load_batch(weights, first, batch.X)
        for j in range(0, _SUB, 2):
            for k in range(2):
                W = batch.W[2 * k * _TILE :]
                if importance is None:
                    for i in range(0, _TILE, LANES):
                        v = load(batch.X, (j + k) * _TILE + i)
                        store(W, i, v * v)
                else:
                    transpose(repeated, first * QK_K % importance.size + (j + k) * _N, QK_K, W, 0)
            _search_pair(batch, j, np.float32(32))
        _quantize_q6(batch)
        _pack_q6(batch.q, batch.Y)
        store_batch(batch.Y, _Q6_BYTES, blocks, first)


@helper
def _quantize_q6(batch):
    """Scales as −128 … 127 of the extreme one, and the levels for them; a super-block of zeros gets zero bytes."""
    zero, none = splat(_ZERO), splat(np.int32(0))
    largest = extreme(batch.S, 0, _SUB)
    empty = fabs(largest) < splat(_SMALLEST)
    iscale = splat(np.float32(-128)) / largest
    d = put_half(select(empty, zero, splat(np.float32(1)) / iscale), batch.half, batch.Y, 208)
    for j in range(_SUB):
        scale = minimum(nearest_wrapped(iscale * load(batch.S, j * LANES)), splat(np.float32(127)))
        scale = select(empty, zero, scale)
        store(batch.Y, (192 + j) * LANES, to_i32(scale))
        step = d * scale
        if any_lane(step == zero):
            _levels_of_search(batch, j, np.float32(32))
        _quantize_weights(batch, j, step, np.float32(32))
        if any_lane(empty):
            for i in range(j * _TILE, (j + 1) * _TILE, LANES):
                store(batch.q, i, select(empty, none, load(batch.q, i)))


# ---- Both -------------------------------------------------------------------------------------------------------


@helper
def _search_pair(batch, j, nmax):
    """Scales of sub-blocks j and j + 1, whose errors weigh batch.W."""
    a, b = make_qx(batch.X, j * _TILE, (j + 1) * _TILE, batch.W, _N, nmax)
    for k, (scale, inverse) in enumerate((a, b)):
        store(batch.S, (j + k) * LANES, scale)
        store(batch.inverse, (j + k) * LANES, inverse)


@helper
def _levels_of_search(batch, j, nmax):
    """Levels + nmax of sub-block j that belong to what `_search` found."""
    store_levels(batch.X, j * _TILE, _N, load(batch.inverse, j * LANES), nmax, batch.q)


@helper
def _quantize_weights(batch, j, step, nmax):
    """Levels + nmax of sub-block j for the scale as it is stored; where that is zero they stay as they are."""
    bottom, top, none = splat(-nmax), splat(nmax - np.float32(1)), step == splat(_ZERO)
    inverse = splat(np.float32(1)) / step
    for i in range(j * _TILE, (j + 1) * _TILE, LANES):
        level = to_i32(nearest_quotient(load(batch.X, i), step, inverse, bottom, top) - bottom)
        store(batch.q, i, select(none, load(batch.q, i), level))


@helper
def _pack_scales_q3(S, Y):
    """Sixteen scales + 32, 6 bits each, to 12 bytes from byte 96 on.

    scales[j]       BBBBaaaa   bits 0–3 of scales j and j + 8, j < 8
    scales[8 + j]   ddccbbaa   bits 4–5 of scales j, j + 4, j + 8 and j + 12, j < 4
    """
    two, four, six, nibble = splat(np.int32(2)), splat(np.int32(4)), splat(np.int32(6)), splat(np.int32(15))
    for j in range(4):
        a, b = _stored_scale(S, j), _stored_scale(S, j + 4)
        c, d = _stored_scale(S, j + 8), _stored_scale(S, j + 12)
        store(Y, (96 + j) * LANES, (a & nibble) | ((c & nibble) << four))
        store(Y, (100 + j) * LANES, (b & nibble) | ((d & nibble) << four))
        store(Y, (104 + j) * LANES, a >> four | (b >> four << two) | (c >> four << four) | (d >> four << six))


@helper
def _stored_scale(S, j):
    return to_i32(load(S, j * LANES)) + splat(np.int32(32))


@helper
def _pack_q3(q, Y):
    """128 levels a, b, c, d (32 each) to 32 bytes; bit 2 of level 32 s + i to bit s of a byte.

    hmask[i]       76543210   bit 2 of level 32 s + i at bit s
    qs[32 j + i]   ddccbbaa   bits 0–1 of levels 128 j + i, + 32, + 64 and + 96
    """
    levels, packed = view(q, np.int32), view(Y, np.int32)  # four bytes at a time; no bits cross them
    two, ones, pairs = splat(np.int32(2)), splat(np.int32(0x01010101)), splat(np.int32(0x03030303))
    for i in range(0, 32, 4):
        high = splat(np.int32(0))
        for j in range(2):
            low = splat(np.int32(0))
            for k in range(4):
                level = load(levels, (128 * j + 32 * k + i) * 4)
                low = low | ((level & pairs) << splat(np.int32(2 * k)))
                high = high | ((level >> two & ones) << splat(np.int32(4 * j + k)))
            store(packed, (32 + 32 * j + i) * 4, low)
        store(packed, i * 4, high)


@helper
def _pack_q6(q, Y):
    """128 levels a, b, c, d (32 each) to 64 bytes of low and 32 bytes of high bits.

    ql[64 j + i]        CCCCaaaa   bits 0–3 of levels 128 j + i and 128 j + 64 + i
    ql[64 j + 32 + i]   DDDDbbbb   of levels 128 j + 32 + i and 128 j + 96 + i
    qh[32 j + i]        ddccbbaa   bits 4–5 of all four
    """
    levels, packed = view(q, np.int32), view(Y, np.int32)  # four bytes at a time; no bits cross them
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
    data, halves, values = flat(blocks), view(blocks, np.uint16), flat(out)
    scales, T = view(data, np.int8), np.empty(LANES, np.float32)  # T: steps of the sub-blocks
    four, nibble, pair = splat(np.int32(4)), splat(np.int32(15)), splat(np.int32(3))
    for b in range(blocks.shape[0]):
        at = b * _Q6_BYTES
        store(T, 0, splat(half_to_float(halves[(at + 208) // 2])) * to_f32(load(scales, at + 192)))
        for j in range(2):
            for half in range(2):
                low = load(data, at + 64 * j + 16 * half)
                middle = load(data, at + 64 * j + 32 + 16 * half)
                high = load(data, at + 128 + 32 * j + 16 * half)
                for k in range(4):
                    nibbles = (low, middle, low >> four, middle >> four)[k] & nibble
                    level = (nibbles | ((high >> splat(np.int32(2 * k)) & pair) << four)) - splat(np.int32(32))
                    s = 8 * j + 2 * k + half
                    store(values, b * QK_K + 16 * s, splat(T[s]) * to_f32(level))


@kernel
def q3_k_decode(blocks, out):
    """Exact. blocks: (n, 110) uint8; out: (n, 256) float32."""
    data, halves, values = flat(blocks), view(blocks, np.uint16), flat(out)
    T = np.empty(2 * LANES, np.float32)  # steps of the sub-blocks
    one, two, pair, four = splat(np.int32(1)), splat(np.int32(2)), splat(np.int32(3)), splat(np.int32(4))
    for b in range(blocks.shape[0]):
        at = b * _Q3_BYTES
        _steps_q3(data, at, half_to_float(halves[(at + 108) // 2]), T)
        for half in range(2):
            high = load(data, at + 16 * half)
            for j in range(2):
                low = load(data, at + 32 + 32 * j + 16 * half)
                for k in range(4):
                    bit = high >> splat(np.int32(4 * j + k)) & one
                    level = (low >> splat(np.int32(2 * k)) & pair | bit << two) - four
                    s = 8 * j + 2 * k + half
                    store(values, b * QK_K + 16 * s, splat(T[12 + s]) * to_f32(level))


@helper
def _steps_q3(data, at, d, T):
    """d·scale of the sixteen sub-blocks of the block at data[at] to T[12 … 27].

    Four at a time in the last lanes, so that no load leaves the block; what the others leave in T is overwritten
    by the next.
    """
    low, high, four = (load(data, at + 84), load(data, at + 88)), load(data, at + 92), splat(np.int32(4))
    for g in (3, 2, 1, 0):
        bits = low[g % 2] >> splat(np.int32(4 * (g // 2))) & splat(np.int32(15))
        top = high >> splat(np.int32(2 * g)) & splat(np.int32(3))
        store(T, 4 * g, splat(d) * to_f32((bits | top << four) - splat(np.int32(32))))
