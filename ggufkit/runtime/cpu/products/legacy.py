"""Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: eight blocks of 32 weights are a unit. See `formats.legacy` for the layouts.

A row may end within a unit. The blocks after `last` are that one again: they meet activations that are 0.
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.dot import (
    MIDDLE,
    WIDE,
    bits_bytes,
    bits_of,
    flip,
    flip_words,
    halves_of,
    load_halves,
    load_nibbles,
    load_pair,
    load_rows,
    load_wide_rows,
    store_bytes,
    store_steps,
    with_bits,
    word_at,
)
from ggufkit.kernels.jit import inlined
from ggufkit.kernels.lanes import splat, store
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
def q4_0_unpack_rows(data, at, stride, last, W, to, jump, S, M, s):
    for j in range(8):
        block = min(at + 18 * j, last)
        words = load_rows(data, block + 2, stride)
        store_steps(W, to + j * jump, bits_of(words, 0, 15))
        store_steps(W, to + j * jump + 64, bits_of(words, 4, 15))
        store(S, s + 16 * j, halves_of(load_rows(data, block, stride)[0]))


@inlined
def q4_1_unpack(data, at, last, U):
    for j in range(0, 8, 2):
        first, second = min(at + 20 * j, last), min(at + 20 * (j + 1), last)
        store_bytes(U, 32 * j, load_nibbles(data, first + 4, second + 4))
    return load_halves(data, at, 20, last), -load_halves(data, at + 2, 20, last + 2)


@inlined
def q4_1_unpack_rows(data, at, stride, last, W, to, jump, S, M, s):
    for j in range(8):
        block = min(at + 20 * j, last)
        words = load_rows(data, block + 4, stride)
        store_steps(W, to + j * jump, bits_of(words, 0, 15))
        store_steps(W, to + j * jump + 64, bits_of(words, 4, 15))
        _store_scale_and_min(load_rows(data, block, stride)[0], S, M, s + 16 * j)


@inlined
def _store_scale_and_min(both, S, M, s):
    store(S, s, halves_of(both))
    store(M, s, -halves_of(both >> splat(np.int32(16))))


@inlined
def q5_0_unpack(data, at, last, U):
    for j in range(0, 8, 2):
        first, second = min(at + 22 * j, last), min(at + 22 * (j + 1), last)
        fifth = _fifth_bits(data, first + 2, second + 2)
        store_bytes(U, 32 * j, load_nibbles(data, first + 6, second + 6) | fifth)
    return load_halves(data, at, 22, last), splat(np.float32(0))


@inlined
def _spread(qh, first):
    """Bits `first` … `first + 3` of each word, one to a byte."""
    four = qh >> splat(np.int32(first)) & splat(np.int32(15))
    return four * splat(np.int32(0x00204081)) & splat(np.int32(0x01010101))


@inlined
def _fifth_bits_of(qh, first):
    """Of sixteen levels: four steps."""
    return _spread(qh, first), _spread(qh, first + 4), _spread(qh, first + 8), _spread(qh, first + 12)


@inlined
def q5_0_unpack_rows(data, at, stride, last, W, to, jump, S, M, s):
    for j in range(8):
        block = min(at + 22 * j, last)
        words = load_rows(data, block + 6, stride)
        qh = load_rows(data, block + 2, stride)[0]
        store_steps(W, to + j * jump, with_bits(bits_of(words, 0, 15), _fifth_bits_of(qh, 0), 4))
        store_steps(W, to + j * jump + 64, with_bits(bits_of(words, 4, 15), _fifth_bits_of(qh, 16), 4))
        store(S, s + 16 * j, halves_of(load_rows(data, block, stride)[0]))


@inlined
def q5_1_unpack(data, at, last, U):
    for j in range(0, 8, 2):
        first, second = min(at + 24 * j, last), min(at + 24 * (j + 1), last)
        fifth = _fifth_bits(data, first + 4, second + 4)
        store_bytes(U, 32 * j, load_nibbles(data, first + 8, second + 8) | fifth)
    return load_halves(data, at, 24, last), -load_halves(data, at + 2, 24, last + 2)


@inlined
def q5_1_unpack_rows(data, at, stride, last, W, to, jump, S, M, s):
    for j in range(8):
        block = min(at + 24 * j, last)
        words = load_rows(data, block + 8, stride)
        both, qh, _, _ = load_rows(data, block, stride)
        store_steps(W, to + j * jump, with_bits(bits_of(words, 0, 15), _fifth_bits_of(qh, 0), 4))
        store_steps(W, to + j * jump + 64, with_bits(bits_of(words, 4, 15), _fifth_bits_of(qh, 16), 4))
        _store_scale_and_min(both, S, M, s + 16 * j)


@inlined
def q8_0_unpack(data, at, last, U):
    for j in range(0, 8, 2):
        first, second = min(at + 34 * j, last), min(at + 34 * (j + 1), last)
        store_bytes(U, 32 * j, flip(load_pair(data, first + 2, second + 2)))
    return load_halves(data, at, 34, last), splat(np.float32(0))


@inlined
def q8_0_unpack_rows(data, at, stride, last, W, to, jump, S, M, s):
    for j in range(8):
        block = min(at + 34 * j, last)
        store_steps(W, to + j * jump, flip_words(load_wide_rows(data, block + 2, stride)))
        store(S, s + 16 * j, halves_of(load_rows(data, block, stride)[0]))


PRODUCTS = {
    "Q4_0": products_of("Q4_0", __file__, q4_0_unpack, q4_0_unpack_rows, form="Q8_0", top=15, offset=8),
    "Q4_1": products_of("Q4_1", __file__, q4_1_unpack, q4_1_unpack_rows, form="Q8_0", top=15),
    "Q5_0": products_of("Q5_0", __file__, q5_0_unpack, q5_0_unpack_rows, form="Q8_0", top=31, offset=16),
    "Q5_1": products_of("Q5_1", __file__, q5_1_unpack, q5_1_unpack_rows, form="Q8_0", top=31),
    "Q8_0": products_of("Q8_0", __file__, q8_0_unpack, q8_0_unpack_rows, form="Q8_0", top=WIDE, offset=MIDDLE),
}
