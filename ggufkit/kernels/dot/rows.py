"""Blocks of sixteen rows at once: a word of each row is a lane, as the tiles of `tiles` want them.

Words travel as tuples of i32x16, lane k from row k. How a format packs its levels, a few instructions undo for all
rows; no row is taken apart by itself.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ggufkit.kernels.dot.bodies import DOT, MIDDLE
from ggufkit.kernels.dot.bytes import emit_exponents
from ggufkit.kernels.dot.tiles import as_tile
from ggufkit.kernels.lanes.emit import (
    I16,
    I32,
    I64,
    LANES,
    address,
    broadcast,
    halves,
    joined,
    read,
    same,
    shuffle,
    vector,
    write,
)
from ggufkit.kernels.lanes.halves import half_bits_to_float
from ggufkit.kernels.lanes.types import f32x16, i32x16

__all__ = [
    "bits_of",
    "exponents_of",
    "flip_words",
    "halves_of",
    "load_rows",
    "load_wide_rows",
    "store_steps",
    "with_bits",
]


def _words(count: int) -> Any:
    return types.containers.UniTuple(i32x16, count)


def _tuple(b: ir.IRBuilder, words: list[ir.Value]) -> ir.Value:
    return as_tile(b, _words(len(words)), words)


def _parts(b: ir.IRBuilder, words: ir.Value) -> list[ir.Value]:
    return [b.extract_value(words, i) for i in range(words.type.count)]


def _rows(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any, count: int) -> list[ir.Value]:
    """So many words of each row."""
    array, at, stride = args
    places = [b.add(at, b.mul(stride, ir.Constant(I64, row))) for row in range(LANES)]
    return [read(b, address(ctx, b, sig.args[0], array, place, vector(I32, count))) for place in places]


_FIRST = [4 * (k // 4) + (0, LANES, 1, LANES + 1)[k % 4] for k in range(LANES)]
_PAIRS = [4 * (k // 4) + (0, 1, LANES, LANES + 1)[k % 4] for k in range(LANES)]


def _quarters(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Of four vectors, quarters of each transposed: word k of all four rows side by side is in vector k."""
    x, y, z, w = rows
    low, low_too = shuffle(b, x, y, _FIRST), shuffle(b, z, w, _FIRST)  # words 0 and 1 of two rows
    high, high_too = (shuffle(b, *two, [k + 2 for k in _FIRST]) for two in ((x, y), (z, w)))
    pairs = (low, low_too), (high, high_too)
    return [shuffle(b, *two, [k + more for k in _PAIRS]) for two in pairs for more in (0, 2)]


@intrinsic
def load_rows(typingctx, array, at, stride):
    """The four words at byte `at` of a row, and of fifteen more, each `stride` bytes after the one before."""

    def emit(ctx, b, sig, args):
        rows = _rows(ctx, b, sig, args, 4)
        # Vector j has rows j, 4 + j, 8 + j and 12 + j in its quarters.
        vectors = [joined(b, joined(b, *rows[j:8:4]), joined(b, *rows[8 + j :: 4])) for j in range(4)]
        return _tuple(b, _quarters(b, vectors))

    return _words(4)(array, types.intp, types.intp), emit


@intrinsic
def load_wide_rows(typingctx, array, at, stride):
    """Likewise eight words."""

    def emit(ctx, b, sig, args):
        rows = _rows(ctx, b, sig, args, 8)
        # Words 0 … 3 of rows 0 … 3, words 4 … 7 of them, the same of rows 4 … 7; and of rows 8 … 15.
        first, second = (_quarters(b, [joined(b, rows[j], rows[4 + j]) for j in range(top, top + 4)]) for top in (0, 8))
        order = [k % 4 + 8 * (k // 4) for k in range(LANES)]  # the even quarters of both
        pairs = list(zip(first, second, strict=True))
        return _tuple(b, [shuffle(b, *two, [k + more for k in order]) for more in (0, 4) for two in pairs])

    return _words(8)(array, types.intp, types.intp), emit


@intrinsic
def bits_of(typingctx, words, shift, mask):
    """`words >> shift & mask`, with the byte `mask` for each byte."""

    def emit(ctx, b, sig, args):
        words, shift, mask = args
        by = broadcast(b, b.trunc(shift, I32))
        every = broadcast(b, b.mul(b.trunc(mask, I32), ir.Constant(I32, 0x01010101)))
        return _tuple(b, [b.and_(b.lshr(word, by), every) for word in _parts(b, words)])

    return words(words, types.intp, types.intp), emit


@intrinsic
def with_bits(typingctx, low, high, shift):
    """`low | high << shift`."""

    def emit(ctx, b, sig, args):
        low, high, shift = args
        by = broadcast(b, b.trunc(shift, I32))
        pairs = zip(_parts(b, low), _parts(b, high), strict=True)
        return _tuple(b, [b.or_(x, b.shl(y, by)) for x, y in pairs])

    return low(low, high, types.intp), emit


@intrinsic
def flip_words(typingctx, words):
    """`flip` of each."""

    def emit(ctx, b, sig, args):
        every = MIDDLE * 0x01010101
        turned = same(I32, every - (every >> 31 << 32))
        return _tuple(b, [b.xor(word, turned) for word in _parts(b, args[0])]) if MIDDLE else args[0]

    return words(words), emit


_ZIPPED = [position + LANES * which for position in range(LANES) for which in (0, 1)]


@intrinsic
def store_steps(typingctx, weights, at, words):
    """Write steps of a panel (see `tiles`) from `weights[at]` on: each word is 4 columns of sixteen rows."""

    def emit(ctx, b, sig, args):
        weights, at, words = args
        steps = _parts(b, words)
        if DOT.paired:
            pairs = zip(steps[::2], steps[1::2], strict=True)
            steps = [half for pair in pairs for half in halves(b, shuffle(b, *pair, _ZIPPED))]
        for i, step in enumerate(steps):
            write(b, step, address(ctx, b, sig.args[0], weights, b.add(at, ir.Constant(I64, LANES * i)), i32x16.llvm))
        return ctx.get_dummy_value()

    return types.void(weights, types.intp, words), emit


@intrinsic
def halves_of(typingctx, words):
    """The float16 in the low half of each word, as float32."""

    def emit(ctx, b, sig, args):
        return half_bits_to_float(b, b.trunc(args[0], vector(I16)))

    return f32x16(i32x16), emit


@intrinsic
def exponents_of(typingctx, words):
    """2 to the (e - 128) of each word e between 0 and 255."""

    return f32x16(i32x16), lambda ctx, b, sig, args: emit_exponents(b, args[0])
