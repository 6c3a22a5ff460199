"""Tiles: TOKENS × PANELS vectors of running sums, sixteen rows of weights to a panel, a row of activations to a token.

A tile is a tuple of vectors, that of token t and panel p at PANELS t + p. Its operands lie like this:

    weights   int32 or float32, a panel after `panel` elements; 16 rows side by side at every step
    x         a token after `stride` elements

`at` is the index of the first of them. Packed bytes of weights are 4 columns of 16 rows a step; where tiles are paired,
two steps lie zipped: 8 columns of row 0, 8 columns of row 1, …

    smmla    [row 0, row 1] (2, 8)  ×  [token 0, token 1] (2, 8)  →  [r0·t0, r0·t1, r1·t0, r1·t1]

See `runtime.cpu.products` for who uses what.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ggufkit.kernels.dot.bodies import DOT, Dots, Words, columns_of_step, parts_of
from ggufkit.kernels.lanes.arithmetic import emit_multiply_add, emit_rolled
from ggufkit.kernels.lanes.emit import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    broadcast,
    call,
    halves,
    joined,
    opaque,
    read,
    shuffle,
    vector,
    whole,
    write,
)
from ggufkit.kernels.lanes.memory import transposed
from ggufkit.kernels.lanes.types import f32x16, i32x16

__all__ = [
    "PANELS",
    "TOKENS",
    "add_product",
    "add_scaled",
    "add_tile",
    "dot_tile",
    "load_tile",
    "pack_steps",
    "store_tile",
    "subtract_scaled",
    "zero_tile",
]

TOKENS, PANELS = DOT.tokens, DOT.panels


_SIZE = TOKENS * PANELS
f32_tile, i32_tile = (types.containers.UniTuple(kind, _SIZE) for kind in (f32x16, i32x16))


class Operand:
    """Addresses of a tile's operand: an array, the index of its first element, a stride, and one between steps."""

    def __init__(
        self,
        ctx: Any,
        b: ir.IRBuilder,
        array_type: Any,
        array: ir.Value,
        at: ir.Value,
        stride: ir.Value,
        each: int = 1,
    ):
        self.b, self.at, self.stride, self.each = b, at, stride, each
        self.data = ctx.make_array(array_type)(ctx, b, array).data

    def moved(self, by: ir.Value) -> Operand:
        other = copy.copy(self)
        other.at = self.b.add(self.at, by)
        return other

    def pointer(self, which: int, step: int, kind: ir.Type) -> ir.Value:
        b = self.b
        index = b.add(self.at, b.mul(self.stride, ir.Constant(I64, which)))
        if step:
            index = b.add(index, ir.Constant(I64, step * self.each))
        return b.bitcast(b.gep(self.data, [index]), kind.as_pointer())

    def vector(self, which: int, step: int, kind: Any) -> ir.Value:
        return read(self.b, self.pointer(which, step * LANES, kind.llvm))

    def splat(self, which: int, step: int, element: ir.Type) -> ir.Value:
        return broadcast(self.b, read(self.b, self.pointer(which, step, element)))


def as_tile(b: ir.IRBuilder, kind: Any, vectors: list[ir.Value]) -> ir.Value:
    tile = ir.Constant(ir.ArrayType(kind.dtype.llvm, len(vectors)), ir.Undefined)
    for i, sums in enumerate(vectors):
        tile = b.insert_value(tile, sums, i)
    return tile


@intrinsic
def zero_tile(typingctx):
    """A tile of zeros."""
    return f32_tile(), lambda ctx, b, sig, args: as_tile(b, f32_tile, [ir.Constant(f32x16.llvm, None)] * _SIZE)


