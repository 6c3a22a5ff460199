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

import functools
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ggufkit.kernels.cpu import Body, choose
from ggufkit.kernels.dot.bodies import DOT, WIDE, Dots
from ggufkit.kernels.jit import CPU_FEATURES
from ggufkit.kernels.lanes.arithmetic import emit_multiply_add
from ggufkit.kernels.lanes.emit import (
    F32,
    I8,
    I32,
    I64,
    LANES,
    address,
    broadcast,
    call,
    halves,
    joined,
    read,
    shuffle,
    vector,
    write,
)
from ggufkit.kernels.lanes.memory import transposed
from ggufkit.kernels.lanes.types import f32x16, i32x16

__all__ = [
    "FEW_COLUMNS",
    "FEW_ROWS",
    "PANELS",
    "TOGETHER",
    "TOKENS",
    "add_few",
    "add_product",
    "add_scaled",
    "add_tile",
    "dot_bytes",
    "dot_tile",
    "dot_wide",
    "group_sums_2",
    "group_sums_4",
    "load_few",
    "pack_steps",
    "store_few",
    "store_tile",
    "subtract_scaled",
    "sum_pairs_8",
    "sum_pairs_16",
    "zero_tile",
]

TOKENS, PANELS = DOT.tokens, DOT.panels


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
            sums = _neighbours(builder, _neighbours(builder, a, b), _neighbours(builder, c, d))
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


