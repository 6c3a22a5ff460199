"""Lanes in and out of memory: `array, index` is a C-contiguous array and the index of its element in lane 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    read,
    shuffle,
    vector,
    whole,
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


# Lanes of 32 bits in a register.
_REGISTER = LANES if "avx512f" in CPU_FEATURES else 8 if HALF_WIDE else 4


def transposed(b: ir.IRBuilder, element: ir.Type, part: Callable[[int, int, int], ir.Value]) -> Iterator[ir.Value]:
    """The columns of sixteen rows, one after the other. So many are read at once as registers hold elements.

    `part(k, first, count)` reads `count` elements of row k.
    """
    count = _REGISTER if element in (F32, I32) else LANES
    for first in range(0, LANES, count):
        rows = [part(k, first, count) for k in range(LANES)]
        turn = _turned_eight if count == 8 else _turned
        blocks = [turn(b, rows[k : k + count]) for k in range(0, LANES, count)]
        for column in zip(*blocks, strict=True):
            yield whole(b, list(column))


def _turned(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Each round rotates the position (row, column) of an element by one bit; as many as half of them swap the two."""
    n = len(rows)
    low = [half + n * which for half in range(n // 2) for which in (0, 1)]
    for _ in range(n.bit_length() - 1):
        pairs = [(rows[k], rows[k + n // 2]) for k in range(n // 2)]
        rows = [shuffle(b, x, y, [k + more for k in low]) for x, y in pairs for more in (0, n // 2)]
    return rows


def _turned_eight(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Of eight rows in shuffles that are one instruction of AVX: of pairs, fours, and halves."""
    for pairs, orders in (
        (((0, 1), (2, 3), (4, 5), (6, 7)), ([0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15])),
        (((0, 2), (1, 3), (4, 6), (5, 7)), ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15])),
    ):
        rows = [shuffle(b, rows[x], rows[y], order) for x, y in pairs for order in orders]
    low, high = list(range(4)) + list(range(8, 12)), list(range(4, 8)) + list(range(12, 16))
    return [shuffle(b, rows[k], rows[k + 4], order) for order in (low, high) for k in range(4)]


def _narrower(x: ir.Type, y: ir.Type) -> ir.Type:
    return min(x, y, key=lambda kind: getattr(kind, "width", 32))


@intrinsic
def transpose(typingctx, source, source_index, stride, target, target_index):
    """Transpose a 16 × 16 tile: `target[target_index + 16 i + k] = source[source_index + stride k + i]`.

    Row k of the tile (16 consecutive elements) becomes lane k. Element types may differ: integers widen to int32, or
    keep their low bits. Both are apart from each other in memory.
    """
    element, result, widen = _ELEMENTS[source.dtype]
    target_element, expected, _ = _ELEMENTS[target.dtype]
    if result != expected:
        return None
    moved = _narrower(element, target_element)

    def emit(ctx, b, sig, args):
        def part(k, first, count):
            index = b.add(args[1], b.add(b.mul(args[2], ir.Constant(I64, k)), ir.Constant(I64, first)))
            row = read(b, address(ctx, b, sig.args[0], args[0], index, vector(element, count)))
            return b.trunc(row, vector(moved, count)) if moved != element else row

        for i, column in enumerate(transposed(b, moved, part)):
            index = b.add(args[4], ir.Constant(I64, LANES * i))
            lanes = getattr(b, widen)(column, vector(target_element)) if widen and moved != target_element else column
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
    element = _ELEMENTS[source.dtype][0]

    def emit(ctx, b, sig, args):
        def part(i, first, count):
            index = b.add(args[1], ir.Constant(I64, LANES * i + first))
            return read(b, address(ctx, b, sig.args[0], args[0], index, vector(element, count)))

        for k, row in enumerate(transposed(b, element, part)):
            index = b.add(args[3], b.mul(args[4], ir.Constant(I64, k)))
            write(b, row, address(ctx, b, sig.args[2], args[2], index, vector(element)))
        return ctx.get_dummy_value()

    return types.void(source, types.intp, target, types.intp, types.intp), emit
