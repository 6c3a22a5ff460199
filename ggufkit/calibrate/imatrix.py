"""Importance matrices: the squares of what meets each weight matrix when a model reads a text.

Works as llama-imatrix does: every window goes through the model, and for each matrix of the blocks the squares of its
inputs are summed, column by column; of a stack of experts for each expert, over the tokens that chose it.

Source: `IMatrixCollector` in tools/imatrix/imatrix.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ggufkit.errors import GgufkitError, printable
from ggufkit.evaluate.windows import Windows
from ggufkit.importance.imatrix_file import Sums
from ggufkit.runtime.cpu.ops import CpuOps
from ggufkit.runtime.cpu.products import rounded
from ggufkit.runtime.cpu.weight import Weight
from ggufkit.runtime.ops import Linear
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    from ggufkit.runtime.model import Model

__all__ = ["CollectingOps", "collect"]


class CollectingOps(CpuOps):
    """Operations that also sum the squares of what meets each matrix.

    Parameters
    ----------
    threads : how many.
    output : also collect for the output matrix.

    Attributes
    ----------
    sums : tensor name → sums and counts.
    """

    def __init__(self, threads: int | None = None, output: bool = False):
        super().__init__(threads)
        self.output = output
        self.sums: dict[str, Sums] = {}

    def linear(self, x: np.ndarray, *linears: Linear) -> list[np.ndarray]:
        names = {linear.name for linear in linears if self._collected(linear.name)}
        if names:
            squares = np.einsum("ij,ij->j", x, x, dtype=np.float64)  # (cols,)
            for name in names:
                sums = self._sums(name, 1, x.shape[1])
                sums.squares[0] += squares
                sums.counts[0] += len(x)
        return super().linear(x, *linears)

    def each(self, x: np.ndarray, linear: Linear, chosen: np.ndarray) -> np.ndarray:
        sums = self._sums(linear.name, linear.weight.shape[0], x.shape[1])
        for expert in np.unique(chosen):
            rows = x[chosen == expert]
            sums.squares[expert] += np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
            sums.counts[expert] += len(rows)
        return super().each(x, linear, chosen)

    def weight(self, tensor: Tensor) -> Weight:
        """Rounds activations where llama.cpp's products do, so that the sums of later layers are its sums."""
        fits = tensor.shape[-1] % rounded.COLUMNS == 0
        return Weight(tensor, self.threads, rounded.PRODUCTS.get(tensor.format.name) if fits else None)

    def _collected(self, name: str) -> bool:
        return name.startswith("blk.") or (self.output and name == "output.weight")

    def _sums(self, name: str, experts: int, cols: int) -> Sums:
        if name not in self.sums:
            self.sums[name] = Sums(np.zeros((experts, cols)), np.zeros(experts, np.int64))
        return self.sums[name]


def collect(model: Model, windows: Windows, report: Callable[[int], None] = lambda tokens: None) -> dict[str, Sums]:
    """Run a model that was loaded with `CollectingOps` over windows of text.

    Raises
    ------
    GgufkitError : activations are not finite: the model or the text breaks it.
    """
    ops = model.ops
    assert isinstance(ops, CollectingOps)
    logits = "all" if ops.output else None
    cache = model.new_cache(windows.length)
    for seen, _ in windows:
        cache.truncate(0)
        model.forward(seen, cache, logits)
        report(windows.length)
        for name, sums in ops.sums.items():
            if not np.isfinite(sums.squares).all():
                raise GgufkitError(
                    f"what meets {printable(name)} is not finite; the model is broken, or its type too narrow"
                )
    return ops.sums
