"""Matrices whose blocks stay as they are in the file, ready to be multiplied with rows of activations.

    weight = Weight(model.tensors["blk.0.ffn_up.weight"])
    y = weight.multiply(x)                       # (n, cols) → (n, rows): y = x @ W.T

    x = Activations(x)                           # several weights read the same x: what they share is made once
    q, k, v = multiply_all((wq, wk, wv), x)

Blocks are read where the file is mapped; nothing is decoded ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ggufkit.errors import CodecError, printable
from ggufkit.formats.codec import decode, decoder, frozen
from ggufkit.kernels.recording import Chosen
from ggufkit.kernels.shares import take_share
from ggufkit.kernels.threads import unshared
from ggufkit.runtime.cpu.calls import NOW, Calls, Job
from ggufkit.runtime.cpu.forms import Activations
from ggufkit.runtime.cpu.products import Product, floats, product_of
from ggufkit.runtime.ops import NotRecorded
from ggufkit.tensors.tensor import Tensor

__all__ = ["Activations", "Weight", "multiply_all", "multiply_chosen"]

_TILE = 1 << 17  # weights decoded at once: they stay in a core's cache


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
        NOW.shared([self._job(x, out, expert)], self.threads)
        return out

    def _job(self, x: Activations, out: Any, expert: int = 0, chosen: Any = None) -> Job:
        """The product as something that threads can share; what it needs from x is made now.

        With `chosen`, int64 that are known later, the matrix is number `chosen[expert]`.
        """
        n, cols = x.shape
        if cols != self.shape[-1]:
            raise CodecError(f"{printable(self.name)}: {cols} activations cannot meet rows of {self.shape[-1]} weights")
        first = expert * self._rows if chosen is None else 0
        blocks = self._blocks[first : first + self._rows]
        if not blocks.size or not n:
            out[...] = 0
            return Job(lambda turn: None, (), 0)
        if self._product is None:
            if chosen is not None:
                raise NotRecorded("a matrix that is decoded and chosen later")
            return self._decoding_job(x, blocks, out)
        form = x.form(self._product)
        data: Any = blocks.reshape(-1)
        if chosen is not None:
            data = Chosen(self._blocks.reshape(-1, data.size), chosen, expert)
        return Job(_loop_for(n, self._product), (data, self._rows, *form, out), n * self._rows * cols)

    def _decoding_job(self, x: Activations, blocks: np.ndarray, out: np.ndarray) -> Job:
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

        return Job(work, (), n * self._rows * cols)

    def multiply_each(
        self, x: np.ndarray | Activations, experts: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Row i of x with the matrix `experts[i]`: arrays of shape (n, cols) and (n,) → out (n, rows), float32.

        Rows of one expert are multiplied together.
        """
        x = x if isinstance(x, Activations) else Activations(x)
        out = np.empty((len(experts), self._rows), np.float32) if out is None else out
        chosen = [(int(expert), np.flatnonzero(experts == expert)) for expert in np.unique(experts)]
        parts = [np.empty((len(rows), self._rows), np.float32) for _, rows in chosen]
        jobs = [self._job(x.take(rows), part, e) for (e, rows), part in zip(chosen, parts, strict=True)]
        NOW.shared(jobs, self.threads)
        for (_, rows), part in zip(chosen, parts, strict=True):
            out[rows] = part
        return out

    def rows(self, ids: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Decoded rows, by number: (n,) → (n, cols), float32. What an embedding look-up reads."""
        return decode(self._blocks[ids], self.format, threads=1, out=out)


def multiply_all(weights: Sequence[Weight], x: Any, calls: Calls = NOW) -> list[Any]:
    """Products of several weights with the same x: a list of arrays of shape (n, rows)."""
    x = x if isinstance(x, Activations) else Activations(x, calls)
    outs = [calls.empty(x.shape[0], weight._rows) for weight in weights]
    jobs = [weight._job(x, out) for weight, out in zip(weights, outs, strict=True)]
    calls.shared(jobs, weights[0].threads if weights else 1)
    return outs


def multiply_chosen(weights: Sequence[Weight], x: Any, experts: Any, calls: Calls) -> list[Any]:
    """Row i of x (n, 1 or used, cols) with the matrix `experts[i]` of each stack: a list of arrays (n, used, rows).

    Each row by itself, so that it can be recorded, whether experts are known yet or not.
    """
    n, used = experts.shape
    later = None if isinstance(experts, np.ndarray) else experts.reshape(-1)
    outs = [calls.empty(n, used, weight._rows) for weight in weights]
    jobs = []
    for row in range(n):
        forms = [Activations(x[row, i : i + 1], calls) for i in range(x.shape[1])]
        for i in range(used):
            expert = int(experts[row, i]) if later is None else row * used + i
            form = forms[i % len(forms)]
            for weight, out in zip(weights, outs, strict=True):
                jobs.append(weight._job(form, out[row, i : i + 1], expert, later))
    calls.shared(jobs, weights[0].threads if weights else 1)
    return outs


def _loop_for(n: int, product: Product) -> Callable[..., object]:
    """The loop for n rows of activations."""
    return product.vector if n == 1 else product.few if n <= product.few_rows else product.matrix
