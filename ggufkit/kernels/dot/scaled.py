"""Products over super-blocks whose groups have whole numbers as scales.

    Σ over groups: scale · Σ level · x          scales -128 … 127, x of eight bits

stays a whole number, exact in int32, over all 256 columns: one multiplication with floats for each super-block, not for
each group. Scales come as **factors**, int32 lanes:

    body          factor                a group's products
    maddubs       the scale, twice      pmaddwd adds neighbours, multiplied by it and not by one
    the others    the scale             their sum is multiplied

`dot_unit` takes a row of weights at a time, with levels as they are stored, from 0 on. In tiles (see `tiles`) levels
have their sign. x86 multiplies bytes of which one kind has none: these are the activations, with 128 added. What that
adds is the same for all of them, a number of each row that sums start with.

Where wide levels have no room for pmaddubsw, many rows meet many activations as `pairs`; a few go through words.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ggufkit.kernels.dot.bodies import DOT, WIDE, Maddubs, parts_of
from ggufkit.kernels.dot.bytes import emit_prefetch
from ggufkit.kernels.dot.sums import emit_neighbours
from ggufkit.kernels.dot.tiles import PANELS, TOKENS, Operand, as_tile, in_all_lanes, paired_sums, sums_of_rounds
from ggufkit.kernels.lanes.arithmetic import emit_multiply_add
from ggufkit.kernels.lanes.emit import (
    F32,
    I8,
    I32,
    I64,
    LANES,
    address,
    broadcast,
    halves,
    read,
    same,
    shuffle,
    vector,
    whole,
)
from ggufkit.kernels.lanes.types import i32x16

__all__ = [
    "asks_ahead",
    "dot_unit",
    "factors_of",
    "fold_units",
    "less",
    "load_eights",
    "start_of",
    "sum_group",
    "tile_unit",
    "turn_bytes",
    "turns",
]

UNIT = 256  # columns

_PAIRS = issubclass(DOT.running, Maddubs)  # whether a factor is two int16


def turns(top: int) -> bool:
    """Whether tiles of levels -top … top want activations with 128 added."""
    return DOT.running.one_unsigned and not (_PAIRS and top == WIDE)


def asks_ahead() -> bool:
    """Whether tiles have registers left to ask for bytes with each step; else these are asked for before."""
    return DOT.lanes == LANES


@intrinsic
def factors_of(typingctx, scales):
    """Scales of sixteen rows or groups, int32, as factors."""

    def emit(ctx, b, sig, args):
        if not _PAIRS:
            return args[0]
        return b.or_(b.and_(args[0], same(I32, 0xFFFF)), b.shl(args[0], same(I32, 16)))

    return i32x16(i32x16), emit


@intrinsic
def turn_bytes(typingctx, levels):
    """64 signed bytes with 128 added."""
    return i32x16(i32x16), lambda ctx, b, sig, args: b.xor(args[0], same(I32, 0x80808080 - (1 << 32)))


def _every_byte(b: ir.IRBuilder, number: int) -> ir.Value:
    return same(I8, number, 4 * LANES)


def less(offset: int) -> Any:
    """An intrinsic: the bytes of each word, less `offset`."""

    @intrinsic
    def function(typingctx, words):
        def emit(ctx, b, sig, args):
            found = []
            for i in range(sig.return_type.count):
                value = b.bitcast(b.extract_value(args[0], i), vector(I8, 4 * LANES))
                found.append(b.bitcast(b.sub(value, _every_byte(b, offset)), i32x16.llvm))
            return as_tile(b, sig.return_type, found)

        return words(words), emit

    return function


# ---- A row at a time ----------------------------------------------------------------------------------------------


def start_of(offset: int) -> Any:
    """An intrinsic: what 64 levels with `offset` added give too much; sums of `dot_unit` start with it."""

    @intrinsic
    def function(typingctx, x):
        def emit(ctx, b, sig, args):
            found = []
            for part in parts_of(b, args[0], DOT.lanes):
                offsets = b.bitcast(same(I8, offset, 4 * DOT.lanes), part.type)
                running = DOT.running(b, DOT.lanes, min(offset, 127), None)
                running.most = 2
                running.add(offsets, part)
                sums = running.pairs if isinstance(running, Maddubs) else running.total()
                found.append(b.bitcast(b.neg(sums), part.type))
            return whole(b, found)

        return i32x16(i32x16), emit

    return function


@functools.cache
def dot_unit(group: int, top: int, starts: bool) -> Any:
    """Products of 256 levels 0 … `top`, or WIDE ones, and activations, as an intrinsic: sums in lanes.

    Groups of 16 lie one after the other, four lanes each; of groups of 32 eight columns each, so that the lanes of all
    four vectors have the same group. `starts`: whether there is what sums start with, for each vector or for all four.
    """

    @intrinsic
    def function(typingctx, levels, x, at, start, start_at, factors):
        """Bytes of `levels` from 0 on, of `x` from `x[at]` on; `start`: int32; factors: an i32x16, of each group."""
        i = types.intp

        def emit(ctx, b, sig, args):
            levels, x, at, start, start_at, factors = args
            operands = []
            for part in range(UNIT // 64):
                w = read(b, address(ctx, b, sig.args[0], levels, ir.Constant(I64, 64 * part), i32x16.llvm))
                place = b.add(at, ir.Constant(I64, 64 * part))
                operands.append((w, read(b, address(ctx, b, sig.args[1], x, place, i32x16.llvm))))
            sums: list[ir.Value] = []
            for part, some in enumerate([operands] if group == 32 else [[one] for one in operands]):
                order = [k // 2 if group == 32 else 4 * part + k // 4 for k in range(LANES)]
                by, begin = shuffle(b, factors, factors, order), None
                if starts:
                    place = b.add(start_at, ir.Constant(I64, LANES * part))
                    begin = read(b, address(ctx, b, sig.args[3], start, place, i32x16.llvm))
                found = _dots_by(b, top, some, by, begin)
                sums = [b.add(x, y) for x, y in zip(sums, found, strict=True)] if sums else found
            return whole(b, sums)

        return i32x16(levels, x, i, start, i, i32x16), emit

    return function


def _dots_by(
    b: ir.IRBuilder, top: int, operands: list[tuple[ir.Value, ir.Value]], by: ir.Value, begin: ir.Value | None
) -> list[ir.Value]:
    """Sums of some vectors of products, multiplied by factors."""
    found = []
    for part, factor in enumerate(parts_of(b, by, DOT.lanes)):
        start = functools.partial(operator.getitem, parts_of(b, begin, DOT.lanes), part) if begin else None
        running = DOT.running(b, DOT.lanes, top, start, factor)
        if start:
            running.most = len(operands) + 1  # so that what it starts with comes before factors
        for w, x in operands:
            running.add(parts_of(b, w, DOT.lanes)[part], parts_of(b, x, DOT.lanes)[part])
        found.append(running.total())
    return found


def _elements(b: ir.IRBuilder, which: int, *vectors: ir.Value) -> list[ir.Value]:
    return [b.extract_element(value, ir.Constant(I32, which)) for value in vectors]


@intrinsic
def fold_units(typingctx, total, sums, at, factors, k, scales, j):
    """`total` and four products, one after the other: sums of the lanes of a vector times a factor and a scale.

    Vectors of int32 from `sums[at]` on; float32 from `factors[k]` and `scales[j]` on.
    """
    i = types.intp

    def emit(ctx, b, sig, args):
        total, sums, at, factors, k, scales, j = args
        vectors = Operand(ctx, b, sig.args[1], sums, at, ir.Constant(I64, LANES))
        x, y, z, w = (vectors.vector(u, 0, i32x16) for u in range(4))
        four = emit_neighbours(b, emit_neighbours(b, x, y), emit_neighbours(b, z, w))  # in each quarter
        low, high = halves(b, four)
        low, high = halves(b, b.add(low, high))
        products = b.sitofp(b.add(low, high), vector(F32, 4))
        d = read(b, address(ctx, b, sig.args[3], factors, k, products.type))
        by = b.fmul(d, read(b, address(ctx, b, sig.args[5], scales, j, products.type)))
        for u in range(4):
            one, scale, before = (broadcast(b, value) for value in (*_elements(b, u, products, by), total))
            total = b.extract_element(emit_multiply_add(b, one, scale, before), ir.Constant(I32, 0))
        return total

    return types.float32(types.float32, sums, i, factors, i, scales, i), emit


@intrinsic
def load_eights(typingctx, array, at):
    """Of 128 bytes the even and the odd eights, each 64 bytes."""

    def emit(ctx, b, sig, args):
        array, at = args
        x, y = (
            read(b, address(ctx, b, sig.args[0], array, b.add(at, ir.Constant(I64, k)), i32x16.llvm)) for k in (0, 64)
        )
        orders = ([4 * (k // 2) + k % 2 + more for k in range(LANES)] for more in (0, 2))
        return as_tile(b, sig.return_type, [shuffle(b, x, y, order) for order in orders])

    return types.containers.UniTuple(i32x16, 2)(array, types.intp), emit


# ---- Sixteen rows at a time ---------------------------------------------------------------------------------------


@functools.cache
def sum_group(group: int, top: int) -> Any:
    """What 128 in place of each activation of a group gives less, as an intrinsic: `total - 128 · factor · Σ level`."""

    @intrinsic
    def function(typingctx, total, weights, at, factors):
        def emit(ctx, b, sig, args):
            total, weights, at, factors = args
            w = Operand(ctx, b, sig.args[1], weights, at, ir.Constant(I64, LANES))
            runnings = [DOT.running(b, DOT.lanes, top, None, by) for by in parts_of(b, factors, DOT.lanes)]
            for running in runnings:
                running.most = group
            bytes_, ones = vector(I8, 4 * LANES), b.bitcast(same(I8, 1, 4 * LANES), i32x16.llvm)
            levels = [b.bitcast(w.vector(step, 0, i32x16), bytes_) for step in range(group // 4)]
            fit = 128 // top  # levels whose sum is a byte
            for first in range(0, len(levels), fit):
                some = b.bitcast(functools.reduce(b.add, levels[first : first + fit]), i32x16.llvm)
                for running, *operands in zip(
                    runnings, *(parts_of(b, x, DOT.lanes) for x in (ones, some)), strict=True
                ):
                    running.add(*operands)
            found = whole(b, [running.total() for running in runnings])
            return b.sub(total, b.shl(found, same(I32, 7)))

        return i32x16(i32x16, weights, types.intp, i32x16), emit

    return function


@functools.cache
def tile_unit(group: int, top: int, tokens: int = TOKENS, panels: int = PANELS, apart: int = 1, ahead: int = 0) -> Any:
    """Sums of products over 256 columns, as an intrinsic.

    Parameters
    ----------
    group : columns that share a scale, 16 or 32.
    top : of the levels -top … top, or WIDE.
    tokens, panels : its shape.
    apart : see `tiles.dot_tile`.
    ahead : bytes to ask for, some with each step: what is asked for at once keeps the core waiting.
    """
    tile = types.containers.UniTuple(i32x16, tokens * panels)
    # Steps of four columns in a round of the loop, and rounds of a group; more of them do not fit sixteen registers.
    each = group // 4
    if _PAIRS:
        each = 1 if top == WIDE else min(2, 32767 // (2 * 255 * top))
    rounds = group // 4 // each

    @intrinsic
    def function(
        typingctx,
        weights,
        at,
        panel,
        x,
        x_at,
        x_stride,
        factors,
        f_at,
        f_panel,
        starts,
        s_at,
        s_panel,
        data,
        soon,
    ):
        """Levels in int32, a panel after `panel`; of each group the factors of sixteen rows.

        starts : int32 of sixteen rows, if activations are turned.
        data : bytes, of which `ahead` are asked for from `data[soon]` on.
        """
        i = types.intp

        def emit(ctx, b, sig, args):
            w = Operand(ctx, b, sig.args[0], *args[0:3])
            x = Operand(ctx, b, sig.args[3], *args[3:6], apart)
            factors = Operand(ctx, b, sig.args[6], *args[6:9])
            starts = Operand(ctx, b, sig.args[9], *args[9:12])
            begin = [ir.Constant(i32x16.llvm, None)] * (tokens * panels)
            if turns(top):
                begin = [starts.vector(p, 0, i32x16) for p in range(panels)] * tokens

            def add(turn: ir.Value, sums: list[list[ir.Value]]) -> list[list[ir.Value]]:
                step = b.mul(turn, ir.Constant(I64, each))
                here, there = (one.moved(b.mul(step, ir.Constant(I64, k))) for one, k in ((w, LANES), (x, apart)))
                by = factors.moved(b.mul(b.udiv(turn, ir.Constant(I64, rounds)), ir.Constant(I64, LANES)))
                some = ahead // (UNIT // 4 // each)
                for line in range(0, some, 64):
                    place = b.add(args[13], b.add(b.mul(turn, ir.Constant(I64, some)), ir.Constant(I64, line)))
                    emit_prefetch(b, address(ctx, b, sig.args[12], args[12], place, I8))
                if DOT.paired:
                    return _paired(b, here, there, by, group, tokens, panels, sums)
                return _rows(b, here, there, by, each, tokens, panels, sums, top)

            return as_tile(b, tile, sums_of_rounds(b, UNIT // 4 // each, begin, add))

        return tile(weights, i, i, x, i, i, factors, i, i, starts, i, i, data, i), emit

    return function


def _rows(
    b: ir.IRBuilder,
    w: Operand,
    x: Operand,
    factors: Operand,
    each: int,
    tokens: int,
    panels: int,
    sums: list[list[ir.Value]],
    top: int,
) -> list[list[ir.Value]]:
    """`sums` and the products of so many steps."""
    levels = [[parts_of(b, w.vector(p, step, i32x16), DOT.lanes) for step in range(each)] for p in range(panels)]
    scales = [parts_of(b, factors.vector(p, 0, i32x16), DOT.lanes) for p in range(panels)]
    found: list[list[ir.Value]] = []
    for t in range(tokens):
        fours = [parts_of(b, in_all_lanes(b, x, t, step), DOT.lanes)[0] for step in range(each)]
        for p in range(panels):
            found.append([])
            for part, total in enumerate(sums[t * panels + p]):
                ones = [vectors[part] for vectors in levels[p]]
                running = DOT.running(b, DOT.lanes, top, None, scales[p][part])
                running.most = each
                for one, four in zip(ones, fours, strict=True):
                    running.add(*((four, one) if turns(top) else (one, four)))
                found[-1].append(b.add(total, running.total()))
    return found


def _paired(
    b: ir.IRBuilder,
    w: Operand,
    x: Operand,
    factors: Operand,
    group: int,
    tokens: int,
    panels: int,
    sums: list[list[ir.Value]],
) -> list[list[ir.Value]]:
    """The same of a group by smmla; a tile has one panel."""
    by = parts_of(b, factors.vector(0, 0, i32x16), DOT.lanes)
    found = []
    for total, dots in zip(sums, paired_sums(b, w, x, group, tokens, []), strict=True):
        vectors = zip(total, parts_of(b, dots, DOT.lanes), by, strict=True)
        found.append([b.add(one, b.mul(dot, factor)) for one, dot, factor in vectors])
    return found
