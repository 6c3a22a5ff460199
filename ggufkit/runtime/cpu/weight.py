"""Matrices whose blocks stay as they are in the file, ready to be multiplied with rows of activations.

    weight = Weight(model.tensors["blk.0.ffn_up.weight"])
    y = weight.multiply(x)                       # (n, cols) → (n, rows): y = x @ W.T

    x = Activations(x)                           # several weights read the same x: what they share is made once
    q, k, v = multiply_all((wq, wk, wv), x)

Blocks are read where the file is mapped; nothing is decoded ahead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ggufkit.errors import CodecError, printable
from ggufkit.formats.codec import decode, decoder, frozen
from ggufkit.kernels.threads import for_ranges, in_all_threads
from ggufkit.runtime.cpu.products import Product, floats, product_of
from ggufkit.runtime.cpu.products.activations import Planes, padded, quantize
from ggufkit.tensor import Tensor

__all__ = ["Activations", "Weight", "multiply_all"]

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
        self._started: dict[tuple[str, int, int], np.ndarray] = {}

    def form(self, product: Product) -> tuple[np.ndarray, ...]:
        """What the kernels of a format read: x itself, or levels, scales, sums (see `products.loops`)."""
        alone = len(self.x) == 1
        if product.form is None:
            return (self.x if alone else padded(self.x),)
        key = product.form, product.group
        if key not in self._planes:
            self._planes[key] = quantize(self.x, *key)
        planes = self._planes[key]
        if product.offset is None or alone:
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

    Attributes
    ----------
    name, shape, format, nbytes : the tensor's; `nbytes` is what one reading of all blocks moves.
    """

    def __init__(self, tensor: Tensor, threads: int | None = None):
        if len(tensor.shape) not in (2, 3):
            raise CodecError(
                f"{printable(tensor.name)}: a product needs a matrix or a stack of matrices, not {tensor.shape}"
            )
        self.name, self.shape, self.format, self.nbytes = tensor.name, tensor.shape, tensor.format, tensor.nbytes
        self.threads = threads
        self._rows = tensor.shape[-2]
        self._blocks = tensor.read(0, tensor.rows)  # (experts · rows, row_bytes)
        self._product = product_of(tensor.format)

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
        n, cols = x.shape
        if cols != self.shape[-1]:
            raise CodecError(f"{printable(self.name)}: {cols} activations cannot meet rows of {self.shape[-1]} weights")
        if out is None:
            out = np.empty((n, self._rows), np.float32)
        blocks = self._blocks[expert * self._rows : (expert + 1) * self._rows]
        if not blocks.size or not n:
            out[...] = 0
            return out
        if self._product is None:
            self._multiply_decoded(x, blocks, out)
            return out
        run = self._product.vector if n == 1 else self._product.matrix
        form, data = x.form(self._product), blocks.reshape(-1)
        in_all_threads(lambda shares: run(shares[0], data, self._rows, *form, out), self.threads)
        return out

    def _multiply_decoded(self, x: Activations, blocks: np.ndarray, out: np.ndarray) -> None:
        """Rows are decoded, a few at a time, and multiplied as F32."""
        product, read = floats.F32, decoder(self.format)
        form, cols = x.form(product), self.shape[-1]
        n = len(out)

        def multiply_range(lo: int, hi: int) -> None:
            tile, part = (
                np.empty((hi - lo, cols), np.float32),
                out[:, lo:hi] if n == 1 else np.empty((n, hi - lo), np.float32),
            )
            read(frozen(blocks[lo:hi].reshape(-1, self.format.type_size)), tile.reshape(-1, self.format.block_size))
            run = product.vector if n == 1 else product.matrix
            run(np.zeros(1, np.int64), frozen(tile.reshape(-1).view(np.uint8)), hi - lo, *form, part)
            if n > 1:
                out[:, lo:hi] = part

        for_ranges(multiply_range, self._rows, max(1, _TILE // cols), self.threads)

    def multiply_each(self, x: np.ndarray | Activations, experts: np.ndarray) -> np.ndarray:
        """Row i of x with the matrix `experts[i]`: arrays of shape (n, cols) and (n,) → (n, rows), float32.

        Rows of one expert are multiplied together.
        """
        x = x if isinstance(x, Activations) else Activations(x)
        out = np.empty((len(experts), self._rows), np.float32)
        for expert in np.unique(experts):
            chosen = np.flatnonzero(experts == expert)
            out[chosen] = self.multiply(x.take(chosen), expert=int(expert))
        return out

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Decoded rows, by number: (n,) → (n, cols), float32. What an embedding look-up reads."""
        return decode(self._blocks[ids], self.format, threads=1)


def multiply_all(weights: Sequence[Weight], x: np.ndarray | Activations) -> list[np.ndarray]:
    """Products of several weights with the same x: a list of arrays of shape (n, rows)."""
    x = x if isinstance(x, Activations) else Activations(x)
    return [weight.multiply(x) for weight in weights]
