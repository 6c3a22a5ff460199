"""Products of bytes: how quantized weights meet quantized activations.

Sixty-four bytes travel as an i32x16, four to a lane. `bodies` has one way to multiply them for each kind of CPU, of
which one is compiled, `bytes` what unpacks blocks, `tiles` the sums of many rows and many activations.
"""

from __future__ import annotations

from ggufkit.kernels.dot.bodies import MIDDLE, WIDE
from ggufkit.kernels.dot.bytes import (
    bits_bytes,
    flip,
    half_at,
    load_bits,
    load_bytes,
    load_exponents,
    load_halves,
    load_nibbles,
    load_pair,
    lookup_bytes,
    prefetch,
    store_bytes,
    word_at,
)
from ggufkit.kernels.dot.tiles import (
    PANELS,
    TOKENS,
    add_product,
    add_scaled,
    add_tile,
    dot_bytes,
    dot_tile,
    dot_wide,
    group_sums_2,
    group_sums_4,
    pack_steps,
    store_tile,
    subtract_scaled,
    sum_pairs_8,
    sum_pairs_16,
    zero_tile,
)

__all__ = [
    "MIDDLE",
    "PANELS",
    "TOKENS",
    "WIDE",
    "add_product",
    "add_scaled",
    "add_tile",
    "bits_bytes",
    "dot_bytes",
    "dot_tile",
    "dot_wide",
    "flip",
    "group_sums_2",
    "group_sums_4",
    "half_at",
    "load_bits",
    "load_bytes",
    "load_exponents",
    "load_halves",
    "load_nibbles",
    "load_pair",
    "lookup_bytes",
    "pack_steps",
    "prefetch",
    "store_bytes",
    "store_tile",
    "subtract_scaled",
    "sum_pairs_8",
    "sum_pairs_16",
    "word_at",
    "zero_tile",
]
