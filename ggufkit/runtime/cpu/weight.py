"""Matrices whose blocks stay as they are in the file, ready to be multiplied with rows of activations.

    weight = Weight(model.tensors["blk.0.ffn_up.weight"])
    y = weight.multiply(x)                       # (n, cols) → (n, rows): y = x @ W.T

    x = Activations(x)                           # several weights read the same x: what they share is made once
    q, k, v = multiply_all((wq, wk, wv), x)

Blocks are read where the file is mapped; nothing is decoded ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ggufkit.errors import CodecError, printable
from ggufkit.formats.codec import decode, decoder, frozen
from ggufkit.kernels.shares import take_share
from ggufkit.kernels.threads import SHARES, in_all_threads, unshared
from ggufkit.runtime.cpu.products import FEW, Product, floats, product_of
from ggufkit.runtime.cpu.products.activations import Planes, padded, quantize, rounded
from ggufkit.tensors.tensor import Tensor

__all__ = ["Activations", "Weight", "multiply_all"]

# A product that threads share: each calls it with the same counter of rows (see `kernels.threads`).
_Job = Callable[[np.ndarray], object]

_TILE = 1 << 17  # weights decoded at once: they stay in a core's cache


class Activations:
    """Rows of activations, and the forms in which products read them, each made on first use.

    Parameters
    ----------
    x : array of shape (n, cols), float32.
    """

    def __init__(self, x: np.ndarray):
        if x.ndim != 2:
            raise CodecError(f"activations must have the shape (n, cols), not {x.shape}")
        self.x = frozen(np.asarray(x, np.float32))
        self._planes: dict[tuple[str, int], Planes] = {}
        self._rounded: dict[str, np.ndarray] = {}
        self._started: dict[tuple[str, int, int], np.ndarray] = {}

    def form(self, product: Product) -> tuple[np.ndarray, ...]:
        """What the kernels of a format read: x itself, or levels, scales, sums (see `products.loops`)."""
        alone = len(self.x) == 1
        if product.form is None:
            return (self.x if alone else padded(self.x),)
        if product.form in ("F16", "BF16"):
            if product.form not in self._rounded:
                self._rounded[product.form] = rounded(self.x, product.form)
            return (self._rounded[product.form],)
        key = product.form, product.group
        if key not in self._planes:
            self._planes[key] = quantize(self.x, *key)
        planes = self._planes[key]
        if not product.offset or len(self.x) <= FEW:
            return planes.levels, planes.scales, planes.sums
        return planes.levels, planes.scales, self._starts(planes, (*key, product.offset))

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


class Weight:
    """A matrix of shape (rows, cols), or a stack of them (experts, rows, cols), ready for products.

    Parameters
    ----------
    tensor : the matrix.
    threads : how many; default GGUFKIT_THREADS or all CPUs.
    product : its kernels; default those of the format.

    Attributes
    ----------
    name, shape, format, nbytes : the tensor's; `nbytes` is what one reading of all blocks moves.
    """

    def __init__(self, tensor: Tensor, threads: int | None = None, product: Product | None = None):
        if len(tensor.shape) not in (2, 3):
            raise CodecError(
                f"{printable(tensor.name)}: a product needs a matrix or a stack of matrices, not {tensor.shape}"
            )
        self.name, self.shape, self.format, self.nbytes = tensor.name, tensor.shape, tensor.format, tensor.nbytes
        self.threads = threads
        self._rows = tensor.shape[-2]
        # (experts · rows, row_bytes); parts of a `memmap` are made slowly.
        self._blocks = tensor.read(0, tensor.rows).view(np.ndarray)
        self._product = product or product_of(tensor.format)

    def __repr__(self) -> str:
        return f"<Weight {printable(self.name)} {self.shape} {self.format.name}>"

    def multiply(self, x: np.ndarray | Activations, out: np.ndarray | None = None, expert: int = 0) -> np.ndarray:
        """`x @ W.T`.

        Parameters
        ----------
        x : array of shape (n, cols), float32.
        out : array of shape (n, rows), float32, C-contiguous, to write to.
        expert : which matrix of a stack.

        Returns
        -------
        array of shape (n, rows), float32
        """
        x = x if isinstance(x, Activations) else Activations(x)
        if out is None:
            out = np.empty((x.shape[0], self._rows), np.float32)
        _work_off([self._job(x, out, expert)], self.threads)
        return out

    def _job(self, x: Activations, out: np.ndarray, expert: int = 0) -> _Job:
        """The product as something that threads can share; what it needs from x is made now."""
        n, cols = x.shape
        if cols != self.shape[-1]:
            raise CodecError(f"{printable(self.name)}: {cols} activations cannot meet rows of {self.shape[-1]} weights")
        blocks = self._blocks[expert * self._rows : (expert + 1) * self._rows]
        if not blocks.size or not n:
            out[...] = 0
            return lambda turn: None
        if self._product is None:
            return self._decoding_job(x, blocks, out)
        run = _loop_for(n, self._product)
        form, data, rows = x.form(self._product), blocks.reshape(-1), self._rows
        return lambda turn: run(turn, data, rows, *form, out)

    def _decoding_job(self, x: Activations, blocks: np.ndarray, out: np.ndarray) -> _Job:
        """Rows are decoded, a few at a time, and multiplied as F32."""
        form, read = x.form(floats.F32), decoder(self.format)
        n, cols, step = len(out), self.shape[-1], max(1, _TILE // self.shape[-1])
        run = _loop_for(n, floats.F32)

        def work(turn: np.ndarray) -> None:
            while (lo := take_share(turn, step)) < self._rows:
                hi = min(lo + step, self._rows)
                tile = np.empty((hi - lo, cols), np.float32)
                read(frozen(blocks[lo:hi].reshape(-1, self.format.type_size)), tile.reshape(-1, self.format.block_size))
                part = np.empty((n, hi - lo), np.float32)
                run(unshared()[0], frozen(tile.reshape(-1).view(np.uint8)), hi - lo, *form, part)
                out[:, lo:hi] = part

        return work

    def multiply_each(self, x: np.ndarray | Activations, experts: np.ndarray) -> np.ndarray:
        """Row i of x with the matrix `experts[i]`: arrays of shape (n, cols) and (n,) → (n, rows), float32.

        Rows of one expert are multiplied together.
        """
        x = x if isinstance(x, Activations) else Activations(x)
        out = np.empty((len(experts), self._rows), np.float32)
        chosen = [(int(expert), np.flatnonzero(experts == expert)) for expert in np.unique(experts)]
        parts = [np.empty((len(rows), self._rows), np.float32) for _, rows in chosen]
        jobs = [self._job(x.take(rows), part, e) for (e, rows), part in zip(chosen, parts, strict=True)]
        _work_off(jobs, self.threads)
        for (_, rows), part in zip(chosen, parts, strict=True):
            out[rows] = part
        return out

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Decoded rows, by number: (n,) → (n, cols), float32. What an embedding look-up reads."""
        return decode(self._blocks[ids], self.format, threads=1)


def multiply_all(weights: Sequence[Weight], x: np.ndarray | Activations) -> list[np.ndarray]:
    """Products of several weights with the same x: a list of arrays of shape (n, rows)."""
    x = x if isinstance(x, Activations) else Activations(x)
    outs = [np.empty((x.shape[0], weight._rows), np.float32) for weight in weights]
    jobs = [weight._job(x, out) for weight, out in zip(weights, outs, strict=True)]
    _work_off(jobs, weights[0].threads if weights else 1)
    return outs


def _loop_for(n: int, product: Product) -> Callable[..., object]:
    """The loop for n rows of activations."""
    return product.vector if n == 1 else product.few if n <= FEW else product.matrix


def _work_off(jobs: list[_Job], threads: int | None) -> None:
    """All threads at the first job, then, each when it finds nothing left there, at the next."""
    for first in range(0, len(jobs), SHARES):
        some = jobs[first : first + SHARES]

        def work(shares: Sequence[np.ndarray], some: list[_Job] = some) -> None:
            for job, turn in zip(some, shares, strict=False):
                job(turn)

        in_all_threads(work, threads)
