"""Half precision: float16 travels as uint16 bits.

CPUs with the instructions (F16C, AArch64) convert in hardware; elsewhere LLVM would call a library that need not be
there, so the bits are moved by hand. Both give the same bits, with the float16 rounded to nearest, ties to even; NaNs
become quiet.

    float32  SEEEEEEE EMMMMMMM MMMMMMMM MMMMMMMM   bias 127
    float16                    SEEEEEMM MMMMMMMM   bias 15
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ggufkit.kernels.cpu import Body, choose
from ggufkit.kernels.jit import CPU_FEATURES
from ggufkit.kernels.lanes.emit import F32, HALF, I16, I32, address, broadcast, read, same, vector, write
from ggufkit.kernels.lanes.types import f32x16

__all__ = [
    "float_to_half",
    "half_bits_to_float",
    "half_bits_to_lanes",
    "half_to_float",
    "load_half",
    "splat_half",
    "store_half",
]

_HARDWARE_HALF = choose(
    "half",
    [Body("f16c", "f16c", True), Body("neon", "fp-armv8", True), Body("plain", "", False)],
    CPU_FEATURES,
)


def _like(value_type: ir.Type, element: ir.Type) -> ir.Type:
    return vector(element, value_type.count) if isinstance(value_type, ir.VectorType) else element


def _constant(value_type: ir.Type, element: ir.Type, number: float) -> ir.Constant:
    if isinstance(value_type, ir.VectorType):
        return same(element, number, value_type.count)
    return ir.Constant(element, number)


def half_bits_to_float(b: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """uint16 bits (scalar or vector) → float32."""
    kind = bits.type
    single = _like(kind, F32)
    if _HARDWARE_HALF:
        return b.fpext(b.bitcast(bits, _like(kind, HALF)), single)
    word = _like(kind, I32)

    def integer(number: int) -> ir.Constant:
        return _constant(kind, I32, number)

    wide = b.zext(bits, word)
    sign = b.shl(b.and_(wide, integer(0x8000)), integer(16))
    magnitude = b.shl(b.and_(wide, integer(0x7FFF)), integer(13))
    # The exponent is 112 too small: multiplying by 2¹¹² mends it, subnormals included.
    scaled = b.fmul(b.bitcast(magnitude, single), _constant(kind, F32, 2.0**112))
    special = b.or_(magnitude, integer(0x7F800000))  # infinity and NaN keep their mantissa
    quiet = b.select(b.icmp_unsigned(">", magnitude, integer(0x0F800000)), b.or_(special, integer(0x00400000)), special)
    is_special = b.icmp_unsigned(">=", magnitude, integer(0x0F800000))
    return b.bitcast(b.or_(sign, b.select(is_special, quiet, b.bitcast(scaled, word))), single)


def _emit_float_to_half(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """float32 (scalar or vector) → uint16 bits."""
    kind = value.type
    short = _like(kind, I16)
    if _HARDWARE_HALF:
        return b.bitcast(b.fptrunc(value, _like(kind, HALF)), short)
    word, single = _like(kind, I32), _like(kind, F32)

    def integer(number: int) -> ir.Constant:
        return _constant(kind, I32, number)

    bits = b.bitcast(value, word)
    sign = b.lshr(b.and_(bits, integer(0x80000000)), integer(16))
    magnitude = b.and_(bits, integer(0x7FFFFFFF))
    # Normal result: rebias, add half a unit less one plus the bit that decides a tie, drop 13 bits.
    odd = b.and_(b.lshr(magnitude, integer(13)), integer(1))
    rounded = b.add(b.add(magnitude, integer(0xFFF - (112 << 23))), odd)
    normal = b.lshr(rounded, integer(13))
    # Subnormal result: adding 0.5 lets the FPU shift and round the mantissa to units of 2⁻²⁴.
    half = _constant(kind, F32, 0.5)
    shifted = b.bitcast(b.fadd(b.bitcast(magnitude, single), half), word)
    subnormal = b.sub(shifted, integer(0x3F000000))
    result = b.select(b.icmp_unsigned("<", magnitude, integer(113 << 23)), subnormal, normal)
    # From 65520 on the nearest float16 is infinity.
    result = b.select(b.icmp_unsigned(">=", magnitude, integer(0x477FF000)), integer(0x7C00), result)
    payload = b.or_(b.lshr(b.and_(magnitude, integer(0x7FFFFF)), integer(13)), integer(0x7E00))
    result = b.select(b.icmp_unsigned(">", magnitude, integer(0x7F800000)), payload, result)
    return b.trunc(b.or_(sign, result), short)


def half_bits_to_lanes(b: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """Scalar uint16 bits → float32 in every lane."""
    if _HARDWARE_HALF:
        return half_bits_to_float(b, broadcast(b, bits))
    return broadcast(b, half_bits_to_float(b, bits))


@intrinsic
def half_to_float(typingctx, bits):
    """float32 of a scalar float16 given as uint16 bits."""

    def emit(ctx, b, sig, args):
        return half_bits_to_float(b, args[0])

    return types.float32(types.uint16), emit


@intrinsic
def splat_half(typingctx, bits):
    """float32 of a scalar float16, given as uint16 bits, in every lane.

    One instruction fetches it into all lanes and one converts them. `splat(half_to_float(bits))` may wait for the one
    before it: x86 puts a single half into a register's old content.
    """

    return f32x16(types.uint16), lambda ctx, b, sig, args: half_bits_to_lanes(b, args[0])


@intrinsic
def float_to_half(typingctx, value):
    """uint16 bits of the float16 nearest to a scalar float32."""

    def emit(ctx, b, sig, args):
        return _emit_float_to_half(b, args[0])

    return types.uint16(types.float32), emit


@intrinsic
def load_half(typingctx, array, index):
    """Sixteen float16 of a uint16 array, as float32 lanes."""

    def emit(ctx, b, sig, args):
        bits = read(b, address(ctx, b, sig.args[0], args[0], args[1], vector(I16)))
        return half_bits_to_float(b, bits)

    return f32x16(array, types.intp), emit


@intrinsic
def store_half(typingctx, array, index, value):
    """Write float32 lanes as sixteen float16 into a uint16 array."""

    def emit(ctx, b, sig, args):
        bits = _emit_float_to_half(b, args[2])
        write(b, bits, address(ctx, b, sig.args[0], args[0], args[1], vector(I16)))
        return ctx.get_dummy_value()

    return types.void(array, types.intp, f32x16), emit
