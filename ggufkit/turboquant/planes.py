"""Codes of 1 to 8 bits in bytes: planes of 4, 2 and 1 bits, so that one reader serves every width.

bits     8 = 4 + 4    7 = 4 + 2 + 1    6 = 4 + 2    5 = 4 + 1    3 = 2 + 1      the low bits come first
group    32 coordinates, or the last 16 of a row; one plane after the other

plane of w bits, n = group · w / 8 bytes      byte i holds coordinates i, i + n, i + 2n, … at bits 0, w, 2w, …

4 bits   byte i of 16      d[i + 16] d[i]
2 bits   byte i of 8       d[i + 24] d[i + 16] d[i + 8] d[i]
1 bit    byte i of 4       d[i + 28] … d[i + 4] d[i]
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.blocks import read_long, read_word
from ggufkit.kernels.jit import inlined
from ggufkit.kernels.lanes import bytes_i32, lane_numbers, load, splat

__all__ = ["pack", "plane_width", "unpack"]

_BYTES = np.uint64(0x0101010101010101)


@inlined
def plane_width(bits):
    """How many of these bits the next plane takes."""
    return 4 if bits >= 4 else (2 if bits >= 2 else 1)


@inlined
def pack(codes, at, group, bits, out, to):
    """The `group` codes from word `at` of `codes` on, eight per word, to planes at byte `to`; the byte after them."""
    done = 0
    while done < bits:
        wide = plane_width(bits - done)
        only = _BYTES * np.uint64((1 << wide) - 1)
        count = group * wide // 8
        down, up = np.uint64(done), np.uint64(wide)
        # Whole words that share their bytes lie this far apart; what is left to join lies within a word.
        apart = max(count // 8, 1)
        for j in range(apart):
            word = np.uint64(0)
            shift = np.uint64(0)
            for k in range(j, group // 8, apart):
                word |= ((codes[at + k] >> down) & only) << shift
                shift += up * np.uint64(8 // min(count, 8))
            if count <= 4:
                word |= word >> np.uint64(32) << (up * np.uint64(4 // count))
            if count <= 2:
                word |= word >> np.uint64(16) << up
            for i in range(min(count, 8)):
                out[to + 8 * j + i] = np.uint8(word >> np.uint64(8 * i))
        to += count
        done += wide
    return to


@inlined
def unpack(data, at, group, half, bits):
    """Sixteen codes, int32 lanes: the first half or the second of the group whose planes begin at byte `at`."""
    lanes = lane_numbers() + splat(np.int32(16 * half))
    found = splat(np.int32(0))
    done = 0
    while done < bits:
        wide = plane_width(bits - done)
        count = group * wide // 8
        if count == 16:
            value = load(data, at) >> splat(np.int32(4 * half))
        elif count == 8:
            word = read_long(data, at)
            value = bytes_i32(word, word) >> ((lanes >> splat(np.int32(3))) * splat(np.int32(wide)))
        elif count == 4:
            word = np.uint64(np.uint32(read_word(data, at)))
            word |= word << np.uint64(32)
            value = bytes_i32(word, word) >> ((lanes >> splat(np.int32(2))) * splat(np.int32(wide)))
        else:
            word = (np.uint64(data[at]) | np.uint64(data[at + 1]) << np.uint64(8)) * np.uint64(0x0001000100010001)
            value = bytes_i32(word, word) >> (lanes >> splat(np.int32(1)))
        found = found | ((value & splat(np.int32((1 << wide) - 1))) << splat(np.int32(done)))
        at += count
        done += wide
    return found
