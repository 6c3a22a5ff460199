"""Products of wide levels and activations in pairs of int16, and of seven halves where eight are asked for.

For wide levels pmaddubsw has no room (see `scaled`). As words, multiplied by their scales before, they meet activations
in **pairs**,

    (x₀ + w₁) (x₁ + w₀) = x₀ w₀ + x₁ w₁ + x₀ x₁ + w₀ w₁

one multiplication for two: additions have more places in a core to go to. The last two products are a number of each
row and one of each activation, which sums start with.

Two tiles of activations A meet two of rows B, by halves of a super-block's columns: 2 × 2 by 2 × 2, for which seven
products are enough (`runtime.cpu.products.pairs`). Those of sums of up to four,

    4 · 127 · 32 + 128    the most that words of weights (levels times scales of six bits) and activations add up to

still are int16. int32 may wrap on the way: what is left in the end is a sum over 256 columns, which does not.

Source: Winograd, "A new algorithm for inner product", 1968; Strassen, "Gaussian elimination is not optimal", 1969, in
Winograd's form with 15 additions.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ggufkit.kernels.dot.bodies import DOT, WIDE, Maddubs, Words, parts_of
from ggufkit.kernels.dot.tiles import PANELS, TOKENS, Operand, as_tile, i32_tile, sums_of_rounds
from ggufkit.kernels.lanes.emit import I16, I32, I64, LANES, same, shuffle, vector, whole, write
from ggufkit.kernels.lanes.types import i32x16

__all__ = [
    "add_pairs_of",
    "add_sums",
    "add_words",
    "lay_words",
    "less_words",
    "pair_products",
    "start_sums",
    "store_words",
    "subtract_sums",
    "uses_pairs",
    "words_by",
    "words_of",
    "zero_sums",
]

HALF = 128  # columns
_STEPS = HALF // 4  # of four columns: two vectors of words

_words = types.containers.UniTuple(i32x16, 2)  # of four columns in each lane the even two as int16, and the odd ones
_SIXTEEN = vector(I16, 2 * LANES)


def uses_pairs(top: int) -> bool:
    """Whether levels -top … top of many rows meet many activations so."""
    return issubclass(DOT.running, Maddubs) and top == WIDE


def _parts(b: ir.IRBuilder, words: ir.Value) -> list[ir.Value]:
    return [b.bitcast(b.extract_value(words, i), _SIXTEEN) for i in range(2)]


def _as_words(b: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    return as_tile(b, _words, [b.bitcast(part, i32x16.llvm) for part in parts])


def _even_and_odd(b: ir.IRBuilder, four: ir.Value) -> list[ir.Value]:
    words, eight = b.bitcast(four, _SIXTEEN), same(I16, 8, 2 * LANES)
    return [b.ashr(b.shl(words, eight), eight), b.ashr(words, eight)]


@intrinsic
def words_of(typingctx, four):
    """Four signed bytes in each lane as words: even columns, odd ones."""
    return _words(i32x16), lambda ctx, b, sig, args: _as_words(b, _even_and_odd(b, args[0]))


@intrinsic
def words_by(typingctx, four, factors):
    """The same times factors, two int16 in each lane."""

    def emit(ctx, b, sig, args):
        by = b.bitcast(args[1], _SIXTEEN)
        return _as_words(b, [b.mul(words, by) for words in _even_and_odd(b, args[0])])

    return _words(i32x16, i32x16), emit


def _of_words(name: str, summary: str) -> Any:
    @intrinsic
    def function(typingctx, x, y):
        def emit(ctx, b, sig, args):
            pairs = zip(_parts(b, args[0]), _parts(b, args[1]), strict=True)
            return _as_words(b, [getattr(b, name)(one, other) for one, other in pairs])

        return _words(_words, _words), emit

    function.__doc__ = summary
    return function


add_words, less_words = _of_words("add", "x + y, of words."), _of_words("sub", "x - y, of words.")


@intrinsic
def pair_products(typingctx, words):
    """Of several words w₀ w₁ + w₂ w₃ of each lane: a tuple of i32x16."""
    kind = types.containers.UniTuple(i32x16, words.count)

    def emit(ctx, b, sig, args):
        found = []
        for one in _each(b, words, args[0]):
            even, odd = (parts_of(b, b.extract_value(one, i), DOT.lanes) for i in range(2))
            found.append(whole(b, [_products(b, *pair) for pair in zip(even, odd, strict=True)]))
        return as_tile(b, kind, found)

    return kind(words), emit


def _each(b: ir.IRBuilder, kind: Any, values: ir.Value) -> list[ir.Value]:
    return [b.extract_value(values, i) for i in range(kind.count)]


def _products(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Neighbouring products of int16, added."""
    running = Words(b, DOT.lanes, WIDE, None)
    running.add(x, y)
    return running.total()


@intrinsic
def store_words(typingctx, weights, to, jump, words):
    """Write several words of weights, one after `jump` elements, as `add_pairs_of` reads them.

    Of each sixteen rows w₁ and w₃, then w₀ and w₂.
    """

    def emit(ctx, b, sig, args):
        target = Operand(ctx, b, sig.args[0], *args[:3])
        for i, one in enumerate(_each(b, words, args[3])):
            for k in range(2):
                write(b, b.extract_value(one, 1 - k), target.pointer(i, k * LANES, i32x16.llvm))
        return ctx.get_dummy_value()

    return types.void(weights, types.intp, types.intp, words), emit


