"""IQ3_S and IQ3_XXS: four magnitudes at a time from a codebook, one sign a weight.

    IQ3_XXS   d, 64 bytes of 8-bit codebook rows, 8 words of 4 × 7 sign bits and a 4-bit scale      3.06 bits per weight
    IQ3_S     d, 64 bytes + 64 bits of 9-bit rows, 256 sign bits, 8 scales of 4 bits                3.44 bits per weight

A sub-block has 32 weights, that is eight codebook rows.
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
    odd_code,
    per_super_block,
    split_signs,
    sums_of_squares,
    weigh,
    weigh_by_square,
    write_u16,
)
from ggufkit.formats.iquants.grids import ROW, SIGNS, neighbours, words
from ggufkit.formats.iquants.search import ALL_IF_ANY, OFF_GRID_ROWS, Plan, new_work, search
from ggufkit.kernels.jit import helper, kernel
from ggufkit.kernels.lanes import (
    bits_mask,
    bytes_i32,
    flat,
    float_to_half,
    half_to_float,
    mask_bits,
    select,
    splat,
    store,
    to_f32,
    view,
)


@helper
def _decode_16(a, b, c, d, step, signs, values, to):
    """16 weights: four codebook rows (uint32), a step for all, 16 sign bits."""
    low = np.uint64(a) | np.uint64(b) << np.uint64(32)
    high = np.uint64(c) | np.uint64(d) << np.uint64(32)
    magnitude = splat(step) * to_f32(bytes_i32(low, high))
    store(values, to, select(bits_mask(signs), -magnitude, magnitude))


@kernel
def _xxs_decode(blocks, grid, out):
    """blocks: (n, 98) uint8; grid: (256,) uint32; out: (n, 256) float32.

    d d | q0 … q63 | w0 … w7      w = ssssDDDD DDDCCCCC CCBBBBBB BAAAAAAA: scale s; signs A … D of eight weights each
    """
    data, values = flat(blocks), flat(out)
    halves = view(data, np.uint16)
    for i in range(blocks.shape[0]):
        d = half_to_float(halves[49 * i])
        for j in range(8):
            word = np.uint32(halves[49 * i + 33 + 2 * j]) | np.uint32(halves[49 * i + 34 + 2 * j]) << np.uint32(16)
            step = d * (np.float32(0.5) + np.float32(word >> np.uint32(28))) * np.float32(0.5)
            q = 98 * i + 2 + 8 * j
            for half in range(2):
                pair = (word >> np.uint32(14 * half)) & np.uint32(0x3FFF)
                signs = np.int32(SIGNS[pair & np.uint32(127)]) | np.int32(SIGNS[pair >> np.uint32(7)]) << 8
                a, b, c, e = grid[data[q]], grid[data[q + 1]], grid[data[q + 2]], grid[data[q + 3]]
                _decode_16(a, b, c, e, step, np.int32(signs), values, 256 * i + 32 * j + 16 * half)
                q += 4


@kernel
def _s_decode(blocks, grid, out):
    """blocks: (n, 110) uint8; grid: (512,) uint32; out: (n, 256) float32.

    d d | q0 … q63 | h0 … h7 | s0 … s31 | k0 … k3      bit r of hj: the ninth bit of row 8j + r; k: two 4-bit scales
    """
    data, values = flat(blocks), flat(out)
    halves = view(data, np.uint16)
    for i in range(blocks.shape[0]):
        d = half_to_float(halves[55 * i])
        for j in range(8):
            scale = (np.int32(data[110 * i + 106 + j // 2]) >> (4 * (j % 2))) & 15
            step = d * np.float32(1 + 2 * scale)
            high = np.int64(data[110 * i + 66 + j])
            q = 110 * i + 2 + 8 * j
            for half in range(2):
                a = grid[data[q] | (high << 8) & 256]
                b = grid[data[q + 1] | (high << 7) & 256]
                c = grid[data[q + 2] | (high << 6) & 256]
                e = grid[data[q + 3] | (high << 5) & 256]
                signs = np.int32(halves[55 * i + 37 + 2 * j + half])
                _decode_16(a, b, c, e, step, signs, values, 256 * i + 32 * j + 16 * half)
                high >>= 4
                q += 4


def iq3_xxs_decode(blocks: np.ndarray, out: np.ndarray) -> None:
    """IQ3_XXS → float32. blocks: (n, 98) uint8; out: (n, 256) float32."""
    _xxs_decode(blocks, words("IQ3_XXS"), out)


def iq3_s_decode(blocks: np.ndarray, out: np.ndarray) -> None:
    """IQ3_S → float32. blocks: (n, 110) uint8; out: (n, 256) float32."""
    _s_decode(blocks, words("IQ3_S"), out)


# ---- Encode -----------------------------------------------------------------------------------------------------
#
# Source: quantize_row_iq3_xxs_impl and quantize_row_iq3_s_impl of ggml-quants.c.

_XXS_PLAN = Plan(dims=4, groups=8, base=8, trials=15, step=np.float32(0.2), polish=OFF_GRID_ROWS)
_S_PLAN = Plan(dims=4, groups=8, base=8, trials=9, step=np.float32(0.2), polish=ALL_IF_ANY)


@helper
def _load_pair(work, values, importance, block, other):
    """Two super-blocks into lanes, and how much their weights matter."""
    load_sub_blocks(values, 256 * block, 256 * other, work.natural, work.X)
    cols = importance.size
    if cols:
        load_sub_blocks(importance, 256 * block % cols, 256 * other % cols, work.natural, work.W)
        a, b = sums_of_squares(values, 256 * block, 256 * other)
        weigh(work.X, work.W, per_super_block(np.float32(2) * a, np.float32(2) * b) / splat(np.float32(256)))
    else:
        weigh_by_square(work.X, work.W)


@helper
def _code_scales(work, scale):
    """d of two super-blocks, as float32; the scales of their sub-blocks become work.codes."""
    store(work.scales, 0, scale)
    d = largest_of_8(work.scales, 0) / np.float32(31)
    e = largest_of_8(work.scales, 8) / np.float32(31)
    store(work.codes, 0, odd_code(scale, per_super_block(d, e), 15))
    return d, e


@kernel
def _xxs_encode(x, importance, table, out):
    """x: (rows, cols) float32; importance: (cols,) float32, or (0,) for none; out: (rows, cols / 256 · 98) uint8."""
    values, data = flat(x), flat(out)
    work = new_work(32, 8)
    blocks = values.size // 256
    for block in range(0, blocks, 2):
        other = min(block + 1, blocks - 1)
        _load_pair(work, values, importance, block, other)
        split_signs(work.X, work.signs)
        make_signs_even(work.X, work.W, work.signs)
        largest = largest_in_lanes(work.X)
        scale = search(work, _XXS_PLAN, table, largest, largest / splat(np.float32(15)))
        dead = largest < splat(np.float32(1e-8))  # GROUP_MAX_EPS_IQ3_XXS
        d, e = _code_scales(work, finish(scale, dead, work.signs, work.best, 127))
        _xxs_write(data, 98 * block, d, work.codes, work.signs, work.best, 0)
        _xxs_write(data, 98 * other, e, work.codes, work.signs, work.best, 8)


@helper
def _xxs_write(data, at, d, codes, signs, rows, lane):
    """One super-block of 98 bytes from the lanes `lane` … `lane + 7`.

    d d | q0 … q63 | w0 … w7      w = ssssDDDD DDDCCCCC CCBBBBBB BAAAAAAA: scale s; signs A … D of eight weights each
    """
    data[at : at + 98] = 0
    if d == 0:
        return
    write_u16(data, at, float_to_half(d * np.float32(1.0125)))
    for j in range(8):
        for group in range(8):
            data[at + 2 + 8 * j + group] = np.uint8(rows[16 * group + lane + j])
        word = np.uint32(codes[lane + j]) << np.uint32(28)
        for group in range(4):
            word |= np.uint32(signs[16 * group + lane + j]) << np.uint32(7 * group)
        write_u16(data, at + 66 + 4 * j, np.uint16(word))
        write_u16(data, at + 68 + 4 * j, np.uint16(word >> np.uint32(16)))


@kernel
def _s_encode(x, importance, table, out):
    """x: (rows, cols) float32; importance: (cols,) float32, or (0,) for none; out: (rows, cols / 256 · 110) uint8."""
    values, data = flat(x), flat(out)
    work = new_work(32, 8)
    blocks = values.size // 256
    for block in range(0, blocks, 2):
        other = min(block + 1, blocks - 1)
        _load_pair(work, values, importance, block, other)
        split_signs(work.X, work.signs)
        largest = largest_in_lanes(work.X)
        scale = search(work, _S_PLAN, table, largest, largest / splat(np.float32(15)))
        dead = largest == splat(np.float32(0))
        d, e = _code_scales(work, finish(scale, dead, work.signs, work.best, 255))
        _s_write(data, 110 * block, d, mask_bits(dead), work, 0)
        _s_write(data, 110 * other, e, mask_bits(dead), work, 8)


@helper
def _s_write(data, at, d, dead, work, lane):
    """One super-block of 110 bytes from the lanes `lane` … `lane + 7`. dead: bits of lanes that are all zero

    d d | q0 … q63 | h0 … h7 | s0 … s31 | k0 … k3      bit r of hj: the ninth bit of row 8j + r; k: two 4-bit scales

    A sub-block of zeros takes no place among the bytes of rows and signs: those after it move up, and what is left
    over at the end is zero. That is not what decoders expect, but it is what the reference writes.
    """
    data[at : at + 110] = 0
    write_u16(data, at, float_to_half(d * np.float32(1.033)))
    place = 0
    for j in range(8):
        if dead >> (lane + j) & 1:
            continue
        for group in range(8):
            row = work.best[16 * group + lane + j] & ROW
            data[at + 2 + 8 * place + group] = np.uint8(row)
            data[at + 66 + j] |= np.uint8((row >> 8) << group)
        for group in range(4):
            data[at + 74 + 4 * place + group] = np.uint8(work.signs[16 * group + lane + j])
        place += 1
    if d > 0:
        for j in range(8):
            data[at + 106 + j // 2] |= np.uint8(work.codes[lane + j] << (4 * (j % 2)))


def iq3_xxs_encode(x: np.ndarray, out: np.ndarray) -> None:
    """float32 → IQ3_XXS. x: (rows, cols) float32; out: (rows, cols / 256 · 98) uint8."""
    _xxs_encode(x, NO_IMPORTANCE, neighbours("IQ3_XXS"), out)


def iq3_xxs_encode_weighted(x: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 → IQ3_XXS with importance, (cols,) float32."""
    _xxs_encode(x, importance, neighbours("IQ3_XXS"), out)


def iq3_s_encode(x: np.ndarray, out: np.ndarray) -> None:
    """float32 → IQ3_S. x: (rows, cols) float32; out: (rows, cols / 256 · 110) uint8."""
    _s_encode(x, NO_IMPORTANCE, neighbours("IQ3_S"), out)


def iq3_s_encode_weighted(x: np.ndarray, importance: np.ndarray, out: np.ndarray) -> None:
    """float32 → IQ3_S with importance, (cols,) float32."""
    _s_encode(x, importance, neighbours("IQ3_S"), out)
