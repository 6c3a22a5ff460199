"""Rows to blocks a chunk at a time, in one call for many chunks.

    blocks ─ decode ─→ floats ─ check ─ encode ─→ out        a chunk: about 128 K weights
                       ╰ in the core's L2 cache ╯

Between two calls of kernels per thread takes the interpreter's lock, and where several work side by side it waits for
it, a tenth of a millisecond each time: as long as the decoder of a chunk takes.
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.addresses import call
from ggufkit.kernels.jit import inlined, kernel
from ggufkit.kernels.lanes import in_rows, view

__all__ = ["decode_blocks", "encode_chunks"]

INFINITY = 0x7F800000  # its bits


@kernel
def decode_blocks(decode, blocks, type_size, out, block_size):
    """Call the decoder at an address. blocks: (…) uint8; out: (…) float32."""
    call(decode, in_rows(blocks, type_size), in_rows(out, block_size))


@inlined
def largest_magnitude(x, largest):
    """Bits of the largest of |x| and the float32 with the bits `largest`; those of a NaN are above INFINITY.

    Magnitudes of floats are ordered like their bits, and integer maxima vectorise.
    """
    words = view(x, np.uint32)
    for i in range(words.size):
        largest = max(largest, words[i] & np.uint32(0x7FFFFFFF))
    return largest


@kernel
def encode_chunks(encode, x, importance, out, step, decode, blocks, floats):
    """Encode rows, `step` at a time, and return the bits of the largest magnitude; stop where one is not finite.

    encode, decode : addresses of kernels. A decoder of 0 means that `x` has the weights already, an encoder of 0 that
        they are only looked at.
    x : (rows, cols) float32, or the chunk of (step, cols) that the decoder writes.
    importance : (cols,) float32, or empty for an encoder without.
    out : (rows, row_bytes) uint8.
    blocks, floats : (blocks, type_size) uint8 of all rows, and the memory of `x` as (blocks of a chunk, block_size).
    """
    rows, largest = out.shape[0], np.uint32(0)
    for lo in range(0, rows, step):
        hi = min(lo + step, rows)
        if decode != 0:
            per_row = floats.shape[0] // step
            call(decode, blocks[lo * per_row : hi * per_row], floats[: (hi - lo) * per_row])
            part = x[: hi - lo]
        else:
            part = x[lo:hi]
        largest = largest_magnitude(part, largest)
        if largest >= np.uint32(INFINITY):
            break
        if encode == 0:
            continue
        if importance.size:
            call(encode, part, importance, out[lo:hi])
        else:
            call(encode, part, out[lo:hi])
    return largest
