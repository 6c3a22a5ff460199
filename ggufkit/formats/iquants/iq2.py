"""IQ2_S, IQ2_XS and IQ2_XXS: eight magnitudes at a time from a codebook, one sign a weight.

    IQ2_XXS   d, 8 × (4 bytes of 8-bit rows, a word of 4 × 7 sign bits and a 4-bit scale)      2.06 bits per weight
    IQ2_XS    d, 32 × (9-bit row, 7 sign bits), 16 scales of 4 bits                            2.31 bits per weight
    IQ2_S     d, 32 × 10-bit rows, 256 sign bits, 16 scales of 4 bits                          2.56 bits per weight

Seven sign bits stand for eight: the number of minus signs is even, which the encoder sees to.
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.iquants.blocks import (
    NO_IMPORTANCE,
    finish,
    largest_in_lanes,
    largest_of_8,
    load_sub_blocks,
    make_signs_even,
    nearest_code,
    odd_code,
    per_super_block,
    split_signs,
    sums_of_squares,
    weigh,
    write_u16,
)
from ggufkit.formats.iquants.grids import ROW, SIGNS, neighbours, words
from ggufkit.formats.iquants.search import ALL, OFF_GRID_ROWS, Plan, new_work, search
from ggufkit.kernels.jit import helper, inlined, kernel
from ggufkit.kernels.lanes import (
    LANES,
    any_lane,
    bits_mask,
    bytes_i32,
    flat,
    float_to_half,
    half_to_float,
    highest,
    load,
    maximum,
    minimum,
    select,
    splat,
    store,
    to_f32,
    transpose,
    view,
)


@helper
def _decode_16(a, b, step, signs, values, to):
    """16 weights: two codebook rows (uint64), a step for all, 16 sign bits."""
    magnitude = splat(step) * to_f32(bytes_i32(a, b))
    store(values, to, select(bits_mask(signs), -magnitude, magnitude))


@kernel
def _xxs_decode(blocks, grid, out):
    """blocks: (n, 66) uint8; grid: (256,) uint64; out: (n, 256) float32.

    d d | 8 × (q0 q1 q2 q3 w)      w = ssssDDDD DDDCCCCC CCBBBBBB BAAAAAAA: scale s; signs A … D of eight weights each
    """
    data, values = flat(blocks), flat(out)
    halves = view(data, np.uint16)
    for i in range(blocks.shape[0]):
        d = half_to_float(halves[33 * i])
        for j in range(8):
            word = np.uint32(halves[33 * i + 3 + 4 * j]) | np.uint32(halves[33 * i + 4 + 4 * j]) << np.uint32(16)
            step = d * (np.float32(0.5) + np.float32(word >> np.uint32(28))) * np.float32(0.25)
            for half in range(2):
                pair = (word >> np.uint32(14 * half)) & np.uint32(0x3FFF)
                signs = np.int32(SIGNS[pair & np.uint32(127)]) | np.int32(SIGNS[pair >> np.uint32(7)]) << 8
                q = 66 * i + 2 + 8 * j + 2 * half
                to = 256 * i + 32 * j + 16 * half
                _decode_16(grid[data[q]], grid[data[q + 1]], step, np.int32(signs), values, to)


@kernel
def _xs_decode(blocks, grid, out):
    """blocks: (n, 74) uint8; grid: (512,) uint64; out: (n, 256) float32.

    d d | q0 … q31 (uint16) | k0 … k7      q = SSSSSSSR RRRRRRRR: signs S, row R; k: two 4-bit scales, 16 weights each
    """
    data, values = flat(blocks), flat(out)
    halves = view(data, np.uint16)
    for i in range(blocks.shape[0]):
        d = half_to_float(halves[37 * i])
        for j in range(16):
            scale = (np.int32(data[74 * i + 66 + j // 2]) >> (4 * (j % 2))) & 15
            step = d * (np.float32(0.5) + np.float32(scale)) * np.float32(0.25)
            a, b = np.int64(halves[37 * i + 1 + 2 * j]), np.int64(halves[37 * i + 2 + 2 * j])
            signs = np.int32(SIGNS[a >> 9]) | np.int32(SIGNS[b >> 9]) << 8
            _decode_16(grid[a & 511], grid[b & 511], step, np.int32(signs), values, 256 * i + 16 * j)


@kernel
def _s_decode(blocks, grid, out):
    """blocks: (n, 82) uint8; grid: (1024,) uint64; out: (n, 256) float32.

    d d | q0 … q31 | s0 … s31 | h0 … h7 | k0 … k7      h: bits 8 and 9 of four rows; k: two 4-bit scales
    """
    data, values = flat(blocks), flat(out)
    halves = view(data, np.uint16)
    for i in range(blocks.shape[0]):
        d = half_to_float(halves[41 * i])
        for j in range(16):
            scale = (np.int32(data[82 * i + 74 + j // 2]) >> (4 * (j % 2))) & 15
            step = d * (np.float32(0.5) + np.float32(scale)) * np.float32(0.25)
            high = np.int64(data[82 * i + 66 + j // 2]) >> (4 * (j % 2))
            a = data[82 * i + 2 + 2 * j] | (high << 8) & 0x300
            b = data[82 * i + 3 + 2 * j] | (high << 6) & 0x300
            _decode_16(grid[a], grid[b], step, np.int32(halves[41 * i + 17 + j]), values, 256 * i + 16 * j)


def iq2_xxs_decode(blocks: np.ndarray, out: np.ndarray) -> None:
    """IQ2_XXS → float32. blocks: (n, 66) uint8; out: (n, 256) float32."""
    _xxs_decode(blocks, words("IQ2_XXS"), out)


def iq2_xs_decode(blocks: np.ndarray, out: np.ndarray) -> None:
    """IQ2_XS → float32. blocks: (n, 74) uint8; out: (n, 256) float32."""
    _xs_decode(blocks, words("IQ2_XS"), out)


def iq2_s_decode(blocks: np.ndarray, out: np.ndarray) -> None:
    """IQ2_S → float32. blocks: (n, 82) uint8; out: (n, 256) float32."""
    _s_decode(blocks, words("IQ2_S"), out)


# ---- Encode -----------------------------------------------------------------------------------------------------
#
# Source: quantize_row_iq2_xxs_impl, quantize_row_iq2_xs_impl, quantize_row_iq2_s_impl and make_qp_quants of
# ggml-quants.c.

_XXS_PLAN = Plan(dims=8, groups=4, base=3, trials=6, step=np.float32(0.1), polish=ALL)
_16_PLAN = Plan(dims=8, groups=2, base=3, trials=9, step=np.float32(0.1), polish=OFF_GRID_ROWS)

EPS = np.float32(1e-15)  # GROUP_MAX_EPS
EPS_S = np.float32(1e-8)  # GROUP_MAX_EPS_IQ2_S


@inlined
def _scaled_error(X, W, L, scale):
    """Σ w (x - scale · l)² for the integers in L."""
    error = splat(np.float32(0))
    for i in range(0, X.size, LANES):
        difference = load(X, i) - scale * to_f32(load(L, i))
        error = error + load(W, i) * difference * difference
    return error


@helper
def _positive_scale(X, W, L, last):
    """The scale that fits x to integers 0 … last, nearly: the start of the search. X, W, L: (32, 16)

    Nine scales are tried. Then, up to five times over, each integer in turn becomes the best one given the others.
    The reference keeps the integers in bytes, so that -1, which a weight made negative by `make_signs_even` may
    get, counts as 255 where it is read back.
    """
    zero, byte, top = splat(np.float32(0)), splat(np.int32(255)), splat(np.int32(last))
    largest = maximum(zero, largest_in_lanes(X))
    inverse = splat(np.float32(last)) / largest
    for i in range(0, X.size, LANES):
        store(L, i, nearest_code(inverse * load(X, i)) & byte)
    best = _scaled_error(X, W, L, splat(np.float32(1)) / inverse)
    for trial in range(-4, 5):
        if trial == 0:
            continue
        this_inverse = splat(np.float32(0.1) * np.float32(trial) + np.float32(last)) / largest
        for i in range(0, X.size, LANES):
            store(L, i, minimum(top, nearest_code(this_inverse * load(X, i))))
        error = _scaled_error(X, W, L, splat(np.float32(1)) / this_inverse)
        better = error < best
        best, inverse = select(better, error, best), select(better, this_inverse, inverse)
    sum_lx = sum_ll = zero
    for i in range(0, X.size, LANES):
        x, w = load(X, i), load(W, i)
        code = minimum(top, nearest_code(inverse * x))
        store(L, i, code & byte)
        level = to_f32(code)
        sum_lx, sum_ll = sum_lx + w * x * level, sum_ll + w * level * level
    for _ in range(5):
        changes = bits_mask(np.int32(0))
        for i in range(0, X.size, LANES):
            x, w, old = load(X, i), load(W, i), load(L, i)
            level = to_f32(old)
            lx, ll = sum_lx - w * x * level, sum_ll - w * level * level
            code = minimum(top, nearest_code(x * ll / lx))
            other = (lx > zero) & (ll > zero) & (code != old)
            level = to_f32(code)
            lx, ll = lx + w * x * level, ll + w * level * level
            better = other & (lx * lx * sum_ll > sum_lx * sum_lx * ll)
            store(L, i, select(better, code & byte, old))
            sum_lx, sum_ll = select(better, lx, sum_lx), select(better, ll, sum_ll)
            changes = changes | better
        if not any_lane(changes):
            break
    return select(sum_ll > zero, sum_lx / sum_ll, zero)


@kernel
def _xxs_encode(x, importance, table, out):
    """x: (rows, cols) float32; importance: (cols,) float32; out: (rows, cols / 256 · 66) uint8."""
    values, data = flat(x), flat(out)
    work, L = new_work(32, 4), np.empty(512, np.int32)
    blocks, cols = values.size // 256, importance.size
    for block in range(0, blocks, 2):
        other = min(block + 1, blocks - 1)
        load_sub_blocks(values, 256 * block, 256 * other, work.natural, work.X)
        load_sub_blocks(importance, 256 * block % cols, 256 * other % cols, work.natural, work.W)
        a, b = sums_of_squares(values, 256 * block, 256 * other)
        weigh(work.X, work.W, per_super_block(a, b) / splat(np.float32(256)))
        split_signs(work.X, work.signs)
        make_signs_even(work.X, work.W, work.signs)
        start = _positive_scale(work.X, work.W, L, 4)
        effective = start * splat(np.float32(3))
        scale = search(work, _XXS_PLAN, table, effective, start)
        dead = (largest_in_lanes(work.X) < splat(EPS)) | (effective <= splat(np.float32(0)))
        store(work.scales, 0, finish(scale, dead, work.signs, work.best, 127))
        d, e = largest_of_8(work.scales, 0) / np.float32(31), largest_of_8(work.scales, 8) / np.float32(31)
        store(work.codes, 0, odd_code(load(work.scales, 0), per_super_block(d, e), 15))
        _xxs_write(data, 66 * block, d, work, 0)
        _xxs_write(data, 66 * other, e, work, 8)


@helper
def _xxs_write(data, at, d, work, lane):
    """One super-block of 66 bytes from the lanes `lane` … `lane + 7`.

    d d | 8 × (q0 q1 q2 q3 w)      w = ssssDDDD DDDCCCCC CCBBBBBB BAAAAAAA: scale s; signs A … D of eight weights each
    """
    data[at : at + 66] = 0
    if d == 0:
        return
    write_u16(data, at, float_to_half(d))
    for j in range(8):
        word = np.uint32(work.codes[lane + j]) << np.uint32(28)
        for group in range(4):
            data[at + 2 + 8 * j + group] = np.uint8(work.best[16 * group + lane + j])
            word |= np.uint32(work.signs[16 * group + lane + j]) << np.uint32(7 * group)
        write_u16(data, at + 6 + 8 * j, np.uint16(word))
        write_u16(data, at + 8 + 8 * j, np.uint16(word >> np.uint32(16)))


@inlined
def _sigma2(values, first):
    """Σ x² of a super-block, in order."""
    return sums_of_squares(values, first, first)[0]


@helper
def _code_scales(work, scale):
    """d of a super-block, as float32; the scales of its sub-blocks become work.codes."""
    d = highest(scale) / np.float32(31)
    store(work.codes, 0, odd_code(scale, splat(d), 15))
    return d


@inlined
def _pack_scales(data, at, codes):
    """k0 … k7: two 4-bit scales each, the first in the low half."""
    for j in range(8):
        data[at + j] = np.uint8(codes[2 * j] | codes[2 * j + 1] << 4)


@kernel
def _xs_encode(x, importance, table, out):
    """x: (rows, cols) float32; importance: (cols,) float32; out: (rows, cols / 256 · 74) uint8."""
    values, data = flat(x), flat(out)
    work = new_work(16, 2)
    for block in range(values.size // 256):
        transpose(values, 256 * block, 16, work.X, 0)
        transpose(importance, 256 * block % importance.size, 16, work.W, 0)
        weigh(work.X, work.W, splat(_sigma2(values, 256 * block) / np.float32(256)))
        split_signs(work.X, work.signs)
        make_signs_even(work.X, work.W, work.signs)
        largest = largest_in_lanes(work.X)
        scale = search(work, _16_PLAN, table, largest, largest / splat(np.float32(5)))
        d = _code_scales(work, finish(scale, largest < splat(EPS), work.signs, work.best, 127))
        _xs_write(data, 74 * block, d, work)


@helper
def _xs_write(data, at, d, work):
    """One super-block of 74 bytes.

    d d | q0 … q31 (uint16) | k0 … k7      q = SSSSSSSR RRRRRRRR: signs S, row R; k: two 4-bit scales, 16 weights each
    """
    data[at : at + 74] = 0
    if d == 0:
        return
    write_u16(data, at, float_to_half(d))
    for j in range(16):
        for group in range(2):
            c = 16 * group + j
            write_u16(data, at + 2 + 4 * j + 2 * group, np.uint16(work.best[c] & ROW | work.signs[c] << 9))
    _pack_scales(data, at + 66, work.codes)


@kernel
def _s_encode(x, importance, table, out):
    """x: (rows, cols) float32; importance: (cols,) float32, or (0,) for none; out: (rows, cols / 256 · 82) uint8."""
    values, data = flat(x), flat(out)
    work = new_work(16, 2)
    for block in range(values.size // 256):
        transpose(values, 256 * block, 16, work.X, 0)
        sigma2 = np.float32(2) * _sigma2(values, 256 * block) / np.float32(256)
        if importance.size:
            transpose(importance, 256 * block % importance.size, 16, work.W, 0)
            weigh(work.X, work.W, splat(sigma2))
        else:
            for i in range(0, 256, LANES):
                v = load(work.X, i)
                store(work.W, i, splat(np.float32(0.25) * sigma2) + v * v)
        split_signs(work.X, work.signs)
        largest = largest_in_lanes(work.X)
        scale = search(work, _16_PLAN, table, largest, largest / splat(np.float32(5)))
        d = _code_scales(work, finish(scale, largest < splat(EPS_S), work.signs, work.best, 255))
        _s_write(data, 82 * block, d, work)


@helper
def _s_write(data, at, d, work):
    """One super-block of 82 bytes.

    d d | q0 … q31 | s0 … s31 | h0 … h7 | k0 … k7      h: bits 8 and 9 of four rows; k: two 4-bit scales
    """
    data[at : at + 82] = 0
    write_u16(data, at, float_to_half(d * np.float32(0.9875)))
    for j in range(16):
        for group in range(2):
            row = work.best[16 * group + j] & ROW
            data[at + 2 + 2 * j + group] = np.uint8(row)
            data[at + 34 + 2 * j + group] = np.uint8(work.signs[16 * group + j])
            data[at + 66 + j // 2] |= np.uint8((row >> 8) << (4 * (j % 2) + 2 * group))
    if d > 0:
        _pack_scales(data, at + 74, work.codes)


def iq2_xxs_encode_weighted(x: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 → IQ2_XXS with importance, (cols,) float32. out: (rows, cols / 256 · 66) uint8."""
    _xxs_encode(x, importance, neighbours("IQ2_XXS"), out)


def iq2_xs_encode_weighted(x: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 → IQ2_XS with importance, (cols,) float32. out: (rows, cols / 256 · 74) uint8."""
    _xs_encode(x, importance, neighbours("IQ2_XS"), out)


def iq2_s_encode(x: np.ndarray, out: np.ndarray) -> None:
    """float32 → IQ2_S. x: (rows, cols) float32; out: (rows, cols / 256 · 82) uint8."""
    _s_encode(x, NO_IMPORTANCE, neighbours("IQ2_S"), out)


def iq2_s_encode_weighted(x: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 → IQ2_S with importance, (cols,) float32."""
    _s_encode(x, importance, neighbours("IQ2_S"), out)
