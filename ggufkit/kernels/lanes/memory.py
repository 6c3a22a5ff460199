"""Lanes in and out of memory: `array, index` is a C-contiguous array and the index of its element in lane 0."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic

from ggufkit.kernels.jit import CPU_FEATURES
from ggufkit.kernels.lanes.arithmetic import HALF_WIDE
from ggufkit.kernels.lanes.emit import (
    F32,
    I1,
    I8,
    I16,
    I32,
    I64,
    LANES,
    address,
    call,
    halves,
    joined,
    read,
    shuffle,
    vector,
    write,
)
from ggufkit.kernels.lanes.types import f32x16, i32x16, mask16

__all__ = [
    "flat",
    "gather",
    "in_rows",
    "load",
    "store",
    "store_out",
    "store_past",
    "transpose",
    "transposed",
    "untranspose",
    "view",
]


# array dtype → (LLVM element, vector type in the kernel, how to widen on load)
_ELEMENTS: dict[Any, tuple[ir.Type, Any, str | None]] = {
    types.float32: (F32, f32x16, None),
    types.int32: (I32, i32x16, None),
    types.uint32: (I32, i32x16, None),
    types.int16: (I16, i32x16, "sext"),
    types.uint16: (I16, i32x16, "zext"),
    types.int8: (I8, i32x16, "sext"),
    types.uint8: (I8, i32x16, "zext"),
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
        value = read(b, address(ctx, b, sig.args[0], args[0], args[1], vector(element)))
        return getattr(b, widen)(value, result.llvm) if widen else value

    return result(array, types.intp), emit


@intrinsic
def store(typingctx, array, index, value):
    """Write sixteen consecutive elements at `array[index]`; int32 lanes keep the low bits of a narrower array."""
    element, expected, widen = _ELEMENTS[array.dtype]
    if value != expected:
        return None

    def emit(ctx, b, sig, args):
        lanes = b.trunc(args[2], vector(element)) if widen else args[2]
        write(b, lanes, address(ctx, b, sig.args[0], args[0], args[1], vector(element)))
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
        stored = b.store(args[2], address(ctx, b, sig.args[0], args[0], args[1], f32x16.llvm))
        stored.align = 16
        stored.set_metadata("nontemporal", b.module.add_metadata([ir.Constant(I32, 1)]))
        return ctx.get_dummy_value()

    return types.void(array, types.intp, f32x16), emit


@intrinsic
def gather(typingctx, array, indices):
    """`array[indices]`, lane by lane; `indices` is an i32x16 and is not checked against the array's length."""
    element, result, widen = _ELEMENTS[array.dtype]

    def emit(ctx, b, sig, args):
        data = ctx.make_array(sig.args[0])(ctx, b, args[0]).data
        lanes = ir.Constant(vector(element), ir.Undefined)
        if "avx512f" in CPU_FEATURES and not widen:
            everywhere = ir.Constant(mask16.llvm, [ir.Constant(I1, 1)] * LANES)
            operands = [lanes, b.bitcast(data, ir.PointerType(I8)), args[1], everywhere, ir.Constant(I32, 4)]
            kind = "s" if element == F32 else "i"
            return call(b, f"llvm.x86.avx512.mask.gather.dp{kind}.512", lanes.type, operands)
        for k in range(LANES):
            position = ir.Constant(I32, k)
            pointer = b.gep(data, [b.sext(b.extract_element(args[1], position), I64)])
            value = read(b, b.bitcast(pointer, element.as_pointer()))
            lanes = b.insert_element(lanes, value, position)
        return getattr(b, widen)(lanes, result.llvm) if widen else lanes

    return result(array, i32x16), emit


_LOW = [half + LANES * which for half in range(LANES // 2) for which in (0, 1)]
_HIGH = [LANES // 2 + position for position in _LOW]


def transposed(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Each round rotates the 8-bit position (row, column) of an element by one bit; four rounds swap the halves."""
    if HALF_WIDE and rows[0].type.element in (F32, I32):
        return _transposed_eights(b, rows)
    for _ in range(4):
        pairs = [(rows[k], rows[k + LANES // 2]) for k in range(LANES // 2)]
        rows = [shuffle(b, x, y, order) for x, y in pairs for order in (_LOW, _HIGH)]
    return rows


def _transposed_eights(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """The same by tiles of 8 × 8, in shuffles that are one instruction of AVX: of pairs, fours, and halves."""
    parts = [halves(b, row) for row in rows]
    left, right = ([_transposed_eight(b, [part[side] for part in parts[k : k + 8]]) for k in (0, 8)] for side in (0, 1))
    return [joined(b, *pair) for tiles in (left, right) for pair in zip(*tiles, strict=True)]


def _transposed_eight(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    for pairs, orders in (
        (((0, 1), (2, 3), (4, 5), (6, 7)), ([0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15])),
        (((0, 2), (1, 3), (4, 6), (5, 7)), ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15])),
    ):
        rows = [shuffle(b, rows[x], rows[y], order) for x, y in pairs for order in orders]
    low, high = list(range(4)) + list(range(8, 12)), list(range(4, 8)) + list(range(12, 16))
    return [shuffle(b, rows[k], rows[k + 4], order) for order in (low, high) for k in range(4)]


@intrinsic
def transpose(typingctx, source, source_index, stride, target, target_index):
    """Transpose a 16 × 16 tile: `target[target_index + 16 i + k] = source[source_index + stride k + i]`.

    Row k of the tile (16 consecutive elements) becomes lane k. Element types may differ: integers widen to int32.
    """
    element, result, widen = _ELEMENTS[source.dtype]
    target_element, expected, narrow = _ELEMENTS[target.dtype]
    if result != expected:
        return None

    def emit(ctx, b, sig, args):
        rows = []
        for k in range(LANES):
            index = b.add(args[1], b.mul(args[2], ir.Constant(args[2].type, k)))
            row = read(b, address(ctx, b, sig.args[0], args[0], index, vector(element)))
            rows.append(getattr(b, widen)(row, result.llvm) if widen else row)
        for k, row in enumerate(transposed(b, rows)):
            index = b.add(args[4], ir.Constant(args[4].type, LANES * k))
            lanes = b.trunc(row, vector(target_element)) if narrow else row
            write(b, lanes, address(ctx, b, sig.args[3], args[3], index, vector(target_element)))
        return ctx.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp), emit


@intrinsic
def untranspose(typingctx, source, source_index, target, target_index, stride):
    """The way back: `target[target_index + stride k + i] = source[source_index + 16 i + k]`; equal element types.

    Lane k of sixteen consecutive vectors becomes a row of 16 elements.
    """
    if source.dtype != target.dtype:
        return None
    kind = vector(_ELEMENTS[source.dtype][0])

    def emit(ctx, b, sig, args):
        def row(array, start, step, k):
            index = b.add(args[start], b.mul(step, ir.Constant(step.type, k)))
            return address(ctx, b, sig.args[array], args[array], index, kind)

        rows = []
        for i in range(LANES):
            rows.append(read(b, row(0, 1, ir.Constant(args[1].type, LANES), i)))
        for k, value in enumerate(transposed(b, rows)):
            write(b, value, row(2, 3, args[4], k))
        return ctx.get_dummy_value()

    return types.void(source, types.intp, target, types.intp, types.intp), emit
