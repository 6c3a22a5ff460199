"""Products of bytes: how quantized weights meet quantized activations.

Sixty-four bytes travel as an i32x16, four to a lane, byte 4 k + i in bits 8 i … 8 i + 7 of lane k. Weights are levels
0 … 255, activations -127 … 127, and

    dot_bytes(sums, levels, x)      lane k:   sums + Σ levels[4 k + i] · x[4 k + i],  i = 0 … 3

is exact, so all its bodies give the same bits. Which one is compiled is decided once, by the CPU's features:

    avx512vnni, avxvnni   vpdpbusd
    dotprod               sdot (on levels less 128, then mended)
    otherwise             plain vector arithmetic, the others' twin

A tile is TOKENS × PANELS vectors of running sums: sixteen rows of weights to a panel, a row of activations to each
token. See `runtime.cpu.products` for who uses what.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ggufkit.kernels.jit import CPU_FEATURES
from ggufkit.kernels.lanes import LANES, f32x16, half_bits_to_float, half_bits_to_lanes, i32x16

__all__ = [
    "PANELS",
    "TOKENS",
    "add_products",
    "add_scaled",
    "bits_bytes",
    "dot_bytes",
    "dot_tile_16",
    "dot_tile_32",
    "fma",
    "half_at",
    "load_bits",
    "load_bytes",
    "load_exponents",
    "load_halves",
    "load_nibbles",
    "load_pair",
    "lookup_bytes",
    "prefetch",
    "spread_2",
    "spread_4",
    "store_bytes",
    "store_tile",
    "subtract_scaled",
    "sum_lanes",
    "word_at",
    "zero_tile",
]

# 32 registers hold both kinds of running sums of a tile and what is multiplied; 16 registers of half the width, less.
TOKENS, PANELS = (6, 2) if "avx512f" in CPU_FEATURES else (4, 1) if "dotprod" in CPU_FEATURES else (2, 1)

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_F32 = ir.FloatType()


def _vector(element: ir.Type, count: int) -> ir.VectorType:
    return ir.VectorType(element, count)


def _constant(element: ir.Type, numbers: list) -> ir.Constant:
    return ir.Constant(_vector(element, len(numbers)), [ir.Constant(element, number) for number in numbers])


def _shuffle(b: ir.IRBuilder, x: ir.Value, y: ir.Value, order: list[int]) -> ir.Value:
    return b.shuffle_vector(x, y, _constant(_I32, order))


def _splat(b: ir.IRBuilder, scalar: ir.Value, count: int = LANES) -> ir.Value:
    undefined = ir.Constant(_vector(scalar.type, count), ir.Undefined)
    one = b.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return _shuffle(b, one, undefined, [0] * count)


def _halves(b: ir.IRBuilder, value: ir.Value) -> tuple[ir.Value, ir.Value]:
    count = value.type.count
    return (
        _shuffle(b, value, value, list(range(count // 2))),
        _shuffle(b, value, value, list(range(count // 2, count))),
    )


def _joined(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return _shuffle(b, x, y, list(range(2 * x.type.count)))


def _call(b: ir.IRBuilder, name: str, result: ir.Type, args: list[ir.Value]) -> ir.Value:
    kind = ir.FunctionType(result, [value.type for value in args])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), args)


def _address(ctx: Any, b: ir.IRBuilder, array_type: Any, array: ir.Value, index: ir.Value, kind: ir.Type) -> ir.Value:
    data = ctx.make_array(array_type)(ctx, b, array).data
    return b.bitcast(b.gep(data, [index]), kind.as_pointer())


def _load(b: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
    value = b.load(pointer)
    value.align = 1
    return value


# ---- Bytes in and out of memory ---------------------------------------------------------------------------------


@intrinsic
def load_bytes(typingctx, array, index):
    """64 bytes of a byte array from `array[index]` on."""

    def emit(ctx, b, sig, args):
        return _load(b, _address(ctx, b, sig.args[0], args[0], args[1], i32x16.llvm))

    return i32x16(array, types.intp), emit


@intrinsic
def store_bytes(typingctx, array, index, value):
    """Write 64 bytes to a byte array from `array[index]` on."""

    def emit(ctx, b, sig, args):
        b.store(args[2], _address(ctx, b, sig.args[0], args[0], args[1], i32x16.llvm)).align = 1
        return ctx.get_dummy_value()

    return types.void(array, types.intp, i32x16), emit


@intrinsic
def load_pair(typingctx, array, first, second):
    """32 bytes from `array[first]` on, then 32 from `array[second]` on."""

    def emit(ctx, b, sig, args):
        array, *indices = args
        halves = [_load(b, _address(ctx, b, sig.args[0], array, i, _vector(_I32, 8))) for i in indices]
        return _joined(b, *halves)

    return i32x16(array, types.intp, types.intp), emit


@intrinsic
def load_bits(typingctx, array, index, low, high, mask):
    """The 32 bytes from `array[index]` on, twice: each shifted down by `low`, then by `high`, and masked."""

    def emit(ctx, b, sig, args):
        array, index, low, high, mask = args
        half = _load(b, _address(ctx, b, sig.args[0], array, index, _vector(_I32, 8)))
        shifts = _joined(b, *(_splat(b, b.trunc(shift, _I32), 8) for shift in (low, high)))
        every = b.mul(b.trunc(mask, _I32), ir.Constant(_I32, 0x01010101))
        return b.and_(b.lshr(_joined(b, half, half), shifts), _splat(b, every))

    return i32x16(array, types.intp, types.intp, types.intp, types.intp), emit


@intrinsic
def load_nibbles(typingctx, array, first, second):
    """64 levels of four bits from 16 bytes at `array[first]` and 16 at `array[second]`.

    Of each, the low halves of all bytes and then the high ones.
    """

    def emit(ctx, b, sig, args):
        array, *indices = args
        quarters = [_load(b, _address(ctx, b, sig.args[0], array, i, _vector(_I32, 4))) for i in indices]
        twice = _joined(b, *(_joined(b, quarter, quarter) for quarter in quarters))
        shifted = b.lshr(twice, _constant(_I32, [0, 0, 0, 0, 4, 4, 4, 4] * 2))
        return b.and_(shifted, _constant(_I32, [0x0F0F0F0F] * LANES))

    return i32x16(array, types.intp, types.intp), emit


def _emit_eight(ctx: Any, b: ir.IRBuilder, sig: Any, args: list, element: ir.Type) -> ir.Value:
    """Elements at bytes `at`, `at + step` …; those after `last` are that one again."""
    array, at, step, last = args
    eight = ir.Constant(_vector(element, 8), ir.Undefined)
    for k in range(8):
        place = b.add(at, b.mul(step, ir.Constant(_I64, k)))
        place = b.select(b.icmp_signed("<", place, last), place, last)
        value = _load(b, _address(ctx, b, sig.args[0], array, place, element))
        eight = b.insert_element(eight, value, ir.Constant(_I32, k))
    return eight


@intrinsic
def load_halves(typingctx, array, at, step, last):
    """Eight float16 of a byte array as float32, at bytes `at`, `at + step` …, but none after `last`; then zeros."""

    def emit(ctx, b, sig, args):
        bits = _emit_eight(ctx, b, sig, args, _I16)
        return _joined(b, half_bits_to_float(b, bits), ir.Constant(_vector(_F32, 8), None))

    return f32x16(array, types.intp, types.intp, types.intp), emit


@intrinsic
def load_exponents(typingctx, array, at, step, last):
    """Eight powers 2 to the (e - 128) of bytes e, placed like the float16 of `load_halves`; then ones."""

    def emit(ctx, b, sig, args):
        e = b.zext(_emit_eight(ctx, b, sig, args, _I8), _vector(_I32, 8))
        e = _joined(b, e, _constant(_I32, [128] * 8))
        one = _constant(_I32, [1] * LANES)
        normal = b.shl(b.sub(e, one), _constant(_I32, [23] * LANES))
        subnormal = b.shl(_constant(_I32, [1 << 21] * LANES), b.and_(e, one))
        return b.bitcast(b.select(b.icmp_unsigned(">", e, one), normal, subnormal), f32x16.llvm)

    return f32x16(array, types.intp, types.intp, types.intp), emit


@intrinsic
def half_at(typingctx, array, index):
    """The float16 at byte `index`, as float32 in every lane. Unlike an item of an array, it is read without a look at
    the index's sign.
    """

    def emit(ctx, b, sig, args):
        return half_bits_to_lanes(b, _load(b, _address(ctx, b, sig.args[0], args[0], args[1], _I16)))

    return f32x16(array, types.intp), emit


@intrinsic
def word_at(typingctx, array, index):
    """The uint32 at byte `index`."""

    def emit(ctx, b, sig, args):
        return _load(b, _address(ctx, b, sig.args[0], args[0], args[1], _I32))

    return types.uint32(array, types.intp), emit


@intrinsic
def bits_bytes(typingctx, bits, value):
    """Byte i is `value` where bit i of the uint64 `bits` is set, else 0."""

    def emit(ctx, b, sig, args):
        mask = b.bitcast(args[0], _vector(_I1, 64))
        some = _splat(b, b.trunc(args[1], _I8), 64)
        return b.bitcast(b.select(mask, some, ir.Constant(some.type, None)), i32x16.llvm)

    return i32x16(types.uint64, types.intp), emit


@intrinsic
def lookup_bytes(typingctx, table, indices):
    """`table[i]` for each of 64 bytes i between 0 and 15; `table` is a byte array of 16."""

    def emit(ctx, b, sig, args):
        row = _load(b, _address(ctx, b, sig.args[0], args[0], ir.Constant(_I64, 0), _vector(_I8, 16)))
        places = b.bitcast(args[1], _vector(_I8, 64))
        return b.bitcast(_emit_lookup(b, row, places), i32x16.llvm)

    return i32x16(table, i32x16), emit


def _emit_lookup(b: ir.IRBuilder, row: ir.Value, places: ir.Value) -> ir.Value:
    if places.type.count == 64 and "avx512bw" in CPU_FEATURES:
        table = _shuffle(b, row, row, list(range(16)) * 4)
        return _call(b, "llvm.x86.avx512.pshuf.b.512", table.type, [table, places])
    if places.type.count == 32 and "avx2" in CPU_FEATURES:
        table = _shuffle(b, row, row, list(range(16)) * 2)
        return _call(b, "llvm.x86.avx2.pshuf.b", table.type, [table, places])
    if places.type.count == 16 and "neon" in CPU_FEATURES:
        return _call(b, "llvm.aarch64.neon.tbl1.v16i8", row.type, [row, places])
    if places.type.count > 16:
        return _joined(b, *(_emit_lookup(b, row, half) for half in _halves(b, places)))
    found = ir.Constant(row.type, None)
    for i in range(16):
        here = b.icmp_unsigned("==", places, _constant(_I8, [i] * 16))
        found = b.select(here, _shuffle(b, row, row, [i] * 16), found)
    return found


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line of `array[index]`, which may lie beyond the array."""

    def emit(ctx, b, sig, args):
        pointer = _address(ctx, b, sig.args[0], args[0], args[1], _I8)
        numbers = [ir.Constant(_I32, number) for number in (0, 2, 1)]  # for reading, into L2, data
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, *[_I32] * 3])
        b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0"), [pointer, *numbers])
        return ctx.get_dummy_value()

    return types.void(array, types.intp), emit


