"""Sixteen lanes: SIMD vector types for kernels.

The reference's searches add floats in a fixed order, which no compiler may change, so within one block they run
one weight at a time. Blocks do not depend on one another, though: with block k in lane k of a vector, every lane
performs the very same float32 operations in the very same order, and one instruction does sixteen blocks' work.

    f32x16    <16 x float>    + - * /   < <= > >= == !=   minimum maximum fabs sqrt select highest lowest permute
    i32x16    <16 x i32>      + - *  & | ^ << >>   < <= > >= == !=   minimum maximum select highest lowest total
    mask16    <16 x i1>       & | ~   any_lane all_lanes first_lane mask_bits bits_mask

LLVM splits a vector into what the CPU has (1 zmm, 2 ymm, 4 NEON registers), so one source serves every machine.
Without fast-math flags nothing is reordered or contracted into FMA: each CPU gives the same bits.

Memory is addressed as `array, index`: a C-contiguous array and the index of its element in lane 0.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.imputils import impl_ret_borrowed
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from ggufkit.kernels.jit import CPU_FEATURES

__all__ = [
    "LANES",
    "all_lanes",
    "any_lane",
    "bits_f32",
    "bits_mask",
    "bytes_i32",
    "f32_bits",
    "fabs",
    "first_bit",
    "first_lane",
    "flat",
    "float_to_half",
    "gather",
    "half_to_float",
    "highest",
    "in_rows",
    "lane",
    "lane_numbers",
    "load",
    "load_half",
    "lowest",
    "mask_bits",
    "maximum",
    "minimum",
    "nearest_int",
    "permute",
    "round_away",
    "select",
    "splat",
    "splat_half",
    "sqrt",
    "store",
    "store_half",
    "store_out",
    "store_past",
    "to_f32",
    "to_i32",
    "total",
    "transpose",
    "untranspose",
    "view",
]

LANES = 16

_F32, _I32, _I16, _I8, _I1 = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.IntType(8), ir.IntType(1)
_HALF = ir.HalfType()


def _vector(element: ir.Type) -> ir.VectorType:
    return ir.VectorType(element, LANES)


class F32x16(types.Type):
    """Sixteen float32 lanes."""

    llvm = _vector(_F32)


class I32x16(types.Type):
    """Sixteen int32 lanes."""

    llvm = _vector(_I32)


class Mask16(types.Type):
    """Sixteen booleans."""

    llvm = _vector(_I1)


f32x16, i32x16, mask16 = F32x16("f32x16"), I32x16("i32x16"), Mask16("mask16")


def _register(numba_type: type) -> None:
    @register_model(numba_type)
    class Model(models.PrimitiveModel):
        def __init__(self, manager: Any, fe_type: Any):
            super().__init__(manager, fe_type, fe_type.llvm)


for _type in (F32x16, I32x16, Mask16):
    _register(_type)


# ---- Operators --------------------------------------------------------------------------------------------------


def _binary(op: Callable, operand: Any, emit: Callable, result: Any = None) -> None:
    """Lower `op(operand, operand)` to the instruction that `emit(builder, x, y)` writes."""

    @infer_global(op)
    class Template(AbstractTemplate):
        def generic(self, args: tuple, kws: dict) -> Any:
            return signature(result or operand, operand, operand) if args == (operand, operand) else None

    lower_builtin(op, type(operand), type(operand))(lambda ctx, b, sig, args: emit(b, *args))


def _unary(op: Callable, operand: Any, emit: Callable) -> None:
    @infer_global(op)
    class Template(AbstractTemplate):
        def generic(self, args: tuple, kws: dict) -> Any:
            return signature(operand, operand) if args == (operand,) else None

    lower_builtin(op, type(operand))(lambda ctx, b, sig, args: emit(b, *args))


_binary(operator.add, f32x16, lambda b, x, y: b.fadd(x, y))
_binary(operator.sub, f32x16, lambda b, x, y: b.fsub(x, y))
_binary(operator.mul, f32x16, lambda b, x, y: b.fmul(x, y))
_binary(operator.truediv, f32x16, lambda b, x, y: b.fdiv(x, y))
_unary(operator.neg, f32x16, lambda b, x: b.fneg(x))

_binary(operator.add, i32x16, lambda b, x, y: b.add(x, y))
_binary(operator.sub, i32x16, lambda b, x, y: b.sub(x, y))
_binary(operator.mul, i32x16, lambda b, x, y: b.mul(x, y))
_binary(operator.and_, i32x16, lambda b, x, y: b.and_(x, y))
_binary(operator.or_, i32x16, lambda b, x, y: b.or_(x, y))
_binary(operator.xor, i32x16, lambda b, x, y: b.xor(x, y))
_binary(operator.lshift, i32x16, lambda b, x, y: b.shl(x, y))
_binary(operator.rshift, i32x16, lambda b, x, y: b.ashr(x, y))

_binary(operator.and_, mask16, lambda b, x, y: b.and_(x, y))
_binary(operator.or_, mask16, lambda b, x, y: b.or_(x, y))
_unary(operator.invert, mask16, lambda b, x: b.not_(x))


def _comparison(op: Callable, symbol: str) -> None:
    # C's comparisons: all but != are false when an operand is NaN.
    compare = "fcmp_unordered" if symbol == "!=" else "fcmp_ordered"
    _binary(op, f32x16, lambda b, x, y: getattr(b, compare)(symbol, x, y), mask16)
    _binary(op, i32x16, lambda b, x, y: b.icmp_signed(symbol, x, y), mask16)


for _op, _symbol in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
    (operator.ne, "!="),
):
    _comparison(_op, _symbol)


# ---- Memory -----------------------------------------------------------------------------------------------------


def _address(ctx: Any, b: ir.IRBuilder, array_type: Any, array: ir.Value, index: ir.Value, vector: ir.Type) -> Any:
    data = ctx.make_array(array_type)(ctx, b, array).data
    return b.bitcast(b.gep(data, [index]), vector.as_pointer())


# array dtype → (LLVM element, vector type in the kernel, how to widen on load)
_ELEMENTS: dict[Any, tuple[ir.Type, Any, str | None]] = {
    types.float32: (_F32, f32x16, None),
    types.int32: (_I32, i32x16, None),
    types.uint32: (_I32, i32x16, None),
    types.int16: (_I16, i32x16, "sext"),
    types.uint16: (_I16, i32x16, "zext"),
    types.int8: (_I8, i32x16, "sext"),
    types.uint8: (_I8, i32x16, "zext"),
}


def _reshaped(array: Any, dtype: Any, arguments: tuple, in_rows: bool = False) -> Any:
    """The memory of a C-contiguous array as items of `dtype`, side by side or in rows as wide as the last argument."""
    if array.layout != "C":
        return None
    result = array.copy(dtype=dtype, ndim=1 + in_rows)

    def emit(ctx, b, sig, args):
        source, target = ctx.make_array(array)(ctx, b, args[0]), ctx.make_array(result)(ctx, b)
        item = ctx.get_abi_sizeof(ctx.get_data_type(dtype))
        size = ir.Constant(source.itemsize.type, item)
        target.nitems = b.udiv(b.mul(source.nitems, source.itemsize), size)
        target.itemsize = size
        shape, strides = [target.nitems], [size]
        if in_rows:
            width = args[-1]
            shape, strides = [b.udiv(target.nitems, width), width], [b.mul(width, size), size]
        target.shape, target.strides = cgutils.pack_array(b, shape), cgutils.pack_array(b, strides)
        target.data = b.bitcast(source.data, target.data.type)
        target.meminfo, target.parent = source.meminfo, source.parent
        return impl_ret_borrowed(ctx, b, result, target._getvalue())

    return result(*arguments), emit


@intrinsic
def flat(typingctx, array):
    """`array.reshape(-1)` of a C-contiguous array, in a fraction of the time to compile."""
    return _reshaped(array, array.dtype, (array,))


@intrinsic
def in_rows(typingctx, array, width):
    """`array.reshape(-1, width)` of a C-contiguous array."""
    return _reshaped(array, array.dtype, (array, types.intp), in_rows=True)


@intrinsic
def view(typingctx, array, dtype):
    """`array.reshape(-1).view(dtype)` of a C-contiguous array, in a fraction of the time to compile."""
    return _reshaped(array, dtype.dtype, (array, dtype))


@intrinsic
def load(typingctx, array, index):
    """Sixteen consecutive elements from `array[index]` on; integers widen to int32."""
    element, result, widen = _ELEMENTS[array.dtype]

    def emit(ctx, b, sig, args):
        value = b.load(_address(ctx, b, sig.args[0], args[0], args[1], _vector(element)))
        value.align = 1
        return getattr(b, widen)(value, result.llvm) if widen else value

    return result(array, types.intp), emit


@intrinsic
def store(typingctx, array, index, value):
    """Write sixteen consecutive elements at `array[index]`; int32 lanes keep the low bits of a narrower array."""
    element, expected, widen = _ELEMENTS[array.dtype]
    if value != expected:
        return None

    def emit(ctx, b, sig, args):
        vector = b.trunc(args[2], _vector(element)) if widen else args[2]
        pointer = _address(ctx, b, sig.args[0], args[0], args[1], _vector(element))
        b.store(vector, pointer).align = 1
        return ctx.get_dummy_value()

    return types.void(array, types.intp, expected), emit


# What decoders write their output with that do so from front to back: `codec` binds it to `store_past` for outputs that
# no cache holds. Lines that are not filled at once would go to memory in parts.
store_out = store


@intrinsic
def store_past(typingctx, array, index, value):
    """`store` of float32 lanes past the caches, for arrays that these cannot hold, at an address that 16 divides.

    An ordinary store first fetches the line that it changes. What another thread reads must wait for a lock or an
    atomic operation, as all that threads share does.
    """
    if array.dtype != types.float32 or value != f32x16:
        return None

    def emit(ctx, b, sig, args):
        stored = b.store(args[2], _address(ctx, b, sig.args[0], args[0], args[1], f32x16.llvm))
        stored.align = 16
        stored.set_metadata("nontemporal", b.module.add_metadata([ir.Constant(_I32, 1)]))
        return ctx.get_dummy_value()

    return types.void(array, types.intp, f32x16), emit


@intrinsic
def gather(typingctx, array, indices):
    """`array[indices]`, lane by lane; `indices` is an i32x16 and is not checked against the array's length."""
    element, result, widen = _ELEMENTS[array.dtype]

    def emit(ctx, b, sig, args):
        data = ctx.make_array(sig.args[0])(ctx, b, args[0]).data
        vector = ir.Constant(_vector(element), ir.Undefined)
        if "avx512f" in CPU_FEATURES and not widen:
            everywhere = ir.Constant(mask16.llvm, [ir.Constant(_I1, 1)] * LANES)
            operands = [vector, b.bitcast(data, ir.PointerType(_I8)), args[1], everywhere, ir.Constant(_I32, 4)]
            kind = ir.FunctionType(vector.type, [operand.type for operand in operands])
            name = f"llvm.x86.avx512.mask.gather.dp{'s' if element == _F32 else 'i'}.512"
            return b.call(cgutils.get_or_insert_function(b.module, kind, name), operands)
        for k in range(LANES):
            position = ir.Constant(_I32, k)
            pointer = b.gep(data, [b.sext(b.extract_element(args[1], position), ir.IntType(64))])
            value = b.load(b.bitcast(pointer, element.as_pointer()))
            value.align = 1
            vector = b.insert_element(vector, value, position)
        return getattr(b, widen)(vector, result.llvm) if widen else vector

    return result(array, i32x16), emit


