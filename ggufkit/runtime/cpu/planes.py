"""Keys and values as bytes: how they are written, and how attention reads them back as float32.

Sixteen consecutive tokens are the lanes of a vector, so a tile of keys is (head_k, 16): the number d of all sixteen
side by side. A score is then a sum over d without any sum across lanes.

    keys      (kv_heads, tiles, tile)      tile    numbers     head_k × 16 numbers
                                                   codes       for each block    16 × f2 scale, 16 × f2 minimum if any
                                                               for each 32 of it  low plane, high plane, × 16
                                                               and for 16 that are left over
    values    (kv_heads, tokens, row)      row     numbers     head_v numbers, filled up to a multiple of 32
                                                   codes       the same, × 1

A plane holds 8, 4, 2 or 1 bits of 32 codes (`CacheType.planes`). In a byte of one of w bits there are 8/w codes, of
keys always a stride of 4w apart, of values so as far as lanes of 16 numbers like it:

    8    d                       4    d+16 d+16 d+16 d+16 d d d d              keys and values
    2    d+24 d+24 d+16 d+16 d+8 d+8 d d        1    d+28 … d+4 d              keys
    2    4d+3 4d+3 4d+2 4d+2 4d+1 4d+1 4d 4d    1    8d+7 … 8d+1 8d            values
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ggufkit.kernels.blocks import read_half_lanes, read_long, write_half
from ggufkit.kernels.jit import helper, inlined, kernel
from ggufkit.kernels.lane_math import load_float
from ggufkit.kernels.lanes import (
    bits_f32,
    bytes_i32,
    flat,
    lane_numbers,
    load,
    load_half,
    multiply_add,
    splat,
    store,
    to_f32,
    view,
)
from ggufkit.runtime.cpu.levels import LEVELS, first_level
from ggufkit.runtime.kv.types import CacheType
from ggufkit.turboquant.kernels import level_of

__all__ = [
    "Reader",
    "key_bytes",
    "key_reader",
    "layout_of",
    "place_codes",
    "value_bytes",
    "value_reader",
    "write_codes",
    "write_numbers",
]

ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)
_RULES = {"": 0, "absolute": 1, "largest": 2, "range": 3, "bfloat": 4, "fitted": 5, "turbo": 5}
ABSOLUTE, LARGEST, RANGE, BFLOAT = 1, 2, 3, 4


def layout_of(kind: CacheType, head: int) -> int:
    """A row of the table as kernels take it: its numbers in the bytes of one, which costs a call next to nothing.

    bits | rule << 8 | minimum << 16 | zero << 24 | first level's vector << 32 | block << 40
    """
    found = kind.bits | _RULES[kind.rule] << 8 | int(kind.minimum) << 16 | kind.zero % 256 << 24
    return found | first_level(kind) // 16 << 32 | min(kind.block, head) << 40


@inlined
def _bits(layout):
    return layout & 255


@inlined
def _rule(layout):
    return layout >> 8 & 255


@inlined
def _has_minimum(layout):
    return layout >> 16 & 255


@inlined
def _zero(layout):
    return layout >> 24 & 255


@inlined
def _first_level(layout):
    return (layout >> 32 & 255) * 16


@inlined
def _block(layout):
    return layout >> 40


def key_bytes(kind: CacheType, head: int) -> int:
    """Bytes of a token's keys of one head."""
    return kind.nbytes(head)


def value_bytes(kind: CacheType, head: int) -> int:
    """Bytes of a token's values of one head."""
    return kind.nbytes(head if kind.quantized else -(-head // 32) * 32)


# -- writing ----------------------------------------------------------------------------------------------


@helper
def _write_float(data, at, value):
    bits = np.float32(value).view(np.uint32)
    for i in range(4):
        data[at + i] = np.uint8(bits >> np.uint32(8 * i))


@helper
def _write_bfloat(data, at, value):
    bits = np.float32(value).view(np.uint32)
    if not np.isnan(value):
        bits += np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))  # to nearest, ties to even
    else:
        bits |= np.uint32(1 << 22)
    data[at], data[at + 1] = np.uint8(bits >> np.uint32(16)), np.uint8(bits >> np.uint32(24))


