"""Q2_K, Q3_K, Q4_K, Q5_K, Q6_K: a super-block is a unit. See `formats.kquants` for the layouts."""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.dot import (
    bits_of,
    half_at,
    halves_of,
    less,
    load_bits,
    load_bytes,
    load_rows,
    load_wide_rows,
    store_bytes,
    store_steps,
    with_bits,
    word_at,
)
from ggufkit.kernels.jit import inlined
from ggufkit.kernels.lanes import bytes_i32, load, splat, store, to_f32
from ggufkit.runtime.cpu.products import scaled
from ggufkit.runtime.cpu.products.loops import products_of

_BITS_6, _BITS_4, _BITS_2 = np.uint32(0x3F3F3F3F), np.uint32(0x0F0F0F0F), np.uint32(0x03030303)
_TWO, _FOUR, _SIX, _HALF = np.uint32(2), np.uint32(4), np.uint32(6), np.uint64(32)
_NONE = np.uint64(0)

_less_4, _less_32 = less(4), less(32)


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
def q2_k_unpack_rows(data, at, stride, last, W, to, jump, S, M, s):
    for part in range(4):
        h, i = part // 2, part % 2
        words = load_rows(data, at + 16 + 32 * h + 16 * i, stride)
        for j in range(4):
            store_steps(W, to + (8 * h + 2 * j + i) * jump, bits_of(words, 2 * j, 3))
    both, scales = load_rows(data, at + 68, stride)[3], load_rows(data, at, stride)
    _store_bytes_of(S, s, halves_of(both), bits_of(scales, 0, 15))
    _store_bytes_of(M, s, halves_of(both >> splat(np.int32(16))), bits_of(scales, 4, 15))


@inlined
def _store_bytes_of(S, s, d, words):
    """The bytes of four words times d: of sixteen groups."""
    for k, word in enumerate(words):
        for i in range(4):
            store(S, s + 64 * k + 16 * i, d * to_f32(word >> splat(np.int32(8 * i)) & splat(np.int32(255))))


@inlined
def q3_k_unpack(data, at, U):
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
    return half_at(data, at + 108), bytes_i32(first, second) - splat(np.int32(32))


@inlined
def q3_k_unpack_rows(data, at, stride, W, S):
    for part in range(4):
        h, i = part // 2, part % 2
        words, high = load_rows(data, at + 32 + 32 * h + 16 * i, stride), load_rows(data, at + 16 * i, stride)
        for j in range(4):
            levels = with_bits(bits_of(words, 2 * j, 3), bits_of(high, 4 * h + j, 1), 2)
            store_steps(W, (8 * h + 2 * j + i) * 64, _less_4(levels))
    _, a, b, c = load_rows(data, at + 92, stride)
    two, four, six = splat(np.int32(2)), splat(np.int32(4)), splat(np.int32(6))
    low, high = bits_of((a, b, a >> four, b >> four), 0, 15), bits_of((c, c >> two, c >> four, c >> six), 0, 3)
    _store_signed(S, _less_32(with_bits(low, high, 4)))
    return halves_of(load_rows(data, at + 94, stride)[3] >> splat(np.int32(16)))


@inlined
def _store_signed(S, words):
    """The signed bytes of four words."""
    for k, word in enumerate(words):
        for i in range(4):
            store(S, 64 * k + 16 * i, word << splat(np.int32(24 - 8 * i)) >> splat(np.int32(24)))


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
def _store_scales_and_mins(data, at, stride, S, M, s):
    """As `_scales_and_mins` of sixteen rows."""
    both, a, b, c = load_rows(data, at, stride)
    low = bits_of((a, b), 0, 63)
    high = with_bits(bits_of((c, c >> splat(np.int32(4))), 0, 15), bits_of((a, b), 6, 3), 4)
    words = low[0], high[0], low[1], high[1]
    d, least = halves_of(both), halves_of(both >> splat(np.int32(16)))
    for k in range(4):
        by, byte = splat(np.int32(8 * k)), splat(np.int32(255))
        store(S, s + 16 * k, d * to_f32(words[0] >> by & byte))
        store(S, s + 64 + 16 * k, d * to_f32(words[1] >> by & byte))
        store(M, s + 16 * k, least * to_f32(words[2] >> by & byte))
        store(M, s + 64 + 16 * k, least * to_f32(words[3] >> by & byte))


