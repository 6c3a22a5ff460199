"""What a recurrent layer remembers: arrays of fixed size that every token changes.

Tokens cannot be taken out of it again, so caches keep copies of it at some positions (see `Cache.truncate`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ggufkit.runtime.ops import Array, NotRecorded, Ops

__all__ = ["State"]


class State:
    """The state of one layer, zeros at first.

    Attributes
    ----------
    arrays : of the shapes given, float32.
    """

    def __init__(self, ops: Ops, *shapes: tuple[int, ...]):
        self._ops, self._shapes = ops, shapes
        self.arrays: list[Array] = [ops.zeros(*shape) for shape in shapes]

    @property
    def addresses(self) -> tuple[int, ...]:
        """None that last: they are other arrays after each token."""
        raise NotRecorded("states are other arrays after each token")

    @property
    def nbytes(self) -> int:
        return sum(4 * int(np.prod(shape)) for shape in self._shapes)

    def snapshot(self) -> list[Array]:
        """A copy of the arrays."""
        return [self._ops.copy(array) for array in self.arrays]

    def reset(self, arrays: Sequence[Array] | None = None) -> None:
        """Be as when `snapshot` gave these arrays; without any, as at first."""
        if arrays is None:
            self.arrays = [self._ops.zeros(*shape) for shape in self._shapes]
        else:
            self.arrays = [self._ops.copy(array) for array in arrays]

    def prefix(self, n: int) -> list[np.ndarray]:
        """What it holds now, whatever `n`."""
        return [self._ops.numpy(array) for array in self.arrays]

    def restore(self, n: int, arrays: Sequence[np.ndarray]) -> None:
        """Hold what `prefix` gave."""
        if [tuple(array.shape) for array in arrays] != [tuple(shape) for shape in self._shapes]:
            raise ValueError("another state's")
        self.arrays = [self._ops.copy(self._ops.vector(array)) for array in arrays]