def _neighbours(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
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


@intrinsic
def sum_rows(typingctx, array, at, stride):
    """`sum_pairs_16` of sixteen vectors, the first at `array[at]` and each `stride` elements after the one before."""

    def emit(ctx, b, sig, args):
        rows = _Operand(ctx, b, sig.args[0], *args)
        vectors = [rows.vector(k, 0, f32x16) for k in range(LANES)]
        # Within quarters, which instructions do not leave: of four rows the sums of each quarter lie side by side.
        for _ in range(2):
            vectors = [_pair_sums(b, x, y, 1) for x, y in zip(vectors[::2], vectors[1::2], strict=True)]
        for _ in range(2):
            vectors = [_pair_sums(b, x, y, 4) for x, y in zip(vectors[::2], vectors[1::2], strict=True)]
        return vectors[0]

    return f32x16(array, types.intp, types.intp), emit


def _pair_sums(b: ir.IRBuilder, x: ir.Value, y: ir.Value, run: int) -> ir.Value:
    """Sums of neighbours, of runs of 1 or 4 lanes: within every quarter x's and y's, or of all quarters."""
    if run == 1:
        even = [4 * (k // 4) + 2 * (k % 2) + (LANES if k % 4 > 1 else 0) for k in range(LANES)]
    else:
        even = [k % 4 + 8 * (k // 4) for k in range(LANES)]
    return b.fadd(shuffle(b, x, y, even), shuffle(b, x, y, [k + run for k in even]))


_SIZE = TOKENS * PANELS
f32_tile, i32_tile = (types.containers.UniTuple(kind, _SIZE) for kind in (f32x16, i32x16))


class _Operand:
    """Addresses of a tile's operand: an array, the index of its first element, and a stride."""

    def __init__(self, ctx: Any, b: ir.IRBuilder, array_type: Any, array: ir.Value, at: ir.Value, stride: ir.Value):
        self.b, self.at, self.stride = b, at, stride
        self.data = ctx.make_array(array_type)(ctx, b, array).data

    def pointer(self, which: int, step: int, kind: ir.Type) -> ir.Value:
        b = self.b
        index = b.add(self.at, b.mul(self.stride, ir.Constant(I64, which)))
        if step:
            index = b.add(index, ir.Constant(I64, step))
        return b.bitcast(b.gep(self.data, [index]), kind.as_pointer())

    def vector(self, which: int, step: int, kind: Any) -> ir.Value:
        return read(self.b, self.pointer(which, step * LANES, kind.llvm))

    def splat(self, which: int, step: int, element: ir.Type) -> ir.Value:
        return broadcast(self.b, read(self.b, self.pointer(which, step, element)))


def _tile(b: ir.IRBuilder, kind: Any, vectors: list[ir.Value]) -> ir.Value:
    tile = ir.Constant(ir.ArrayType(kind.dtype.llvm, len(vectors)), ir.Undefined)
    for i, sums in enumerate(vectors):
        tile = b.insert_value(tile, sums, i)
    return tile


@intrinsic
def zero_tile(typingctx):
    """A tile of zeros."""
    return f32_tile(), lambda ctx, b, sig, args: _tile(b, f32_tile, [ir.Constant(f32x16.llvm, None)] * _SIZE)


@functools.cache
def pack_steps(group: int) -> Any:
    """Sixteen steps of a panel from 64 columns of 16 rows, as an intrinsic; `group` columns of them lie together."""
    run = group // 4  # steps

    @intrinsic
    def function(typingctx, levels, at, stride, weights, to, jump):
        """int32 arrays; a row of `levels` after `stride` elements, a group of `weights` after `jump`."""
        i = types.intp

        def emit(ctx, b, sig, args):
            source = _Operand(ctx, b, sig.args[0], *args[:3])
            target = _Operand(ctx, b, sig.args[3], *args[3:6])
            steps = transposed(b, [source.vector(k, 0, i32x16) for k in range(LANES)])
            if DOT.paired:
                pairs = zip(steps[::2], steps[1::2], strict=True)
                steps = [half for x, y in pairs for half in halves(b, shuffle(b, x, y, _ZIPPED))]
            for step, rows in enumerate(steps):
                write(b, rows, target.pointer(step // run, step % run * LANES, i32x16.llvm))
            return ctx.get_dummy_value()

        return types.void(levels, i, i, weights, i, i), emit

    return function


_ZIPPED = [position + LANES * which for position in range(LANES) for which in (0, 1)]


def _paired_sums(b: ir.IRBuilder, w: _Operand, x: _Operand, group: int, start: list[ir.Value]) -> list[ir.Value]:
    """Sums of TOKENS tokens and one panel by smmla; `start` of each token, as i32x16."""
    four, pair = vector(I32, 4), vector(I64, 2)
    sums = [[ir.Constant(four, None)] * (LANES // 2) for _ in range(TOKENS // 2)]  # of two tokens, two rows each
    for step in range(0, group // 4, 2):
        rows = [read(b, w.pointer(0, step * LANES + 4 * k, vector(I8, 16))) for k in range(LANES // 2)]
        for t, sums_of in enumerate(sums):
            tokens = ir.Constant(pair, ir.Undefined)
            for k in range(2):
                eight = read(b, x.pointer(2 * t + k, step, I64))
                tokens = b.insert_element(tokens, eight, ir.Constant(I32, k))
            tokens = b.bitcast(tokens, vector(I8, 16))
            for k, row in enumerate(rows):
                sums_of[k] = call(b, "llvm.aarch64.neon.smmla.v4i32.v16i8", four, [sums_of[k], row, tokens])
    totals = []
    for sums_of in sums:
        for order in ([0, 2, 4, 6], [1, 3, 5, 7]):
            fours = [shuffle(b, *sums_of[k : k + 2], order) for k in range(0, LANES // 2, 2)]
            totals.append(joined(b, joined(b, *fours[:2]), joined(b, *fours[2:])))
    return [b.add(total, one) for total, one in zip(totals, start, strict=True)] if start else totals


@functools.cache
def dot_tile(group: int, top: int, starts: bool) -> Any:
    """Sums of products over a group of columns, as an intrinsic.

    Parameters
    ----------
    group : columns, 16 or 32.
    top : of the weights, see `bodies`.
    starts : whether the sums of token t begin with `start[t]`, or with 0 and the last three arguments are not read.
    """

    @intrinsic
    def function(typingctx, weights, at, panel, x, x_at, x_stride, start, start_at, start_stride):
        """`start[t] + weights · x` over the columns. Packed bytes in int32; start: int32, one for each token."""
        i = types.intp

        def emit(ctx, b, sig, args):
            w = _Operand(ctx, b, sig.args[0], *args[0:3])
            x = _Operand(ctx, b, sig.args[3], *args[3:6])
            start = _Operand(ctx, b, sig.args[6], *args[6:9])
            if DOT.paired:
                begin = [start.splat(t, 0, I32) for t in range(TOKENS)] if starts else []
                return _tile(b, i32_tile, _paired_sums(b, w, x, group, begin))
            begin = [(lambda t=t: start.splat(t, 0, I32)) if starts else None for t in range(TOKENS)]
            sums = [[Dots(b, top, begin[t]) for _ in range(PANELS)] for t in range(TOKENS)]
            for step in range(group // 4):
                levels = [w.vector(p, step, i32x16) for p in range(PANELS)]
                for t in range(TOKENS):
                    four = x.splat(t, step, I32)
                    for p in range(PANELS):
                        sums[t][p].add(levels[p], four)
            return _tile(b, i32_tile, [sums[t][p].total() for t in range(TOKENS) for p in range(PANELS)])

        return i32_tile(weights, i, i, x, i, i, start, i, i), emit

    return function


@intrinsic
def add_scaled(typingctx, totals, dots, scales, at, panel, x, x_at, x_stride):
    """`totals + dots · (scales · x[t])`, with the scales of 16 rows a panel and the scale of each token."""
    i = types.intp

    def emit(ctx, b, sig, args):
        s = _Operand(ctx, b, sig.args[2], *args[2:5])
        x = _Operand(ctx, b, sig.args[5], *args[5:8])
        rows = [s.vector(p, 0, f32x16) for p in range(PANELS)]
        sums = []
        for t in range(TOKENS):
            scale = x.splat(t, 0, F32)
            for p in range(PANELS):
                k = PANELS * t + p
                dots = b.sitofp(b.extract_value(args[1], k), f32x16.llvm)
                sums.append(emit_multiply_add(b, dots, b.fmul(rows[p], scale), b.extract_value(args[0], k)))
        return _tile(b, f32_tile, sums)

    return f32_tile(f32_tile, i32_tile, scales, i, i, x, i, i), emit


def _multiply_add(negative: bool) -> Any:
    @intrinsic
    def function(typingctx, totals, weights, at, panel, x, x_at, x_stride):
        i = types.intp

        def emit(ctx, b, sig, args):
            w = _Operand(ctx, b, sig.args[1], *args[1:4])
            x = _Operand(ctx, b, sig.args[4], *args[4:7])
            rows = [w.vector(p, 0, f32x16) for p in range(PANELS)]
            rows = [b.fneg(row) for row in rows] if negative else rows
            sums = []
            for t in range(TOKENS):
                one = x.splat(t, 0, F32)
                for p in range(PANELS):
                    sums.append(emit_multiply_add(b, rows[p], one, b.extract_value(args[0], PANELS * t + p)))
            return _tile(b, f32_tile, sums)

        return f32_tile(f32_tile, weights, i, i, x, i, i), emit

    sign = "-" if negative else "+"
    function.__doc__ = f"`totals {sign} weights · x[t]` of one column; float32 weights of 16 rows a panel."
    return function


subtract_scaled, add_product = _multiply_add(negative=True), _multiply_add(negative=False)


class _Few(NamedTuple):
    """What of a few activations' sums fits the registers: so many rows of weights, and of 32 columns so many."""

    rows: int
    columns: int


TOGETHER = 4  # rows of activations
_FEW = choose("few", [Body("avx512", "avx512f", _Few(2, 32)), Body("plain", "", _Few(1, 16))], CPU_FEATURES)
FEW_ROWS, FEW_COLUMNS = _FEW
_PARTS = FEW_COLUMNS // LANES
_FEW_SIZE = FEW_ROWS * _PARTS * TOGETHER
few_tile = types.containers.UniTuple(f32x16, _FEW_SIZE)


def _few_pointers(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> list[ir.Value]:
    """Of an array's sums, a row of weights after `row` elements and one of activations after `token`."""
    at, row, token = args[1:4]
    pointers = []
    for j in range(FEW_ROWS):
        for k in range(TOGETHER):
            index = b.add(at, b.add(b.mul(row, ir.Constant(I64, j)), b.mul(token, ir.Constant(I64, k))))
            pointers += [
                address(ctx, b, sig.args[0], args[0], b.add(index, ir.Constant(I64, LANES * part)), f32x16.llvm)
                for part in range(_PARTS)
            ]
    return pointers


@intrinsic
def load_few(typingctx, array, at, row, token):
    """FEW_ROWS rows of weights by TOGETHER of activations by FEW_COLUMNS sums, from `array[at]` on."""

    def emit(ctx, b, sig, args):
        return _tile(b, few_tile, [read(b, pointer) for pointer in _few_pointers(ctx, b, sig, args)])

    return few_tile(array, types.intp, types.intp, types.intp), emit


@intrinsic
def store_few(typingctx, array, at, row, token, tile):
    """Write what `load_few` reads."""

    def emit(ctx, b, sig, args):
        for i, pointer in enumerate(_few_pointers(ctx, b, sig, args)):
            write(b, b.extract_value(args[4], i), pointer)
        return ctx.get_dummy_value()

    return types.void(array, types.intp, types.intp, types.intp, few_tile), emit


@intrinsic
def add_few(typingctx, tile, weights, x, at, places):
    """`tile + weights · x`: FEW_COLUMNS weights of each row as vectors, activations from `x[places[k] + at]` on."""

    def emit(ctx, b, sig, args):
        tile, weights, x, at, places = args
        w = [b.extract_value(weights, i) for i in range(FEW_ROWS * _PARTS)]
        sums = [b.extract_value(tile, i) for i in range(_FEW_SIZE)]
        for k in range(TOGETHER):
            for part in range(_PARTS):
                index = b.add(b.add(b.extract_value(places, k), at), ir.Constant(I64, LANES * part))
                values = read(b, address(ctx, b, sig.args[2], x, index, f32x16.llvm))
                for j in range(FEW_ROWS):
                    i = (j * TOGETHER + k) * _PARTS + part
                    sums[i] = emit_multiply_add(b, w[j * _PARTS + part], values, sums[i])
        return _tile(b, few_tile, sums)

    i = types.intp
    return few_tile(few_tile, weights, x, i, types.containers.UniTuple(i, TOGETHER)), emit


@intrinsic
def store_tile(typingctx, array, at, stride, tile):
    """Write a tile to a float32 array: token t, panel p to the 16 elements from `array[at + stride t + 16 p]` on."""

    def emit(ctx, b, sig, args):
        out = _Operand(ctx, b, sig.args[0], *args[:3])
        for t in range(TOKENS):
            for p in range(PANELS):
                value = b.extract_value(args[3], PANELS * t + p)
                write(b, value, out.pointer(t, p * LANES, f32x16.llvm))
        return ctx.get_dummy_value()

    return types.void(array, types.intp, types.intp, f32_tile), emit


@intrinsic
def add_tile(typingctx, tile, array, at, stride):
    """`tile` and the one that `store_tile` wrote there, added."""

    def emit(ctx, b, sig, args):
        other = _Operand(ctx, b, sig.args[1], *args[1:4])
        sums = []
        for t in range(TOKENS):
            for p in range(PANELS):
                sums.append(b.fadd(b.extract_value(args[0], PANELS * t + p), other.vector(t, p, f32x16)))
        return _tile(b, f32_tile, sums)

    return f32_tile(f32_tile, array, types.intp, types.intp), emit
