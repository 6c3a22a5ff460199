"""Rows of activations in the forms that products read them in, each made when it is first needed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ggufkit.errors import CodecError
from ggufkit.formats.codec import frozen
from ggufkit.kernels.dot import TOGETHER, TOKENS
from ggufkit.kernels.lanes import LANES
from ggufkit.kernels.threads import for_ranges
from ggufkit.runtime.cpu.calls import NOW, Calls
from ggufkit.runtime.cpu.products import COLUMNS, FEW, UNIT, Layout, Product
from ggufkit.runtime.cpu.products.inputs import lay_columns, quantize_q8_0, quantize_q8_k

__all__ = ["Activations", "Planes", "quantize"]

_RANGE = 1 << 17  # activations that a thread takes at once


class Activations:
    """Rows of activations, and the forms in which products read them, each made on first use.

    Parameters
    ----------
    x : array of shape (n, cols), float32.
    calls : how kernels are called.
    """

    def __init__(self, x: Any, calls: Calls = NOW):
        if len(x.shape) != 2:
            raise CodecError(f"activations must have the shape (n, cols), not {x.shape}")
        self.x: Any = calls.frozen(x)
        self._calls = calls
        self._by_column: Any = None
        self._planes: dict[tuple[str, int], Planes] = {}
        self._rounded: dict[str, np.ndarray] = {}
        self._laid: dict[Layout, tuple[np.ndarray, np.ndarray]] = {}
        self._started: dict[tuple[str, int, int], np.ndarray] = {}

    def form(self, product: Product) -> tuple[Any, ...]:
        """What the kernels of a format read: x itself, or levels, scales, sums (see `products.loops`)."""
        few = len(self.x) <= product.few_rows
        if product.form is None:
            if not few and self._by_column is None:
                self._by_column = by_column(self.x, calls=self._calls)
            return (self.x if few else self._by_column,)
        if product.form in ("F16", "BF16"):
            if product.form not in self._rounded:
                self._rounded[product.form] = rounded(self.x, product.form)
            return (self._rounded[product.form],)
        key = product.form, product.group
        if key not in self._planes:
            self._planes[key] = quantize(self.x, *key, calls=self._calls)
        planes = self._planes[key]
        if product.layout and not few:
            if product.layout not in self._laid:
                self._laid[product.layout] = laid(planes.levels, product.layout)
            x, starts = self._laid[product.layout]
            return x, planes.scales, starts
        if not product.offset or len(self.x) == 1:
            return planes.levels, planes.scales, planes.sums
        return planes.levels, planes.scales, planes.counts if few else self._starts(planes, (*key, product.offset))

    def _starts(self, planes: Planes, key: tuple[str, int, int]) -> np.ndarray:
        """What the level that means zero adds to each sum of products, to be taken off."""
        if key not in self._started:
            self._started[key] = planes.counts * np.int32(-key[2])
        return self._started[key]

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape

    def take(self, rows: np.ndarray) -> Activations:
        """Some of the rows, by number."""
        return Activations(self.x[rows])


class Planes(NamedTuple):
    """Quantized rows of activations, see `products.inputs`; x = scale · level.

    Attributes
    ----------
    levels : array of shape (tokens, cols), int8. One row stays one; up to FEW are made a multiple of TOGETHER with
        zeros, more a multiple of TOKENS, and columns a multiple of 256.
    scales, counts, sums : arrays of shape (tokens · groups + 16,); float32, int32, float32.
    """

    levels: Any
    scales: Any
    counts: Any
    sums: Any


def quantize(x: Any, form: str, group: int, threads: int | None = None, calls: Calls = NOW) -> Planes:
    """Rows of activations as planes.

    Parameters
    ----------
    x : array of shape (n, cols), float32, read-only.
    form : ``"Q8_0"`` or ``"Q8_K"``.
    group : 16 or 32 columns that have a scale and a sum of their own.
    """
    n, cols = x.shape
    together = 1 if n == 1 else TOGETHER if n <= FEW else TOKENS
    tokens, wide = -(-n // together) * together, -(-cols // UNIT) * UNIT
    groups = wide // group
    size = tokens * groups + 16
    written = form, group, n, cols
    planes = Planes(
        calls.zeros(tokens, wide, dtype=np.int8, written=written),
        calls.zeros(size, written=("scales", *written)),
        calls.zeros(size, dtype=np.int32, written=written),
        calls.zeros(size, written=("sums", *written)),
    )
    kernel, more = (quantize_q8_0, ()) if form == "Q8_0" else (quantize_q8_k, (group,))
    if n * wide <= _RANGE or calls is not NOW:
        calls.call(kernel, x, *more, *planes)
    else:
        for_ranges(
            lambda lo, hi: calls.call(kernel, x[lo:hi], *more, *_rows_of(planes, lo, hi, groups)),
            n,
            max(1, _RANGE // wide),
            threads,
        )
    return planes


def _rows_of(planes: Planes, lo: int, hi: int, groups: int) -> Planes:
    levels, *flat = planes
    return Planes(levels[lo:hi], *(plane[lo * groups : hi * groups] for plane in flat))


def laid(levels: np.ndarray, layout: Layout, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Levels as `products.scaled.matrix` or `products.pairs.matrix` reads them.

    Returns
    -------
    arrays of shape (units, tiles, planes, TOKENS, words) and (units, tiles, starts, TOKENS), int32; see `Layout`.
    """
    tokens, cols = levels.shape
    tiles = -(-tokens // layout.tokens)
    x = np.empty((cols // UNIT, tiles, layout.planes, TOKENS, layout.words), np.int32)
    starts = np.empty((cols // UNIT, tiles, layout.starts, TOKENS), np.int32)
    levels = frozen(levels)
    grain = max(1, _RANGE // (cols * layout.tokens))
    for_ranges(lambda lo, hi: layout.lay(levels, lo, hi, x, starts), tiles, grain, threads)
    return frozen(x), frozen(starts)


def rounded(x: np.ndarray, form: str) -> np.ndarray:
    """x rounded to ``"F16"`` or ``"BF16"``, in the order of `products.rounded`.

    Returns
    -------
    array of shape (tokens, cols), float32, tokens made a multiple of 4 with zeros. Of 32 columns of BF16 those with
    odd numbers come first.
    """
    n, cols = x.shape
    if form == "F16":
        with np.errstate(over="ignore"):
            x = x.astype(np.float16).astype(np.float32)
    else:
        import ml_dtypes

        pairs = x.astype(ml_dtypes.bfloat16).astype(np.float32).reshape(n, cols // 32, LANES, 2)
        x = pairs[..., ::-1].swapaxes(2, 3).reshape(n, cols)
    return frozen(np.pad(x, ((0, -n % 4), (0, 0))))


def by_column(x: Any, threads: int | None = None, calls: Calls = NOW) -> Any:
    """x (n, cols) with zeros to a multiple of TOKENS rows, every 32nd column together: (tokens, 32, columns / 32)."""
    n, cols = x.shape
    runs = -(-cols // COLUMNS)
    found = calls.zeros(n + -n % TOKENS, COLUMNS, runs, written=("columns", n, cols))
    if n * cols <= _RANGE or calls is not NOW:
        calls.call(lay_columns, x, found)
    else:
        grain = max(1, _RANGE // cols)
        for_ranges(lambda lo, hi: calls.call(lay_columns, x[lo:hi], found[lo:hi]), n, grain, threads)
    return calls.frozen(found)