# ---- Dot products -----------------------------------------------------------------------------------------------


def _emit_dot(b: ir.IRBuilder, sums: ir.Value, levels: ir.Value, x: ir.Value) -> ir.Value:
    """`sums`, `levels` and `x`: vectors of int32; 16, or what they have been split to."""
    count = sums.type.count
    if count == 16 and "avx512vnni" in CPU_FEATURES:
        return _call(b, "llvm.x86.avx512.vpdpbusd.512", sums.type, [sums, *_as_bytes(b, "x86", levels, x)])
    if count == 8 and "avxvnni" in CPU_FEATURES:
        return _call(b, "llvm.x86.avx512.vpdpbusd.256", sums.type, [sums, *_as_bytes(b, "x86", levels, x)])
    if count == 4 and "dotprod" in CPU_FEATURES:
        return _emit_sdot(b, sums, levels, x)
    if count > 4 and CPU_FEATURES & {"avxvnni", "dotprod"}:
        parts = zip(_halves(b, sums), _halves(b, levels), _halves(b, x), strict=True)
        return _joined(b, *(_emit_dot(b, *part) for part in parts))
    return _emit_plain_dot(b, sums, levels, x)


def _as_bytes(b: ir.IRBuilder, cpu: str, levels: ir.Value, x: ir.Value) -> list[ir.Value]:
    """The operands as LLVM declares them: of bytes since version 22 for x86, always for AArch64."""
    kind = _vector(_I8, 4 * levels.type.count)
    return [b.bitcast(levels, kind), b.bitcast(x, kind)] if cpu == "arm" or _BYTE_OPERANDS else [levels, x]


