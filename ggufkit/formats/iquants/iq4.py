"""IQ4_NL and IQ4_XS: each weight is one of 16 unevenly spaced levels, closer together near zero.

IQ4_NL   32 weights: d (float16), 16 bytes of levels                                  w = d · LEVELS[q]
IQ4_XS   256 weights: d, 8 scales of 6 bits (32 added), 8 × 16 bytes of levels        w = d · (s - 32) · LEVELS[q]
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import LANES, half_to_float, load, permute, splat, store

# `kvalues_iq4nl` of ggml-common.h.
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


@kernel
def _decode_32(levels, d, bytes_, at, values, to):
    """32 weights from 16 bytes: byte j has weight j in its low half and weight j + 16 in its high half."""
    q = load(bytes_, at)
    step = splat(d)
    store(values, to, step * permute(levels, q & splat(np.int32(15))))
    store(values, to + LANES, step * permute(levels, q >> splat(np.int32(4))))


@kernel
def iq4_nl_decode(blocks, out):
    """IQ4_NL → float32. blocks: (n, 18) uint8; out: (n, 32) float32.

    d d | q0 … q15      qj = HHHHLLLL: weight j in L, weight j + 16 in H
    """
    data, values = blocks.reshape(-1), out.reshape(-1)
    halves = data.view(np.uint16)
    levels = load(LEVELS, 0)
    for i in range(blocks.shape[0]):
        _decode_32(levels, half_to_float(halves[9 * i]), data, 18 * i + 2, values, 32 * i)


@kernel
def iq4_xs_decode(blocks, out):
    """IQ4_XS → float32. blocks: (n, 136) uint8; out: (n, 256) float32.

    d d | h h | l0 … l3 | q0 … q127      the scale of sub-block j has bits hhllll: 2 bits of h at 2j, 4 bits of l at 4j
    """
    data, values = blocks.reshape(-1), out.reshape(-1)
    halves = data.view(np.uint16)
    levels = load(LEVELS, 0)
    for i in range(blocks.shape[0]):
        d = half_to_float(halves[68 * i])
        high = np.int32(halves[68 * i + 1])
        for j in range(8):
            low = np.int32(data[136 * i + 4 + j // 2]) >> (4 * (j % 2))
            scale = (low & 15) | ((high >> (2 * j)) & 3) << 4
            _decode_32(levels, d * np.float32(scale - 32), data, 136 * i + 8 + 16 * j, values, 256 * i + 32 * j)
