"""What an importance matrix alone says, in the form of statistics: enough to fold scales.

It has the mean square of each input, so that a moment is its diagonal, and no gradients: what an error costs is taken
to be its part of what the matrix gives. That is enough to compare scales for the same few matrices. It is not for
choosing types: those that were chosen by it had twice the KL divergence of llama.cpp's presets and more.
"""

from __future__ import annotations

import numpy as np

from ggufkit.calibrate.statistics import Statistics
from ggufkit.gguf.reader import GGUF
from ggufkit.importance.imatrix_file import Imatrix, Sums
from ggufkit.tensors.tensor import Tensor

__all__ = ["poor_statistics"]

_ROWS = 128  # of a tensor, that stand for all
_WIDTH = 32  # columns of a block of a moment


def poor_statistics(imatrix: Imatrix, model: GGUF) -> Statistics:
    """Statistics of no text: diagonal moments, and gradients that make each matrix's outputs count alike.

    Parameters
    ----------
    imatrix : of this model; what it does not name is left out.
    """
    found = Statistics(np.zeros((0, 1), np.int32), imatrix.datasets)
    shared: dict[tuple[str, bytes], str] = {}
    for name, tensor in model.tensors.items():
        if name not in imatrix.values:
            continue
        importance = imatrix.values[name].reshape(-1, tensor.cols)
        mean = importance.mean(0, dtype=np.float64).astype(np.float32)
        block = name.rsplit(".", 2)[0]
        key = found.inputs[name] = shared.setdefault((block, mean.tobytes()), name)
        if key == name:
            found.moments[name] = [np.diag(mean[lo : lo + _WIDTH]) for lo in range(0, tensor.cols, _WIDTH)]
        found.squares[name] = Sums(mean[None].astype(np.float64), np.ones(1, np.int64))
        experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
        found.fisher[name] = np.full((experts, tensor.rows // experts), 1 / _power(tensor, mean))
    return found


def _power(tensor: Tensor, mean: np.ndarray) -> float:
    """The mean square of what a matrix gives, of all rows together."""
    step = max(1, tensor.rows // _ROWS)
    rows = np.concatenate([tensor.floats(row, row + 1) for row in range(0, tensor.rows, step)])
    total = np.add.reduce(np.add.reduce(rows.astype(np.float64) ** 2 * mean, 0))
    return float(total) / len(rows) * tensor.rows or 1.0
