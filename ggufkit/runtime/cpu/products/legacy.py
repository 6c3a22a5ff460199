"""Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: eight blocks of 32 weights are a unit. See `formats.legacy` for the layouts.

A row may end within a unit. The blocks after `last` are that one again: they meet activations that are 0.
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.dot import (
    MIDDLE,
    WIDE,
    bits_bytes,
    flip,
    load_halves,
    load_nibbles,
    load_pair,
    store_bytes,
    word_at,
)
from ggufkit.kernels.jit import inlined
from ggufkit.kernels.lanes import splat
from ggufkit.runtime.cpu.products.loops import products_of


@inlined
def _fifth_bits(data, first, second):
    """16 for each of 64 levels whose bit is set in the `qh` of two blocks."""
    return bits_bytes(np.uint64(word_at(data, first)) | np.uint64(word_at(data, second)) << np.uint64(32), 16)


@inlined
def q4_0_unpack(data, at, last, U):
    for j in range(0, 8, 2):
        first, second = min(at + 18 * j, last), min(at + 18 * (j + 1), last)
        store_bytes(U, 32 * j, load_nibbles(data, first + 2, second + 2))
    return load_halves(data, at, 18, last), splat(np.float32(0))


@inlined
def q4_1_unpack(data, at, last, U):
    for j in range(0, 8, 2):
        first, second = min(at + 20 * j, last), min(at + 20 * (j + 1), last)
        store_bytes(U, 32 * j, load_nibbles(data, first + 4, second + 4))
    return load_halves(data, at, 20, last), -load_halves(data, at + 2, 20, last + 2)


@inlined
def q5_0_unpack(data, at, last, U):
    for j in range(0, 8, 2):
        first, second = min(at + 22 * j, last), min(at + 22 * (j + 1), last)
        fifth = _fifth_bits(data, first + 2, second + 2)
        store_bytes(U, 32 * j, load_nibbles(data, first + 6, second + 6) | fifth)
    return load_halves(data, at, 22, last), splat(np.float32(0))


@inlined
def q5_1_unpack(data, at, last, U):
    for j in range(0, 8, 2):
        first, second = min(at + 24 * j, last), min(at + 24 * (j + 1), last)
        fifth = _fifth_bits(data, first + 4, second + 4)
        store_bytes(U, 32 * j, load_nibbles(data, first + 8, second + 8) | fifth)
    return load_halves(data, at, 24, last), -load_halves(data, at + 2, 24, last + 2)


@inlined
def q8_0_unpack(data, at, last, U):
    for j in range(0, 8, 2):
        first, second = min(at + 34 * j, last), min(at + 34 * (j + 1), last)
        store_bytes(U, 32 * j, flip(load_pair(data, first + 2, second + 2)))
    return load_halves(data, at, 34, last), splat(np.float32(0))


PRODUCTS = {
    "Q4_0": products_of("Q4_0", __file__, q4_0_unpack, form="Q8_0", top=15, offset=8),
    "Q4_1": products_of("Q4_1", __file__, q4_1_unpack, form="Q8_0", top=15),
    "Q5_0": products_of("Q5_0", __file__, q5_0_unpack, form="Q8_0", top=31, offset=16),
    "Q5_1": products_of("Q5_1", __file__, q5_1_unpack, form="Q8_0", top=31),
    "Q8_0": products_of("Q8_0", __file__, q8_0_unpack, form="Q8_0", top=WIDE, offset=MIDDLE),
}
