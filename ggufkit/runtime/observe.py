"""To watch a model run, on any backend: what meets each matrix is shown before it is multiplied.

def see(name, x, experts): ...

with observed(model, see):
    model.forward(tokens, cache)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufkit.runtime.ops import Array, Linear

if TYPE_CHECKING:
    from ggufkit.runtime.model import Model

__all__ = ["Observed", "See", "observed"]

# Called with a matrix's name, the rows that it will meet, (n, cols) float32, and, of a stack of experts, the expert of
# each row, (n,). A row is shown once for each expert that it meets.
See = Callable[[str, np.ndarray, "np.ndarray | None"], object]


class Observed:
    """Implements `Ops` by another's, and shows what meets each matrix.

    Parameters
    ----------
    ops : those that compute.
    see : what looks.
    wanted : names of the matrices that it wants to see; default all.
    """

    def __init__(self, ops: Any, see: See, wanted: Callable[[str], bool] = lambda name: True):
        self.ops, self.see, self.wanted = ops, see, wanted

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def recorder(self, caches: Sequence[Sequence[Any]], beside: Any = None) -> None:
        """None: what is played from a recording is not shown."""
        return None

    def linear(self, x: Array, *linears: Linear) -> Sequence[Array]:
        names = dict.fromkeys(linear.name for linear in linears if self.wanted(linear.name))  # parts of one matrix once
        if names:
            rows = self.ops.numpy(x)
            for name in names:
                self.see(name, rows, None)
        result: Sequence[Any] = self.ops.linear(x, *linears)
        return result

    def each(self, x: Array, chosen: Array, *linears: Linear) -> Sequence[Array]:
        names = dict.fromkeys(linear.name for linear in linears if self.wanted(linear.name))
        if names:
            experts = np.asarray(self.ops.numpy(chosen))  # (n, used)
            rows = np.broadcast_to(self.ops.numpy(x), (*experts.shape, x.shape[-1])).reshape(-1, x.shape[-1])
            for name in names:
                self.see(name, rows, experts.reshape(-1))
        result: Sequence[Any] = self.ops.each(x, chosen, *linears)
        return result


@contextmanager
def observed(model: Model, see: See, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[None]:
    """What runs through the model meanwhile is shown to `see`."""
    before = model.ops
    model.ops = Observed(before, see, wanted)
    try:
        yield
    finally:
        model.ops = before
