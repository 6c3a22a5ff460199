"""Functions of float32 lanes that need no fixed bits: exp, tanh; and floats at any byte.

These are for running models, where the last bit is free; encoders use `lanes` alone.
"""

from __future__ import annotations

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from ggufkit.kernels.jit import inlined
from ggufkit.kernels.lanes import bits_f32, f32x16, maximum, minimum, multiply_add, nearest_int, splat, to_i32
from ggufkit.kernels.lanes.emit import address, read, write

__all__ = ["exp", "load_float", "store_float", "tanh"]


@intrinsic
def load_float(typingctx, data, at):
    """Sixteen float32 from byte `at` of an array of bytes."""

    def emit(ctx, b, sig, args):
        return read(b, address(ctx, b, sig.args[0], args[0], args[1], f32x16.llvm))

    return f32x16(data, types.intp), emit


@intrinsic
def store_float(typingctx, data, at, value):
    """Write sixteen float32 from byte `at` of an array of bytes on."""

    def emit(ctx, b, sig, args):
        write(b, args[2], address(ctx, b, sig.args[0], args[0], args[1], f32x16.llvm))
        return ctx.get_dummy_value()

    return types.void(data, types.intp, f32x16), emit


# eˣ = 2ⁿ eʳ with n the integer next to x / ln 2 and |r| ≤ ln 2 / 2. ln 2 is subtracted in two parts, of which the
# first has few enough bits that n times it is exact. The polynomial is that of Arm's optimized routines, 2 ulp, added
# in GGML's order for AVX-512: where there are fused multiply-adds, the bits are the same.
_LOG2E = np.float32(float.fromhex("0x1.715476p+0"))
_LN2_HIGH, _LN2_LOW = np.float32(float.fromhex("0x1.62e4p-1")), np.float32(float.fromhex("0x1.7f7d1cp-20"))
_C5, _C4 = np.float32(float.fromhex("0x1.0e4020p-7")), np.float32(float.fromhex("0x1.573e2ep-5"))
_C3, _C2 = np.float32(float.fromhex("0x1.555e66p-3")), np.float32(float.fromhex("0x1.fffdb6p-2"))
_C1 = np.float32(float.fromhex("0x1.ffffecp-1"))
_ONE, _TWO = np.float32(1), np.float32(2)
_LOW, _HIGH = np.float32(-87.33654), np.float32(88.0)


@inlined
def exp(x):
    """eˣ of every lane; between e^-87.3 and e^88, beyond which it stays at these."""
    x = minimum(maximum(x, splat(_LOW)), splat(_HIGH))
    n = nearest_int(x * splat(_LOG2E))
    r = multiply_add(n, splat(-_LN2_LOW), multiply_add(n, splat(-_LN2_HIGH), x))
    square = r * r
    high = multiply_add(splat(_C5), r, splat(_C4))
    middle = multiply_add(splat(_C3), r, splat(_C2))
    low = multiply_add(splat(_C1), r, splat(_ONE))
    p = multiply_add(multiply_add(high, square, middle), square, low)
    power = bits_f32((to_i32(n) + splat(np.int32(127))) << splat(np.int32(23)))
    return p * power


@inlined
def tanh(x):
    """1 − 2 / (e²ˣ + 1)."""
    return splat(_ONE) - splat(_TWO) / (exp(x + x) + splat(_ONE))
