"""IQ4_NL, IQ4_XS, MXFP4: four bits name one of sixteen levels. See `formats.iquants.iq4` and `formats.microscale`."""

from __future__ import annotations

import numpy as np

from ggufkit.formats.iquants.iq4 import LEVELS
from ggufkit.formats.microscale import DOUBLED
from ggufkit.kernels.dot import (
    MIDDLE,
    WIDE,
    half_at,
    load_exponents,
    load_halves,
    load_nibbles,
    lookup_bytes,
    store_bytes,
    word_at,
)
from ggufkit.kernels.jit import inlined
from ggufkit.kernels.lanes import lane_numbers, splat, to_f32
from ggufkit.runtime.cpu.products.loops import products_of

_IQ4 = (LEVELS + MIDDLE).astype(np.uint8)
_LARGEST = 12  # of E2M1, doubled
_E2M1 = (DOUBLED + _LARGEST).astype(np.uint8)


@inlined
def iq4_nl_unpack(data, at, last, U):
    for j in range(0, 8, 2):
        first, second = min(at + 18 * j, last), min(at + 18 * (j + 1), last)
        store_bytes(U, 32 * j, lookup_bytes(_IQ4, load_nibbles(data, first + 2, second + 2)))
    return load_halves(data, at, 18, last), splat(np.float32(0))


@inlined
def iq4_xs_unpack(data, at, last, U):
    """The scale of sub-block j: bits 0-3 at bit 4 j of one word, bits 4-5 at bit 2 j of another; 32 is added."""
    for j in range(4):
        store_bytes(U, 64 * j, lookup_bytes(_IQ4, load_nibbles(data, at + 8 + 32 * j, at + 24 + 32 * j)))
    j = lane_numbers() & splat(np.int32(7))
    low = splat(np.int32(word_at(data, at + 4))) >> (j << splat(np.int32(2))) & splat(np.int32(15))
    high = splat(np.int32(word_at(data, at)) >> np.int32(16)) >> (j << splat(np.int32(1)))
    level = (low | ((high & splat(np.int32(3))) << splat(np.int32(4)))) - splat(np.int32(32))
    return half_at(data, at) * to_f32(level), splat(np.float32(0))


@inlined
def mxfp4_unpack(data, at, last, U):
    for j in range(0, 8, 2):
        first, second = min(at + 17 * j, last), min(at + 17 * (j + 1), last)
        store_bytes(U, 32 * j, lookup_bytes(_E2M1, load_nibbles(data, first + 1, second + 1)))
    return load_exponents(data, at, 17, last), splat(np.float32(0))


PRODUCTS = {
    "IQ4_NL": products_of("IQ4_NL", __file__, iq4_nl_unpack, form="Q8_0", top=WIDE, offset=MIDDLE),
    "IQ4_XS": products_of("IQ4_XS", __file__, iq4_xs_unpack, form="Q8_K", top=WIDE, offset=MIDDLE),
    "MXFP4": products_of("MXFP4", __file__, mxfp4_unpack, form="Q8_0", top=2 * _LARGEST, offset=_LARGEST),
}
