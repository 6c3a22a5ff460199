"""IQ3_S and IQ3_XXS: four magnitudes at a time from a codebook, one sign a weight.

    IQ3_XXS   d, 64 bytes of 8-bit codebook rows, 8 words of 4 × 7 sign bits and a 4-bit scale      3.06 bits a weight
    IQ3_S     d, 64 bytes + 64 bits of 9-bit rows, 256 sign bits, 8 scales of 4 bits                3.44 bits a weight

A sub-block has 32 weights, that is eight codebook rows.
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.iquants.grids import SIGNS, words
from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import bits_mask, bytes_i32, half_to_float, select, splat, store, to_f32


@kernel
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
    data, values = blocks.reshape(-1), out.reshape(-1)
    halves = data.view(np.uint16)
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
    data, values = blocks.reshape(-1), out.reshape(-1)
    halves = data.view(np.uint16)
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
