"""A weight matrix, or a stack of them, as calibration reads it: decoded when it is needed."""

from __future__ import annotations

import numpy as np

from ggufkit.formats.codec import decode
from ggufkit.tensors.tensor import Tensor

__all__ = ["Matrix", "part_of"]


class Matrix:
    """What `Ops.weight` makes of a tensor.

    Parameters
    ----------
    tensor : of shape (rows, cols) or (experts, rows, cols); a part of a fused tensor has the whole one's name.
    start : the row of the file's tensor at which this one begins.
    whole_rows : rows of the file's tensor, or of one matrix of a stack.
    """

    def __init__(self, tensor: Tensor, start: int = 0):
        self.tensor, self.start = tensor, start
        self.whole_rows = tensor.shape[-2]

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def experts(self) -> int:
        return self.tensor.shape[0] if len(self.tensor.shape) == 3 else 1

    @property
    def matrix_rows(self) -> int:
        """Rows of one matrix."""
        return self.tensor.shape[-2]

    def floats(self, expert: int = 0) -> np.ndarray:
        """One matrix, (rows, cols) float32; of a file in F32 what is mapped, without a copy."""
        n = self.matrix_rows
        blocks = self.tensor.read(expert * n, (expert + 1) * n)
        if self.tensor.format.name == "F32" and blocks.ctypes.data % 4 == 0:
            return blocks.view(np.ndarray).view(np.float32)
        return decode(blocks, self.tensor.format)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows by number: (n,) → (n, cols), float32."""
        needed, places = np.unique(ids, return_inverse=True)
        blocks = np.concatenate([self.tensor.read(int(i), int(i) + 1) for i in needed])
        return decode(blocks, self.tensor.format)[places.reshape(-1)]


def part_of(parts: dict[str, list[Matrix]], tensor: Tensor) -> Matrix:
    """A tensor as a matrix; those of a name come one after the other and are parts of the file's tensor.

    Parameters
    ----------
    parts : those before, by name; the new one is added.
    """
    found = parts.setdefault(tensor.name, [])
    found.append(Matrix(tensor, sum(part.matrix_rows for part in found)))
    for part in found:
        part.whole_rows = sum(other.matrix_rows for other in found)
    return found[-1]