@helper
def _find_codes(x, row, lo, layout, codes):
    """Codes of the block of x[row] from `lo` on; gives its scale and minimum."""
    bits, rule, zero, count = _bits(layout), _rule(layout), _zero(layout), _block(layout)
    most, signed, least, greatest = ZERO, ZERO, x[row, lo], x[row, lo]
    for i in range(lo, lo + count):
        v = x[row, i]
        if abs(v) > most:
            most, signed = abs(v), v
        least, greatest = min(least, v), max(greatest, v)
    top = (1 << bits) - 1
    if rule == RANGE:
        scale, shift = (greatest - least) / np.float32(top), HALF
    elif rule == ABSOLUTE:
        scale, shift, least = most / np.float32(zero - 1), np.float32(zero), ZERO
    else:
        scale, shift, least = signed / np.float32(-zero), np.float32(zero) + HALF, ZERO
    inverse = ONE / scale if scale != ZERO else ZERO
    for i in range(count):
        level = (x[row, lo + i] - least) * inverse
        if rule == ABSOLUTE:  # the float32 below ½: a half is rounded away from zero
            level = np.trunc(level + (np.float32(0.49999997) if level >= ZERO else -np.float32(0.49999997)))
        codes[i] = np.uint8(min(top, int(level + shift)))
    return scale, least


@helper
def _write_plane(codes, lo, group, shift, width, data, at, stride, lane, strided):
    """Bits `shift … shift + width` of `group` codes from `lo` on, into every `stride`-th byte from `at` on."""
    count, each, mask = group * width // 8, 8 // width, (1 << width) - 1
    for i in range(count):
        byte = 0
        for j in range(each):
            d = i + j * count if strided or width >= 4 else i * each + j
            byte |= (codes[lo + d] >> shift & mask) << (width * j)
        data[at + i * stride + lane] = np.uint8(byte)


@helper
def _write_planes(codes, lo, size, bits, data, at, stride, lane, strided):
    """`size` codes from `lo` on, 32 at a time and 16 that are left; gives the byte after them."""
    low = 8 if bits == 8 else 4 if bits >= 4 else 2
    for first in range(0, size, 32):
        group = min(32, size - first)
        _write_plane(codes, lo + first, group, 0, low, data, at, stride, lane, strided)
        at += group * low // 8 * stride
        if bits > low:
            _write_plane(codes, lo + first, group, low, bits - low, data, at, stride, lane, strided)
            at += group * (bits - low) // 8 * stride
    return at


@helper
def _write_codes(x, row, lo, head, layout, codes, data, at, stride, lane, strided):
    """A head as blocks of codes; bytes of one token are `stride` apart and begin at `lane`."""
    bits, size = _bits(layout), _block(layout)
    for block in range(0, head, size):
        scale, least = _find_codes(x, row, lo + block, layout, codes)
        write_half(data, at + 2 * lane, scale)
        at += 2 * stride
        if _has_minimum(layout):
            write_half(data, at + 2 * lane, least)
            at += 2 * stride
        at = _write_planes(codes, 0, size, bits, data, at, stride, lane, strided)


@kernel
def place_codes(codes, scales, data, tokens, start, layout, keys):
    """Codes that were found before, (n, kv_heads, head) bytes, and their scales (n, kv_heads, blocks), to their places.

    `keys`: they go to the lanes of tiles, else to rows.
    """
    n, kv_heads, head = codes.shape
    bits, size = _bits(layout), _block(layout)
    row_bytes = data.shape[0] // (kv_heads * tokens)
    stride = 16 if keys else 1
    all_codes = flat(codes)
    for token in range(n):
        position = start + token
        lane = position % 16 if keys else 0
        for h in range(kv_heads):
            at = (h * tokens + position - lane) * row_bytes
            for block in range(scales.shape[2]):
                write_half(data, at + 2 * lane, scales[token, h, block])
                lo = (token * kv_heads + h) * head + block * size
                at = _write_planes(all_codes, lo, size, bits, data, at + 2 * stride, stride, lane, keys)