@inlined
def q4_k_unpack_rows(data, at, stride, last, W, to, jump, S, M, s):
    for j in range(4):
        words = load_wide_rows(data, at + 16 + 32 * j, stride)
        store_steps(W, to + 2 * j * jump, bits_of(words, 0, 15))
        store_steps(W, to + (2 * j + 1) * jump, bits_of(words, 4, 15))
    _store_scales_and_mins(data, at, stride, S, M, s)


@inlined
def q5_k_unpack(data, at, last, U):
    for j in range(4):
        fifth = load_bits(data, at + 16, 2 * j, 2 * j + 1, 1)
        store_bytes(U, 64 * j, load_bits(data, at + 48 + 32 * j, 0, 4, 15) | (fifth << splat(np.int32(4))))
    return _scales_and_mins(data, at)


@inlined
def q5_k_unpack_rows(data, at, stride, last, W, to, jump, S, M, s):
    fifth = load_wide_rows(data, at + 16, stride)
    for j in range(4):
        words = load_wide_rows(data, at + 48 + 32 * j, stride)
        store_steps(W, to + 2 * j * jump, with_bits(bits_of(words, 0, 15), bits_of(fifth, 2 * j, 1), 4))
        store_steps(W, to + (2 * j + 1) * jump, with_bits(bits_of(words, 4, 15), bits_of(fifth, 2 * j + 1, 1), 4))
    _store_scales_and_mins(data, at, stride, S, M, s)


@inlined
def q6_k_unpack(data, at, U):
    """Each half of 128 weights: bits 0-3 in 64 bytes, low and high, bits 4-5 in 32 bytes."""
    four, nibbles = splat(np.int32(4)), splat(np.int32(0x0F0F0F0F))
    for h in range(2):
        low, high = load_bytes(data, at + 64 * h), at + 128 + 32 * h
        store_bytes(U, 128 * h, (low & nibbles) | (load_bits(data, high, 0, 2, 3) << four))
        store_bytes(U, 128 * h + 64, (low >> four & nibbles) | (load_bits(data, high, 4, 6, 3) << four))
    signed = splat(np.int32(24))
    return half_at(data, at + 208), load(data, at + 192) << signed >> signed


@inlined
def q6_k_unpack_rows(data, at, stride, W, S):
    for h in range(2):
        high = load_wide_rows(data, at + 128 + 32 * h, stride)
        for k in range(2):
            words, first = load_wide_rows(data, at + 64 * h + 32 * k, stride), (8 * h + 2 * k) * 64
            store_steps(W, first, _less_32(with_bits(bits_of(words, 0, 15), bits_of(high, 2 * k, 3), 4)))
            store_steps(W, first + 256, _less_32(with_bits(bits_of(words, 4, 15), bits_of(high, 4 + 2 * k, 3), 4)))
    _store_signed(S, load_rows(data, at + 192, stride))
    return halves_of(load_rows(data, at + 194, stride)[3] >> splat(np.int32(16)))


PRODUCTS = {
    "Q2_K": products_of("Q2_K", __file__, q2_k_unpack, q2_k_unpack_rows, form="Q8_K", top=3, group=16),
    "Q3_K": scaled.products_of("Q3_K", __file__, q3_k_unpack, q3_k_unpack_rows, top=4, group=16, offset=4),
    "Q4_K": products_of("Q4_K", __file__, q4_k_unpack, q4_k_unpack_rows, form="Q8_K", top=15),
    "Q5_K": products_of("Q5_K", __file__, q5_k_unpack, q5_k_unpack_rows, form="Q8_K", top=31),
    "Q6_K": scaled.products_of("Q6_K", __file__, q6_k_unpack, q6_k_unpack_rows, top=32, group=16, offset=32),
}
