"""Q2_K, Q3_K, Q4_K, Q5_K, Q6_K: a super-block is a unit. See `formats.kquants` for the layouts."""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.dot import half_at, load_bits, load_bytes, store_bytes, word_at
from ggufkit.kernels.jit import inlined
from ggufkit.kernels.lanes import bytes_i32, load, splat, to_f32
from ggufkit.runtime.cpu.products.loops import products_of

_BITS_6, _BITS_4, _BITS_2 = np.uint32(0x3F3F3F3F), np.uint32(0x0F0F0F0F), np.uint32(0x03030303)
_TWO, _FOUR, _SIX, _HALF = np.uint32(2), np.uint32(4), np.uint32(6), np.uint64(32)
_NONE = np.uint64(0)


@inlined
def q2_k_unpack(data, at, last, U):
    """Bits 2 j … 2 j + 1 of 32 bytes are 32 weights in a row."""
    for h in range(2):
        for j in range(2):
            store_bytes(U, 128 * h + 64 * j, load_bits(data, at + 16 + 32 * h, 4 * j, 4 * j + 2, 3))
    both = load(data, at)
    scales = half_at(data, at + 80) * to_f32(both & splat(np.int32(15)))
    return scales, half_at(data, at + 82) * to_f32(both >> splat(np.int32(4)))


@inlined
def q3_k_unpack(data, at, last, U):
    for h in range(2):
        for j in range(2):
            low = load_bits(data, at + 32 + 32 * h, 4 * j, 4 * j + 2, 3)
            high = load_bits(data, at, 4 * h + 2 * j, 4 * h + 2 * j + 1, 1)
            store_bytes(U, 128 * h + 64 * j, low | (high << splat(np.int32(2))))
    # 16 scales of 6 bits, plus 32: bits 0-3 in a and b, bits 4-5 in c.
    a, b, c = word_at(data, at + 96), word_at(data, at + 100), word_at(data, at + 104)
    first = _two_words((a & _BITS_4) | (c & _BITS_2) << _FOUR, (b & _BITS_4) | (c >> _TWO & _BITS_2) << _FOUR)
    second = _two_words(
        (a >> _FOUR & _BITS_4) | (c >> _FOUR & _BITS_2) << _FOUR,
        (b >> _FOUR & _BITS_4) | (c >> _SIX & _BITS_2) << _FOUR,
    )
    scales = half_at(data, at + 108) * to_f32(bytes_i32(first, second) - splat(np.int32(32)))
    return scales, splat(np.float32(0))


@inlined
def _six_bits(low, high):
    """Four bytes: bits 0-3 from those of `low`, bits 4-5 from bits 0-1 of `high`."""
    return (low & _BITS_4) | (high & _BITS_2) << _FOUR


@inlined
def _two_words(low, high):
    return np.uint64(low) | np.uint64(high) << _HALF


@inlined
def _scales_and_mins(data, at):
    """Of Q4_K and Q5_K, from byte `at`: eight 6-bit scales and mins of float16 steps."""
    a, b, c = word_at(data, at + 4), word_at(data, at + 8), word_at(data, at + 12)
    scales = _two_words(a & _BITS_6, _six_bits(c, a >> _SIX))
    mins = _two_words(b & _BITS_6, _six_bits(c >> _FOUR, b >> _SIX))
    return (
        half_at(data, at) * to_f32(bytes_i32(scales, _NONE)),
        half_at(data, at + 2) * to_f32(bytes_i32(mins, _NONE)),
    )


@inlined
def q4_k_unpack(data, at, last, U):
    for j in range(4):
        store_bytes(U, 64 * j, load_bits(data, at + 16 + 32 * j, 0, 4, 15))
    return _scales_and_mins(data, at)


@inlined
def q5_k_unpack(data, at, last, U):
    for j in range(4):
        fifth = load_bits(data, at + 16, 2 * j, 2 * j + 1, 1)
        store_bytes(U, 64 * j, load_bits(data, at + 48 + 32 * j, 0, 4, 15) | (fifth << splat(np.int32(4))))
    return _scales_and_mins(data, at)


@inlined
def q6_k_unpack(data, at, last, U):
    """Each half of 128 weights: bits 0-3 in 64 bytes, low and high, bits 4-5 in 32 bytes."""
    four, nibbles = splat(np.int32(4)), splat(np.int32(0x0F0F0F0F))
    for h in range(2):
        low, high = load_bytes(data, at + 64 * h), at + 128 + 32 * h
        store_bytes(U, 128 * h, (low & nibbles) | (load_bits(data, high, 0, 2, 3) << four))
        store_bytes(U, 128 * h + 64, (low >> four & nibbles) | (load_bits(data, high, 4, 6, 3) << four))
    signed = splat(np.int32(24))
    scales = half_at(data, at + 208) * to_f32(load(data, at + 192) << signed >> signed)
    return scales, splat(np.float32(0))


PRODUCTS = {
    "Q2_K": products_of("Q2_K", __file__, q2_k_unpack, form="Q8_K", top=3, group=16),
    "Q3_K": products_of("Q3_K", __file__, q3_k_unpack, form="Q8_K", top=7, group=16, offset=4),
    "Q4_K": products_of("Q4_K", __file__, q4_k_unpack, form="Q8_K", top=15),
    "Q5_K": products_of("Q5_K", __file__, q5_k_unpack, form="Q8_K", top=31),
    "Q6_K": products_of("Q6_K", __file__, q6_k_unpack, form="Q8_K", top=63, group=16, offset=32),
}
