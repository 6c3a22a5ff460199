"""Matrices whose inputs and outputs are kept within limits, which stand beside them in the file.

Source: `Gemma4ClippableLinear` in tools/mtmd/models/gemma4v.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.ops import Array, Linear, Ops

__all__ = ["with_limits"]

_NAMES = ("input_min", "input_max", "output_min", "output_max")
_FLOAT_MAX = 3.4028234663852886e38


def with_limits(load: Tensors) -> Ops:
    """The operations of a file's tensors, with the limits that it has; these tensors are taken."""
    limits: dict[str, tuple[float, ...]] = {}
    for name in [name for name in load.tensors if name.endswith(".weight")]:
        stem = name.removesuffix(".weight")
        if any(load.has(f"{stem}.{limit}") for limit in _NAMES):
            limits[name] = tuple(_limit(load, f"{stem}.{limit}") for limit in _NAMES)
    return cast(Ops, _LimitedOps(load.ops, limits)) if limits else load.ops


def _limit(load: Tensors, name: str) -> float:
    value = float(load.vector(name, 1)[0]) if load.has(name) else math.nan
    return value if not math.isnan(value) else _FLOAT_MAX if name.endswith("max") else -_FLOAT_MAX


class _LimitedOps:
    """Operations of which `linear` keeps to limits; all else is the backend's."""

    def __init__(self, ops: Ops, limits: Mapping[str, tuple[float, ...]]):
        self._ops, self._limits = ops, limits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def linear(self, x: Array, *linears: Linear) -> Sequence[Array]:
        found: list[Array] = []
        for linear in linears:
            if linear.name not in self._limits:
                found += self._ops.linear(x, linear)
                continue
            low, high, least, most = self._limits[linear.name]
            (y,) = self._ops.linear(self._ops.clamp(x, low, high), linear)
            found.append(self._ops.clamp(y, least, most))
        return found