def _emit_sdot(b: ir.IRBuilder, sums: ir.Value, levels: ir.Value, x: ir.Value) -> ir.Value:
    """sdot takes signed levels: Σ (l - 128) x + 128 Σ x."""
    name, middle = "llvm.aarch64.neon.sdot.v4i32.v16i8", _constant(_I32, [0x80808080 - (1 << 32)] * 4)
    signed, x = _as_bytes(b, "arm", b.xor(levels, middle), x)
    low = _call(b, name, sums.type, [sums, signed, x])
    halves = _call(b, name, sums.type, [ir.Constant(sums.type, None), _constant(_I8, [64] * 16), x])
    return b.add(low, b.shl(halves, _constant(_I32, [1] * 4)))


def _emit_plain_dot(b: ir.IRBuilder, sums: ir.Value, levels: ir.Value, x: ir.Value) -> ir.Value:
    """Even and odd bytes as int16, of which LLVM multiplies and adds pairs (pmaddwd) where the CPU can."""
    count = sums.type.count
    short, word = _vector(_I16, 2 * count), _vector(_I32, 2 * count)
    eight = _constant(_I16, [8] * (2 * count))
    levels, x = b.bitcast(levels, short), b.bitcast(x, short)
    even = b.mul(b.zext(b.and_(levels, _constant(_I16, [255] * (2 * count))), word), _sext(b, b.shl(x, eight), word))
    odd = b.mul(b.zext(b.lshr(levels, eight), word), _sext(b, x, word))
    pairs = b.add(even, odd)
    low = _shuffle(b, pairs, pairs, list(range(0, 2 * count, 2)))
    return b.add(sums, b.add(low, _shuffle(b, pairs, pairs, list(range(1, 2 * count, 2)))))


