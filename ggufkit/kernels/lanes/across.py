"""From one lane to another: reductions, masks as bits, look-ups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ggufkit.kernels.cpu import Body, choose
from ggufkit.kernels.jit import CPU_FEATURES
from ggufkit.kernels.lanes.arithmetic import compare
from ggufkit.kernels.lanes.emit import (
    F32,
    I1,
    I8,
    I16,
    I32,
    I64,
    LANES,
    call,
    constant,
    halves,
    joined,
    quarters,
    same,
    shuffle,
    vector,
)
from ggufkit.kernels.lanes.types import f32x16, i32x16, mask16

__all__ = [
    "all_lanes",
    "any_lane",
    "bits_mask",
    "bytes_i32",
    "first_bit",
    "first_lane",
    "highest",
    "lane_numbers",
    "lowest",
    "mask_bits",
    "permute",
    "sum_lanes",
    "swap_neighbours",
    "total",
]


def _fold(emit: Callable, summary: str) -> Any:
    """A reduction in four halvings; only for operations whose order does not matter."""

    @intrinsic
    def function(typingctx, vector):
        scalar = {f32x16: types.float32, i32x16: types.int32}[vector]

        def emit_fold(ctx, b, sig, args):
            value = args[0]
            while value.type.count > 1:
                value = emit(b, *halves(b, value))
            return b.extract_element(value, ir.Constant(I32, 0))

        return scalar(vector), emit_fold

    function.__doc__ = summary
    return function


highest = _fold(
    lambda b, x, y: b.select(compare(b, ">", x, y), x, y),
    "The largest lane, a scalar; which of 0.0 and -0.0 is open.",
)
lowest = _fold(
    lambda b, x, y: b.select(compare(b, "<", x, y), x, y),
    "The smallest lane, a scalar; which of 0.0 and -0.0 is open.",
)
total = _fold(lambda b, x, y: b.add(x, y), "The sum of int32 lanes, a scalar.")


@intrinsic
def sum_lanes(typingctx, vector):
    """The sum of float32 lanes, a scalar: halves added to halves, four times."""

    def emit(ctx, b, sig, args):
        value = args[0]
        while value.type.count > 1:
            value = b.fadd(*halves(b, value))
        return b.extract_element(value, ir.Constant(I32, 0))

    return types.float32(f32x16), emit


@intrinsic
def swap_neighbours(typingctx, x):
    """Lanes 1, 0, 3, 2, …"""

    def emit(ctx, b, sig, args):
        return shuffle(b, args[0], args[0], [k ^ 1 for k in range(LANES)])

    return f32x16(f32x16), emit


@intrinsic
def lane_numbers(typingctx):
    """0, 1, … 15 as int32 lanes."""

    def emit(ctx, b, sig, args):
        return constant(I32, range(LANES))

    return i32x16(), emit


@intrinsic
def mask_bits(typingctx, mask):
    """A mask as an int32 between 0 and 65535: lane k is bit k."""

    def emit(ctx, b, sig, args):
        return b.zext(b.bitcast(args[0], I16), I32)

    return types.int32(mask16), emit


@intrinsic
def first_bit(typingctx, bits):
    """Number of the lowest bit of an int32 that is set; 32 if none is."""

    def emit(ctx, b, sig, args):
        return b.zext(b.cttz(args[0], ir.Constant(I1, 0)), I64)

    return types.intp(types.int32), emit


@intrinsic
def first_lane(typingctx, mask):
    """Number of the first lane that is True; 16 if none is."""

    def emit(ctx, b, sig, args):
        bits = b.zext(b.bitcast(args[0], I16), I32)
        marked = b.or_(bits, ir.Constant(I32, 1 << LANES))
        return b.zext(b.cttz(marked, ir.Constant(I1, 1)), I64)

    return types.intp(mask16), emit


def _reduction(name: str, summary: str) -> Any:
    @intrinsic
    def function(typingctx, mask):
        def emit(ctx, b, sig, args):
            bits = b.bitcast(args[0], I16)
            none = ir.Constant(I16, 0 if name == "any" else -1)
            return b.icmp_unsigned("!=" if name == "any" else "==", bits, none)

        return types.boolean(mask16), emit

    function.__doc__ = summary
    return function


any_lane = _reduction("any", "True if at least one lane is.")
all_lanes = _reduction("all", "True if every lane is.")


@intrinsic
def bits_mask(typingctx, bits):
    """The mask whose lane k is bit k of an int32."""
    return mask16(types.int32), lambda ctx, b, sig, args: b.bitcast(b.trunc(args[0], I16), mask16.llvm)


@intrinsic
def bytes_i32(typingctx, low, high):
    """The sixteen signed bytes of two uint64, the lowest byte of `low` in lane 0."""

    def emit(ctx, b, sig, args):
        pair = ir.Constant(vector(I64, 2), ir.Undefined)
        for position, word in enumerate(args):
            pair = b.insert_element(pair, word, ir.Constant(I32, position))
        return b.sext(b.bitcast(pair, vector(I8)), i32x16.llvm)

    return i32x16(types.uint64, types.uint64), emit


# ---- Tables -----------------------------------------------------------------------------------------------------


def _permute_avx512(b: ir.IRBuilder, table: ir.Value, indices: ir.Value) -> ir.Value:
    return call(b, "llvm.x86.avx512.permvar.sf.512", f32x16.llvm, [table, indices])


def _permute_avx2(b: ir.IRBuilder, table: ir.Value, indices: ir.Value) -> ir.Value:
    """Each half of the indices in each half of the table; bit 3 says which is meant."""
    found = []
    for places in halves(b, indices):
        low, high = (call(b, "llvm.x86.avx2.permps", half.type, [half, places]) for half in halves(b, table))
        in_low = b.icmp_signed("<", places, same(I32, 8, 8))
        found.append(b.select(in_low, low, high))
    return joined(b, *found)


def _permute_neon(b: ir.IRBuilder, table: ir.Value, indices: ir.Value) -> ir.Value:
    """Bytes 4 i … 4 i + 3 of a table of 64."""
    rows = [b.bitcast(quarter, vector(I8, 16)) for quarter in quarters(b, table)]
    every, within = same(I32, 0x04040404, 4), same(I32, 0x03020100, 4)
    found = []
    for places in quarters(b, indices):
        of_bytes = b.bitcast(b.add(b.mul(places, every), within), vector(I8, 16))
        found.append(call(b, "llvm.aarch64.neon.tbl4.v16i8", of_bytes.type, [*rows, of_bytes]))
    low, high = joined(b, found[0], found[1]), joined(b, found[2], found[3])
    return b.bitcast(joined(b, low, high), f32x16.llvm)


def _permute_plain(b: ir.IRBuilder, table: ir.Value, indices: ir.Value) -> ir.Value:
    data = b.bitcast(cgutils.alloca_once_value(b, table), F32.as_pointer())
    found = ir.Constant(f32x16.llvm, ir.Undefined)
    for k in range(LANES):
        position = ir.Constant(I32, k)
        value = b.load(b.gep(data, [b.extract_element(indices, position)]))
        found = b.insert_element(found, value, position)
    return found


_permute = choose(
    "permute",
    [
        Body("avx512", "avx512f", _permute_avx512),
        Body("avx2", "avx2", _permute_avx2),
        Body("neon", "neon", _permute_neon),
        Body("plain", "", _permute_plain),
    ],
    CPU_FEATURES,
)


@intrinsic
def permute(typingctx, x, indices):
    """`x[indices]`, lane by lane: a table of sixteen float32. Each index must be 0 … 15."""
    return f32x16(f32x16, i32x16), lambda ctx, b, sig, args: _permute(b, *args)