def _shuffle(b: ir.IRBuilder, x: ir.Value, y: ir.Value, order: list[int]) -> ir.Value:
    return b.shuffle_vector(x, y, ir.Constant(_vector(_I32), order))


_LOW = [half + LANES * which for half in range(LANES // 2) for which in (0, 1)]
_HIGH = [LANES // 2 + position for position in _LOW]


def _transposed(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Each round rotates the 8-bit position (row, column) of an element by one bit; four rounds swap the halves."""
    for _ in range(4):
        pairs = [(rows[k], rows[k + LANES // 2]) for k in range(LANES // 2)]
        rows = [_shuffle(b, x, y, order) for x, y in pairs for order in (_LOW, _HIGH)]
    return rows


@intrinsic
def transpose(typingctx, source, source_index, stride, target, target_index):
    """Transpose a 16 × 16 tile: `target[target_index + 16 i + k] = source[source_index + stride k + i]`.

    Row k of the tile (16 consecutive elements) becomes lane k. Element types may differ: integers widen to int32.
    """
    read, result, widen = _ELEMENTS[source.dtype]
    written, expected, narrow = _ELEMENTS[target.dtype]
    if result != expected:
        return None

    def emit(ctx, b, sig, args):
        rows = []
        for k in range(LANES):
            index = b.add(args[1], b.mul(args[2], ir.Constant(args[2].type, k)))
            row = b.load(_address(ctx, b, sig.args[0], args[0], index, _vector(read)))
            row.align = 1
            rows.append(getattr(b, widen)(row, result.llvm) if widen else row)
        for k, row in enumerate(_transposed(b, rows)):
            index = b.add(args[4], ir.Constant(args[4].type, LANES * k))
            vector = b.trunc(row, _vector(written)) if narrow else row
            b.store(vector, _address(ctx, b, sig.args[3], args[3], index, _vector(written))).align = 1
        return ctx.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp), emit


@intrinsic
def untranspose(typingctx, source, source_index, target, target_index, stride):
    """The way back: `target[target_index + stride k + i] = source[source_index + 16 i + k]`; equal element types.

    Lane k of sixteen consecutive vectors becomes a row of 16 elements.
    """
    if source.dtype != target.dtype:
        return None
    vector = _vector(_ELEMENTS[source.dtype][0])

    def emit(ctx, b, sig, args):
        def row(array, start, step, k):
            index = b.add(args[start], b.mul(step, ir.Constant(step.type, k)))
            return _address(ctx, b, sig.args[array], args[array], index, vector)

        rows = []
        for i in range(LANES):
            rows.append(b.load(row(0, 1, ir.Constant(args[1].type, LANES), i)))
            rows[-1].align = 1
        for k, value in enumerate(_transposed(b, rows)):
            b.store(value, row(2, 3, args[4], k)).align = 1
        return ctx.get_dummy_value()

    return types.void(source, types.intp, target, types.intp, types.intp), emit


# ---- Lanes ------------------------------------------------------------------------------------------------------


def _splat(b: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    undefined = ir.Constant(_vector(scalar.type), ir.Undefined)
    one = b.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return _shuffle(b, one, undefined, [0] * LANES)


@intrinsic
def splat(typingctx, scalar):
    """The same float32 or int32 in every lane."""
    floating = isinstance(scalar, types.Float)
    result, element = (f32x16, types.float32) if floating else (i32x16, types.int32)

    return result(element), lambda ctx, b, sig, args: _splat(b, args[0])


@intrinsic
def lane(typingctx, vector, index):
    """The scalar in lane `index`."""
    scalar = {f32x16: types.float32, i32x16: types.int32, mask16: types.boolean}[vector]
    return scalar(vector, types.intp), lambda ctx, b, sig, args: b.extract_element(*args)


@intrinsic
def select(typingctx, mask, x, y):
    """`x` where `mask`, else `y`."""
    return x(mask16, x, x), lambda ctx, b, sig, args: b.select(*args)


def _compare(b: ir.IRBuilder, symbol: str, x: ir.Value, y: ir.Value) -> ir.Value:
    ordered = x.type.element == _F32
    return b.fcmp_ordered(symbol, x, y) if ordered else b.icmp_signed(symbol, x, y)


@intrinsic
def minimum(typingctx, x, y):
    """`x < y ? x : y`."""
    return x(x, x), lambda ctx, b, sig, a: b.select(_compare(b, "<", *a), *a)


@intrinsic
def maximum(typingctx, x, y):
    """`x > y ? x : y`."""
    return x(x, x), lambda ctx, b, sig, a: b.select(_compare(b, ">", *a), *a)


def _float_function(name: str, summary: str) -> Any:
    @intrinsic
    def function(typingctx, x):
        def emit(ctx, b, sig, args):
            kind = ir.FunctionType(f32x16.llvm, [f32x16.llvm])
            return b.call(cgutils.get_or_insert_function(b.module, kind, f"llvm.{name}.v16f32"), args)

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


@intrinsic
def nearest_int(typingctx, x):
    """Round to the nearest integer, ties to even, as a float; for |x| < 2²², where adding 1.5 × 2²³ does it."""

    def emit(ctx, b, sig, args):
        magic = ir.Constant(f32x16.llvm, [ir.Constant(_F32, 12582912.0)] * LANES)
        return b.fsub(b.fadd(args[0], magic), magic)

    return f32x16(f32x16), emit


@intrinsic
def round_away(typingctx, x):
    """C's `roundf` as int32: to the nearest integer, ties away from zero; in range.

    Adding the float below 0.5 with the sign of `x` and cutting off gives the same, 0.49999997 and 8388609 included.
    """

    def emit(ctx, b, sig, args):
        sign = b.and_(b.bitcast(args[0], i32x16.llvm), ir.Constant(i32x16.llvm, [ir.Constant(_I32, 1 << 31)] * LANES))
        below_half = ir.Constant(i32x16.llvm, [ir.Constant(_I32, 0x3EFFFFFF)] * LANES)
        return b.fptosi(b.fadd(args[0], b.bitcast(b.or_(sign, below_half), f32x16.llvm)), i32x16.llvm)

    return i32x16(f32x16), emit


# ---- Across lanes -----------------------------------------------------------------------------------------------


def _fold(emit: Callable, summary: str) -> Any:
    """A reduction in four halvings; only for operations whose order does not matter."""

    @intrinsic
    def function(typingctx, vector):
        scalar = {f32x16: types.float32, i32x16: types.int32}[vector]

        def emit_fold(ctx, b, sig, args):
            value = args[0]
            for half in (8, 4, 2, 1):
                order = [(k + half) % LANES for k in range(LANES)]
                value = emit(b, value, _shuffle(b, value, value, order))
            return b.extract_element(value, ir.Constant(_I32, 0))

        return scalar(vector), emit_fold

    function.__doc__ = summary
    return function


highest = _fold(
    lambda b, x, y: b.select(_compare(b, ">", x, y), x, y),
    "The largest lane, a scalar; which of 0.0 and -0.0 is open.",
)
lowest = _fold(
    lambda b, x, y: b.select(_compare(b, "<", x, y), x, y),
    "The smallest lane, a scalar; which of 0.0 and -0.0 is open.",
)
total = _fold(lambda b, x, y: b.add(x, y), "The sum of int32 lanes, a scalar.")


@intrinsic
def lane_numbers(typingctx):
    """0, 1, … 15 as int32 lanes."""

    def emit(ctx, b, sig, args):
        return ir.Constant(i32x16.llvm, [ir.Constant(_I32, k) for k in range(LANES)])

    return i32x16(), emit


@intrinsic
def mask_bits(typingctx, mask):
    """A mask as an int32 between 0 and 65535: lane k is bit k."""

    def emit(ctx, b, sig, args):
        return b.zext(b.bitcast(args[0], _I16), _I32)

    return types.int32(mask16), emit


@intrinsic
def first_bit(typingctx, bits):
    """Number of the lowest bit of an int32 that is set; 32 if none is."""

    def emit(ctx, b, sig, args):
        return b.zext(b.cttz(args[0], ir.Constant(_I1, 0)), ir.IntType(64))

    return types.intp(types.int32), emit


@intrinsic
def first_lane(typingctx, mask):
    """Number of the first lane that is True; 16 if none is."""

    def emit(ctx, b, sig, args):
        bits = b.zext(b.bitcast(args[0], _I16), _I32)
        marked = b.or_(bits, ir.Constant(_I32, 1 << LANES))
        return b.zext(b.cttz(marked, ir.Constant(_I1, 1)), ir.IntType(64))

    return types.intp(mask16), emit


def _reduction(name: str, summary: str) -> Any:
    @intrinsic
    def function(typingctx, mask):
        def emit(ctx, b, sig, args):
            bits = b.bitcast(args[0], _I16)
            none = ir.Constant(_I16, 0 if name == "any" else -1)
            return b.icmp_unsigned("!=" if name == "any" else "==", bits, none)

        return types.boolean(mask16), emit

    function.__doc__ = summary
    return function


any_lane = _reduction("any", "True if at least one lane is.")
all_lanes = _reduction("all", "True if every lane is.")


@intrinsic
def bits_mask(typingctx, bits):
    """The mask whose lane k is bit k of an int32."""
    return mask16(types.int32), lambda ctx, b, sig, args: b.bitcast(b.trunc(args[0], _I16), mask16.llvm)


@intrinsic
def bytes_i32(typingctx, low, high):
    """The sixteen signed bytes of two uint64, the lowest byte of `low` in lane 0."""

    def emit(ctx, b, sig, args):
        pair = ir.Constant(ir.VectorType(ir.IntType(64), 2), ir.Undefined)
        for position, word in enumerate(args):
            pair = b.insert_element(pair, word, ir.Constant(_I32, position))
        return b.sext(b.bitcast(pair, _vector(_I8)), i32x16.llvm)

    return i32x16(types.uint64, types.uint64), emit


@intrinsic
def permute(typingctx, x, indices):
    """`x[indices]`, lane by lane: a table of sixteen float32. Each index must be 0 … 15."""

    def emit(ctx, b, sig, args):
        table, positions = args
        if "avx512f" in CPU_FEATURES:
            kind = ir.FunctionType(f32x16.llvm, [f32x16.llvm, i32x16.llvm])
            return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx512.permvar.sf.512"), args)
        slot = cgutils.alloca_once_value(b, table)
        data = b.bitcast(slot, _F32.as_pointer())
        vector = ir.Constant(f32x16.llvm, ir.Undefined)
        for k in range(LANES):
            position = ir.Constant(_I32, k)
            value = b.load(b.gep(data, [b.extract_element(positions, position)]))
            vector = b.insert_element(vector, value, position)
        return vector

    return f32x16(f32x16, i32x16), emit


# ---- Half precision ---------------------------------------------------------------------------------------------
#
# float16 travels as uint16 bits. CPUs with the instructions (F16C, AArch64) convert in hardware; elsewhere
# LLVM would call a library that need not be there, so the bits are moved by hand. Both give the same bits, with
# the float16 rounded to nearest, ties to even; NaNs become quiet.
#
#     float32  SEEEEEEE EMMMMMMM MMMMMMMM MMMMMMMM   bias 127
#     float16                    SEEEEEMM MMMMMMMM   bias 15

_HARDWARE_HALF = "f16c" in CPU_FEATURES or "fp-armv8" in CPU_FEATURES or "fullfp16" in CPU_FEATURES


def _like(value_type: ir.Type, element: ir.Type) -> ir.Type:
    return ir.VectorType(element, value_type.count) if isinstance(value_type, ir.VectorType) else element


def _constant(value_type: ir.Type, element: ir.Type, number: float) -> ir.Constant:
    one = ir.Constant(element, number)
    if not isinstance(value_type, ir.VectorType):
        return one
    return ir.Constant(ir.VectorType(element, value_type.count), [one] * value_type.count)


def half_bits_to_float(b: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """uint16 bits (scalar or vector) → float32."""
    kind = bits.type
    single = _like(kind, _F32)
    if _HARDWARE_HALF:
        return b.fpext(b.bitcast(bits, _like(kind, _HALF)), single)
    word = _like(kind, _I32)

    def integer(number: int) -> ir.Constant:
        return _constant(kind, _I32, number)

    wide = b.zext(bits, word)
    sign = b.shl(b.and_(wide, integer(0x8000)), integer(16))
    magnitude = b.shl(b.and_(wide, integer(0x7FFF)), integer(13))
    # The exponent is 112 too small: multiplying by 2¹¹² mends it, subnormals included.
    scaled = b.fmul(b.bitcast(magnitude, single), _constant(kind, _F32, 2.0**112))
    special = b.or_(magnitude, integer(0x7F800000))  # infinity and NaN keep their mantissa
    quiet = b.select(b.icmp_unsigned(">", magnitude, integer(0x0F800000)), b.or_(special, integer(0x00400000)), special)
    is_special = b.icmp_unsigned(">=", magnitude, integer(0x0F800000))
    return b.bitcast(b.or_(sign, b.select(is_special, quiet, b.bitcast(scaled, word))), single)


def _emit_float_to_half(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """float32 (scalar or vector) → uint16 bits."""
    kind = value.type
    short = _like(kind, _I16)
    if _HARDWARE_HALF:
        return b.bitcast(b.fptrunc(value, _like(kind, _HALF)), short)
    word, single = _like(kind, _I32), _like(kind, _F32)

    def integer(number: int) -> ir.Constant:
        return _constant(kind, _I32, number)

    bits = b.bitcast(value, word)
    sign = b.lshr(b.and_(bits, integer(0x80000000)), integer(16))
    magnitude = b.and_(bits, integer(0x7FFFFFFF))
    # Normal result: rebias, add half a unit less one plus the bit that decides a tie, drop 13 bits.
    odd = b.and_(b.lshr(magnitude, integer(13)), integer(1))
    rounded = b.add(b.add(magnitude, integer(0xFFF - (112 << 23))), odd)
    normal = b.lshr(rounded, integer(13))
    # Subnormal result: adding 0.5 lets the FPU shift and round the mantissa to units of 2⁻²⁴.
    half = _constant(kind, _F32, 0.5)
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
        return half_bits_to_float(b, _splat(b, bits))
    return _splat(b, half_bits_to_float(b, bits))


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
        bits = b.load(_address(ctx, b, sig.args[0], args[0], args[1], _vector(_I16)))
        bits.align = 1
        return half_bits_to_float(b, bits)

    return f32x16(array, types.intp), emit


@intrinsic
def store_half(typingctx, array, index, value):
    """Write float32 lanes as sixteen float16 into a uint16 array."""

    def emit(ctx, b, sig, args):
        bits = _emit_float_to_half(b, args[2])
        b.store(bits, _address(ctx, b, sig.args[0], args[0], args[1], _vector(_I16))).align = 1
        return ctx.get_dummy_value()

    return types.void(array, types.intp, f32x16), emit
