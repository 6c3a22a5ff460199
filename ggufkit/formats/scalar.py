"""Plain numbers: F32, F16 and BF16, and what decodes F64 and the integers (which NumPy encodes; see `codec`).

A "block" is one number. `x` is (rows, cols) float32; `out` and `blocks` are bytes.
"""

from __future__ import annotations

import numpy as np

from ggufkit.kernels.jit import kernel, specialised
from ggufkit.kernels.lanes import (
    LANES,
    bits_f32,
    flat,
    float_to_half,
    half_to_float,
    load_half,
    splat,
    store_half,
    store_out,
    view,
)
from ggufkit.kernels.lanes import load as load_lanes


@kernel
def f16_encode(x, out):
    """float32 → float16, to nearest, ties to even. x: (rows, cols) float32; out: (rows, 2 cols) uint8."""
    values, bits = flat(x), view(out, np.uint16)
    whole = values.size - values.size % LANES
    for i in range(0, whole, LANES):
        store_half(bits, i, load_lanes(values, i))
    for i in range(whole, values.size):
        bits[i] = float_to_half(values[i])


@kernel
def f16_decode(blocks, out):
    """float16 → float32, exact. blocks: (n, 2) uint8; out: (n, 1) float32."""
    bits, values = view(blocks, np.uint16), flat(out)
    whole = values.size - values.size % LANES
    for i in range(0, whole, LANES):
        store_out(values, i, load_half(bits, i))
    for i in range(whole, values.size):
        values[i] = half_to_float(bits[i])


@kernel
def bf16_encode(x, out):
    """float32 → bfloat16, to nearest, ties to even; a NaN stays one. x: (rows, cols); out: (rows, 2 cols) uint8.

    float32   SEEEEEEE EMMMMMMM mmmmmmmm mmmmmmmm
    bfloat16  SEEEEEEE EMMMMMMM
    """
    words, bits = view(x, np.uint32), view(out, np.uint16)
    for i in range(words.size):
        word = words[i]
        rounded = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        quiet = (word >> np.uint32(16)) | np.uint32(64)
        is_nan = (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        bits[i] = np.uint16(quiet if is_nan else rounded)


@kernel
def bf16_decode(blocks, out):
    """bfloat16 → float32, exact. blocks: (n, 2) uint8; out: (n, 1) float32."""
    bits, values = view(blocks, np.uint16), flat(out)
    whole = values.size - values.size % LANES
    for i in range(0, whole, LANES):
        store_out(values, i, bits_f32(load_lanes(bits, i) << splat(np.int32(16))))
    words = view(out, np.uint32)
    for i in range(whole, values.size):
        words[i] = np.uint32(bits[i]) << np.uint32(16)


NUMBER = np.float64  # of the kernel that is made from this


def _number_decode(blocks, out):
    """Numbers → float32, to nearest, ties to even. blocks: (n, type_size) uint8; out: (n, 1) float32."""
    numbers, values = view(blocks, NUMBER), flat(out)
    for i in range(values.size):
        values[i] = np.float32(numbers[i])


def _words(source, target):
    """Copy float32, bit by bit."""
    words, copies = view(source, np.uint32), view(target, np.uint32)
    for i in range(words.size):
        copies[i] = words[i]


f32_encode = specialised(_words, "f32_encode", __file__)
f32_decode = specialised(_words, "f32_decode", __file__)
f64_decode = specialised(_number_decode, "f64_decode", __file__, NUMBER=np.float64)
i8_decode = specialised(_number_decode, "i8_decode", __file__, NUMBER=np.int8)
i16_decode = specialised(_number_decode, "i16_decode", __file__, NUMBER=np.int16)
i32_decode = specialised(_number_decode, "i32_decode", __file__, NUMBER=np.int32)
i64_decode = specialised(_number_decode, "i64_decode", __file__, NUMBER=np.int64)
