"""One vector of each token, in float32: what attention that chooses its keys remembers.

Unlike `Ops.layer_cache` it is not quantized, whatever the types of keys and values: choices would change.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ggufkit.runtime.ops import Array, NotRecorded, Ops

__all__ = ["Rows"]

_STEP = 256  # tokens by which it grows


class Rows:
    """Vectors of the tokens so far, of several kinds, for up to `length` tokens.

    Attributes
    ----------
    arrays : of each kind one of shape (room, width); rows behind the last token hold anything.
    """

    def __init__(self, ops: Ops, length: int, *widths: int):
        self._ops, self._length = ops, length
        self.arrays: list[Array] = [ops.zeros(0, width) for width in widths]

    @property
    def addresses(self) -> tuple[int, ...]:
        """None that last: they are other arrays when they have grown."""
        raise NotRecorded("rows are other arrays when they have grown")

    @property
    def nbytes(self) -> int:
        """Of all tokens that there is room for."""
        return sum(4 * self._length * array.shape[1] for array in self.arrays)

    def put(self, kind: int, x: Array, start: int) -> Array:
        """Write those of tokens `start …`, (n, width); gives those of all tokens so far."""
        end, have = start + len(x), len(self.arrays[kind])
        if end > have:
            more = self._ops.zeros(-(-(end - have) // _STEP) * _STEP, x.shape[-1])
            self.arrays[kind] = self._ops.concatenate([self.arrays[kind], more])
        self.arrays[kind][start:end] = x
        return self.arrays[kind][:end]

    def prefix(self, n: int) -> list[np.ndarray]:
        return [self._ops.numpy(array[:n]) for array in self.arrays]

    def restore(self, n: int, arrays: Sequence[np.ndarray]) -> None:
        if [array.shape[1:] for array in arrays] != [tuple(array.shape[1:]) for array in self.arrays]:
            raise ValueError("another cache's")
        self.arrays = [self._ops.copy(self._ops.vector(array)) for array in arrays]
