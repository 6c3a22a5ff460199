"""The loops of `scaled` for many rows of activations whose products come in pairs (see `kernels.dot.pairs`).

Two tiles of activations meet two panels of rows, by halves of a super-block's columns:

    A = tile 0 ( a  b )     B = first half  ( a  b )     panel 0, panel 1
        tile 1 ( c  d )         second half ( c  d )

          A              B                  of seven products four sums
    0     a              a                  0 + 1                        tile 0, panel 0
    1     b              c                  0 + 2 + 3 + 4                tile 0, panel 1
    2     c + d - a      d - b + a          0 + 2 + 3 + 5                tile 1, panel 1
    3     c + d          b - a              0 + 2 + 5 + 6                tile 1, panel 0
    4     b - (2)        d
    5     a - c          d - b
    6     d              c - (2)

What is added on either side is added once, for all that it meets. Sums start with what the pairs of their products have
too much.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggufkit.kernels.dot import PANELS, TOKENS, add_scaled, load_bytes, load_tile, prefetch, store_tile
from ggufkit.kernels.dot.pairs import (
    HALF,
    add_pairs_of,
    add_sums,
    add_words,
    lay_words,
    less_words,
    pair_products,
    start_sums,
    store_words,
    subtract_sums,
    words_by,
    words_of,
    zero_sums,
)
from ggufkit.kernels.jit import inlined
from ggufkit.kernels.lanes import LANES, load, splat, store, total
from ggufkit.kernels.shares import take
from ggufkit.runtime.cpu.products import UNIT
from ggufkit.runtime.cpu.products.loops import on_lines, put_tile, share_of_many

__all__ = ["PRODUCTS", "SUMS", "WORDS", "lay", "matrix"]

PRODUCTS, SUMS = 7, 4
WORDS = HALF // 2  # int32 of 128 activations

_QUADS = HALF // 4
_PANEL = 2 * _QUADS * LANES  # int32 of 128 columns of a panel, as pairs
_W, _X, _B = PANELS * _PANEL, TOKENS * WORDS, PANELS * LANES  # int32 of a product, and of what a sum starts with
# What stays in the caches, of one super-block of columns: rows of weights, and pairs of tiles of activations.
_ROWS, _BLOCK = 128, 4

_ZERO = np.float32(0)

# Bound by each format.
BYTES = GROUP = 0
unpack_panel: Any = None


@inlined
def _left(a, b, c, d):
    """The parts of A as the seven products meet them."""
    both = add_words(c, d)
    less = less_words(both, a)
    return a, b, less, both, less_words(b, less), less_words(a, c), d


@inlined
def _right(a, b, c, d):
    """The parts of B."""
    less, under = less_words(b, a), less_words(d, b)
    both = add_words(under, a)
    return a, c, both, less, d, under, less_words(c, both)


@inlined
def _too_much(words):
    """What the pairs of seven products have too much in the four sums, each in the lanes of a vector."""
    p, q, r, s, t, u, v = pair_products(words)
    both = p + r
    return p + q, both + s + t, both + s + u, both + u + v


def lay(levels, first, last, x, starts):
    """Activations as `matrix` reads them, two tiles side by side: `first` … `last` - 1 of them.

    Parameters
    ----------
    levels : (tokens, cols) int8, tokens a multiple of TOKENS.
    x : (units, tiles, PRODUCTS, TOKENS, WORDS) int32, written. If a last second tile is missing, it is 0.
    starts : (units, tiles, SUMS, TOKENS) int32, written.
    """
    tokens, cols = levels.shape
    tiles, bytes_, words, numbers = x.shape[1], levels.reshape(-1), x.reshape(-1), starts.reshape(-1)
    zero = splat(np.int32(0))
    none = words_of(zero)
    for k in range(first * TOKENS, last * TOKENS):
        t, y = (k // TOKENS * 2) * TOKENS + k % TOKENS, k % TOKENS
        for u in range(cols // UNIT):
            place = u * tiles + k // TOKENS
            e, f, g, h = zero, zero, zero, zero
            for i in range(0, HALF, 64):
                at, c, d = t * cols + u * UNIT + i, none, none
                if t + TOKENS < tokens:
                    below = at + TOKENS * cols
                    c, d = words_of(load_bytes(bytes_, below)), words_of(load_bytes(bytes_, below + HALF))
                a, b = words_of(load_bytes(bytes_, at)), words_of(load_bytes(bytes_, at + HALF))
                seven = _left(a, b, c, d)
                lay_words(words, (place * PRODUCTS * TOKENS + y) * WORDS + i // 2, TOKENS * WORDS, seven)
                more = _too_much(seven)
                e, f, g, h = e - more[0], f - more[1], g - more[2], h - more[3]
            to = place * SUMS * TOKENS + y
            numbers[to], numbers[to + TOKENS] = total(e), total(f)
            numbers[to + 2 * TOKENS], numbers[to + 3 * TOKENS] = total(g), total(h)


@inlined
def _combine(V, F, group, W, w, B, s):
    """A super-block of two panels as the seven products meet it.

    V, F : levels and factors, of each `group` columns, of both, one after the other.
    W, B : from `w` on the products' words, from `s` on what the four sums start with.
    """
    size, factors, zero = 2 * _QUADS * LANES, UNIT // group * LANES, splat(np.int32(0))
    e, f, g, h = zero, zero, zero, zero
    for i in range(_QUADS):
        one, k = i * LANES, i // (group // 4) * LANES
        other, m = one + _QUADS * LANES, k + HALF // group * LANES
        a, c = words_by(load(V, one), load(F, k)), words_by(load(V, other), load(F, m))
        b = words_by(load(V, size + one), load(F, factors + k))
        d = words_by(load(V, size + other), load(F, factors + m))
        seven = _right(a, b, c, d)
        store_words(W, w + 2 * i * LANES, _W, seven)
        more = _too_much(seven)
        e, f, g, h = e - more[0], f - more[1], g - more[2], h - more[3]
    store(B, s, e)
    store(B, s + _B, f)
    store(B, s + 2 * _B, g)
    store(B, s + 3 * _B, h)


@inlined
def _add_product(sums, number, W, w, words, x, soon, lines):
    """`sums` and one of the seven products; for each so many cache lines are asked for from `words[soon]` on."""
    for i in range(lines):
        prefetch(words, soon + (number * lines + i) * 16)
    return add_pairs_of(sums, W, w + number * _W, words, x + number * _X)


@inlined
def _add_tile(totals, to, dots, D, s, scales, t, units):
    """`totals[to …]` and a tile of sums of a super-block, by the scales of its rows and activations."""
    sums = load_tile(totals, to, PANELS * LANES)
    store_tile(totals, to, PANELS * LANES, add_scaled(sums, dots, D, s, LANES, scales, t, units))


def matrix(turn, data, rows, x, scales, starts, out):
    """out[t, r] = row r · x[t]. x, starts: see `lay`; out: (n, rows) float32.

    scales: float32, of each 256 activations.
    """
    units, tiles, n = x.shape[0], x.shape[1], out.shape[0]
    row_bytes, panel_rows, groups = units * BYTES, PANELS * LANES, UNIT // GROUP
    least, most, tile = 2 * panel_rows, _ROWS // (2 * panel_rows), TOKENS * panel_rows  # most: pairs of panels
    V, S = np.empty(4 * _QUADS * LANES, np.int32), np.empty(groups * LANES, np.int32)
    F, W = np.empty(2 * groups * LANES, np.int32), on_lines(most * PRODUCTS * _W).view(np.int32)
    B, D = np.empty(most * SUMS * _B, np.int32), np.empty(most * 2 * _B, np.float32)
    edge, corner = np.empty(LANES * BYTES + 64, np.uint8), np.empty(tile, np.float32)
    totals = on_lines(2 * tiles * TOKENS * _ROWS)
    words, numbers = x.reshape(-1), starts.reshape(-1)
    grain = share_of_many(turn, rows, least, _ROWS)
    first = take(turn, grain)
    while first < rows:
        twos = (min(grain, rows - first) + least - 1) // least
        lines = (_X // 16 + twos - 1) // twos  # of the next activations, each time that some pass by
        totals[:] = _ZERO
        for u in range(units):
            for q in range(twos):
                for p in range(PANELS):
                    for side in range(2):
                        r = min(first + ((2 * q + side) * PANELS + p) * LANES, rows)
                        soon = (r + LANES) * row_bytes + u * LANES * BYTES
                        v, f = side * 2 * _QUADS * LANES, side * groups * LANES
                        d = unpack_panel(data, row_bytes, r, rows, u, edge, V[v:], S, F, f, S, 0, soon)
                        store(D, ((2 * q + side) * PANELS + p) * LANES, d)
                    _combine(V, F, GROUP, W, q * PRODUCTS * _W + p * _PANEL, B, q * SUMS * _B + p * LANES)
            for top in range(0, tiles, _BLOCK):
                for q in range(twos):
                    w, b, s = q * PRODUCTS * _W, q * SUMS * _B, 2 * q * _B
                    for i in range(top, min(top + _BLOCK, tiles)):
                        t, to = 2 * i * TOKENS, (2 * i * most + q) * 2 * tile
                        y, k = (u * tiles + i) * PRODUCTS * _X, (u * tiles + i) * SUMS * TOKENS
                        soon = y + _BLOCK * PRODUCTS * _X + q * PRODUCTS * lines * 16
                        zero = _add_product(zero_sums(), 0, W, w, words, y, soon, lines)
                        sums = _add_product(start_sums(zero, B, b, numbers, k), 1, W, w, words, y, soon, lines)
                        _add_tile(totals, to, sums, D, s, scales, t * units + u, units)
                        two = _add_product(zero, 2, W, w, words, y, soon, lines)
                        three = _add_product(two, 3, W, w, words, y, soon, lines)
                        sums = start_sums(three, B, b + _B, numbers, k + TOKENS)
                        sums = _add_product(sums, 4, W, w, words, y, soon, lines)
                        _add_tile(totals, to + tile, sums, D, s + _B, scales, t * units + u, units)
                        if t + TOKENS < n:
                            t, to = t + TOKENS, to + 2 * most * tile
                            five = _add_product(two, 5, W, w, words, y, soon, lines)
                            sums = add_sums(three, subtract_sums(five, two))
                            sums = start_sums(sums, B, b + 2 * _B, numbers, k + 2 * TOKENS)
                            _add_tile(totals, to + tile, sums, D, s + _B, scales, t * units + u, units)
                            sums = start_sums(five, B, b + 3 * _B, numbers, k + 3 * TOKENS)
                            sums = _add_product(sums, 6, W, w, words, y, soon, lines)
                            _add_tile(totals, to, sums, D, s, scales, t * units + u, units)
        for t in range(0, n, TOKENS):
            for g in range(2 * twos):
                sums = load_tile(totals, (t // TOKENS * 2 * most + g) * tile, panel_rows)
                put_tile(sums, t, first + g * panel_rows, corner, out)
        grain = share_of_many(turn, rows, least, _ROWS)
        first = take(turn, grain)
