"""Sums within a vector: products of the four bytes in each lane, and lanes added up."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ggufkit.kernels.dot.bodies import WIDE, Dots
from ggufkit.kernels.lanes.emit import I32, LANES, shuffle
from ggufkit.kernels.lanes.types import f32x16, i32x16

__all__ = ["dot_bytes", "dot_wide", "emit_neighbours", "group_sums_2", "group_sums_4", "sum_pairs_8", "sum_pairs_16"]


def _dot(top: int) -> Any:
    @intrinsic
    def function(typingctx, sums, w, x):
        def emit(ctx, b, sig, args):
            dots = Dots(b, top, lambda: args[0])
            dots.add(args[1], args[2])
            return dots.total()

        return i32x16(i32x16, i32x16, i32x16), emit

    return function


dot_bytes, dot_wide = _dot(127), _dot(WIDE)
dot_bytes.__doc__ = "`sums + Σ w · x` of the four bytes in each lane; narrow weights (see `bodies`)."
dot_wide.__doc__ = "The same with wide weights."


def _group_sums(count: int) -> Any:
    @intrinsic
    def function(typingctx, a, b, c, d):
        def emit(ctx, builder, sig, args):
            a, b, c, d = args
            # Quarter q of the lanes now has the sums of a's, b's, c's and d's quarter q.
            sums = emit_neighbours(builder, emit_neighbours(builder, a, b), emit_neighbours(builder, c, d))
            if count == 2:
                sums = builder.add(sums, shuffle(builder, sums, sums, [k ^ 4 for k in range(LANES)]))
                order = [k // 2 + 8 * (k % 2) for k in range(8)] * 2
            else:
                order = [k // 4 + 4 * (k % 4) for k in range(LANES)]
            return shuffle(builder, sums, sums, order)

        return i32x16(i32x16, i32x16, i32x16, i32x16), emit

    function.__doc__ = (
        f"Sums of {LANES // count} neighbouring lanes each of four vectors of int32: {count} of a vector."
    )
    return function


def emit_neighbours(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Of each four lanes of x and of y two sums of neighbours: x0 + x1, x2 + x3, y0 + y1, y2 + y3."""
    at = [4 * (k // 4) + 2 * (k % 2) + (LANES if k % 4 > 1 else 0) for k in range(LANES)]
    return b.add(shuffle(b, x, y, at), shuffle(b, x, y, [k + 1 for k in at]))


group_sums_2, group_sums_4 = _group_sums(2), _group_sums(4)


def _sum_pairs(count: int) -> Any:
    @intrinsic
    def function(typingctx, vector):
        def emit(ctx, b, sig, args):
            value, left = args[0], count
            while left > 1:
                even, odd = (shuffle(b, value, value, list(range(first, left, 2))) for first in (0, 1))
                value, left = b.fadd(even, odd), left // 2
            return b.extract_element(value, ir.Constant(I32, 0))

        return types.float32(f32x16), emit

    function.__doc__ = f"The sum of the first {count} float32 lanes, a scalar: neighbours, then neighbouring sums, …"
    return function


sum_pairs_8, sum_pairs_16 = _sum_pairs(8), _sum_pairs(16)
