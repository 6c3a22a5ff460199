"""IQ4_NL and IQ4_XS: each weight is one of 16 unevenly spaced levels, closer together near zero.

IQ4_NL   32 weights: d (float16), 16 bytes of levels                                  w = d · LEVELS[q]
IQ4_XS   256 weights: d, 8 scales of 6 bits (32 added), 8 × 16 bytes of levels        w = d · (s - 32) · LEVELS[q]
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.iquants.blocks import (
    NO_IMPORTANCE,
    load_sub_blocks,
    nearest_code,
    per_super_block,
    sums_of_squares,
    weigh,
    weigh_by_square,
    write_u16,
)
from ggufkit.kernels.jit import helper, kernel
from ggufkit.kernels.lanes import (
    LANES,
    fabs,
    flat,
    float_to_half,
    half_to_float,
    load,
    maximum,
    minimum,
    permute,
    select,
    splat,
    store,
    store_half,
    store_out,
    to_f32,
    to_i32,
    transpose,
    view,
)

# `kvalues_iq4nl` of ggml-common.h.
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


@helper
def _decode_32(levels, d, bytes_, at):
    """32 weights from 16 bytes: byte j has weight j in its low half and weight j + 16 in its high half."""
    q = load(bytes_, at)
    step = splat(d)
    return step * permute(levels, q & splat(np.int32(15))), step * permute(levels, q >> splat(np.int32(4)))


@kernel
def iq4_nl_decode(blocks, out):
    """IQ4_NL → float32. blocks: (n, 18) uint8; out: (n, 32) float32.

    d d | q0 … q15      qj = HHHHLLLL: weight j in L, weight j + 16 in H
    """
    data, values = flat(blocks), flat(out)
    halves = view(data, np.uint16)
    levels = load(LEVELS, 0)
    for i in range(blocks.shape[0]):
        low, high = _decode_32(levels, half_to_float(halves[9 * i]), data, 18 * i + 2)
        store_out(values, 32 * i, low)
        store_out(values, 32 * i + LANES, high)


@kernel
def iq4_xs_decode(blocks, out):
    """IQ4_XS → float32. blocks: (n, 136) uint8; out: (n, 256) float32.

    d d | h h | l0 … l3 | q0 … q127      the scale of sub-block j has bits hhllll: 2 bits of h at 2j, 4 bits of l at 4j
    """
    data, values = flat(blocks), flat(out)
    halves = view(data, np.uint16)
    levels = load(LEVELS, 0)
    for i in range(blocks.shape[0]):
        d = half_to_float(halves[68 * i])
        top_bits = np.int32(halves[68 * i + 1])
        for j in range(8):
            low_bits = np.int32(data[136 * i + 4 + j // 2]) >> (4 * (j % 2))
            scale = (low_bits & 15) | ((top_bits >> (2 * j)) & 3) << 4
            low, high = _decode_32(levels, d * np.float32(scale - 32), data, 136 * i + 8 + 16 * j)
            store_out(values, 256 * i + 32 * j, low)
            store_out(values, 256 * i + 32 * j + LANES, high)


# ---- Encode -----------------------------------------------------------------------------------------------------
#
# Sixteen sub-blocks of 32 weights in the lanes. For each, 16 scales are tried: the one that puts the weight of the
# largest magnitude on -127, and 15 that put it on -134 … -120. Each weight takes the nearest level, the best scale
# for those levels is the weighted least-squares one, and the trial with the smallest error wins.
# Source: quantize_row_iq4_nl_impl of ggml-quants.c.

# Where the nearest level changes: a weight below BOUNDS[i] is nearer to level i than to level i + 1. All are exact
# in float32, and so are the reference's subtractions next to them.
BOUNDS = (LEVELS[:-1] + LEVELS[1:]) / np.float32(2)
INDICES = np.arange(16, dtype=np.float32)

SUB = 32
EPS = np.float32(1e-15)  # GROUP_MAX_EPS: sub-blocks below it are zero
TRIALS = 7  # to either side


@helper
def _nearest(x, table):
    """`table[i]` for the level i nearest to each lane of x; NaN takes the last, as in best_index_int8."""
    value = splat(table[15])
    for i in range(14, -1, -1):
        value = select(x < splat(BOUNDS[i]), splat(table[i]), value)
    return value


@helper
def _moments(X, W, inverse):
    """Σ w q x and Σ w q q for the levels q nearest to inverse · x."""
    sum_qx = sum_qq = splat(np.float32(0))
    for i in range(SUB):
        x = load(X, LANES * i)
        q = _nearest(inverse * x, LEVELS)
        wq = load(W, LANES * i) * q
        sum_qx = sum_qx + wq * x
        sum_qq = sum_qq + wq * q
    return sum_qx, sum_qq


@helper
def _search(X, W):
    """The scale of sixteen sub-blocks. X, W: (32 weights, 16 sub-blocks), weights and how much each matters."""
    zero = splat(np.float32(0))
    largest = extreme = zero
    for i in range(SUB):
        x = load(X, LANES * i)
        above = fabs(x) > largest
        largest = select(above, fabs(x), largest)
        extreme = select(above, x, extreme)
    sum_qx, sum_qq = _moments(X, W, splat(np.float32(1)) / (-extreme / splat(LEVELS[0])))
    d = select(sum_qq > zero, sum_qx / sum_qq, zero)
    best = d * sum_qx
    for trial in range(-TRIALS, TRIALS + 1):
        sum_qx, sum_qq = _moments(X, W, splat(np.float32(trial - 127)) / extreme)
        better = (sum_qq > zero) & (sum_qx * sum_qx > best * sum_qq)
        d = select(better, sum_qx / sum_qq, d)
        best = select(better, d * sum_qx, best)
    return select(largest < splat(EPS), zero, d)


@helper
def _inverse(d):
    """1 / d, or 0 where d is."""
    zero = splat(np.float32(0))
    return select(d == zero, zero, splat(np.float32(1)) / d)


@helper
def _pack(X, inverse, nibbles, packed):
    """Levels of sixteen sub-blocks. packed: (16 sub-blocks, 16 bytes); nibbles: scratch, (16 bytes, 16 sub-blocks).

    byte j = HHHHLLLL: weight j in L, weight j + 16 in H
    """
    for j in range(LANES):
        low = _nearest(inverse * load(X, LANES * j), INDICES)
        high = _nearest(inverse * load(X, LANES * (j + LANES)), INDICES)
        store(nibbles, LANES * j, to_i32(low) | to_i32(high) << splat(np.int32(4)))
    transpose(nibbles, 0, LANES, packed, 0)


@helper
def _gather_sub_block(values, at, natural, k):
    """Copy 32 floats to row k of the (16, 32) scratch `natural`."""
    store(natural, SUB * k, load(values, at))
    store(natural, SUB * k + LANES, load(values, at + LANES))


@helper
def _to_lanes(natural, X):
    """(16 sub-blocks, 32 weights) → (32 weights, 16 sub-blocks)."""
    transpose(natural, 0, SUB, X, 0)
    transpose(natural, LANES, SUB, X, LANES * LANES)


@kernel
def _nl_encode(x, importance, out):
    """x: (rows, cols) float32; importance: (cols,) float32, or (0,) for none; out: (rows, cols / 32 · 18) uint8."""
    values, data = flat(x), flat(out)
    natural, X, W = np.empty(16 * SUB, np.float32), np.empty(16 * SUB, np.float32), np.empty(16 * SUB, np.float32)
    nibbles, packed, halves = np.empty(256, np.int32), np.empty(256, np.uint8), np.empty(16, np.uint16)
    scale_bytes = view(halves, np.uint8)
    blocks = values.size // SUB
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        for k in range(LANES):  # the last blocks fill the lanes by repetition
            _gather_sub_block(values, SUB * (first + min(k, count - 1)), natural, k)
        _to_lanes(natural, X)
        if importance.size:
            for k in range(LANES):
                _gather_sub_block(importance, SUB * (first + min(k, count - 1)) % importance.size, natural, k)
            _to_lanes(natural, W)
            sigma2 = splat(np.float32(0))
            for i in range(SUB):
                sigma2 = sigma2 + load(X, LANES * i) * load(X, LANES * i)
            weigh(X, W, sigma2 * splat(np.float32(2 / SUB)))
        else:
            weigh_by_square(X, W)
        d = _search(X, W)
        _pack(X, _inverse(d), nibbles, packed)
        store_half(halves, 0, d)
        for k in range(count):
            at = 18 * (first + k)
            data[at], data[at + 1] = scale_bytes[2 * k], scale_bytes[2 * k + 1]
            store(data, at + 2, load(packed, LANES * k))


@helper
def _xs_step(scales, first):
    """d of a super-block: minus the scale of the largest magnitude, over 32, so that this one has the code -32."""
    extreme = np.float32(0)
    for k in range(first, first + 8):
        if abs(scales[k]) > abs(extreme):
            extreme = scales[k]
    return -extreme / np.float32(32)


@helper
def _xs_write(data, at, d, codes, packed, first):
    """One super-block of 136 bytes from the scale codes and packed levels of its sub-blocks, the lanes from `first`.

    d d | h h | l0 … l3 | q0 … q127      the scale of sub-block j has bits hhllll: 2 bits of h at 2j, 4 bits of l at 4j
    """
    high, low = np.uint32(0), np.uint32(0)
    for j in range(8):
        code = np.uint32(codes[first + j])
        low |= (code & np.uint32(15)) << np.uint32(4 * j)
        high |= (code >> np.uint32(4)) << np.uint32(2 * j)
        store(data, at + 8 + LANES * j, load(packed, LANES * (first + j)))
    write_u16(data, at, float_to_half(d))
    write_u16(data, at + 2, np.uint16(high))
    write_u16(data, at + 4, np.uint16(low))
    write_u16(data, at + 6, np.uint16(low >> np.uint32(16)))


@kernel
def _xs_encode(x, importance, out):
    """x: (rows, cols) float32; importance: (cols,) float32, or (0,) for none; out: (rows, cols / 256 · 136) uint8."""
    values, data = flat(x), flat(out)
    natural, X, W = np.empty(16 * SUB, np.float32), np.empty(16 * SUB, np.float32), np.empty(16 * SUB, np.float32)
    nibbles, packed = np.empty(256, np.int32), np.empty(256, np.uint8)
    scales, codes = np.empty(16, np.float32), np.empty(16, np.int32)
    blocks = values.size // 256
    for block in range(0, blocks, 2):
        other = min(block + 1, blocks - 1)  # the last one of an odd number is done twice
        load_sub_blocks(values, 256 * block, 256 * other, natural, X)
        if importance.size:
            cols = importance.size
            load_sub_blocks(importance, 256 * block % cols, 256 * other % cols, natural, W)
            a, b = sums_of_squares(values, 256 * block, 256 * other)
            weigh(X, W, per_super_block(a, b) * splat(np.float32(2 / 256)))
        else:
            weigh_by_square(X, W)
        scale = _search(X, W)
        store(scales, 0, scale)
        step_a, step_b = _xs_step(scales, 0), _xs_step(scales, 8)
        step = per_super_block(step_a, step_b)
        code = minimum(maximum(nearest_code(_inverse(step) * scale), splat(np.int32(-32))), splat(np.int32(31)))
        store(codes, 0, code + splat(np.int32(32)))
        _pack(X, _inverse(step * to_f32(code)), nibbles, packed)
        _xs_write(data, 136 * block, step_a, codes, packed, 0)
        _xs_write(data, 136 * other, step_b, codes, packed, 8)


def iq4_nl_encode(x: np.ndarray, out: np.ndarray) -> None:
    """float32 → IQ4_NL. x: (rows, cols) float32; out: (rows, cols / 32 · 18) uint8."""
    _nl_encode(x, NO_IMPORTANCE, out)


def iq4_nl_encode_weighted(x: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 → IQ4_NL with importance, (cols,) float32."""
    _nl_encode(x, importance, out)


def iq4_xs_encode(x: np.ndarray, out: np.ndarray) -> None:
    """float32 → IQ4_XS. x: (rows, cols) float32; out: (rows, cols / 256 · 136) uint8."""
    _xs_encode(x, NO_IMPORTANCE, out)


def iq4_xs_encode_weighted(x: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 → IQ4_XS with importance, (cols,) float32."""
    _xs_encode(x, importance, out)
