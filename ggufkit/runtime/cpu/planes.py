"""Keys and values as bytes: how they are written, and how attention reads them back as float32.

Sixteen consecutive tokens are the lanes of a vector, so a tile of keys is (head_k, 16): the number d of all sixteen
side by side. A score is then a sum over d without any sum across lanes.

    keys      (kv_heads, tiles, tile)      tile    numbers     head_k × 16 numbers
                                                   codes       for each block    16 × f2 scale, 16 × f2 minimum if any
                                                               for each 32 of it  low plane, high plane, × 16
    values    (kv_heads, tokens, row)      row     numbers     head_v numbers, filled up to a multiple of 32
                                                   codes       the same, × 1

A plane holds 8, 4, 2 or 1 bits of 32 codes (`CacheType.planes`). In a byte of one of w bits there are 8/w codes, of
keys always a stride of 4w apart, of values so as far as lanes of 16 numbers like it:

    8    d                       4    d+16 d+16 d+16 d+16 d d d d              keys and values
    2    d+24 d+24 d+16 d+16 d+8 d+8 d d        1    d+28 … d+4 d              keys
    2    4d+3 4d+3 4d+2 4d+2 4d+1 4d+1 4d 4d    1    8d+7 … 8d+1 8d            values
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.blocks import read_half_lanes, write_half
from ggufkit.kernels.jit import helper, inlined, kernel
from ggufkit.kernels.lane_math import load_float
from ggufkit.kernels.lanes import lane_numbers, load, load_half, multiply_add, splat, store, to_f32
from ggufkit.runtime.kv.types import CacheType

__all__ = ["key_bytes", "layout_of", "read_keys", "read_values", "value_bytes", "write_keys", "write_values"]

ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)
_RULES = {"": 0, "absolute": 1, "largest": 2, "range": 3}
ABSOLUTE, LARGEST, RANGE = 1, 2, 3


def layout_of(kind: CacheType) -> int:
    """A row of the table as kernels take it: its numbers in the bytes of one, which costs a call next to nothing.

    bits | rule << 8 | minimum << 16 | zero << 24 | block << 40
    """
    return kind.bits | _RULES[kind.rule] << 8 | int(kind.minimum) << 16 | kind.zero % 256 << 24 | kind.block << 40


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
def _block(layout):
    return layout >> 40


def key_bytes(kind: CacheType, head: int) -> int:
    """Bytes of a token's keys of one head."""
    if not kind.quantized:
        return head * kind.bits // 8
    return head * kind.bits // 8 + head // kind.block * (4 if kind.minimum else 2)


