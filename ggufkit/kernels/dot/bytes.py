"""Bytes of blocks in and out of memory, 64 at a time: an i32x16 holds byte 4 k + i in bits 8 i … 8 i + 7 of lane k."""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ggufkit.kernels.cpu import Body, choose
from ggufkit.kernels.dot.bodies import MIDDLE
from ggufkit.kernels.jit import CPU_FEATURES
from ggufkit.kernels.lanes.emit import (
    F32,
    I1,
    I8,
    I16,
    I32,
    I64,
    address,
    broadcast,
    call,
    constant,
    halves,
    joined,
    read,
    same,
    shuffle,
    vector,
    write,
)
from ggufkit.kernels.lanes.halves import half_bits_to_float, half_bits_to_lanes
from ggufkit.kernels.lanes.types import f32x16, i32x16

__all__ = [
    "bits_bytes",
    "emit_exponents",
    "flip",
    "half_at",
    "load_bits",
    "load_bytes",
    "load_exponents",
    "load_halves",
    "load_nibbles",
    "load_pair",
    "lookup_bytes",
    "prefetch",
    "store_bytes",
    "word_at",
]


@intrinsic
def load_bytes(typingctx, array, index):
    """64 bytes of a byte array from `array[index]` on."""

    def emit(ctx, b, sig, args):
        return read(b, address(ctx, b, sig.args[0], args[0], args[1], i32x16.llvm))

    return i32x16(array, types.intp), emit


@intrinsic
def store_bytes(typingctx, array, index, value):
    """Write 64 bytes to a byte array from `array[index]` on."""

    def emit(ctx, b, sig, args):
        write(b, args[2], address(ctx, b, sig.args[0], args[0], args[1], i32x16.llvm))
        return ctx.get_dummy_value()

    return types.void(array, types.intp, i32x16), emit


@intrinsic
def load_pair(typingctx, array, first, second):
    """32 bytes from `array[first]` on, then 32 from `array[second]` on."""

    def emit(ctx, b, sig, args):
        array, *indices = args
        halves = [read(b, address(ctx, b, sig.args[0], array, i, vector(I32, 8))) for i in indices]
        return joined(b, *halves)

    return i32x16(array, types.intp, types.intp), emit


@intrinsic
def load_bits(typingctx, array, index, low, high, mask):
    """The 32 bytes from `array[index]` on, twice: each shifted down by `low`, then by `high`, and masked."""

    def emit(ctx, b, sig, args):
        array, index, low, high, mask = args
        half = read(b, address(ctx, b, sig.args[0], array, index, vector(I32, 8)))
        shifts = joined(b, *(broadcast(b, b.trunc(shift, I32), 8) for shift in (low, high)))
        every = b.mul(b.trunc(mask, I32), ir.Constant(I32, 0x01010101))
        return b.and_(b.lshr(joined(b, half, half), shifts), broadcast(b, every))

    return i32x16(array, types.intp, types.intp, types.intp, types.intp), emit


@intrinsic
def load_nibbles(typingctx, array, first, second):
    """64 levels of four bits from 16 bytes at `array[first]` and 16 at `array[second]`.

    Of each, the low halves of all bytes and then the high ones.
    """

    def emit(ctx, b, sig, args):
        array, *indices = args
        quarters = [read(b, address(ctx, b, sig.args[0], array, i, vector(I32, 4))) for i in indices]
        twice = joined(b, *(joined(b, quarter, quarter) for quarter in quarters))
        shifted = b.lshr(twice, constant(I32, [0, 0, 0, 0, 4, 4, 4, 4] * 2))
        return b.and_(shifted, same(I32, 0x0F0F0F0F))

    return i32x16(array, types.intp, types.intp), emit


def _emit_eight(ctx: Any, b: ir.IRBuilder, sig: Any, args: list, element: ir.Type) -> ir.Value:
    """Elements at bytes `at`, `at + step` …; those after `last` are that one again."""
    array, at, step, last = args
    eight = ir.Constant(vector(element, 8), ir.Undefined)
    for k in range(8):
        place = b.add(at, b.mul(step, ir.Constant(I64, k)))
        place = b.select(b.icmp_signed("<", place, last), place, last)
        value = read(b, address(ctx, b, sig.args[0], array, place, element))
        eight = b.insert_element(eight, value, ir.Constant(I32, k))
    return eight


@intrinsic
def load_halves(typingctx, array, at, step, last):
    """Eight float16 of a byte array as float32, at bytes `at`, `at + step` …, but none after `last`; then zeros."""

    def emit(ctx, b, sig, args):
        bits = _emit_eight(ctx, b, sig, args, I16)
        return joined(b, half_bits_to_float(b, bits), ir.Constant(vector(F32, 8), None))

    return f32x16(array, types.intp, types.intp, types.intp), emit


