"""Functions that work lane by lane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ggufkit.kernels.cpu import Body, choose
from ggufkit.kernels.jit import CPU_FEATURES
from ggufkit.kernels.lanes.emit import F32, I32, broadcast, call, halves, joined, same
from ggufkit.kernels.lanes.types import f32x16, i32x16, mask16

__all__ = [
    "HALF_WIDE",
    "bits_f32",
    "compare",
    "emit_fma",
    "emit_multiply_add",
    "emit_rolled",
    "f32_bits",
    "fabs",
    "fma",
    "lane",
    "maximum",
    "minimum",
    "multiply_add",
    "nearest_int",
    "rolled",
    "round_away",
    "select",
    "splat",
    "sqrt",
    "to_f32",
    "to_i32",
]

_FUSED = not CPU_FEATURES.isdisjoint(("fma", "neon", "fp-armv8"))

_FEW_REGISTERS = CPU_FEATURES.isdisjoint(("avx512f", "neon"))  # sixteen, not thirty-two


@intrinsic
def splat(typingctx, scalar):
    """The same float32 or int32 in every lane."""
    floating = isinstance(scalar, types.Float)
    result, element = (f32x16, types.float32) if floating else (i32x16, types.int32)

    return result(element), lambda ctx, b, sig, args: broadcast(b, args[0])


@intrinsic
def lane(typingctx, vector, index):
    """The scalar in lane `index`."""
    scalar = {f32x16: types.float32, i32x16: types.int32, mask16: types.boolean}[vector]
    return scalar(vector, types.intp), lambda ctx, b, sig, args: b.extract_element(*args)


@intrinsic
def select(typingctx, mask, x, y):
    """`x` where `mask`, else `y`."""
    return x(mask16, x, x), lambda ctx, b, sig, args: b.select(*args)


def compare(b: ir.IRBuilder, symbol: str, x: ir.Value, y: ir.Value) -> ir.Value:
    ordered = x.type.element == F32
    return b.fcmp_ordered(symbol, x, y) if ordered else b.icmp_signed(symbol, x, y)


# Whether registers hold half of the lanes, as with AVX. Of sixteen floats LLVM then makes worse code than of eight.
HALF_WIDE = "avx" in CPU_FEATURES and "avx512f" not in CPU_FEATURES


def _extreme(symbol: str, name: str) -> Callable:
    def emit(ctx, b, sig, args):
        if HALF_WIDE and args[0].type.element == F32:
            parts = zip(*(halves(b, value) for value in args), strict=True)
            return joined(b, *(call(b, f"llvm.x86.avx.{name}.ps.256", x.type, [x, y]) for x, y in parts))
        return b.select(compare(b, symbol, *args), *args)

    return emit


@intrinsic
def minimum(typingctx, x, y):
    """`x < y ? x : y`."""
    return x(x, x), _extreme("<", "min")


@intrinsic
def maximum(typingctx, x, y):
    """`x > y ? x : y`."""
    return x(x, x), _extreme(">", "max")


def emit_rolled(b: ir.IRBuilder) -> None:
    b.call(ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "", side_effect=True), [])


@intrinsic
def rolled(typingctx):
    """Keeps the loop that it is in from being unrolled, where the sums of two rounds would not fit the registers.

    LLVM leaves loops alone that call something, here assembly of no instruction.
    """

    def emit(ctx, b, sig, args):
        if _FEW_REGISTERS:
            emit_rolled(b)
        return ctx.get_dummy_value()

    return types.void(), emit


def _float_function(name: str, summary: str) -> Any:
    @intrinsic
    def function(typingctx, x):
        def emit(ctx, b, sig, args):
            return call(b, f"llvm.{name}.v16f32", f32x16.llvm, args)

        return f32x16(f32x16), emit

    function.__doc__ = summary
    return function


fabs = _float_function("fabs", "Absolute value.")
sqrt = _float_function("sqrt", "Square root, rounded correctly.")


def _conversion(source: Any, target: Any, emit: Callable, summary: str) -> Any:
    @intrinsic
    def function(typingctx, x):
        return target(source), lambda ctx, b, sig, args: emit(b, args[0], target.llvm)

    function.__doc__ = summary
    return function


to_f32 = _conversion(i32x16, f32x16, lambda b, x, t: b.sitofp(x, t), "int32 to float32.")
to_i32 = _conversion(f32x16, i32x16, lambda b, x, t: b.fptosi(x, t), "float32 to int32, towards zero; in range.")
f32_bits = _conversion(f32x16, i32x16, lambda b, x, t: b.bitcast(x, t), "The bits of float32 lanes.")
bits_f32 = _conversion(i32x16, f32x16, lambda b, x, t: b.bitcast(x, t), "float32 lanes from their bits.")


def emit_fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    return call(b, "llvm.fma.v16f32", f32x16.llvm, [x, y, z])


def emit_multiply_add(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    return emit_fma(b, x, y, z) if _FUSED else b.fadd(b.fmul(x, y), z)


@intrinsic
def fma(typingctx, x, y, z):
    """`x y + z`, rounded once, on any CPU."""
    return f32x16(f32x16, f32x16, f32x16), lambda ctx, b, sig, args: emit_fma(b, *args)


@intrinsic
def multiply_add(typingctx, x, y, z):
    """`x y + z`, in one rounding where the CPU has an instruction for it, else in two."""
    return f32x16(f32x16, f32x16, f32x16), lambda ctx, b, sig, args: emit_multiply_add(b, *args)


_ROUNDS = choose(
    "round", [Body("sse4.1", "sse4.1", True), Body("neon", "neon", True), Body("plain", "", False)], CPU_FEATURES
)


@intrinsic
def nearest_int(typingctx, x):
    """Round to the nearest integer, ties to even, as a float; for |x| < 2²², where adding 1.5 × 2²³ does it.

    Whether a zero keeps the sign of `x` is open.
    """

    def emit(ctx, b, sig, args):
        if _ROUNDS:
            return call(b, "llvm.roundeven.v16f32", f32x16.llvm, args)
        magic = same(F32, 12582912.0)
        return b.fsub(b.fadd(args[0], magic), magic)

    return f32x16(f32x16), emit


@intrinsic
def round_away(typingctx, x):
    """C's `roundf` as int32: to the nearest integer, ties away from zero; in range.

    Adding the float below 0.5 with the sign of `x` and cutting off gives the same, 0.49999997 and 8388609 included.
    """

    def emit(ctx, b, sig, args):
        sign = b.and_(b.bitcast(args[0], i32x16.llvm), same(I32, 1 << 31))
        below_half = b.bitcast(b.or_(sign, same(I32, 0x3EFFFFFF)), f32x16.llvm)
        return b.fptosi(b.fadd(args[0], below_half), i32x16.llvm)

    return i32x16(f32x16), emit
