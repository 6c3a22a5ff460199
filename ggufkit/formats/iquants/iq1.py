"""IQ1_S and IQ1_M: eight of -1, 0, 1 at a time from a codebook of 2048 rows, all moved by +1/8 or -1/8.

IQ1_S   d, 32 × 11-bit rows, 8 × (3-bit scale, direction of the shift)                1.56 bits per weight
IQ1_M   32 × (11-bit row, direction), 16 scales of 3 bits, d in what those leave      1.75 bits per weight
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.iquants.grids import words
from ggufkit.kernels.jit import helper, kernel
from ggufkit.kernels.lanes import (
    bits_mask,
    bytes_i32,
    flat,
    half_to_float,
    select,
    splat,
    store,
    to_f32,
    view,
)

DELTA = np.float32(0.125)


@helper
def _decode_16(a, b, step, minus, values, to):
    """16 weights: two codebook rows (uint64), a step for all, 16 bits: shifted down?"""
    shift = select(bits_mask(minus), splat(-DELTA), splat(DELTA))
    store(values, to, splat(step) * (to_f32(bytes_i32(a, b)) + shift))


@kernel
def _s_decode(blocks, grid, out):
    """blocks: (n, 50) uint8; grid: (2048,) uint64; out: (n, 256) float32.

    d d | q0 … q31 | h0 … h7 (uint16)      h = -sssDDDC CCBBBAAA: shift down, scale s, bits 8 to 10 of rows A … D
    """
    data, values = flat(blocks), flat(out)
    halves = view(data, np.uint16)
    for i in range(blocks.shape[0]):
        d = half_to_float(halves[25 * i])
        for j in range(8):
            h = np.int64(halves[25 * i + 17 + j])
            step = d * np.float32(2 * ((h >> 12) & 7) + 1)
            minus = np.int32(-(h >> 15))
            q = 50 * i + 2 + 4 * j
            a, b = data[q] | (h << 8) & 0x700, data[q + 1] | (h << 5) & 0x700
            c, e = data[q + 2] | (h << 2) & 0x700, data[q + 3] | (h >> 1) & 0x700
            _decode_16(grid[a], grid[b], step, minus, values, 256 * i + 32 * j)
            _decode_16(grid[c], grid[e], step, minus, values, 256 * i + 32 * j + 16)


@kernel
def _m_decode(blocks, grid, out):
    """blocks: (n, 56) uint8; grid: (2048,) uint64; out: (n, 256) float32.

    q0 … q31 | h0 … h15 | k0 … k3 (uint16)
    h = -BBB-AAA: shift down and bits 8 to 10, of rows A and B of 16 weights
    k = ddddDDDC CCBBBAAA: four scales, and four bits of the float16 d, the lowest in k0
    """
    data, values = flat(blocks), flat(out)
    halves = view(data, np.uint16)
    for i in range(blocks.shape[0]):
        k = 28 * i + 24
        low = (halves[k] >> 12) | (halves[k + 1] >> 8) & 0x00F0
        high = (halves[k + 2] >> 4) & 0x0F00 | halves[k + 3] & 0xF000
        d = half_to_float(np.uint16(low | high))
        for j in range(16):
            scale = (np.int64(halves[k + j // 4]) >> (3 * (j % 4))) & 7
            step = d * np.float32(2 * scale + 1)
            h = np.int64(data[56 * i + 32 + j])
            a = data[56 * i + 2 * j] | (h << 8) & 0x700
            b = data[56 * i + 2 * j + 1] | (h << 4) & 0x700
            minus = np.int32((h >> 3 & 1) * 0x00FF | (h >> 7) * 0xFF00)
            _decode_16(grid[a], grid[b], step, minus, values, 256 * i + 16 * j)


def iq1_s_decode(blocks: np.ndarray, out: np.ndarray) -> None:
    """IQ1_S → float32. blocks: (n, 50) uint8; out: (n, 256) float32."""
    _s_decode(blocks, words("IQ1_S"), out)


def iq1_m_decode(blocks: np.ndarray, out: np.ndarray) -> None:
    """IQ1_M → float32. blocks: (n, 56) uint8; out: (n, 256) float32."""
    _m_decode(blocks, words("IQ1_S"), out)
