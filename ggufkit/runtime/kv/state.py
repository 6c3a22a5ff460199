"""What a recurrent layer remembers: arrays of fixed size that every token changes.

Tokens cannot be taken out of it again, so caches keep copies of it at some positions (see `Cache.truncate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ggufkit.runtime.ops import Array, Ops

__all__ = ["State"]


class State:
    """The state of one layer, zeros at first.

    Attributes
    ----------
    arrays : of the shapes given, float32; always the same ones where arrays can be changed.
    """

    def __init__(self, ops: Ops, *shapes: tuple[int, ...]):
        self._ops, self._shapes = ops, shapes
        self.arrays: list[Array] = [ops.zeros(*shape) for shape in shapes]

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """Of the arrays, for backends that record passes: they change them in their place."""
        return tuple(array.ctypes.data for array in self.arrays)

    @property
    def nbytes(self) -> int:
        return sum(4 * int(np.prod(shape)) for shape in self._shapes)

    def snapshot(self) -> list[Array]:
        """A copy of the arrays."""
        return [self._ops.copy(array) for array in self.arrays]

    def reset(self, arrays: Sequence[Array] | None = None) -> None:
        """Be as when `snapshot` gave these arrays; without any, as at first."""
        self._hold([self._ops.zeros(*shape) for shape in self._shapes] if arrays is None else arrays)

    def prefix(self, n: int) -> list[np.ndarray]:
        """What it holds now, whatever `n`."""
        return [self._ops.numpy(array) for array in self.arrays]

    def restore(self, n: int, arrays: Sequence[np.ndarray]) -> None:
        """Hold what `prefix` gave."""
        if [tuple(array.shape) for array in arrays] != [tuple(shape) for shape in self._shapes]:
            raise ValueError("another state's")
        self._hold([self._ops.vector(np.array(array, np.float32)) for array in arrays])

    def _hold(self, arrays: Sequence[Array]) -> None:
        self.arrays = [self._ops.replaced(old, new) for old, new in zip(self.arrays, arrays, strict=True)]