def _sext(b: ir.IRBuilder, high_bytes: ir.Value, word: ir.Type) -> ir.Value:
    """The high byte of each int16, with its sign, as int32."""
    return b.sext(b.ashr(high_bytes, _constant(_I16, [8] * high_bytes.type.count)), word)


def _byte_operands() -> bool:
    import llvmlite.binding as llvm

    return llvm.llvm_version_info[0] >= 22


_BYTE_OPERANDS = _byte_operands()


@intrinsic
def dot_bytes(typingctx, sums, levels, x):
    """`sums + Σ levels · x` of the four bytes in each lane; levels 0 … 255, x -127 … 127."""
    return i32x16(i32x16, i32x16, i32x16), lambda ctx, b, sig, args: _emit_dot(b, *args)


# ---- Scales -----------------------------------------------------------------------------------------------------


@intrinsic
def fma(typingctx, x, y, z):
    """x · y + z, rounded once."""
    return f32x16(f32x16, f32x16, f32x16), lambda ctx, b, sig, args: _fma(b, *args)


def _fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    return _call(b, "llvm.fma.v16f32", f32x16.llvm, [x, y, z])


@intrinsic
def sum_lanes(typingctx, vector):
    """The sum of float32 lanes: halves added to halves, four times."""

    def emit(ctx, b, sig, args):
        value = args[0]
        while value.type.count > 1:
            value = b.fadd(*_halves(b, value))
        return b.extract_element(value, ir.Constant(_I32, 0))

    return types.float32(f32x16), emit