@kernel
def write_numbers(x, data, kv_heads, tokens, start, layout, keys):
    """Rows of `x` (n, kv_heads × head), of the tokens from `start` on, as numbers.

    `keys`: they go to the lanes of tiles, else to rows.
    """
    n, width = x.shape
    head = width // kv_heads
    row_bytes = data.shape[0] // (kv_heads * tokens)
    bits, stride = _bits(layout), 16 if keys else 1
    for token in range(n):
        position = start + token
        lane = position % 16 if keys else 0
        for h in range(kv_heads):
            at = (h * tokens + position - lane) * row_bytes
            for d in range(head):
                value, to = x[token, h * head + d], at + (d * stride + lane) * (bits // 8)
                if bits == 32:
                    _write_float(data, to, value)
                elif _rule(layout) == BFLOAT:
                    _write_bfloat(data, to, value)
                else:
                    write_half(data, to, value)


@kernel
def write_codes(x, data, kv_heads, tokens, start, layout, keys):
    """The same as codes in blocks."""
    n, width = x.shape
    head = width // kv_heads
    row_bytes = data.shape[0] // (kv_heads * tokens)
    codes, stride = np.empty(_block(layout), np.uint8), 16 if keys else 1
    for token in range(n):
        position = start + token
        lane = position % 16 if keys else 0
        for h in range(kv_heads):
            at = (h * tokens + position - lane) * row_bytes
            _write_codes(x, token, h * head, head, layout, codes, data, at, stride, lane, keys)


# -- reading ----------------------------------------------------------------------------------------------
#
# A kernel is compiled with one of these readers of keys and one of values, and with the widths of their planes as
# constants (`key_reader`, `value_reader`); all types that are read alike share it.


class Reader(NamedTuple):
    """How a type is read: the helper, and the bits of its low and high planes."""

    name: str
    function: Any
    low: int
    high: int


def key_reader(kind: CacheType) -> Reader:
    """How keys of this type are read."""
    return _reader(kind, read_float_keys, read_half_keys, read_bfloat_keys, read_level_keys, read_code_keys)


def value_reader(kind: CacheType) -> Reader:
    """How values of this type are read."""
    return _reader(kind, read_float_values, read_half_values, read_bfloat_values, read_level_values, read_code_values)


def _reader(kind: CacheType, floats: Any, halves: Any, bfloats: Any, levels: Any, codes: Any) -> Reader:
    low, high = kind.planes
    if kind.bits == 32:
        return Reader("float", floats, 0, 0)
    if not kind.quantized:
        return Reader("bfloat", bfloats, 0, 0) if kind.rule == "bfloat" else Reader("half", halves, 0, 0)
    if kind.leveled:
        return Reader(f"level{kind.bits}", levels, low, high)
    return Reader(f"code{kind.bits}", codes, low, high)


@helper
def read_float_keys(data, at, head, layout, low, high, out):
    """A tile at byte `at` as float32: (head, 16), flat."""
    for d in range(head):
        store(out, d * 16, load_float(data, at + d * 64))


@helper
def read_half_keys(data, at, head, layout, low, high, out):
    """See `read_float_keys`."""
    for d in range(head):
        store(out, d * 16, load_half(data, at + d * 32))


@helper
def read_bfloat_keys(data, at, head, layout, low, high, out):
    """See `read_float_keys`."""
    words = view(data, np.uint16)
    for d in range(head):
        store(out, d * 16, bits_f32(load(words, at // 2 + d * 16) << splat(np.int32(16))))


@helper
def read_code_keys(data, at, head, layout, low, high, out):
    """See `read_float_keys`."""
    zero, size = splat(np.float32(-_zero(layout))), _block(layout)
    for block in range(0, head, size):
        scale = load_half(data, at)
        at += 32
        least = scale * zero
        if _has_minimum(layout):
            least = load_half(data, at)
            at += 32
        for first in range(block, block + size, 32):
            for d in range(32):
                code = _key_code(data, at, d, 32, low, high)
                store(out, (first + d) * 16, multiply_add(to_f32(code), scale, least))
            at += 64 * (low + high)


@helper
def read_level_keys(data, at, head, layout, low, high, out):
    """See `read_float_keys`."""
    size, base = _block(layout), _first_level(layout)
    for block in range(0, head, size):
        scale = load_half(data, at)
        at += 32
        for first in range(block, block + size - 31, 32):
            for d in range(32):
                code = _key_code(data, at, d, 32, low, high)
                store(out, (first + d) * 16, level_of(code, LEVELS, base, low + high) * scale)
            at += 64 * (low + high)
        if size % 32:
            first = block + size - 16
            for d in range(16):
                code = _key_code(data, at, d, 16, low, high)
                store(out, (first + d) * 16, level_of(code, LEVELS, base, low + high) * scale)
            at += 32 * (low + high)


@inlined
def _key_code(data, at, d, group, low, high):
    """Code d of `group`, of sixteen tokens in lanes."""
    code = _plane_of_keys(data, at, d, group, low)
    if high:
        code = code | _plane_of_keys(data, at + 2 * group * low, d, group, high) << splat(np.int32(low))
    return code


@inlined
def _plane_of_keys(data, at, d, group, width):
    if width == 8:
        return load(data, at + d * 16)
    count = group * width // 8
    return load(data, at + d % count * 16) >> splat(np.int32(d // count * width)) & splat(np.int32((1 << width) - 1))


@helper
def read_float_values(data, at, row_bytes, count, head, layout, low, high, out, width):
    """Values of `count` tokens, `row_bytes` apart from byte `at` on, as float32: (count, width)."""
    for t in range(count):
        for d in range(0, head, 16):
            store(out, t * width + d, load_float(data, at + t * row_bytes + d * 4))


@helper
def read_half_values(data, at, row_bytes, count, head, layout, low, high, out, width):
    """See `read_float_values`."""
    for t in range(count):
        for d in range(0, head, 16):
            store(out, t * width + d, load_half(data, at + t * row_bytes + d * 2))


@helper
def read_bfloat_values(data, at, row_bytes, count, head, layout, low, high, out, width):
    """See `read_float_values`."""
    words = view(data, np.uint16)
    for t in range(count):
        for d in range(0, head, 16):
            bits = load(words, (at + t * row_bytes) // 2 + d) << splat(np.int32(16))
            store(out, t * width + d, bits_f32(bits))


@helper
def read_code_values(data, at, row_bytes, count, head, layout, low, high, out, width):
    """See `read_float_values`."""
    zero, size, shifted = splat(np.float32(-_zero(layout))), _block(layout), _has_minimum(layout)
    for t in range(count):
        place = at + t * row_bytes
        for block in range(t * width, t * width + head, size):
            scale = read_half_lanes(data, place)
            place += 2
            least = scale * zero
            if shifted:
                least = read_half_lanes(data, place)
                place += 2
            for lo in range(block, block + size, 32):
                for i in range(0, 32, 16):
                    code = _value_code(data, place, i, 32, low, high)
                    store(out, lo + i, multiply_add(to_f32(code), scale, least))
                place += 4 * (low + high)


@helper
def read_level_values(data, at, row_bytes, count, head, layout, low, high, out, width):
    """See `read_float_values`."""
    size, base = _block(layout), _first_level(layout)
    for t in range(count):
        place = at + t * row_bytes
        for block in range(t * width, t * width + head, size):
            scale = read_half_lanes(data, place)
            place += 2
            for lo in range(block, block + size - 31, 32):
                for i in range(0, 32, 16):
                    code = _value_code(data, place, i, 32, low, high)
                    store(out, lo + i, level_of(code, LEVELS, base, low + high) * scale)
                place += 4 * (low + high)
            if size % 32:
                code = _value_code(data, place, 0, 16, low, high)
                store(out, block + size - 16, level_of(code, LEVELS, base, low + high) * scale)
                place += 2 * (low + high)


@inlined
def _value_code(data, at, i, group, low, high):
    """The codes i … i + 16 of `group` (i is 0 or 16) in lanes."""
    code = _plane_of_values(data, at, i, group, low)
    if high:
        code = code | _plane_of_values(data, at + group * low // 8, i, group, high) << splat(np.int32(low))
    return code


@inlined
def _plane_of_values(data, at, i, group, width):
    if width == 8:
        return load(data, at + i)
    if width == 4:
        if group == 16:
            word = read_long(data, at)
            return bytes_i32(word, word) >> (lane_numbers() >> splat(np.int32(3))) * splat(np.int32(4)) & splat(
                np.int32(15)
            )
        return load(data, at) >> splat(np.int32(i // 4)) & splat(np.int32(15))
    if width == 2:
        return _bits_of(data, at + i // 4, 4) >> lane_numbers() * splat(np.int32(2)) & splat(np.int32(3))
    return _bits_of(data, at + i // 8, 2) >> lane_numbers() & splat(np.int32(1))


@inlined
def _bits_of(data, at, count):
    """`count` bytes as a little-endian number in every lane."""
    word = np.int32(0)
    for i in range(count):
        word |= np.int32(data[at + i]) << np.int32(8 * i)
    return splat(word)