def emit_exponents(b: ir.IRBuilder, e: ir.Value) -> ir.Value:
    """2 to the (e - 128) of sixteen int32 between 0 and 255."""
    one = same(I32, 1)
    normal = b.shl(b.sub(e, one), same(I32, 23))
    subnormal = b.shl(same(I32, 1 << 21), b.and_(e, one))
    return b.bitcast(b.select(b.icmp_unsigned(">", e, one), normal, subnormal), f32x16.llvm)


@intrinsic
def load_exponents(typingctx, array, at, step, last):
    """Eight powers 2 to the (e - 128) of bytes e, placed like the float16 of `load_halves`; then ones."""

    def emit(ctx, b, sig, args):
        e = b.zext(_emit_eight(ctx, b, sig, args, I8), vector(I32, 8))
        return emit_exponents(b, joined(b, e, same(I32, 128, 8)))

    return f32x16(array, types.intp, types.intp, types.intp), emit


@intrinsic
def half_at(typingctx, array, index):
    """The float16 at byte `index`, as float32 in every lane. Unlike an item of an array, it is read without a look at
    the index's sign.
    """

    def emit(ctx, b, sig, args):
        return half_bits_to_lanes(b, read(b, address(ctx, b, sig.args[0], args[0], args[1], I16)))

    return f32x16(array, types.intp), emit


@intrinsic
def word_at(typingctx, array, index):
    """The uint32 at byte `index`."""

    def emit(ctx, b, sig, args):
        return read(b, address(ctx, b, sig.args[0], args[0], args[1], I32))

    return types.uint32(array, types.intp), emit


@intrinsic
def bits_bytes(typingctx, bits, value):
    """Byte i is `value` where bit i of the uint64 `bits` is set, else 0."""

    def emit(ctx, b, sig, args):
        mask = b.bitcast(args[0], vector(I1, 64))
        some = broadcast(b, b.trunc(args[1], I8), 64)
        return b.bitcast(b.select(mask, some, ir.Constant(some.type, None)), i32x16.llvm)

    return i32x16(types.uint64, types.intp), emit


@intrinsic
def flip(typingctx, wide):
    """64 signed bytes as wide weights, in the form that the CPU multiplies (see `bodies`)."""

    def emit(ctx, b, sig, args):
        every = MIDDLE * 0x01010101
        return b.xor(args[0], same(I32, every - (every >> 31 << 32))) if MIDDLE else args[0]

    return i32x16(i32x16), emit


@intrinsic
def lookup_bytes(typingctx, table, indices):
    """`table[i]` for each of 64 bytes i between 0 and 15; `table` is a byte array of 16."""

    def emit(ctx, b, sig, args):
        row = read(b, address(ctx, b, sig.args[0], args[0], ir.Constant(I64, 0), vector(I8, 16)))
        places = b.bitcast(args[1], vector(I8, 64))
        return b.bitcast(_emit_lookup(b, row, places), i32x16.llvm)

    return i32x16(table, i32x16), emit


class _Lookup(NamedTuple):
    """An instruction that looks up `count` bytes in a table of 16, which it repeats every 16 bytes."""

    count: int
    name: str


_LOOKUP = choose(
    "lookup",
    [
        Body("avx512", "avx512bw", _Lookup(64, "llvm.x86.avx512.pshuf.b.512")),
        Body("avx2", "avx2", _Lookup(32, "llvm.x86.avx2.pshuf.b")),
        Body("ssse3", "ssse3", _Lookup(16, "llvm.x86.ssse3.pshuf.b.128")),
        Body("neon", "neon", _Lookup(16, "llvm.aarch64.neon.tbl1.v16i8")),
        Body("plain", "", _Lookup(16, "")),
    ],
    CPU_FEATURES,
)


def _emit_lookup(b: ir.IRBuilder, row: ir.Value, places: ir.Value) -> ir.Value:
    count = places.type.count
    if count > _LOOKUP.count:
        return joined(b, *(_emit_lookup(b, row, half) for half in halves(b, places)))
    if _LOOKUP.name:
        table = shuffle(b, row, row, list(range(16)) * (count // 16))
        return call(b, _LOOKUP.name, table.type, [table, places])
    found = ir.Constant(row.type, None)
    for i in range(16):
        here = b.icmp_unsigned("==", places, same(I8, i))
        found = b.select(here, shuffle(b, row, row, [i] * 16), found)
    return found


def emit_prefetch(b: ir.IRBuilder, pointer: ir.Value) -> None:
    """Ask for the cache line of an address."""
    numbers = [ir.Constant(I32, number) for number in (0, 2, 1)]  # for reading, into L2, data
    call(b, "llvm.prefetch.p0", ir.VoidType(), [pointer, *numbers])


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line of `array[index]`, which may lie beyond the array."""

    def emit(ctx, b, sig, args):
        emit_prefetch(b, address(ctx, b, sig.args[0], args[0], args[1], I8))
        return ctx.get_dummy_value()

    return types.void(array, types.intp), emit
