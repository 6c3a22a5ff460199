"""Products of four bytes in each lane of int32: one body for each kind of instruction.

Weights are either **narrow**, levels 0 … `top` with `top` at most 127, or **wide**, all of eight bits. Activations are
-127 … 127. Every sum is exact, so all bodies give the same bits.

    body          instructions                      wide weights    lanes
    avx512vnni    vpdpbusd                          0 … 255         16
    avxvnni       vpdpbusd                          0 … 255          8
    avx512        vpmaddubsw, vpmaddwd              -128 … 127      16
    avx2          vpmaddubsw, vpmaddwd              -128 … 127       8
    ssse3         pmaddubsw, pmaddwd                -128 … 127       4
    i8mm          smmla in tiles, sdot elsewhere    -128 … 127       4
    dotprod       sdot                              -128 … 127       4
    plain         vector arithmetic                 -128 … 127      16

What means zero in wide weights is thus `MIDDLE`, 128 or 0, by the body: `flip` turns one kind to the other.

pmaddubsw multiplies unsigned with signed bytes and adds neighbours as int16. Two products of narrow weights are at most
2 · 127 · top, so several of them fit an int16 before pmaddwd, by ones, adds neighbours as int32: eight for four bits.
Wide weights give their sign to the activations first; 2 · 127 · 128 fits once. In tiles it costs less to widen both to
int16 once, for all the others that they meet: of the four instructions for 32 products two then are additions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from llvmlite import binding as llvm
from llvmlite import ir

from ggufkit.kernels.cpu import Body, choose
from ggufkit.kernels.jit import CPU_FEATURES
from ggufkit.kernels.lanes.emit import I1, I8, I16, I32, LANES, call, halves, same, shuffle, vector, whole

__all__ = ["DOT", "MIDDLE", "WIDE", "Dots", "Maddubs", "Words", "columns_of_step", "parts_of"]

WIDE = 128  # the `top` of weights of all eight bits: the largest magnitude

Start = Callable[[], ir.Value] | None


class _Running:
    """Sums of one vector of lanes: `add` products to it, then take the `total`.

    `start` gives what the sums begin with; it is called when that is needed, so that it holds no register before.
    `by` is what they are multiplied with, a factor in each lane (see `scaled`).
    """

    by_lane = False  # whether an instruction takes x from one lane of a vector
    one_unsigned = False  # whether the first of two factors has no sign

    def __init__(self, b: ir.IRBuilder, count: int, top: int, start: Start, by: ir.Value | None = None):
        self.b, self.top, self.start, self.by = b, top, start, by
        self.kind = vector(I32, count)
        self.sums: ir.Value | None = None
        self.most = 1  # steps after which products become part of the sums

    def add(self, w: ir.Value, x: ir.Value) -> None:
        """Both int32 lanes of four bytes."""
        raise NotImplementedError

    def widen_pairs(self) -> None:
        """Make what is still int16 a part of the sums."""

    def begin(self) -> ir.Value:
        return self.start() if self.start else ir.Constant(self.kind, None)

    def total(self) -> ir.Value:
        sums = self.begin() if self.sums is None else self.sums
        return self.b.mul(sums, self.by) if self.by else sums

    def bytes(self, value: ir.Value) -> ir.Value:
        return self.b.bitcast(value, vector(I8, 4 * self.kind.count))

    def plus(self, value: ir.Value) -> None:
        self.sums = value if self.sums is None else self.b.add(self.sums, value)


# LLVM declares the operands of vpdpbusd as bytes since version 22.
_BYTE_OPERANDS = llvm.llvm_version_info[0] >= 22


class _Vnni(_Running):
    one_unsigned = True

    def add(self, w: ir.Value, x: ir.Value) -> None:
        if self.sums is None:
            self.sums = self.begin()
        operands = [self.bytes(w), self.bytes(x)] if _BYTE_OPERANDS else [w, x]
        name = f"llvm.x86.avx512.vpdpbusd.{32 * self.kind.count}"
        self.sums = call(self.b, name, self.kind, [self.sums, *operands])


class _Sdot(_Running):
    by_lane = True

    def add(self, w: ir.Value, x: ir.Value) -> None:
        if self.sums is None:
            self.sums = self.begin()
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        self.sums = call(self.b, name, self.kind, [self.sums, self.bytes(w), self.bytes(x)])


# lanes → multiplying neighbours, widening them, giving the sign of one vector to another
_MADDUBS = {
    16: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512", ""),
    8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd", "llvm.x86.avx2.psign.b"),
    4: ("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd", "llvm.x86.ssse3.psign.b.128"),
}


class Maddubs(_Running):
    """`pairs`: neighbouring products, added in int16 as often as that holds them.

    With factors, which are two int16 in each lane, `start` is int16, too.
    """

    one_unsigned = True

    def __init__(self, b: ir.IRBuilder, count: int, top: int, start: Start, by: ir.Value | None = None):
        super().__init__(b, count, top, start, by)
        self.multiply, self.widen, self.sign = _MADDUBS[count]
        self.pairs: ir.Value | None = None
        self.held = 0
        self.most = 32767 // (2 * 127 * top)

    def add(self, w: ir.Value, x: ir.Value) -> None:
        w, x = self.bytes(w), self.bytes(x)
        if self.top == WIDE:
            w, x = self._magnitude(w), self._signed_by(x, w)
        pairs = call(self.b, self.multiply, vector(I16, 2 * self.kind.count), [w, x])
        self.pairs = pairs if self.pairs is None else self.b.add(self.pairs, pairs)
        self.held += 1
        if self.held == self.most:
            self.widen_pairs()

    def _magnitude(self, w: ir.Value) -> ir.Value:
        return call(self.b, f"llvm.abs.v{w.type.count}i8", w.type, [w, ir.Constant(I1, 0)])

    def _signed_by(self, x: ir.Value, w: ir.Value) -> ir.Value:
        """x where w is positive, -x where it is negative."""
        if self.sign:
            return call(self.b, self.sign, x.type, [x, w])
        negative = self.b.icmp_signed("<", w, ir.Constant(w.type, None))
        return self.b.select(negative, self.b.neg(x), x)

    def widen_pairs(self) -> None:
        if self.pairs is not None:
            words = vector(I16, 2 * self.kind.count)
            by = self.b.bitcast(self.by, words) if self.by else same(I16, 1, words.count)
            self.plus(call(self.b, self.widen, self.kind, [self.pairs, by]))
            self.pairs, self.held = None, 0

    def total(self) -> ir.Value:
        if self.start and self.by and self.pairs is not None:
            start = self.b.bitcast(self.start(), self.pairs.type)
            self.pairs = self.b.add(self.pairs, start)
        self.widen_pairs()
        if self.start and not self.by:
            self.plus(self.start())
        return self.sums


class Words(_Running):
    """Two products in each lane, of weights and activations that were widened to int16."""

    def add(self, w: ir.Value, x: ir.Value) -> None:
        words = vector(I16, 2 * self.kind.count)
        operands = [self.b.bitcast(value, words) for value in (w, x)]
        self.plus(call(self.b, _MADDUBS[self.kind.count][1], self.kind, operands))

    def total(self) -> ir.Value:
        if self.start:
            self.plus(self.start())
        return super().total()


class _Plain(_Running):
    """Even and odd bytes as int16, of which LLVM multiplies and adds pairs where the CPU can."""

    def add(self, w: ir.Value, x: ir.Value) -> None:
        b, count = self.b, self.kind.count
        if self.sums is None:
            self.sums = self.begin()
        w, x = b.bitcast(w, vector(I16, 2 * count)), b.bitcast(x, vector(I16, 2 * count))
        eight = same(I16, 8, 2 * count)
        even = b.mul(self._high(b.shl(w, eight)), self._high(b.shl(x, eight)))
        pairs = b.add(even, b.mul(self._high(w), self._high(x)))
        low = shuffle(b, pairs, pairs, list(range(0, 2 * count, 2)))
        self.plus(b.add(low, shuffle(b, pairs, pairs, list(range(1, 2 * count, 2)))))

    def _high(self, value: ir.Value) -> ir.Value:
        """The high byte of each int16, with its sign, as int32."""
        high = self.b.ashr(value, same(I16, 8, value.type.count))
        return self.b.sext(high, vector(I32, value.type.count))


class _Dot(NamedTuple):
    """How bytes are multiplied: `lanes` at once, wide weights with or without sign; the shape of a tile.

    A tile's running sums, of both kinds, and what is multiplied have to fit the CPU's registers. Where tiles are
    `paired`, two rows meet two tokens, eight columns at once; where they are `rolled`, just the sums of products have
    to fit (see `tiles`).
    """

    running: type[_Running]
    lanes: int
    signed: bool
    tokens: int
    panels: int
    paired: bool = False
    rolled: bool = False


DOT = choose(
    "dot",
    [
        Body("avx512vnni", "avx512f avx512vnni", _Dot(_Vnni, 16, False, 6, 2)),
        Body("avxvnni", "avx2 avxvnni", _Dot(_Vnni, 8, False, 4, 1)),
        Body("avx512", "avx512f avx512bw", _Dot(Maddubs, 16, True, 6, 2)),
        Body("avx2", "avx2", _Dot(Maddubs, 8, True, 4, 1, rolled=True)),
        Body("ssse3", "ssse3", _Dot(Maddubs, 4, True, 2, 1, rolled=True)),
        Body("i8mm", "neon dotprod i8mm", _Dot(_Sdot, 4, True, 4, 1, paired=True)),
        Body("dotprod", "neon dotprod", _Dot(_Sdot, 4, True, 4, 1)),
        Body("plain", "", _Dot(_Plain, 16, True, 2, 1)),
    ],
    CPU_FEATURES,
)

MIDDLE = 0 if DOT.signed else 128


def parts_of(b: ir.IRBuilder, value: ir.Value, count: int) -> list[ir.Value]:
    if value.type.count == count:
        return [value]
    return [part for half in halves(b, value) for part in parts_of(b, half, count)]


def columns_of_step(top: int) -> int:
    """Columns in an int32 of a tile's weights and activations: four bytes, or two words."""
    return 2 if DOT.rolled and top == WIDE else 4


class Dots:
    """Sums of sixteen lanes, of weights up to `top`, or WIDE; `start` as an i32x16, made when it is needed."""

    def __init__(self, b: ir.IRBuilder, top: int, start: Start = None, running: type[_Running] = DOT.running):
        self.b = b
        self.parts = [
            running(b, DOT.lanes, top, self._start_of(start, i) if start else None) for i in range(LANES // DOT.lanes)
        ]

    def _start_of(self, start: Callable[[], ir.Value], part: int) -> Callable[[], ir.Value]:
        return lambda: parts_of(self.b, start(), DOT.lanes)[part]

    def add(self, w: ir.Value, x: ir.Value) -> None:
        parts = parts_of(self.b, w, DOT.lanes), parts_of(self.b, x, DOT.lanes)
        for running, *operands in zip(self.parts, *parts, strict=True):
            running.add(*operands)

    def total(self) -> ir.Value:
        return whole(self.b, [running.total() for running in self.parts])