def value_bytes(kind: CacheType, head: int) -> int:
    """Bytes of a token's values of one head."""
    return key_bytes(kind, head if kind.quantized else -(-head // 32) * 32)


# -- writing ----------------------------------------------------------------------------------------------


@helper
def _write_float(data, at, value):
    bits = np.float32(value).view(np.uint32)
    for i in range(4):
        data[at + i] = np.uint8(bits >> np.uint32(8 * i))


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
def _write_plane(codes, lo, shift, width, data, at, stride, lane, strided):
    """Bits `shift … shift + width` of 32 codes from `lo` on, into every `stride`-th byte from `at` on."""
    count, each, mask = 4 * width, 8 // width, (1 << width) - 1
    for i in range(count):
        byte = 0
        for j in range(each):
            d = i + j * count if strided or width >= 4 else i * each + j
            byte |= (codes[lo + d] >> shift & mask) << (width * j)
        data[at + i * stride + lane] = np.uint8(byte)


@helper
def _write_codes(x, row, lo, head, layout, codes, data, at, stride, lane, strided):
    """A head as blocks of codes; bytes of one token are `stride` apart and begin at `lane`."""
    bits, size = _bits(layout), _block(layout)
    low = 8 if bits == 8 else 4 if bits >= 4 else 2
    for block in range(0, head, size):
        scale, least = _find_codes(x, row, lo + block, layout, codes)
        write_half(data, at + 2 * lane, scale)
        at += 2 * stride
        if _has_minimum(layout):
            write_half(data, at + 2 * lane, least)
            at += 2 * stride
        for first in range(0, size, 32):
            _write_plane(codes, first, 0, low, data, at, stride, lane, strided)
            at += 4 * low * stride
            if bits > low:
                _write_plane(codes, first, low, bits - low, data, at, stride, lane, strided)
                at += 4 * (bits - low) * stride


@kernel
def write_keys(k, data, kv_heads, tokens, start, layout):
    """Rows of `k` (n, kv_heads × head), of the tokens from `start` on, into their lanes of the tiles."""
    n, width = k.shape
    head = width // kv_heads
    row_bytes = data.shape[0] // (kv_heads * tokens)
    bits = _bits(layout)
    codes = np.empty(max(_block(layout), 1), np.uint8)
    for token in range(n):
        tile, lane = (start + token) // 16, (start + token) % 16
        for h in range(kv_heads):
            at, lo = (h * tokens + tile * 16) * row_bytes, h * head
            if bits == 32:
                for d in range(head):
                    _write_float(data, at + (d * 16 + lane) * 4, k[token, lo + d])
            elif bits == 16:
                for d in range(head):
                    write_half(data, at + (d * 16 + lane) * 2, k[token, lo + d])
            else:
                _write_codes(k, token, lo, head, layout, codes, data, at, 16, lane, True)


@kernel
def write_values(v, data, kv_heads, tokens, start, layout):
    """Rows of `v` (n, kv_heads × head), of the tokens from `start` on."""
    n, width = v.shape
    head = width // kv_heads
    row_bytes = data.shape[0] // (kv_heads * tokens)
    bits = _bits(layout)
    codes = np.empty(max(_block(layout), 1), np.uint8)
    for token in range(n):
        for h in range(kv_heads):
            at, lo = (h * tokens + start + token) * row_bytes, h * head
            if bits == 32:
                for d in range(head):
                    _write_float(data, at + d * 4, v[token, lo + d])
            elif bits == 16:
                for d in range(head):
                    write_half(data, at + d * 2, v[token, lo + d])
            else:
                _write_codes(v, token, lo, head, layout, codes, data, at, 1, 0, False)


# -- reading ----------------------------------------------------------------------------------------------


# The bits of a code decide which loop runs; in each of them they are constants.


@helper
def read_keys(data, at, head, layout, out):
    """A tile at byte `at` as float32: (head, 16), flat."""
    bits = _bits(layout)
    if bits == 32:
        for d in range(head):
            store(out, d * 16, load_float(data, at + d * 64))
    elif bits == 16:
        for d in range(head):
            store(out, d * 16, load_half(data, at + d * 32))
    elif bits == 8:
        _read_key_codes(data, at, head, layout, out, 8, 0)
    elif bits == 6:
        _read_key_codes(data, at, head, layout, out, 4, 2)
    elif bits == 5:
        _read_key_codes(data, at, head, layout, out, 4, 1)
    elif bits == 4:
        _read_key_codes(data, at, head, layout, out, 4, 0)
    elif bits == 3:
        _read_key_codes(data, at, head, layout, out, 2, 1)
    else:
        _read_key_codes(data, at, head, layout, out, 2, 0)


@inlined
def _read_key_codes(data, at, head, layout, out, low, high):
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
                code = _plane_of_keys(data, at, d, low)
                if high:
                    code = code | _plane_of_keys(data, at + 64 * low, d, high) << splat(np.int32(low))
                store(out, (first + d) * 16, multiply_add(to_f32(code), scale, least))
            at += 64 * (low + high)


@inlined
def _plane_of_keys(data, at, d, width):
    """Bits of code d of 32, of sixteen tokens in lanes."""
    if width == 8:
        return load(data, at + d * 16)
    count = 4 * width
    return load(data, at + d % count * 16) >> splat(np.int32(d // count * width)) & splat(np.int32((1 << width) - 1))


@helper
def read_values(data, at, row_bytes, count, head, layout, out, width):
    """Values of `count` tokens, `row_bytes` apart from byte `at` on, as float32: (count, width)."""
    bits = _bits(layout)
    if bits == 32:
        for t in range(count):
            for d in range(0, head, 16):
                store(out, t * width + d, load_float(data, at + t * row_bytes + d * 4))
    elif bits == 16:
        for t in range(count):
            for d in range(0, head, 16):
                store(out, t * width + d, load_half(data, at + t * row_bytes + d * 2))
    elif bits == 8:
        _read_value_codes(data, at, row_bytes, count, head, layout, out, width, 8, 0)
    elif bits == 6:
        _read_value_codes(data, at, row_bytes, count, head, layout, out, width, 4, 2)
    elif bits == 5:
        _read_value_codes(data, at, row_bytes, count, head, layout, out, width, 4, 1)
    elif bits == 4:
        _read_value_codes(data, at, row_bytes, count, head, layout, out, width, 4, 0)
    elif bits == 3:
        _read_value_codes(data, at, row_bytes, count, head, layout, out, width, 2, 1)
    else:
        _read_value_codes(data, at, row_bytes, count, head, layout, out, width, 2, 0)


@inlined
def _read_value_codes(data, first, row_bytes, count, head, layout, out, width, low, high):
    zero, size, shifted = splat(np.float32(-_zero(layout))), _block(layout), _has_minimum(layout)
    for t in range(count):
        at = first + t * row_bytes
        for block in range(t * width, t * width + head, size):
            scale = read_half_lanes(data, at)
            at += 2
            least = scale * zero
            if shifted:
                least = read_half_lanes(data, at)
                at += 2
            for lo in range(block, block + size, 32):
                for i in range(0, 32, 16):
                    code = _plane_of_values(data, at, i, low)
                    if high:
                        code = code | _plane_of_values(data, at + 4 * low, i, high) << splat(np.int32(low))
                    store(out, lo + i, multiply_add(to_f32(code), scale, least))
                at += 4 * (low + high)


@inlined
def _plane_of_values(data, at, i, width):
    """Bits of the codes i … i + 16 of 32 (i is 0 or 16) in lanes."""
    if width == 8:
        return load(data, at + i)
    if width == 4:
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
