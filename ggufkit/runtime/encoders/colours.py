"""What the pixels of pictures are normalised by."""

from __future__ import annotations

import math

from ggufkit.arch.hyperparameters import Keys
from ggufkit.errors import printable

__all__ = ["colours_of"]


def colours_of(keys: Keys, name: str) -> tuple[float, ...]:
    """``image_mean`` or ``image_std``, a number of each colour.

    Raises
    ------
    ArchitectureError : they are missing, or cannot be.
    """
    values = keys.get(name)
    if not isinstance(values, list) or len(values) < 3 or not all(isinstance(v, float) for v in values[:3]):
        raise keys.fail(name, "must be three numbers, one of each colour")
    if not all(math.isfinite(v) and (name == "image_mean" or abs(v) > 1e-6) for v in values[:3]):
        raise keys.fail(name, f"cannot be {printable(repr(values[:3]))}")
    return tuple(values[:3])
