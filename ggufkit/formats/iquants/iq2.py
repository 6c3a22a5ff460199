"""IQ2_S, IQ2_XS and IQ2_XXS: eight magnitudes at a time from a codebook, one sign a weight.

    IQ2_XXS   d, 8 × (4 bytes of 8-bit rows, a word of 4 × 7 sign bits and a 4-bit scale)      2.06 bits a weight
    IQ2_XS    d, 32 × (9-bit row, 7 sign bits), 16 scales of 4 bits                            2.31 bits a weight
    IQ2_S     d, 32 × 10-bit rows, 256 sign bits, 16 scales of 4 bits                          2.56 bits a weight

Seven sign bits stand for eight: the number of minus signs is even, which the encoder sees to.
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.iquants.grids import SIGNS, words
from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import bits_mask, bytes_i32, half_to_float, select, splat, store, to_f32


@kernel
def _decode_16(a, b, step, signs, values, to):
    """16 weights: two codebook rows (uint64), a step for all, 16 sign bits."""
    magnitude = splat(step) * to_f32(bytes_i32(a, b))
    store(values, to, select(bits_mask(signs), -magnitude, magnitude))


@kernel
def _xxs_decode(blocks, grid, out):
    """blocks: (n, 66) uint8; grid: (256,) uint64; out: (n, 256) float32.

    d d | 8 × (q0 q1 q2 q3 w)      w = ssssDDDD DDDCCCCC CCBBBBBB BAAAAAAA: scale s; signs A … D of eight weights each
    """
    data, values = blocks.reshape(-1), out.reshape(-1)
    halves = data.view(np.uint16)
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
    data, values = blocks.reshape(-1), out.reshape(-1)
    halves = data.view(np.uint16)
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
    data, values = blocks.reshape(-1), out.reshape(-1)
    halves = data.view(np.uint16)
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