def _spread(count: int) -> Any:
    four = types.containers.UniTuple(f32x16, 4)

    @intrinsic
    def function(typingctx, vector):
        def emit(ctx, b, sig, args):
            orders = [[count * q + k * count // LANES for k in range(LANES)] for q in range(4)]
            return cgutils.pack_array(b, [_shuffle(b, args[0], args[0], order) for order in orders])

        return four(f32x16), emit

    function.__doc__ = f"The first {4 * count} lanes as four vectors: {count} of them each, in {LANES // count} lanes."
    return function


spread_2, spread_4 = _spread(2), _spread(4)


# ---- Tiles ------------------------------------------------------------------------------------------------------
#
# A tile is a tuple of vectors, that of token t and panel p at PANELS t + p. Its operands lie like this:
#
#     weights   int32 or float32, a panel after `panel` elements; 16 rows side by side at every step
#     x         a token after `stride` elements
#
# `at` is the index of the first of them.

_SIZE = TOKENS * PANELS
f32_tile, i32_tile = (types.containers.UniTuple(kind, _SIZE) for kind in (f32x16, i32x16))


class _Operand:
    """Addresses of a tile's operand: an array, the index of its first element, and a stride."""

    def __init__(self, ctx: Any, b: ir.IRBuilder, array_type: Any, array: ir.Value, at: ir.Value, stride: ir.Value):
        self.b, self.at, self.stride = b, at, stride
        self.data = ctx.make_array(array_type)(ctx, b, array).data

    def pointer(self, which: int, step: int, kind: ir.Type) -> ir.Value:
        b = self.b
        index = b.add(self.at, b.mul(self.stride, ir.Constant(_I64, which)))
        if step:
            index = b.add(index, ir.Constant(_I64, step))
        return b.bitcast(b.gep(self.data, [index]), kind.as_pointer())

    def vector(self, which: int, step: int, kind: Any) -> ir.Value:
        return _load(self.b, self.pointer(which, step * LANES, kind.llvm))

    def splat(self, which: int, step: int, element: ir.Type) -> ir.Value:
        return _splat(self.b, _load(self.b, self.pointer(which, step, element)))


def _tile(b: ir.IRBuilder, kind: Any, vectors: list[ir.Value]) -> ir.Value:
    tile = ir.Constant(ir.ArrayType(kind.dtype.llvm, _SIZE), ir.Undefined)
    for i, vector in enumerate(vectors):
        tile = b.insert_value(tile, vector, i)
    return tile


@intrinsic
def zero_tile(typingctx):
    """A tile of zeros."""
    return f32_tile(), lambda ctx, b, sig, args: _tile(b, f32_tile, [ir.Constant(f32x16.llvm, None)] * _SIZE)


def _dot_tile(group: int) -> Any:
    @intrinsic
    def function(typingctx, weights, at, panel, x, x_at, x_stride, start, start_at, start_stride):
        i = types.intp

        def emit(ctx, b, sig, args):
            w = _Operand(ctx, b, sig.args[0], *args[0:3])
            x = _Operand(ctx, b, sig.args[3], *args[3:6])
            start = _Operand(ctx, b, sig.args[6], *args[6:9])
            sums = [start.splat(t, 0, _I32) for t in range(TOKENS) for _ in range(PANELS)]
            for step in range(group // 4):
                levels = [w.vector(p, step, i32x16) for p in range(PANELS)]
                for t in range(TOKENS):
                    four = x.splat(t, step, _I32)
                    for p in range(PANELS):
                        k = PANELS * t + p
                        sums[k] = _emit_dot(b, sums[k], levels[p], four)
            return _tile(b, i32_tile, sums)

        return i32_tile(weights, i, i, x, i, i, start, i, i), emit

    function.__doc__ = f"""`start[t] + levels · x` over {group} columns.

    weights, x: int32 arrays of packed bytes; start: int32, one for each token.
    """
    return function


dot_tile_16, dot_tile_32 = _dot_tile(16), _dot_tile(32)


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
            scale = x.splat(t, 0, _F32)
            for p in range(PANELS):
                k = PANELS * t + p
                dots = b.sitofp(b.extract_value(args[1], k), f32x16.llvm)
                sums.append(_fma(b, dots, b.fmul(rows[p], scale), b.extract_value(args[0], k)))
        return _tile(b, f32_tile, sums)

    return f32_tile(f32_tile, i32_tile, scales, i, i, x, i, i), emit


def _multiply_add(negative: bool, steps: int) -> Any:
    @intrinsic
    def function(typingctx, totals, weights, at, panel, x, x_at, x_stride):
        i = types.intp

        def emit(ctx, b, sig, args):
            w = _Operand(ctx, b, sig.args[1], *args[1:4])
            x = _Operand(ctx, b, sig.args[4], *args[4:7])
            sums = [b.extract_value(args[0], k) for k in range(_SIZE)]
            for step in range(steps):
                rows = [w.vector(p, step, f32x16) for p in range(PANELS)]
                rows = [b.fneg(row) for row in rows] if negative else rows
                for t in range(TOKENS):
                    one = x.splat(t, step, _F32)
                    for p in range(PANELS):
                        k = PANELS * t + p
                        sums[k] = _fma(b, rows[p], one, sums[k])
            return _tile(b, f32_tile, sums)

        return f32_tile(f32_tile, weights, i, i, x, i, i), emit

    sign = "-" if negative else "+"
    function.__doc__ = f"`totals {sign} weights · x[t]` over {steps} columns; float32 weights of 16 rows a panel."
    return function


subtract_scaled = _multiply_add(negative=True, steps=1)
add_products = _multiply_add(negative=False, steps=4)


@intrinsic
def store_tile(typingctx, array, at, stride, tile):
    """Write a tile to a float32 array: token t, panel p to the 16 elements from `array[at + stride t + 16 p]` on."""

    def emit(ctx, b, sig, args):
        out = _Operand(ctx, b, sig.args[0], *args[:3])
        for t in range(TOKENS):
            for p in range(PANELS):
                value = b.extract_value(args[3], PANELS * t + p)
                b.store(value, out.pointer(t, p * LANES, f32x16.llvm)).align = 1
        return ctx.get_dummy_value()

    return types.void(array, types.intp, types.intp, f32_tile), emit
