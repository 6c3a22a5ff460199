"""Tiles of a few rows of activations, TOGETHER of them.

Of floats, `load_few` and `add_few` keep the running sums of some rows of weights in registers. Of bytes, rows of
weights are in lanes (see `rows` and `tiles`), and `add_dots` adds what a group of columns gave to sums in memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ggufkit.kernels.cpu import Body, choose
from ggufkit.kernels.dot.tiles import Operand, as_tile
from ggufkit.kernels.jit import CPU_FEATURES
from ggufkit.kernels.lanes.arithmetic import emit_multiply_add
from ggufkit.kernels.lanes.emit import F32, I64, LANES, address, read, shuffle, write
from ggufkit.kernels.lanes.types import f32x16, i32x16

__all__ = [
    "FEW_COLUMNS",
    "FEW_PANELS",
    "FEW_ROWS",
    "TOGETHER",
    "add_dots",
    "add_dots_less",
    "add_few",
    "load_few",
    "mix",
    "store_few",
    "sum_rows",
]


class _Few(NamedTuple):
    """What of a few activations' sums fits the registers.

    Of floats the sums of so many rows of weights, and of 32 columns so many; of bytes, of so many panels.
    """

    rows: int
    columns: int
    panels: int


TOGETHER = 4  # rows of activations
FEW_ROWS, FEW_COLUMNS, FEW_PANELS = choose(
    "few", [Body("avx512", "avx512f", _Few(2, 32, 2)), Body("plain", "", _Few(1, 16, 1))], CPU_FEATURES
)
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
        return as_tile(b, few_tile, [read(b, pointer) for pointer in _few_pointers(ctx, b, sig, args)])

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
def add_few(typingctx, tile, weights, x, at, stride):
    """`tile + weights · x`: FEW_COLUMNS weights of each row as vectors, activations from `x[at + stride k]` on."""

    def emit(ctx, b, sig, args):
        tile, weights = args[:2]
        tokens = Operand(ctx, b, sig.args[2], *args[2:])
        w = [b.extract_value(weights, i) for i in range(FEW_ROWS * _PARTS)]
        sums = [b.extract_value(tile, i) for i in range(_FEW_SIZE)]
        for k in range(TOGETHER):
            for part in range(_PARTS):
                values = tokens.vector(k, part, f32x16)
                for j in range(FEW_ROWS):
                    i = (j * TOGETHER + k) * _PARTS + part
                    sums[i] = emit_multiply_add(b, w[j * _PARTS + part], values, sums[i])
        return as_tile(b, few_tile, sums)

    return few_tile(few_tile, weights, x, types.intp, types.intp), emit


@intrinsic
def sum_rows(typingctx, array, at, stride):
    """`sum_pairs_16` of sixteen vectors, the first at `array[at]` and each `stride` elements after the one before."""

    def emit(ctx, b, sig, args):
        rows = Operand(ctx, b, sig.args[0], *args)
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


@intrinsic
def mix(typingctx, source, at, stride, target, to):
    """Sixteen elements of TOGETHER rows side by side: `target[to + TOGETHER i + k] = source[at + stride k + i]`."""
    if source.dtype != target.dtype:
        return None
    kind: Any = f32x16 if source.dtype == types.float32 else i32x16

    def emit(ctx, b, sig, args):
        x, y, z, w = (Operand(ctx, b, sig.args[0], *args[:3]).vector(k, 0, kind) for k in range(TOGETHER))
        out = Operand(ctx, b, sig.args[3], *args[3:], ir.Constant(I64, LANES))
        pairs = zip(_zipped(b, x, z), _zipped(b, y, w), strict=True)
        for i, mixed in enumerate(part for two in pairs for part in _zipped(b, *two)):
            write(b, mixed, out.pointer(i, 0, kind.llvm))
        return ctx.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp), emit


def _zipped(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> list[ir.Value]:
    """Elements of both in turn: of their first halves, and of their second ones."""
    return [shuffle(b, x, y, [top + k // 2 + LANES * (k % 2) for k in range(LANES)]) for top in (0, LANES // 2)]


def _add_dots(ctx: Any, b: ir.IRBuilder, kinds: Any, args: Any, mins: Any) -> ir.Value:
    sums = Operand(ctx, b, kinds[0], *args[:2], ir.Constant(I64, LANES))
    one = ir.Constant(I64, 1)
    dots, rows, tokens = args[2], Operand(ctx, b, kinds[3], *args[3:6]), Operand(ctx, b, kinds[6], *args[6:8], one)
    for k in range(dots.type.count // FEW_PANELS):
        token = tokens.splat(k, 0, F32)
        for p in range(FEW_PANELS):
            i = k * FEW_PANELS + p
            scale, dot = b.fmul(rows.vector(p, 0, f32x16), token), b.sitofp(b.extract_value(dots, i), f32x16.llvm)
            total = emit_multiply_add(b, dot, scale, sums.vector(i, 0, f32x16))
            if mins:
                total = emit_multiply_add(b, b.fneg(mins[0].vector(p, 0, f32x16)), mins[1].splat(k, 0, F32), total)
            write(b, total, sums.pointer(i, 0, f32x16.llvm))
    return ctx.get_dummy_value()


@intrinsic
def add_dots(typingctx, totals, at, dots, scales, row_at, panel, x, token_at):
    """Add `dots · (scales · x)` of FEW_PANELS panels and some tokens to as many vectors from `totals[at]` on.

    scales : of sixteen rows from `scales[row_at]` on, a panel after `panel` elements.
    x : a number of each token from `x[token_at]` on.
    """

    def emit(ctx, b, sig, args):
        return _add_dots(ctx, b, sig.args, args, None)

    i = types.intp
    return types.void(totals, i, dots, scales, i, i, x, i), emit


@intrinsic
def add_dots_less(typingctx, totals, at, dots, scales, row_at, panel, x, token_at, mins, sums):
    """The same, and take `mins · sums` off, which lie alike."""

    def emit(ctx, b, sig, args):
        rows = Operand(ctx, b, sig.args[8], args[8], *args[4:6])
        tokens = Operand(ctx, b, sig.args[9], args[9], args[7], ir.Constant(I64, 1))
        return _add_dots(ctx, b, sig.args, args, (rows, tokens))

    i = types.intp
    return types.void(totals, i, dots, scales, i, i, x, i, mins, sums), emit
