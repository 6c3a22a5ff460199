"""Q4_0, Q4_1, Q5_0 and Q5_1 with importance: the scales are searched for 16 blocks at a time, block k in lane k.

Scratch arrays hold (32 weights, 16 blocks): the values of weight i are the vector at 16 i. The last group is
filled up with repetitions of other blocks, whose results nobody writes.

Source: quantize_row_q4_0_impl … of ggml-quants.c.
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.blocks import write_half, write_word
from ggufkit.kernels.jit import kernel
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
    to_i32,
    transpose,
)

ZERO, ONE = np.float32(0), np.float32(1)


@kernel
def load_sixteen(source, block, blocks, tile, target):
    """Bring the 16 blocks from `block` on, of `blocks` that `source` repeats, into lanes. tile: (512,) float32."""
    for k in range(LANES):
        at = block % blocks * 32
        store(tile, 32 * k, load(source, at))
        store(tile, 32 * k + 16, load(source, at + 16))
        block += 1
    transpose(tile, 0, 32, target, 0)
    transpose(tile, 16, 32, target, 256)


@kernel
def mean_squares(x):
    """Σ w² / cols of each row, added up in the order of the row; rows in lanes. Padded to whole vectors."""
    rows, cols = x.shape
    values = x.reshape(-1)
    means = np.empty((rows + LANES - 1) // LANES * LANES, np.float32)
    tile, columns = np.empty(256, np.float32), np.empty(256, np.float32)
    for first in range(0, rows, LANES):
        squares = splat(ZERO)
        for j in range(0, cols, LANES):
            for k in range(LANES):
                store(tile, 16 * k, load(values, min(first + k, rows - 1) * cols + j))
            transpose(tile, 0, 16, columns, 0)
            for i in range(LANES):
                v = load(columns, 16 * i)
                squares = squares + v * v
        store(means, first, squares / splat(np.float32(cols)))
    return means


@kernel
def load_weighted(x, importance, means, block, scratch):
    """Bring 16 blocks into lanes: scratch rows 0: weights X, 1: W = importance √(mean square + X²). 2: tile."""
    X, W, tile = scratch[0], scratch[1], scratch[2]
    cols = x.shape[1]
    load_sixteen(x.reshape(-1), block, x.size // 32, tile, X)
    load_sixteen(importance, block, cols // 32, tile, W)
    for k in range(LANES):
        tile[k] = means[min((block + k) * 32 // cols, x.shape[0] - 1)]
    mean = load(tile, 0)
    for i in range(32):
        v = load(X, 16 * i)
        store(W, 16 * i, load(W, 16 * i) * sqrt(mean + v * v))


@kernel
def symmetric_fit(iscale, scratch, middle):
    """Σ W X l and Σ W l² with l = nearest_int(iscale X) from -middle to middle - 1."""
    X, W = scratch[0], scratch[1]
    bottom, top = splat(np.float32(-middle)), splat(np.float32(middle - 1))
    sum_xl, sum_l2 = splat(ZERO), splat(ZERO)
    for i in range(32):
        v, w = load(X, 16 * i), load(W, 16 * i)
        level = maximum(bottom, minimum(top, nearest_int(iscale * v)))
        sum_xl = sum_xl + w * v * level
        sum_l2 = sum_l2 + w * level * level
    return sum_xl, sum_l2


@kernel
def symmetric_search(scratch, middle):
    """The scales of 16 blocks; scratch row 2: levels. Nineteen ways to round, each with its best scale.

    Source: make_qx_quants of ggml-quants.c with rmse_type 1.
    """
    X, L = scratch[0], scratch[2]
    zero = splat(ZERO)
    largest, extreme = zero, zero
    for i in range(32):
        v = load(X, 16 * i)
        larger = fabs(v) > largest
        largest, extreme = select(larger, fabs(v), largest), select(larger, v, extreme)
    best_iscale = splat(np.float32(-middle)) / extreme
    sum_xl, sum_l2 = symmetric_fit(best_iscale, scratch, middle)
    scale = select(sum_l2 != zero, sum_xl / sum_l2, zero)
    best = scale * sum_xl
    for step in range(-9, 10):
        if step == 0:
            continue
        iscale = splat(-(np.float32(middle) + np.float32(0.1) * np.float32(step))) / extreme
        sum_xl, sum_l2 = symmetric_fit(iscale, scratch, middle)
        better = (sum_l2 > zero) & (sum_xl * sum_xl > best * sum_l2)
        scale = select(better, sum_xl / sum_l2, scale)
        best = select(better, scale * sum_xl, best)
        best_iscale = select(better, iscale, best_iscale)
    present = largest >= splat(np.float32(1e-15))
    bottom, top = splat(np.float32(-middle)), splat(np.float32(middle - 1))
    for i in range(32):
        level = maximum(bottom, minimum(top, nearest_int(best_iscale * load(X, 16 * i)))) - bottom
        store(L, 16 * i, select(present, level, zero))
    return select(present, scale, zero)


@kernel
def offset_search(scratch, top_level):
    """Scales and smallest values of 16 blocks; scratch row 2: levels. Row 3: levels of a step.

    37 steps, each rounds with another scale and fits scale and offset to the levels by least squares; a better
    fit also moves the offset that the next steps round from. Source: make_qkx3_quants of ggml-quants.c.
    """
    X, W, L, trial = scratch[0], scratch[1], scratch[2], scratch[3]
    zero, one, top = splat(ZERO), splat(ONE), splat(np.float32(top_level))
    lo = hi = load(X, 0)
    sum_w = load(W, 0)
    sum_x = sum_w * lo
    for i in range(1, 32):
        v, w = load(X, 16 * i), load(W, 16 * i)
        lo, hi = minimum(v, lo), maximum(v, hi)
        sum_w, sum_x = sum_w + w, sum_x + w * v
    lo = select(lo > zero, zero, lo)
    first_lo, varies = lo, hi > lo
    iscale = top / (hi - lo)
    scale = one / iscale
    best = zero
    for i in range(32):
        v = load(X, 16 * i)
        level = iscale * (v - lo)
        # An infinite iscale: the reference's nearest_int makes infinities and NaNs level 0.
        level = select(level < splat(np.float32(1e6)), nearest_int(level), zero)
        level = maximum(zero, minimum(top, level))
        store(L, 16 * i, level)
        miss = scale * level + lo - v
        best = best + load(W, 16 * i) * (miss * miss)
    for step in range(37):
        factor = np.float32(-0.9) + np.float32(0.05) * np.float32(step) + np.float32(top_level)
        iscale = splat(factor) / (hi - lo)
        sum_l, sum_l2, sum_xl = zero, zero, zero
        for i in range(32):
            v = load(X, 16 * i)
            level = iscale * (v - lo)
            level = select(level > zero, nearest_int(minimum(level, top)), zero)
            store(trial, 16 * i, level)
            wl = load(W, 16 * i) * level
            sum_l, sum_l2, sum_xl = sum_l + wl, sum_l2 + wl * level, sum_xl + wl * v
        D = sum_w * sum_l2 - sum_l * sum_l
        this_scale = (sum_w * sum_xl - sum_x * sum_l) / D
        this_lo = (sum_l2 * sum_x - sum_l * sum_xl) / D
        this_scale = select(this_lo > zero, sum_xl / sum_l2, this_scale)
        this_lo = select(this_lo > zero, zero, this_lo)
        sum_miss = zero
        for i in range(32):
            miss = this_scale * load(trial, 16 * i) + this_lo - load(X, 16 * i)
            sum_miss = sum_miss + load(W, 16 * i) * (miss * miss)
        better = (zero < D) & (sum_miss < best)
        if any_lane(better):
            for i in range(32):
                store(L, 16 * i, select(better, load(trial, 16 * i), load(L, 16 * i)))
            best = select(better, sum_miss, best)
            scale, lo = select(better, this_scale, scale), select(better, this_lo, lo)
    for i in range(32):
        store(L, 16 * i, select(varies, load(L, 16 * i), zero))
    return select(varies, scale, zero), select(varies, lo, first_lo)


@kernel
def pack_nibbles(levels, tile, packed):
    """`qs` of 16 blocks. levels: (32, 16) float32; tile: (16, 16) int32; packed: (16 blocks, 16) uint8."""
    low_bits, four = splat(np.int32(15)), splat(np.int32(4))
    for j in range(LANES):
        low, high = to_i32(load(levels, 16 * j)), to_i32(load(levels, 16 * j + 256))
        store(tile, 16 * j, (low & low_bits) | ((high & low_bits) << four))
    transpose(tile, 0, 16, packed, 0)


@kernel
def pack_fifth_bits(levels):
    """`qh` of 16 blocks, block k in lane k. levels: (32, 16) float32."""
    bits = splat(np.int32(0))
    for j in range(32):
        level = to_i32(load(levels, 16 * j))
        bits = bits | (((level >> splat(np.int32(4))) & splat(np.int32(1))) << splat(np.int32(j)))
    return bits


@kernel
def symmetric_encode(x, importance, out, middle):
    """Q4_0 (middle 8) and Q5_0 (middle 16) with importance."""
    data, type_size = out.reshape(-1), 18 if middle == 8 else 22
    means = mean_squares(x)
    scratch = np.empty((3, 512), np.float32)
    tile, packed = np.empty(256, np.int32), np.empty(256, np.uint8)
    d, qh = np.empty(16, np.float32), np.empty(16, np.int32)
    blocks = x.size // 32
    for block in range(0, blocks, LANES):
        load_weighted(x, importance, means, block, scratch)
        store(d, 0, symmetric_search(scratch, middle))
        pack_nibbles(scratch[2], tile, packed)
        if middle == 16:
            store(qh, 0, pack_fifth_bits(scratch[2]))
        for k in range(min(LANES, blocks - block)):
            to = (block + k) * type_size
            write_half(data, to, d[k])
            if middle == 16:
                write_word(data, to + 2, qh[k])
            store(data, to + type_size - 16, load(packed, 16 * k))


@kernel
def offset_encode(x, importance, out, top_level):
    """Q4_1 (top level 15) and Q5_1 (top level 31) with importance."""
    data, type_size = out.reshape(-1), 20 if top_level == 15 else 24
    means = mean_squares(x)
    scratch = np.empty((4, 512), np.float32)
    tile, packed = np.empty(256, np.int32), np.empty(256, np.uint8)
    d, m, qh = np.empty(16, np.float32), np.empty(16, np.float32), np.empty(16, np.int32)
    blocks = x.size // 32
    for block in range(0, blocks, LANES):
        load_weighted(x, importance, means, block, scratch)
        scale, lo = offset_search(scratch, top_level)
        store(d, 0, scale)
        store(m, 0, lo)
        pack_nibbles(scratch[2], tile, packed)
        if top_level == 31:
            store(qh, 0, pack_fifth_bits(scratch[2]))
        for k in range(min(LANES, blocks - block)):
            to = (block + k) * type_size
            write_half(data, to, d[k])
            write_half(data, to + 2, m[k])
            if top_level == 31:
                write_word(data, to + 4, qh[k])
            store(data, to + type_size - 16, load(packed, 16 * k))


@kernel
def q4_0_encode_weighted(x, importance, out):
    """d minimises the weighted squared error over nineteen ways to round."""
    symmetric_encode(x, importance, out, 8)


@kernel
def q5_0_encode_weighted(x, importance, out):
    """As Q4_0, with levels from 0 to 31."""
    symmetric_encode(x, importance, out, 16)


@kernel
def q4_1_encode_weighted(x, importance, out):
    """d and m minimise the weighted squared error over 37 ways to round."""
    offset_encode(x, importance, out, 15)


@kernel
def q5_1_encode_weighted(x, importance, out):
    """As Q4_1, with levels from 0 to 31."""
    offset_encode(x, importance, out, 31)
