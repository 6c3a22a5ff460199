"""IQ4_NL, IQ4_XS, MXFP4: four bits name one of sixteen levels. See `formats.iquants.iq4` and `formats.microscale`."""

from __future__ import annotations

import numpy as np

from ggufkit.formats.iquants.iq4 import LEVELS
from ggufkit.formats.microscale import DOUBLED
from ggufkit.kernels.dot import (
    MIDDLE,
    WIDE,
    bits_of,
    exponents_of,
    half_at,
    halves_of,
    load_eights,
    load_exponents,
    load_halves,
    load_nibbles,
    load_rows,
    lookup_bytes,
    store_bytes,
    store_steps,
    word_at,
)
from ggufkit.kernels.jit import inlined
from ggufkit.kernels.lanes import lane_numbers, splat, store
from ggufkit.runtime.cpu.products import scaled
from ggufkit.runtime.cpu.products.loops import products_of

_IQ4, _IQ4_SIGNED = (LEVELS + MIDDLE).astype(np.uint8), LEVELS.astype(np.int8).view(np.uint8)
_LARGEST = 12  # of E2M1, doubled
_E2M1 = (DOUBLED + _LARGEST).astype(np.uint8)


@inlined
def _put_levels(table, data, at, stride, W, to):
    """32 columns whose levels sixteen bytes of each row name."""
    words = load_rows(data, at, stride)
    for i in range(2):
        a, b, c, d = bits_of(words, 4 * i, 15)
        levels = lookup_bytes(table, a), lookup_bytes(table, b), lookup_bytes(table, c), lookup_bytes(table, d)
        store_steps(W, to + 64 * i, levels)


@inlined
def iq4_nl_unpack(data, at, last, U):
    for j in range(0, 8, 2):
        first, second = min(at + 18 * j, last), min(at + 18 * (j + 1), last)
        store_bytes(U, 32 * j, lookup_bytes(_IQ4, load_nibbles(data, first + 2, second + 2)))
    return load_halves(data, at, 18, last), splat(np.float32(0))


@inlined
def iq4_nl_unpack_rows(data, at, stride, last, W, to, jump, S, M, s):
    for j in range(8):
        block = min(at + 18 * j, last)
        _put_levels(_IQ4, data, block + 2, stride, W, to + j * jump)
        store(S, s + 16 * j, halves_of(load_rows(data, block, stride)[0]))


@inlined
def iq4_xs_unpack(data, at, U):
    """The scale of sub-block j: bits 0-3 at bit 4 j of one word, bits 4-5 at bit 2 j of another; 32 is added."""
    even, odd = load_eights(data, at + 8)
    nibbles, four = splat(np.int32(0x0F0F0F0F)), splat(np.int32(4))
    store_bytes(U, 0, lookup_bytes(_IQ4, even & nibbles))
    store_bytes(U, 64, lookup_bytes(_IQ4, odd & nibbles))
    store_bytes(U, 128, lookup_bytes(_IQ4, even >> four & nibbles))
    store_bytes(U, 192, lookup_bytes(_IQ4, odd >> four & nibbles))
    j = lane_numbers() & splat(np.int32(7))
    low = splat(np.int32(word_at(data, at + 4))) >> (j << splat(np.int32(2))) & splat(np.int32(15))
    high = splat(np.int32(word_at(data, at)) >> np.int32(16)) >> (j << splat(np.int32(1)))
    return half_at(data, at), (low | ((high & splat(np.int32(3))) << splat(np.int32(4)))) - splat(np.int32(32))


@inlined
def iq4_xs_unpack_rows(data, at, stride, W, S):
    both, lows, _, _ = load_rows(data, at, stride)
    for j in range(8):
        _put_levels(_IQ4_SIGNED, data, at + 8 + 16 * j, stride, W, j * 128)
        low = lows >> splat(np.int32(4 * j)) & splat(np.int32(15))
        high = both >> splat(np.int32(16 + 2 * j)) & splat(np.int32(3))
        store(S, 16 * j, (low | high << splat(np.int32(4))) - splat(np.int32(32)))
    return halves_of(both)


@inlined
def mxfp4_unpack(data, at, last, U):
    for j in range(0, 8, 2):
        first, second = min(at + 17 * j, last), min(at + 17 * (j + 1), last)
        store_bytes(U, 32 * j, lookup_bytes(_E2M1, load_nibbles(data, first + 1, second + 1)))
    return load_exponents(data, at, 17, last), splat(np.float32(0))


@inlined
def mxfp4_unpack_rows(data, at, stride, last, W, to, jump, S, M, s):
    for j in range(8):
        block = min(at + 17 * j, last)
        _put_levels(_E2M1, data, block + 1, stride, W, to + j * jump)
        store(S, s + 16 * j, exponents_of(load_rows(data, block, stride)[0] & splat(np.int32(255))))


PRODUCTS = {
    "IQ4_NL": products_of("IQ4_NL", __file__, iq4_nl_unpack, iq4_nl_unpack_rows, form="Q8_0", top=WIDE, offset=MIDDLE),
    "IQ4_XS": scaled.products_of(
        "IQ4_XS", __file__, iq4_xs_unpack, iq4_xs_unpack_rows, top=WIDE, group=32, offset=MIDDLE
    ),
    "MXFP4": products_of(
        "MXFP4", __file__, mxfp4_unpack, mxfp4_unpack_rows, form="Q8_0", top=2 * _LARGEST, offset=_LARGEST
    ),
}