@functools.cache
def pack_steps(group: int, top: int) -> Any:
    """The steps of a panel from 64 columns of 16 rows, as an intrinsic; `group` columns of them lie together."""
    run = group // columns_of_step(top)  # steps

    @intrinsic
    def function(typingctx, levels, at, stride, weights, to, jump):
        """int32 arrays; a row of `levels` after `stride` elements, a group of `weights` after `jump`."""
        i = types.intp

        def emit(ctx, b, sig, args):
            source = Operand(ctx, b, sig.args[0], *args[:3])
            target = Operand(ctx, b, sig.args[3], *args[3:6])
            columns = transposed(b, I32, lambda k, first, count: read(b, source.pointer(k, first, vector(I32, count))))
            for step, rows in enumerate(_steps(b, columns, top)):
                write(b, rows, target.pointer(step // run, step % run * LANES, i32x16.llvm))
            return ctx.get_dummy_value()

        return types.void(levels, i, i, weights, i, i), emit

    return function


def _steps(b: ir.IRBuilder, columns: Iterator[ir.Value], top: int) -> Iterator[ir.Value]:
    """Four columns of sixteen rows each, as a tile has its steps."""
    if DOT.paired:
        for x, y in zip(columns, columns, strict=True):
            yield from halves(b, shuffle(b, x, y, _ZIPPED))
    elif columns_of_step(top) == 2:
        for four in columns:
            yield from _as_words(b, four)
    else:
        yield from columns


def _as_words(b: ir.IRBuilder, four: ir.Value) -> list[ir.Value]:
    """Two signed words in each lane, twice, of its four signed bytes."""
    single = b.bitcast(four, vector(I8, 4 * LANES))
    found = []
    for first in (0, 2):
        two = shuffle(b, single, single, [4 * k + first + i for k in range(LANES) for i in range(2)])
        found.append(b.bitcast(b.sext(two, vector(I16, 2 * LANES)), i32x16.llvm))
    return found


_ZIPPED = [position + LANES * which for position in range(LANES) for which in (0, 1)]


def paired_sums(
    b: ir.IRBuilder, w: Operand, x: Operand, group: int, tokens: int, start: list[ir.Value]
) -> list[ir.Value]:
    """Sums of `tokens` and one panel by smmla; `start` of each token, as i32x16."""
    four = vector(I32, 4)
    sums = [[ir.Constant(four, None)] * (LANES // 2) for _ in range(tokens // 2)]  # of two tokens, two rows each
    for step in range(0, group // 4, 2):
        rows = [read(b, w.pointer(0, step * LANES + 4 * k, vector(I8, 16))) for k in range(LANES // 2)]
        for t, sums_of in enumerate(sums):
            pair = _two_tokens(b, x, 2 * t, step)
            for k, row in enumerate(rows):
                sums_of[k] = call(b, "llvm.aarch64.neon.smmla.v4i32.v16i8", four, [sums_of[k], row, pair])
    totals = []
    for sums_of in sums:
        for order in ([0, 2, 4, 6], [1, 3, 5, 7]):
            fours = [shuffle(b, *sums_of[k : k + 2], order) for k in range(0, LANES // 2, 2)]
            totals.append(joined(b, joined(b, *fours[:2]), joined(b, *fours[2:])))
    return [b.add(total, one) for total, one in zip(totals, start, strict=True)] if start else totals


def _two_tokens(b: ir.IRBuilder, x: Operand, token: int, step: int) -> ir.Value:
    """Eight columns, those of two steps, of a token and of the next."""
    four = vector(I32, 4)
    if x.each == 1:
        first, second = (read(b, x.pointer(t, step - step % 4, four)) for t in (token, token + 1))
        order = [step % 4, step % 4 + 1, step % 4 + 4, step % 4 + 5]
    else:
        first, second = (read(b, x.pointer(0, k, four)) for k in (step, step + 1))
        order = [token, token + 4, token + 1, token + 5]
    return b.bitcast(shuffle(b, first, second, order), vector(I8, 16))


def sums_of_rounds(
    b: ir.IRBuilder, rounds: int, begin: list[ir.Value], add: Callable[[ir.Value, Any], list[list[ir.Value]]]
) -> list[ir.Value]:
    """What vectors of int32 become in a loop of so many rounds of `add(round, sums)`.

    `sums`, and what `add` makes of them: for each vector a list of registers. LLVM leaves the loop as it is.
    """
    parts = [parts_of(b, vector, DOT.lanes) for vector in begin]
    end = opaque(b, rounds)
    before, body, after = b.block, b.append_basic_block("steps"), b.append_basic_block("steps.end")
    b.branch(body)
    b.position_at_end(body)
    turn, sums = b.phi(I64), [[b.phi(part.type) for part in some] for some in parts]
    turn.add_incoming(ir.Constant(I64, 0), before)
    emit_rolled(b)
    found = add(turn, sums)
    following = b.add(turn, ir.Constant(I64, 1))
    turn.add_incoming(following, b.block)
    for phis, first, then in zip(sums, parts, found, strict=True):
        for phi, *values in zip(phis, first, then, strict=True):
            phi.add_incoming(values[0], before)
            phi.add_incoming(values[1], b.block)
    b.cbranch(b.icmp_unsigned("<", following, end), body, after)
    b.position_at_end(after)
    return [whole(b, values) for values in found]


def in_all_lanes(b: ir.IRBuilder, x: Operand, token: int, step: int) -> ir.Value:
    """Four columns of a token. An instruction that takes them from any lane of a vector saves three reads of four."""
    if not DOT.running.by_lane:
        return x.splat(token, step, I32)
    which, first, lane = (token, step - step % 4, step % 4) if x.each == 1 else (0, step, token)
    fours = read(b, x.pointer(which, first, vector(I32, 4)))
    return shuffle(b, fours, fours, [lane] * LANES)


def _looped_sums(b: ir.IRBuilder, w: Operand, x: Operand, group: int, top: int, begin: list[Any]) -> list[ir.Value]:
    """The sums of a tile, in loops over steps.

    Of one piece of code LLVM makes all steps of one token, then those of the next, with the weights on the stack.
    """
    columns = columns_of_step(top)
    running = Words if columns == 2 else DOT.running
    sums = [Dots(b, top, begin[t], running) for t in range(TOKENS) for _ in range(PANELS)]
    parts = [part for one in sums for part in one.parts]
    steps, held = group // columns, min(parts[0].most, group // columns)

    def add(first: ir.Value, count: int) -> None:
        operands = []
        for k in range(count):
            step = b.add(first, ir.Constant(I64, k))
            rows = w.moved(b.mul(step, ir.Constant(I64, LANES)))
            operands.append(([rows.vector(p, 0, i32x16) for p in range(PANELS)], x.moved(step)))
        for t in range(TOKENS):
            for levels, tokens in operands:
                four = tokens.splat(t, 0, I32)
                for p in range(PANELS):
                    sums[t * PANELS + p].add(levels[p], four)

    def loop(first: int, count: int, each: int, name: str, kind: ir.Type) -> None:
        """`count` times `each` steps, with what parts keep under `name` from one time to the next."""
        end = opaque(b, first + count * each)
        before, body, after = b.block, b.append_basic_block("steps"), b.append_basic_block("steps.end")
        b.branch(body)
        b.position_at_end(body)
        step, kept = b.phi(I64), [b.phi(kind) for _ in parts]
        step.add_incoming(ir.Constant(I64, first), before)
        for part, value in zip(parts, kept, strict=True):
            value.add_incoming(ir.Constant(kind, None), before)
            setattr(part, name, value)
        emit_rolled(b)
        add(step, each)
        following = b.add(step, ir.Constant(I64, each))
        step.add_incoming(following, b.block)
        for part, value in zip(parts, kept, strict=True):
            value.add_incoming(getattr(part, name), b.block)
        b.cbranch(b.icmp_unsigned("<", following, end), body, after)
        b.position_at_end(after)

    if held <= 2:
        loop(0, steps // held, held, "sums", parts[0].kind)
    else:
        for first in range(0, steps, held):
            loop(first, min(held, steps - first), 1, "pairs", vector(I16, 2 * parts[0].kind.count))
            for part in parts:
                part.widen_pairs()
    return [one.total() for one in sums]


@functools.cache
def dot_tile(group: int, top: int, starts: bool, tokens: int = TOKENS, panels: int = PANELS, apart: int = 1) -> Any:
    """Sums of products over a group of columns, as an intrinsic.

    Parameters
    ----------
    group : columns, 16 or 32.
    top : of the weights, see `bodies`.
    starts : whether the sums of token t begin with `start[t]`, or with 0 and the last three arguments are not read.
    tokens, panels : its shape.
    apart : elements of x between steps; 1 unless tokens lie side by side (see `few`), and `x_stride` is 1. Then a step
        has four columns on any CPU.
    """
    tile = types.containers.UniTuple(i32x16, tokens * panels)

    @intrinsic
    def function(typingctx, weights, at, panel, x, x_at, x_stride, start, start_at, start_stride):
        """`start[t] + weights · x` over the columns. Packed bytes in int32; start: int32, one for each token."""
        i = types.intp

        def emit(ctx, b, sig, args):
            w = Operand(ctx, b, sig.args[0], *args[0:3])
            x = Operand(ctx, b, sig.args[3], *args[3:6], apart)
            start = Operand(ctx, b, sig.args[6], *args[6:9])
            if DOT.paired:
                begin = [start.splat(t, 0, I32) for t in range(tokens)] if starts else []
                return as_tile(b, tile, paired_sums(b, w, x, group, tokens, begin))
            begin = [(lambda t=t: start.splat(t, 0, I32)) if starts else None for t in range(tokens)]
            if DOT.rolled and apart == 1:
                return as_tile(b, tile, _looped_sums(b, w, x, group, top, begin))
            sums = [[Dots(b, top, begin[t]) for _ in range(panels)] for t in range(tokens)]
            for step in range(group // 4):
                levels = [w.vector(p, step, i32x16) for p in range(panels)]
                for t in range(tokens):
                    four = in_all_lanes(b, x, t, step)
                    for p in range(panels):
                        sums[t][p].add(levels[p], four)
            return as_tile(b, tile, [sums[t][p].total() for t in range(tokens) for p in range(panels)])

        return tile(weights, i, i, x, i, i, start, i, i), emit

    return function


@intrinsic
def add_scaled(typingctx, totals, dots, scales, at, panel, x, x_at, x_stride):
    """`totals + dots · (scales · x[t])`, with the scales of 16 rows a panel and the scale of each token."""
    i = types.intp

    def emit(ctx, b, sig, args):
        s = Operand(ctx, b, sig.args[2], *args[2:5])
        x = Operand(ctx, b, sig.args[5], *args[5:8])
        rows = [s.vector(p, 0, f32x16) for p in range(PANELS)]
        sums = []
        for t in range(TOKENS):
            scale = x.splat(t, 0, F32)
            for p in range(PANELS):
                k = PANELS * t + p
                dots = b.sitofp(b.extract_value(args[1], k), f32x16.llvm)
                sums.append(emit_multiply_add(b, dots, b.fmul(rows[p], scale), b.extract_value(args[0], k)))
        return as_tile(b, f32_tile, sums)

    return f32_tile(f32_tile, i32_tile, scales, i, i, x, i, i), emit


def _multiply_add(negative: bool) -> Any:
    @intrinsic
    def function(typingctx, totals, weights, at, panel, x, x_at, x_stride):
        i = types.intp

        def emit(ctx, b, sig, args):
            w = Operand(ctx, b, sig.args[1], *args[1:4])
            x = Operand(ctx, b, sig.args[4], *args[4:7])
            rows = [w.vector(p, 0, f32x16) for p in range(PANELS)]
            rows = [b.fneg(row) for row in rows] if negative else rows
            sums = []
            for t in range(TOKENS):
                one = x.splat(t, 0, F32)
                for p in range(PANELS):
                    sums.append(emit_multiply_add(b, rows[p], one, b.extract_value(args[0], PANELS * t + p)))
            return as_tile(b, f32_tile, sums)

        return f32_tile(f32_tile, weights, i, i, x, i, i), emit

    sign = "-" if negative else "+"
    function.__doc__ = f"`totals {sign} weights · x[t]` of one column; float32 weights of 16 rows a panel."
    return function


subtract_scaled, add_product = _multiply_add(negative=True), _multiply_add(negative=False)


@intrinsic
def store_tile(typingctx, array, at, stride, tile):
    """Write a tile to a float32 array: token t, panel p to the 16 elements from `array[at + stride t + 16 p]` on."""

    def emit(ctx, b, sig, args):
        out = Operand(ctx, b, sig.args[0], *args[:3])
        for t in range(TOKENS):
            for p in range(PANELS):
                value = b.extract_value(args[3], PANELS * t + p)
                write(b, value, out.pointer(t, p * LANES, f32x16.llvm))
        return ctx.get_dummy_value()

    return types.void(array, types.intp, types.intp, f32_tile), emit


@intrinsic
def load_tile(typingctx, array, at, stride):
    """The tile that `store_tile` wrote there."""

    def emit(ctx, b, sig, args):
        other = Operand(ctx, b, sig.args[0], *args)
        return as_tile(b, f32_tile, [other.vector(t, p, f32x16) for t in range(TOKENS) for p in range(PANELS)])

    return f32_tile(array, types.intp, types.intp), emit


@intrinsic
def add_tile(typingctx, tile, array, at, stride):
    """`tile` and the one that `store_tile` wrote there, added."""

    def emit(ctx, b, sig, args):
        other = Operand(ctx, b, sig.args[1], *args[1:4])
        sums = []
        for t in range(TOKENS):
            for p in range(PANELS):
                sums.append(b.fadd(b.extract_value(args[0], PANELS * t + p), other.vector(t, p, f32x16)))
        return as_tile(b, f32_tile, sums)

    return f32_tile(f32_tile, array, types.intp, types.intp), emit
