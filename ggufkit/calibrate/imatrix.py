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
from ggufkit.runtime.observe import observed
from ggufkit.runtime.sizes import LIMIT

if TYPE_CHECKING:
    from ggufkit.runtime.model import Model

__all__ = ["collect"]


def collect(
    model: Model, windows: Windows, report: Callable[[int], None] = lambda tokens: None, *, output: bool = False
) -> dict[str, Sums]:
    """Run a model over windows of text: tensor name → sums and counts.

    On the CPU, operations `as_ggml` give the sums that llama.cpp's own tool gives; others differ by what they round.

    Parameters
    ----------
    output : also collect for the output matrix.

    Raises
    ------
    GgufkitError : activations are not finite: the model or the text breaks it.
    """
    found: dict[str, Sums] = {}
    stacks = {tensor.name: tensor.shape[0] for tensor in model.gguf.tensors.values() if len(tensor.shape) == 3}

    def see(name: str, x: np.ndarray, experts: np.ndarray | None) -> None:
        if name not in found:
            count = stacks.get(name, 1)
            found[name] = Sums(np.zeros((count, x.shape[1])), np.zeros(count, np.int64))
        sums = found[name]
        for expert in [0] if experts is None else np.unique(experts):
            rows = x if experts is None else x[experts == expert]
            sums.squares[expert] += np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
            sums.counts[expert] += len(rows)

    def wanted(name: str) -> bool:
        return name.startswith("blk.") or (output and name == "output.weight")

    cache = model.new_cache(windows.length)
    # Logits are computed for what meets their matrix alone; those of a long window would take much memory.
    rows = "all" if output and "output.weight" in model.gguf.tensors else None
    with observed(model, see, wanted):
        for seen, _ in windows:
            cache.truncate(0)
            for lo in range(0, len(seen), LIMIT):
                model.forward(seen[lo : lo + LIMIT], cache, rows)
            report(windows.length)
            for name, sums in found.items():
                if not np.isfinite(sums.squares).all():
                    raise GgufkitError(
                        f"what meets {printable(name)} is not finite; the model is broken, or its type too narrow"
                    )
    return found
