"""What happens where a model computes with arrays in a way that calibration has no gradient for: one line says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from ggufkit.errors import ArchitectureError
from ggufkit.runtime.before import convolved
from ggufkit.runtime.ops import Ops, Span

__all__ = ["Opaque", "OpaqueOps", "no_gradient"]


def no_gradient(what: str) -> ArchitectureError:
    return ArchitectureError(f"calibration knows no gradient of {what}, so models that need it cannot be calibrated")


class Opaque:
    """An array without NumPy's functions and operators, but for those that a subclass defines."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise no_gradient(name)

    def _refuse(self, *_: Any) -> Any:
        raise no_gradient("arithmetic of this model's own")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __pow__ = __neg__ = __getitem__ = __setitem__ = _refuse


class OpaqueOps:
    """Operations of which those that a subclass does not define are refused."""

    def convolve(self, x: Any, weights: Any, bias: Any | None, spans: Sequence[Span], apart: int = 1) -> Any:
        return convolved(cast(Ops, self), x, weights, bias, spans, apart)

    def replaced(self, x: Any, y: Any) -> Any:
        return y

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise no_gradient(f"the operation {name}")
