"""Blocks to float32 in MLX's own operations: for the formats that MLX has no arrays for, where there is no Metal.

Bit-exact with GGML's `to_float`. `b` is an array of shape (n, type_size) of uint8, one block a row; every decoder
gives (n, block_size) float32. The layouts are drawn in the formats' families.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import mlx.core as mx
import numpy as np

from ggufkit.formats.table import Format

__all__ = ["decode"]


def decode(blocks: mx.array, format: Format) -> mx.array:
    """blocks (rows, row_bytes) uint8 → (rows, cols) float32."""
    rows = blocks.shape[0]
    return _DECODERS[format.name](blocks.reshape(-1, format.type_size)).reshape(rows, -1)


# -- parts of blocks --------------------------------------------------------------------------------------


def _half(b: mx.array, at: int) -> mx.array:
    """The float16 at byte `at` of each block: (n, 1) float32."""
    return mx.contiguous(b[:, at : at + 2]).view(mx.float16).astype(mx.float32)


def _ints(b: mx.array, at: int, count: int, size: int = 1) -> mx.array:
    """`count` little-endian unsigned numbers of `size` bytes from byte `at` on: (n, count) int32 (size 4: uint32)."""
    part = b[:, at : at + count * size]
    if size == 1:
        return part.astype(mx.int32)
    wide = mx.contiguous(part).view(mx.uint16 if size == 2 else mx.uint32)
    return wide.astype(mx.int32) if size == 2 else wide


def _bits(values: mx.array, shifts: list[int], mask: int) -> mx.array:
    """(n, k) → (n, len(shifts), k): each value shifted right by each of `shifts`, and the bits of `mask` of it."""
    steps = mx.array(shifts, values.dtype).reshape(1, -1, 1)
    return mx.right_shift(values[:, None], steps) & mx.array(mask, values.dtype)


def _scaled(scales: mx.array, q: mx.array) -> mx.array:
    """(n, s) float32 times (n, s, k) of any numbers: (n, s · k)."""
    return (scales[..., None] * q.astype(mx.float32)).reshape(len(scales), -1)


# -- K-quants ---------------------------------------------------------------------------------------------


def _twos(b: mx.array, at: int) -> mx.array:
    """64 bytes of two bits per weight, (n, 16, 16) int32: byte l of a half holds weights l, l + 32, l + 64, l + 96."""
    halves = _ints(b, at, 64).reshape(-1, 2, 1, 32)
    shifts = mx.array([0, 2, 4, 6]).reshape(1, 1, 4, 1)
    return (mx.right_shift(halves, shifts) & 3).reshape(-1, 16, 16)


def _q2_k(b: mx.array) -> mx.array:
    scales = _ints(b, 0, 16)
    d = _half(b, 80) * (scales & 15).astype(mx.float32)
    m = _half(b, 82) * (scales >> 4).astype(mx.float32)
    return _scaled(d, _twos(b, 16)) - mx.repeat(m, 16, axis=1)


def _q3_k(b: mx.array) -> mx.array:
    raw = _ints(b, 96, 12)
    low = _bits(raw[:, :8], [0, 4], 15).reshape(-1, 16)
    high = _bits(raw[:, 8:], [0, 2, 4, 6], 3).reshape(-1, 16)
    scales = (low | high << 4) - 32
    third = _bits(_ints(b, 0, 32), list(range(8)), 1).reshape(-1, 16, 16)
    return _scaled(_half(b, 108) * scales.astype(mx.float32), _twos(b, 32) - 4 * (1 - third))


def _q6_k(b: mx.array) -> mx.array:
    low = _ints(b, 0, 128).reshape(-1, 2, 1, 64)
    low = (mx.right_shift(low, mx.array([0, 4]).reshape(1, 1, 2, 1)) & 15).reshape(-1, 16, 16)
    scales = b[:, 192:208].view(mx.int8).astype(mx.float32)
    return _scaled(_half(b, 208) * scales, (low | _twos(b, 128) << 4) - 32)


# -- IQ4 --------------------------------------------------------------------------------------------------


@cache
def _levels() -> mx.array:
    from ggufkit.formats.iquants.iq4 import LEVELS

    return mx.array(LEVELS)


def _iq4_nl(b: mx.array) -> mx.array:
    q = _bits(_ints(b, 2, 16), [0, 4], 15).reshape(-1, 1, 32)
    return _scaled(_half(b, 0), mx.take(_levels(), q))


def _iq4_xs(b: mx.array) -> mx.array:
    low = mx.swapaxes(_bits(_ints(b, 4, 4), [0, 4], 15), 1, 2).reshape(-1, 8)
    high = _bits(_ints(b, 2, 1, 2), [0, 2, 4, 6, 8, 10, 12, 14], 3).reshape(-1, 8)
    scales = (low | high << 4) - 32
    bytes_ = _ints(b, 8, 128).reshape(-1, 8, 1, 16)
    q = (mx.right_shift(bytes_, mx.array([0, 4]).reshape(1, 1, 2, 1)) & 15).reshape(-1, 8, 32)
    return _scaled(_half(b, 0) * scales.astype(mx.float32), mx.take(_levels(), q))


# -- codebooks --------------------------------------------------------------------------------------------


@cache
def _grid(name: str) -> mx.array:
    from ggufkit.formats.iquants.grids import codebook

    return mx.array(codebook(name).astype(np.float32))


@cache
def _even_signs() -> mx.array:
    from ggufkit.formats.iquants.grids import SIGNS

    return mx.array(SIGNS.astype(np.int32))


def _grid_rows(name: str, rows: mx.array) -> mx.array:
    """The numbers of codebook rows: (n, k) → (n, k · dims / 8, 8) float32."""
    return mx.take(_grid(name), rows, axis=0).reshape(len(rows), -1, 8)


def _with_signs(numbers: mx.array, signs: mx.array) -> mx.array:
    """(n, eights, 8) float32, (n, eights) int32: bit k of a byte set turns the sign of weight k."""
    minus = mx.right_shift(signs[..., None], mx.arange(8)) & 1
    return mx.where(minus == 1, -numbers, numbers)


def _eights(scales: mx.array, numbers: mx.array) -> mx.array:
    """(n, s) scales of equal runs of the (n, 32, 8) numbers: (n, 256)."""
    return (mx.repeat(scales, 32 // scales.shape[1], axis=1)[..., None] * numbers).reshape(len(scales), -1)


def _nibbles(b: mx.array, at: int, count: int) -> mx.array:
    """(n, 2 · count): the low half of each byte, then its high half."""
    return mx.swapaxes(_bits(_ints(b, at, count), [0, 4], 15), 1, 2).reshape(len(b), -1)


def _word_signs(words: mx.array) -> mx.array:
    """Four times seven signs in each of eight words, (n, 8) uint32 → (n, 32) int32 with the eighth sign."""
    sevens = mx.swapaxes(_bits(words, [0, 7, 14, 21], 127), 1, 2).reshape(len(words), -1)
    return mx.take(_even_signs(), sevens.astype(mx.int32))


def _iq2_xxs(b: mx.array) -> mx.array:
    subs = b[:, 2:66].reshape(-1, 8, 8)
    rows = subs[:, :, :4].reshape(len(b), 32).astype(mx.int32)
    words = mx.contiguous(subs[:, :, 4:]).view(mx.uint32).reshape(-1, 8)
    scales = _half(b, 0) * (0.5 + (words >> 28).astype(mx.float32)) * 0.25
    return _eights(scales, _with_signs(_grid_rows("IQ2_XXS", rows), _word_signs(words)))


def _iq2_xs(b: mx.array) -> mx.array:
    q = _ints(b, 2, 32, 2)
    scales = _half(b, 0) * (0.5 + _nibbles(b, 66, 8).astype(mx.float32)) * 0.25
    return _eights(scales, _with_signs(_grid_rows("IQ2_XS", q & 511), mx.take(_even_signs(), q >> 9)))


def _iq2_s(b: mx.array) -> mx.array:
    high = mx.swapaxes(_bits(_ints(b, 66, 8), [0, 2, 4, 6], 3), 1, 2).reshape(-1, 32)
    rows = _ints(b, 2, 32) | high << 8
    scales = _half(b, 0) * (0.5 + _nibbles(b, 74, 8).astype(mx.float32)) * 0.25
    return _eights(scales, _with_signs(_grid_rows("IQ2_S", rows), _ints(b, 34, 32)))


def _iq3_xxs(b: mx.array) -> mx.array:
    words = _ints(b, 66, 8, 4)
    scales = _half(b, 0) * (0.5 + (words >> 28).astype(mx.float32)) * 0.5
    return _eights(scales, _with_signs(_grid_rows("IQ3_XXS", _ints(b, 2, 64)), _word_signs(words)))


def _iq3_s(b: mx.array) -> mx.array:
    high = mx.swapaxes(_bits(_ints(b, 66, 8), list(range(8)), 1), 1, 2).reshape(-1, 64)
    rows = _ints(b, 2, 64) | high << 8
    scales = _half(b, 0) * (1 + 2 * _nibbles(b, 106, 4)).astype(mx.float32)
    return _eights(scales, _with_signs(_grid_rows("IQ3_S", rows), _ints(b, 74, 32)))


def _delta(minus: mx.array) -> mx.array:
    return mx.where(minus != 0, mx.array(-0.125), mx.array(0.125))


def _iq1_s(b: mx.array) -> mx.array:
    qh = _ints(b, 34, 8, 2)
    high = mx.swapaxes(_bits(qh, [0, 3, 6, 9], 7), 1, 2).reshape(-1, 32)
    numbers = _grid_rows("IQ1_S", _ints(b, 2, 32) | high << 8)
    delta = mx.repeat(_delta(qh >> 15), 4, axis=1)[..., None]
    return _eights(_half(b, 0) * (2 * (qh >> 12 & 7) + 1).astype(mx.float32), numbers + delta)


def _iq1_m(b: mx.array) -> mx.array:
    words = _ints(b, 48, 4, 2)
    bits = (words >> 12) << mx.array([0, 4, 8, 12])
    d = mx.sum(bits, axis=1, keepdims=True).astype(mx.uint16).view(mx.float16).astype(mx.float32)
    scales = mx.swapaxes(_bits(words, [0, 3, 6, 9], 7), 1, 2).reshape(-1, 16)
    qh = _nibbles(b, 32, 16)
    numbers = _grid_rows("IQ1_S", _ints(b, 0, 32) | (qh & 7) << 8)
    return _eights(d * (2 * scales + 1).astype(mx.float32), numbers + _delta(qh & 8)[..., None])


_DECODERS: dict[str, Callable[[mx.array], mx.array]] = {
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
}
