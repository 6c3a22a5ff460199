"""What lanes and products write LLVM code with: vectors of any element and length.

`b` is llvmlite's IRBuilder, a value an `ir.Value` of it. Nothing here is called from a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

__all__ = [
    "F32",
    "HALF",
    "I1",
    "I8",
    "I16",
    "I32",
    "I64",
    "LANES",
    "address",
    "broadcast",
    "call",
    "constant",
    "halves",
    "joined",
    "opaque",
    "quarters",
    "read",
    "same",
    "shuffle",
    "vector",
    "whole",
    "write",
]

LANES = 16

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32, HALF = ir.FloatType(), ir.HalfType()


def vector(element: ir.Type, count: int = LANES) -> ir.VectorType:
    return ir.VectorType(element, count)


def constant(element: ir.Type, numbers: Sequence[float]) -> ir.Constant:
    """A vector of these numbers."""
    return ir.Constant(vector(element, len(numbers)), [ir.Constant(element, number) for number in numbers])


def same(element: ir.Type, number: float, count: int = LANES) -> ir.Constant:
    """A vector of one number."""
    return constant(element, [number] * count)


def shuffle(b: ir.IRBuilder, x: ir.Value, y: ir.Value, order: list[int]) -> ir.Value:
    """Elements of x and then y, by number."""
    return b.shuffle_vector(x, y, constant(I32, order))


def broadcast(b: ir.IRBuilder, scalar: ir.Value, count: int = LANES) -> ir.Value:
    undefined = ir.Constant(vector(scalar.type, count), ir.Undefined)
    one = b.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return shuffle(b, one, undefined, [0] * count)


def halves(b: ir.IRBuilder, value: ir.Value) -> tuple[ir.Value, ir.Value]:
    count = value.type.count
    order = list(range(count))
    return shuffle(b, value, value, order[: count // 2]), shuffle(b, value, value, order[count // 2 :])


def quarters(b: ir.IRBuilder, value: ir.Value) -> list[ir.Value]:
    return [quarter for half in halves(b, value) for quarter in halves(b, half)]


def joined(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return shuffle(b, x, y, list(range(2 * x.type.count)))


def whole(b: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """A vector of so many parts, one, two, four …"""
    while len(parts) > 1:
        parts = [joined(b, *parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return parts[0]


def call(b: ir.IRBuilder, name: str, result: ir.Type, args: Sequence[ir.Value]) -> ir.Value:
    """Call an intrinsic of LLVM, or another function by its name."""
    kind = ir.FunctionType(result, [value.type for value in args])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), args)


def opaque(b: ir.IRBuilder, number: int) -> ir.Value:
    """An int64 that LLVM does not know, so that it does not write out a loop that often."""
    return b.call(ir.InlineAsm(ir.FunctionType(I64, [I64]), "", "=r,0"), [ir.Constant(I64, number)])


def address(ctx: Any, b: ir.IRBuilder, array_type: Any, array: ir.Value, index: ir.Value, kind: ir.Type) -> ir.Value:
    """A pointer to `kind` at `array[index]`."""
    data = ctx.make_array(array_type)(ctx, b, array).data
    return b.bitcast(b.gep(data, [index]), kind.as_pointer())


def read(b: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
    """What lies at any byte."""
    value = b.load(pointer)
    value.align = 1
    return value


def write(b: ir.IRBuilder, value: ir.Value, pointer: ir.Value) -> None:
    b.store(value, pointer).align = 1
