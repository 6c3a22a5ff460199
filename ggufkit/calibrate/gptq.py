"""GPTQ on the grids of GGUF, and descent after it: the blocks of a matrix that change its outputs least.

    factor = Factor(second_moment(x), damp_for(*x.shape))
    blocks = rounded(W, factor, "IQ3_S")            # (rows, row_bytes) uint8

The loss of a row is (w − v) H (w − v)ᵀ with H the second moment of the inputs. A chunk of 256 columns at a time first
takes what the errors before it ask for, a product of the errors with the factor of H, and is then rounded (see
`formats.grids.rounding`). d and first scales of each block come from the plain encoder, on what the weights have
become. Then sweeps of descent, with Γ of a chunk as a product of all errors with H. Rows are independent, so threads
share them, and the bytes do not depend on how.

Source: Frantar et al., "GPTQ", 2022, with the scales searched again on the way.
"""

from __future__ import annotations

import numpy as np

from ggufkit.calibrate.products import Factor, product, transposed
from ggufkit.formats.codec import encode
from ggufkit.formats.grids import GRIDS, Grid
from ggufkit.formats.grids.descent import descend_block
from ggufkit.formats.grids.nearest import Chosen, Tables
from ggufkit.formats.grids.rounding import round_block
from ggufkit.formats.grids.scales import Numbers, pack, scales_of
from ggufkit.formats.table import FORMATS
from ggufkit.kernels.threads import for_ranges, thread_count

__all__ = ["SWEEPS", "damp_for", "rounded"]

SWEEPS = 2
_ROWS = 256  # that a thread rounds together


def damp_for(tokens: int, width: int) -> float:
    """How much of its mean to add to the diagonal of a second moment that so many tokens gave: 0.01 … 0.2."""
    return min(max(0.5 * width / max(tokens, 1), 0.01), 0.2)