@intrinsic
def lay_words(typingctx, x, to, jump, words):
    """Write several words of 64 activations, one after `jump` elements, as it reads them: x₀ and x₂, then x₁ and x₃."""

    def emit(ctx, b, sig, args):
        target = Operand(ctx, b, sig.args[0], *args[:3])
        for i, one in enumerate(_each(b, words, args[3])):
            even, odd = (b.extract_value(one, k) for k in range(2))
            for k in range(2):
                zipped = [LANES // 2 * k + j // 2 + LANES * (j % 2) for j in range(LANES)]
                write(b, shuffle(b, even, odd, zipped), target.pointer(i, k * LANES, i32x16.llvm))
        return ctx.get_dummy_value()

    return types.void(x, types.intp, types.intp, words), emit


# ---- Tiles of sums ------------------------------------------------------------------------------------------------


@intrinsic
def zero_sums(typingctx):
    """A tile of zeros, int32."""
    none = ir.Constant(i32x16.llvm, None)
    return i32_tile(), lambda ctx, b, sig, args: as_tile(b, i32_tile, [none] * (TOKENS * PANELS))


def _of_sums(name: str, summary: str) -> Any:
    @intrinsic
    def function(typingctx, x, y):
        def emit(ctx, b, sig, args):
            pairs = [[b.extract_value(tile, i) for tile in args] for i in range(TOKENS * PANELS)]
            return as_tile(b, i32_tile, [getattr(b, name)(*pair) for pair in pairs])

        return i32_tile(i32_tile, i32_tile), emit

    function.__doc__ = summary
    return function


add_sums, subtract_sums = _of_sums("add", "x + y, of tiles."), _of_sums("sub", "x - y, of tiles.")


@intrinsic
def start_sums(typingctx, sums, rows, at, tokens, k):
    """`sums` with a number of each row, int32 from `rows[at]` on, and one of each token, from `tokens[k]` on."""
    i = types.intp

    def emit(ctx, b, sig, args):
        of_rows = Operand(ctx, b, sig.args[1], args[1], args[2], ir.Constant(I64, LANES))
        of_tokens = Operand(ctx, b, sig.args[3], args[3], args[4], ir.Constant(I64, 1))
        panels = [of_rows.vector(p, 0, i32x16) for p in range(PANELS)]
        found = []
        for t in range(TOKENS):
            of_token = of_tokens.splat(t, 0, I32)
            for p, panel in enumerate(panels):
                found.append(b.add(b.extract_value(args[0], PANELS * t + p), b.add(panel, of_token)))
        return as_tile(b, i32_tile, found)

    return i32_tile(i32_tile, rows, i, tokens, i), emit


@intrinsic
def add_pairs_of(typingctx, sums, weights, at, x, x_at):
    """`sums` and the pairs of 128 columns: (x₀ + w₁) (x₁ + w₀) + (x₂ + w₃) (x₃ + w₂) of each four.

    weights, x : see `store_words` and `lay_words`; panels and tokens one after the other.
    """
    i = types.intp

    def emit(ctx, b, sig, args):
        sums, *others = args
        w = Operand(ctx, b, sig.args[1], others[0], others[1], ir.Constant(I64, _STEPS * 2 * LANES))
        x = Operand(ctx, b, sig.args[3], others[2], others[3], ir.Constant(I64, _STEPS * 2))

        def add(step: ir.Value, sums: list[list[ir.Value]]) -> list[list[ir.Value]]:
            here, there = (b.mul(step, ir.Constant(I64, size)) for size in (2 * LANES, 2))
            return _add_step(b, w.moved(here), x.moved(there), sums)

        begin = [b.extract_value(sums, k) for k in range(TOKENS * PANELS)]
        return as_tile(b, i32_tile, sums_of_rounds(b, _STEPS, begin, add))

    return i32_tile(i32_tile, weights, i, x, i), emit


def _add_step(b: ir.IRBuilder, w: Operand, x: Operand, sums: list[list[ir.Value]]) -> list[list[ir.Value]]:
    """`sums` and the products of four columns."""
    levels = [[parts_of(b, w.vector(p, k, i32x16), DOT.lanes) for k in range(2)] for p in range(PANELS)]
    found: list[list[ir.Value]] = []
    for t in range(TOKENS):
        fours = [parts_of(b, x.splat(t, k, I32), DOT.lanes)[0] for k in range(2)]
        for p in range(PANELS):
            found.append([])
            for part, total in enumerate(sums[t * PANELS + p]):
                one, other = (_added(b, vectors[part], four) for vectors, four in zip(levels[p], fours, strict=True))
                found[-1].append(b.add(total, _products(b, one, other)))
    return found


def _added(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Sums of int16, as int32."""
    words = vector(I16, 2 * x.type.count)
    return b.bitcast(b.add(b.bitcast(x, words), b.bitcast(y, words)), x.type)
