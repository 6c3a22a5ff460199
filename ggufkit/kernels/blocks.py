"""What the kernels of several formats share: little-endian fields at any byte of a block, scales, levels."""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.jit import helper
from ggufkit.kernels.lanes import fabs, float_to_half, half_to_float, select, splat, splat_half

__all__ = [
    "finite_level",
    "inverse",
    "read_half",
    "read_half_lanes",
    "read_long",
    "read_word",
    "write_half",
    "write_word",
]

ZERO, ONE = np.float32(0), np.float32(1)


# LLVM makes one load or store of each field.


@helper
def read_half(data, at):
    """The float16 at byte `at`, as float32."""
    return half_to_float(np.uint16(data[at]) | np.uint16(data[at + 1]) << np.uint16(8))


@helper
def read_half_lanes(data, at):
    """The float16 at byte `at`, as float32 in every lane."""
    return splat_half(np.uint16(data[at]) | np.uint16(data[at + 1]) << np.uint16(8))


@helper
def write_half(data, at, value):
    """Write float32 `value` as float16 at byte `at`."""
    bits = float_to_half(value)
    data[at] = np.uint8(bits)
    data[at + 1] = np.uint8(bits >> np.uint16(8))


@helper
def read_word(data, at):
    """The int32 at byte `at`."""
    word = np.int32(0)
    for i in range(4):
        word |= np.int32(data[at + i]) << np.int32(8 * i)
    return word


@helper
def read_long(data, at):
    """The uint64 at byte `at`."""
    word = np.uint64(0)
    for i in range(8):
        word |= np.uint64(data[at + i]) << np.uint64(8 * i)
    return word


@helper
def write_word(data, at, word):
    """Write an int32 at byte `at`."""
    for i in range(4):
        data[at + i] = np.uint8(word >> np.int32(8 * i))


@helper
def inverse(d):
    """1 / d, or 0 for 0; infinite for the smallest subnormals."""
    return ONE / d if d != ZERO else ZERO


@helper
def finite_level(level):
    """Float lanes, with 0 for the infinities and NaNs of an infinite inverse: what x86 leaves of them in a byte."""
    return select(fabs(level) < splat(np.float32(1 << 22)), level, splat(ZERO))
