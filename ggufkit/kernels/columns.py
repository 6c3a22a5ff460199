"""Words that lie one below the other in a stored matrix, to blocks that lie side by side: sixteen columns at a time.

    words                        a quarter of a vector         blocks
    w₀ of columns 0 1 2 … 15     w₀ w₁ w₂ w₃ of column 0       column 0: 16 bytes
    w₁ of columns 0 1 2 … 15 →   w₀ w₁ w₂ w₃ of column 4   →   column 1: 16 bytes
    w₂ …                         …                             …

Every CPU interleaves within the 128 bits of such a quarter, so nothing moves between them until they are stored.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ggufkit.kernels.lanes.emit import (
    I8,
    I16,
    I32,
    I64,
    LANES,
    address,
    broadcast,
    call,
    read,
    same,
    shuffle,
    vector,
    write,
)

__all__ = ["store_bytes", "store_nibbles"]

_QUARTERS = range(4)


# Blocks between the one whose words are read and the one whose words are sent for: no CPU foresees such strides.
_AHEAD = 2


def _rows(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any, count: int) -> list[ir.Value]:
    """Sixteen words of each of `count` rows: words[at + stride k …]."""

    def row(k: int) -> ir.Value:
        index = b.add(args[1], b.mul(args[2], ir.Constant(args[2].type, k)))
        return address(ctx, b, sig.args[0], args[0], index, vector(I32))

    options = [ir.Constant(I32, number) for number in (0, 3, 1)]  # to read, soon and often, data
    for k in range(count):
        call(b, "llvm.prefetch.p0", ir.VoidType(), [b.bitcast(row(k + _AHEAD * count), I8.as_pointer()), *options])
    return [read(b, row(k)) for k in range(count)]


def _store_scales(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> None:
    """Two bytes from args[4][args[5] …] before each column's codes."""
    scales = read(b, address(ctx, b, sig.args[4], args[4], args[5], vector(I16)))
    for column in range(LANES):
        index = b.add(args[7], b.mul(args[8], ir.Constant(args[8].type, column)))
        pointer = address(ctx, b, sig.args[6], args[6], index, I16)
        write(b, b.extract_element(scales, ir.Constant(I32, column)), pointer)


def _interleaved(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The elements of the lower halves of all quarters of x and y in turn, and of the upper halves."""
    count = x.type.count
    half = count // 8
    low, high = (
        [2 * half * q + at + which for q in _QUARTERS for at in range(first, first + half) for which in (0, count)]
        for first in (0, half)
    )
    return shuffle(b, x, y, low), shuffle(b, x, y, high)


def _cast(b: ir.IRBuilder, value: ir.Value, element: ir.Type) -> ir.Value:
    return b.bitcast(value, vector(element, LANES * 32 // element.width))


def _store(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any, longs: list[list[ir.Value]]) -> None:
    """To column 4 q + k, at target[at + row · column], quarter q of each of longs[k], one after the other."""
    array, at, row = args[-3:]
    for k, pieces in enumerate(longs):
        for q in _QUARTERS:
            column = b.add(at, b.mul(row, ir.Constant(row.type, 4 * q + k)))
            for number, piece in enumerate(pieces):
                index = b.add(column, ir.Constant(column.type, 2 + 16 * number))
                pointer = address(ctx, b, sig.args[-3], array, index, vector(I64, 2))
                write(b, shuffle(b, piece, piece, [2 * q, 2 * q + 1]), pointer)


def _columns(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Four rows of words → for k from 0 to 3 the words of columns k, 4 + k, 8 + k and 12 + k, a quarter each."""
    low, high = _interleaved(b, rows[0], rows[1])
    low2, high2 = _interleaved(b, rows[2], rows[3])
    found: list[ir.Value] = []
    for x, y in ((low, low2), (high, high2)):
        found += _interleaved(b, _cast(b, x, I64), _cast(b, y, I64))
    return found


def _signature(words: Any, scales: Any, target: Any) -> Any:
    at = types.intp
    return types.void(words, at, at, types.uint32, scales, at, target, at, at)


@intrinsic
def store_nibbles(typingctx, words, at, stride, added, scales, scales_at, target, target_at, row):
    """Sixteen blocks of Q4_0, of words of eight codes: four rows of `words` from `at` on.

    Parameters
    ----------
    words : uint32. stride : words of a row.
    added : to each code modulo 16, eight times in a uint32.
    scales : uint16, float16's bits, sixteen from scales_at on.
    target : uint8; the block of column i goes to target_at + row · i.

    qs[j]   BBBBAAAA    A = code j, B = code j + 16
    """

    def emit(ctx, b, sig, args):
        added = broadcast(b, args[3])
        rest = b.and_(added, same(I32, 0x77777777))
        codes = []
        for x in _rows(ctx, b, sig, args, 4):  # fields do not carry into their neighbours
            below = b.add(b.and_(x, same(I32, 0x77777777)), rest)
            codes.append(b.xor(below, b.and_(b.xor(x, added), same(I32, 0x88888888))))
        low, high, four = same(I32, 0x0F0F0F0F), same(I32, 0xF0F0F0F0), same(I32, 4)
        halves = []
        for x, y in zip(codes[:2], codes[2:], strict=True):
            even = b.or_(b.and_(x, low), b.shl(b.and_(y, low), four))
            odd = b.or_(b.and_(b.lshr(x, four), low), b.and_(y, high))
            halves.append(_interleaved(b, _cast(b, even, I8), _cast(b, odd, I8)))
        found: list[ir.Value] = []
        for x, y in zip(*halves, strict=True):
            found += _interleaved(b, _cast(b, x, I64), _cast(b, y, I64))
        _store_scales(ctx, b, sig, args)
        _store(ctx, b, sig, args, [[x] for x in found])
        return ctx.get_dummy_value()

    return _signature(words, scales, target), emit


@intrinsic
def store_bytes(typingctx, words, at, stride, added, scales, scales_at, target, target_at, row):
    """The same for Q8_0, of words of four codes of 8 bits, and so eight rows; `added` is there four times."""

    def emit(ctx, b, sig, args):
        added = _cast(b, broadcast(b, args[3]), I8)
        codes = [b.bitcast(b.add(_cast(b, x, I8), added), vector(I32)) for x in _rows(ctx, b, sig, args, 8)]
        pairs = zip(_columns(b, codes[:4]), _columns(b, codes[4:]), strict=True)
        _store_scales(ctx, b, sig, args)
        _store(ctx, b, sig, args, [list(pair) for pair in pairs])
        return ctx.get_dummy_value()

    return _signature(words, scales, target), emit
