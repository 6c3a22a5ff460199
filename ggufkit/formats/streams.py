"""Streams of bits to bytes, and bytes to blocks: what unpacking a checkpoint spends its time with."""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.jit import kernel

__all__ = ["q4_0_blocks", "unpack_stream"]


@kernel
def unpack_stream(data, bits, out):
    """Codes of `bits` bits, the first in the lowest. data: (n, bytes) uint8; out: (n, bytes · 8 / bits) uint8.

    A group of eight codes fills `bits` bytes, so rows are whole numbers of these.
    """
    mask = np.uint64((1 << bits) - 1)
    for row in range(data.shape[0]):
        if bits == 4:
            for i in range(data.shape[1]):
                out[row, 2 * i] = data[row, i] & 15
                out[row, 2 * i + 1] = data[row, i] >> 4
            continue
        for group in range(data.shape[1] // bits):
            word = np.uint64(0)
            for i in range(bits):
                word |= np.uint64(data[row, group * bits + i]) << np.uint64(8 * i)
            for i in range(8):
                out[row, 8 * group + i] = np.uint8(word >> np.uint64(bits * i) & mask)


@kernel
def q4_0_blocks(codes, scales, out):
    """codes: (n, 32) uint8, 0 to 15; scales: (n,) uint16, float16's bits; out: (n, 18) uint8.

    qs[j]   BBBBAAAA    A = code j, B = code j + 16
    """
    for block in range(codes.shape[0]):
        out[block, 0] = scales[block] & 255
        out[block, 1] = scales[block] >> 8
        for j in range(16):
            out[block, 2 + j] = codes[block, j] | codes[block, j + 16] << 4
