"""Little-endian fields at any byte of a block; LLVM makes one load or store of each."""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import float_to_half, half_to_float

__all__ = ["read_half", "read_word", "write_half", "write_word"]


@kernel
def read_half(data, at):
    """The float16 at byte `at`, as float32."""
    return half_to_float(np.uint16(data[at]) | np.uint16(data[at + 1]) << np.uint16(8))


@kernel
def write_half(data, at, value):
    """Write float32 `value` as float16 at byte `at`."""
    bits = float_to_half(value)
    data[at] = np.uint8(bits)
    data[at + 1] = np.uint8(bits >> np.uint16(8))


@kernel
def read_word(data, at):
    """The int32 at byte `at`."""
    word = np.int32(0)
    for i in range(4):
        word |= np.int32(data[at + i]) << np.int32(8 * i)
    return word


@kernel
def write_word(data, at, word):
    """Write an int32 at byte `at`."""
    for i in range(4):
        data[at + i] = np.uint8(word >> np.int32(8 * i))
