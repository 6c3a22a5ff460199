"""Q8_K: x ≈ d·q with q of 8 bits, for activations only: K-quant weights are multiplied with it.

    d        float32                     4 bytes
    qs       256 int8                  256 bytes
    bsums    16 int16, sums of 16 q     32 bytes

292 bytes, 9.125 bits per weight.
"""

from __future__ import annotations

import numpy as np

from ggufkit.formats.tiles import QK_K, nearest_wrapped
from ggufkit.kernels.jit import helper, kernel
from ggufkit.kernels.lanes import (
    LANES,
    first_lane,
    flat,
    highest,
    load,
    lowest,
    maximum,
    minimum,
    splat,
    store,
    store_out,
    to_f32,
    to_i32,
    total,
    view,
)

_BYTES = 292
_SUMS = 4 + QK_K


@kernel
def q8_k_encode(x, out):
    """Encode as quantize_row_q8_K_ref does. x: (rows, cols) float32; out: (rows, cols / 256 · 292) uint8.

    The sums of a block of zeros, which the reference leaves as they were, become zero.
    """
    values, blocks = flat(x), flat(out)
    scales, levels, sums = view(blocks, np.float32), view(blocks, np.int8), view(blocks, np.int16)
    top = splat(np.float32(127))
    for b in range(values.size // QK_K):
        at = b * _BYTES
        extreme = _extreme(values, b * QK_K)
        iscale = np.float32(-127) / extreme if extreme != 0 else np.float32(0)
        scales[at // 4] = np.float32(1) / iscale if extreme != 0 else np.float32(0)
        for i in range(0, QK_K, LANES):
            level = to_i32(minimum(nearest_wrapped(splat(iscale) * load(values, b * QK_K + i)), top))
            store(levels, at + 4 + i, level)
            sums[(at + _SUMS + i // 8) // 2] = np.int16(total(level))


@helper
def _extreme(values, at):
    """The value of largest magnitude of 256, the first of equals."""
    high, low = load(values, at), load(values, at)
    for i in range(LANES, QK_K, LANES):
        v = load(values, at + i)
        high, low = maximum(v, high), minimum(v, low)
    largest, smallest = highest(high), lowest(low)
    if largest != -smallest:
        return largest if largest > -smallest else smallest
    for i in range(0, QK_K, LANES):
        v = load(values, at + i)
        found = first_lane((v == splat(largest)) | (v == splat(smallest)))
        if found < LANES:
            return values[at + i + found]
    return largest


@kernel
def q8_k_decode(blocks, out):
    """Exact. blocks: (n, 292) uint8; out: (n, 256) float32."""
    data, values = flat(blocks), flat(out)
    scales, levels = view(data, np.float32), view(data, np.int8)
    for b in range(blocks.shape[0]):
        d = splat(scales[b * _BYTES // 4])
        for i in range(0, QK_K, LANES):
            store_out(values, b * QK_K + i, d * to_f32(load(levels, b * _BYTES + 4 + i)))
