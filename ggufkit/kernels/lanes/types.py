"""The vector types, and Python's operators on them.

f32x16    <16 x float>    + - * /   < <= > >= == !=
i32x16    <16 x i32>      + - *  & | ^ << >>   < <= > >= == !=
mask16    <16 x i1>       & | ~
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from numba.core import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

from ggufkit.kernels.lanes.emit import F32, I1, I32, vector

__all__ = [
    "F32x16",
    "I32x16",
    "Mask16",
    "f32x16",
    "i32x16",
    "mask16",
]


class F32x16(types.Type):
    """Sixteen float32 lanes."""

    llvm = vector(F32)


class I32x16(types.Type):
    """Sixteen int32 lanes."""

    llvm = vector(I32)


class Mask16(types.Type):
    """Sixteen booleans."""

    llvm = vector(I1)


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
