"""Kernels of TurboQuant: rotate, find levels, encode, decode. `planes` has how codes lie in bytes.

A row of d coordinates is worked on in a buffer of d float32, sixteen a vector. No sum depends on the CPU: products are
rounded before they are added, lanes are summed pairs first.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ggufkit.kernels.blocks import read_half, write_half
from ggufkit.kernels.hadamard import transform
from ggufkit.kernels.jit import inlined, kernel, specialised
from ggufkit.kernels.lanes import (
    fabs,
    flat,
    gather,
    load,
    multiply_add,
    permute,
    select,
    splat,
    store,
    sum_lanes,
    to_i32,
    view,
)
from ggufkit.turboquant.planes import pack, unpack

__all__ = ["Code", "Kernels", "encode_row", "kernels_of", "level_of", "turn"]

NORM, MATCHED, LEAST, UNBIASED = range(4)
BITS = 4  # per coordinate; `kernels_of` binds it anew for each width
ZERO, ONE = np.float32(0), np.float32(1)


class Code(NamedTuple):
    """How rows are encoded: which scale, and the rotation's and the codebook's numbers.

    Attributes
    ----------
    part, mix, signs : 2ᵏ, array of shape (m, m), array of shape (d,); see `rotation.Hadamard`.
    levels : array of shape (2 ** bits,), filled up to a multiple of 16.
    borders : those between the positive levels, with 0 in front; infinity fills up a multiple of 16.
    cells, per_one : the positive level that magnitudes from i / `per_one` on have at least.
    """

    mode: int
    part: int
    mix: np.ndarray
    signs: np.ndarray
    levels: np.ndarray
    borders: np.ndarray
    cells: np.ndarray
    per_one: np.float32


# ---- Rotation -----------------------------------------------------------------------------------------------------


@inlined
def _rotate(x, mix, part, spare):
    """x ← (C ⊗ H) x, √d times a rotation that is its own inverse. `spare` holds a vector for each part."""
    parts = mix.shape[0]
    for at in range(0, x.shape[0], part):
        transform(x, at, part)
    if parts == 1:
        return
    for i in range(0, part, 16):
        for row in range(parts):
            total = splat(ZERO)
            for col in range(parts):
                total = total + splat(mix[row, col]) * load(x, col * part + i)
            store(spare, row * 16, total)
        for row in range(parts):
            store(x, row * part + i, load(spare, row * 16))


@inlined
def _signed(x, signs, out, at):
    """out[at : at + d] ← signs · x."""
    for i in range(0, signs.shape[0], 16):
        store(out, at + i, load(x, i) * load(signs, i))


@kernel
def turn(rows, signs, mix, part, before):
    """Rotate each row in its place: with `before`, signs first; else the inverse."""
    n, size = rows.shape
    factor = ONE / np.sqrt(np.float32(size))
    spare = np.empty(16 * mix.shape[0], np.float32)
    for r in range(n):
        row = rows[r]
        if before:
            _signed(row, signs, row, 0)
        _rotate(row, mix, part, spare)
        if not before:
            _signed(row, signs, row, 0)
        for i in range(0, size, 16):
            store(row, i, load(row, i) * splat(factor))


# ---- Levels -------------------------------------------------------------------------------------------------------


@inlined
def _nearest(y, code, bits):
    """The number of the level that each lane is nearest to, ascending; between two the one nearer to 0."""
    magnitude = fabs(y)
    one, none = splat(np.int32(1)), splat(np.int32(0))
    half = 1 << (bits - 1)
    found = none
    if bits <= 5:
        # By halves: is it beyond the border in the middle of those that are left?
        table = load(code.borders, 0)
        step = half >> 1
        while step:
            middle = found + splat(np.int32(step))
            found = select(magnitude > permute(table, middle), middle, found)
            step >>= 1
    else:
        last = splat(np.float32(code.cells.shape[0] - 1))
        cell = magnitude * splat(code.per_one)
        found = gather(code.cells, to_i32(select(cell < last, cell, last)))
        # A cell holds at most one border.
        found = found + select(magnitude > gather(code.borders, found + one), one, none)
    return select(y < splat(ZERO), splat(np.int32(half - 1)) - found, splat(np.int32(half)) + found)


@inlined
def level_of(index, levels, base, bits):
    """`levels[base + index]`: one look-up in a register for up to 16 levels, two for 32, four for 64."""
    if bits <= 4:
        return permute(load(levels, base), index)
    if bits > 6:
        return gather(levels, index + splat(np.int32(base)))
    within, above = index & splat(np.int32(15)), index > splat(np.int32(15))
    found = select(above, permute(load(levels, base + 16), within), permute(load(levels, base), within))
    if bits == 6:
        above = index > splat(np.int32(47))
        upper = select(above, permute(load(levels, base + 48), within), permute(load(levels, base + 32), within))
        found = select(index > splat(np.int32(31)), upper, found)
    return found


# ---- Rows ---------------------------------------------------------------------------------------------------------


@inlined
def encode_row(x, begin, code, bits, y, spare, codes, to):
    """Codes of the row `x[begin : begin + d]`, one byte each, and its scale.

    `y` (d,) float32 and `spare` are room to work in; the codes go to `codes[to : to + d]`, uint8.
    """
    size = code.signs.shape[0]
    squares = splat(ZERO)
    for i in range(0, size, 16):
        value = load(x, begin + i)
        squares = squares + value * value
        store(y, i, value * load(code.signs, i))
    norm = np.sqrt(sum_lanes(squares))
    inverse = ONE / norm if norm > ZERO else ZERO
    _rotate(y, code.mix, code.part, spare)
    own, both = splat(ZERO), splat(ZERO)  # Σ c², Σ y c
    for i in range(0, size, 16):
        value = load(y, i) * splat(inverse)
        index = _nearest(value, code, bits)
        level = level_of(index, code.levels, 0, bits)
        own = own + level * level
        both = both + value * level
        store(codes, to + i, index)
    c2, yc = sum_lanes(own), sum_lanes(both)
    if norm == ZERO:
        return ZERO
    if code.mode == NORM:
        return norm / np.sqrt(np.float32(size))
    if code.mode == MATCHED:
        return norm / np.sqrt(c2)
    if code.mode == LEAST:
        return norm * yc / c2 / np.sqrt(np.float32(size))
    return norm * np.sqrt(np.float32(size)) / yc


def _encode_rows(rows, code, out, lo, hi):
    """Rows `lo:hi` (n, d) float32 to `out` (n, row bytes)."""
    size, wide = rows.shape[1], out.shape[1]
    x, data = flat(rows), flat(out)
    y, spare = np.empty(size, np.float32), np.empty(16 * code.mix.shape[0], np.float32)
    codes = np.empty(size // 8, np.uint64)
    letters = view(codes, np.uint8)
    for r in range(lo, hi):
        at = r * wide
        write_half(data, at, encode_row(x, r * size, code, BITS, y, spare, letters, 0))
        at += 2
        for i in range(0, size - 31, 32):
            at = pack(codes, i // 8, 32, BITS, data, at)
        if size % 32:
            pack(codes, size // 8 - 2, 16, BITS, data, at)


def _encode_codes(rows, code, codes, scales, lo, hi):
    """Codes of rows `lo:hi`, one byte each (n, d), and their scales (n,)."""
    size = rows.shape[1]
    x, all_codes = flat(rows), flat(codes)
    y, spare = np.empty(size, np.float32), np.empty(16 * code.mix.shape[0], np.float32)
    for r in range(lo, hi):
        scales[r] = encode_row(x, r * size, code, BITS, y, spare, all_codes, r * size)


def _decode_rows(packed, code, out, lo, hi):
    """Rows `lo:hi` of `packed` (n, row bytes) to `out` (n, d) float32."""
    size, wide = out.shape[1], packed.shape[1]
    data, result = flat(packed), flat(out)
    spare = np.empty(16 * code.mix.shape[0], np.float32)
    y = np.empty(size, np.float32)
    down = ONE / np.sqrt(np.float32(size))
    for r in range(lo, hi):
        at = r * wide
        _levels(data, at + 2, code, BITS, read_half(data, at) * down, y)
        _rotate(y, code.mix, code.part, spare)
        _signed(y, code.signs, result, r * size)


@inlined
def _levels(data, at, code, bits, scale, y):
    """The levels of the codes from byte `at` on, times `scale`."""
    size = y.shape[0]
    for i in range(0, size - 31, 32):
        store(y, i, level_of(unpack(data, at, 32, 0, bits), code.levels, 0, bits) * splat(scale))
        store(y, i + 16, level_of(unpack(data, at, 32, 1, bits), code.levels, 0, bits) * splat(scale))
        at += 4 * bits
    if size % 32:
        store(y, size - 16, level_of(unpack(data, at, 16, 0, bits), code.levels, 0, bits) * splat(scale))


def _products(packed, query, code, out, lo, hi):
    """⟨query, row⟩ of rows `lo:hi`; `query` (d,) is rotated."""
    size, wide = query.shape[0], packed.shape[1]
    data = flat(packed)
    for r in range(lo, hi):
        a, b, at = splat(ZERO), splat(ZERO), r * wide + 2
        for i in range(0, size - 31, 32):
            a = multiply_add(level_of(unpack(data, at, 32, 0, BITS), code.levels, 0, BITS), load(query, i), a)
            b = multiply_add(level_of(unpack(data, at, 32, 1, BITS), code.levels, 0, BITS), load(query, i + 16), b)
            at += 4 * BITS
        if size % 32:
            a = multiply_add(level_of(unpack(data, at, 16, 0, BITS), code.levels, 0, BITS), load(query, size - 16), a)
        out[r] = sum_lanes(a + b) * read_half(data, r * wide)


class Kernels(NamedTuple):
    """The kernels of one width: machine code in which the number of bits is a constant."""

    encode_rows: Any
    encode_codes: Any
    decode_rows: Any
    products: Any


@cache
def kernels_of(bits: int) -> Kernels:
    """The kernels for codes of `bits` bits."""
    made = [
        specialised(loop, f"turboquant_{bits}{loop.__name__}", __file__, BITS=bits)
        for loop in (_encode_rows, _encode_codes, _decode_rows, _products)
    ]
    return Kernels(*made)