def rounded(W: np.ndarray, factor: Factor, name: str, sweeps: int = SWEEPS, threads: int | None = None) -> np.ndarray:
    """The blocks of a matrix.

    Parameters
    ----------
    W : (rows, cols) float32: what to come near to.
    factor : of the second moment of the inputs, (cols, cols).
    name : of a format that has a grid.
    sweeps : of descent.

    Returns
    -------
    array of shape (rows, row_bytes), uint8

    Raises
    ------
    CodecError : a weight is not finite, or the format cannot hold it.
    """
    format = FORMATS[name]
    out = np.empty((len(W), format.row_bytes(W.shape[1])), np.uint8)
    share = -(-len(W) // thread_count(threads))
    grain = min(_ROWS, -(-share // 16) * 16)

    def work(lo: int, hi: int) -> None:
        out[lo:hi] = _Rows(W[lo:hi], factor, GRIDS[name]).run(sweeps)

    for_ranges(work, len(W), grain, threads)
    return out


class _Rows:
    """Some rows of a matrix while they are rounded, filled up to whole tiles of 16."""

    def __init__(self, W: np.ndarray, factor: Factor, grid: Grid):
        self.rows, self.factor, self.grid = len(W), factor, grid
        self.W = np.zeros((-(-len(W) // 16) * 16, W.shape[1]), np.float32)
        self.W[: self.rows] = W
        self.errors = np.zeros_like(self.W)  # W − V
        book = np.zeros(1, np.float32) if grid.book is None else grid.book.reshape(-1)
        levels = np.zeros(max(16, len(grid.levels)), np.float32)
        levels[: len(grid.levels)] = grid.levels
        self.tables = Tables(grid.steps, levels, grid.middles, np.ascontiguousarray(book))

    def run(self, sweeps: int) -> np.ndarray:
        chosen = [self._round(i) for i in range(len(self.factor.chunks))]
        pairs = [_pairs(self._part(i)) if self.grid.dims else np.zeros(1, np.float32) for i in range(len(chosen))]
        for _ in range(sweeps):
            for i, q in enumerate(chosen):
                self._descend(i, q, pairs[i])
        blocks = [self._packed(i, q) for i, q in enumerate(chosen)]
        return np.concatenate(blocks, axis=1)[: self.rows]

    def _round(self, i: int) -> Chosen:
        (lo, hi), grid, inverse = self.factor.chunks[i], self.grid, self.factor.inverses[i]
        carried = product(self.errors[:, :lo], self.factor.above(i), 1)
        x = _tiles(self.W[:, lo:hi] + product(carried, transposed(inverse), 1))
        feed = (-inverse / np.diagonal(inverse)[:, None]).reshape(-1)
        weight = self.factor.weight[lo:hi].copy()
        q = self._empty(hi - lo)
        for at in range(0, hi - lo, grid.block):
            current = _rows(x, hi - lo, at, at + grid.block)
            start = scales_of(encode(current, grid.name, weight[at : at + grid.block], threads=1), grid.name)
            self._begin(q, start, at, hi - lo)
            round_block(x, feed, weight, at, grid.shape, self.tables, q)
        self.errors[:, lo:hi] = self.W[:, lo:hi] - _rows(q.values, hi - lo, 0, hi - lo)
        return q

    def _empty(self, columns: int) -> Chosen:
        tiles, grid = len(self.W) // 16, self.grid

        def zeros(count: int, dtype: type) -> np.ndarray:
            return np.zeros(tiles * count * 16, dtype)

        blocks, subs, groups = columns // grid.block, columns // grid.sub, columns // 8
        return Chosen(
            values=zeros(columns, np.float32),
            units=zeros(columns, np.float32),
            d=zeros(blocks, np.float32),
            dmin=zeros(blocks, np.float32),
            scales=zeros(subs, np.int32),
            mins=zeros(subs, np.int32),
            rows=zeros(columns // grid.dims if grid.dims else 1, np.int32),
            signs=zeros(groups if grid.dims else 1, np.int32),
        )

    def _begin(self, q: Chosen, start: Numbers, at: int, columns: int) -> None:
        """Put what the plain encoder chose for the block from `at` on in its place."""
        tiles, grid = len(self.W) // 16, self.grid
        block, subs = at // grid.block, grid.block // grid.sub
        for to, values in ((q.d, start.d), (q.dmin, start.dmin)):
            to.reshape(tiles, -1, 16)[:, block] = values.reshape(tiles, 16)
        for to, values in ((q.scales, start.scales), (q.mins, start.mins)):
            parts = values.reshape(tiles, 16, subs).swapaxes(1, 2)
            to.reshape(tiles, -1, 16)[:, block * subs : (block + 1) * subs] = parts

    def _part(self, i: int) -> np.ndarray:
        lo, hi = self.factor.chunks[i]
        return np.ascontiguousarray(self.factor.H[lo:hi, lo:hi])

    def _descend(self, i: int, q: Chosen, pairs: np.ndarray) -> None:
        lo, hi = self.factor.chunks[i]
        y = _tiles(product(self.errors, self.factor.H[lo:hi], 1))
        descend_block(y, self._part(i).reshape(-1), pairs, self.grid.shape, self.tables, q)
        self.errors[:, lo:hi] = self.W[:, lo:hi] - _rows(q.values, hi - lo, 0, hi - lo)

    def _packed(self, i: int, q: Chosen) -> np.ndarray:
        """(rows, bytes of the chunk)."""
        lo, hi = self.factor.chunks[i]
        grid, rows, blocks = self.grid, len(self.W), (hi - lo) // self.grid.block
        subs = grid.block // grid.sub

        def by_block(values: np.ndarray, count: int) -> np.ndarray:
            return _rows(values, blocks * count, 0, blocks * count).reshape(rows * blocks, count)

        numbers = Numbers(
            d=by_block(q.d, 1)[:, 0],
            dmin=by_block(q.dmin, 1)[:, 0],
            scales=by_block(q.scales, subs),
            mins=by_block(q.mins, subs),
        )
        if grid.dims:
            numbers.rows = by_block(q.rows, grid.block // grid.dims)
            numbers.signs = by_block(q.signs, grid.block // 8)
        else:
            numbers.units = by_block(q.units, grid.block)
        return pack(numbers, grid.name).reshape(rows, -1)


def _tiles(x: np.ndarray) -> np.ndarray:
    """(rows, columns) → flat, (rows / 16, columns, 16)."""
    return np.ascontiguousarray(x.reshape(-1, 16, x.shape[1]).swapaxes(1, 2), np.float32).reshape(-1)


def _rows(x: np.ndarray, columns: int, lo: int, hi: int) -> np.ndarray:
    """Columns lo:hi of tiles as rows."""
    tiles = x.reshape(-1, columns, 16)[:, lo:hi]
    return np.ascontiguousarray(tiles.swapaxes(1, 2)).reshape(-1, hi - lo)


def _pairs(H: np.ndarray) -> np.ndarray:
    """What `descent` reads of a codebook's chunk of H (n, n): inverses of 8 × 8 blocks, two weights per column."""
    n = len(H)
    blocks = np.stack([H[c : c + 8, c : c + 8] for c in range(0, n, 8)]).astype(np.float64)
    inverses = _inverse(blocks)
    ideal = 1 / np.diagonal(inverses, axis1=1, axis2=2).reshape(-1)
    return np.concatenate([inverses.reshape(-1), ideal, np.diagonal(H)]).astype(np.float32)


def _inverse(A: np.ndarray) -> np.ndarray:
    """Inverses of positive definite matrices (count, n, n), by elimination, in an order of its own."""
    n = A.shape[1]
    work = np.concatenate([A, np.broadcast_to(np.eye(n), A.shape)], 2)
    for k in range(n):
        work[:, k] /= work[:, k, k, None].copy()
        for i in range(n):
            if i != k:
                work[:, i] -= work[:, i, k, None].copy() * work[:, k]
    return work[:, :, n:]
