"""Rotary positions: cosine and sine of every position's angles, as tables that grow.

    angle of pair i at position p    p · base^(−2i / dimensions) / factors[i]
    linear scaling                   divided by the factor
    yarn                             divided for slow pairs, kept for fast ones, mixed between; cosine, sine grow
    llama3, longrope                 the factors of a tensor

Angles are multiplied up in float32 from pair to pair as the reference does, so that they drift as its do.

Source: `ggml_rope_cache_init` and `rope_yarn` in ggml/src/ggml-cpu/ops.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ggufkit.arch.hyperparameters import RopeScaling

__all__ = ["Rope", "RopeTable", "RopeTables"]

_STEP = 256  # positions by which a table grows at least


@dataclass(frozen=True)
class Rope:
    """How queries and keys of a layer turn.

    Attributes
    ----------
    style : ``"norm"`` or ``"neox"``: which numbers turn together, neighbours or those half of `dimensions` apart.
    dimensions : how many numbers of a head turn.
    base : of the frequencies.
    scaling : how they are stretched.
    factors : whether a tensor of the file divides the angles, if there is one.
    sections : of how many pairs each axis of positions turns: time, row, column, and image; () where there is one axis.
    mixed : pairs of the axes take turns, and do not lie in sections one behind the other.
    """

    style: str
    dimensions: int
    base: float
    scaling: RopeScaling
    factors: bool = True
    sections: tuple[int, ...] = ()
    mixed: bool = False

    def axes(self) -> np.ndarray:
        """By which axis each pair turns: array of shape (dimensions / 2,).

        Source: `ggml_mrope_cache_init` in ggml/src/ggml-cpu/ops.cpp of llama.cpp.
        """
        pairs = np.arange(self.dimensions // 2) % max(1, sum(self.sections))
        if not self.mixed:
            ends = np.cumsum(self.sections)
            return np.searchsorted(ends, pairs, side="right") % 4
        axis = pairs % 3
        return np.where(pairs < 3 * np.array(self.sections)[axis], axis, 0)


class RopeTables:
    """The tables of a model, made when they are first needed.

    Parameters
    ----------
    factors : arrays of shape (dimensions / 2,), float32, by kind: ``"all"``, or ``"short"`` and ``"long"``.
    several : positions in images have several axes.
    """

    def __init__(self, factors: Mapping[str, np.ndarray], several: bool = False):
        self.factors, self.several = factors, several
        self._tables: dict[tuple[Rope, bool], RopeTable] = {}

    def rows(self, rope: Rope, length: int, lo: int, hi: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines of positions `lo:hi` in a context of `length`: (hi - lo, dimensions / 2) each."""
        key = rope, length > rope.scaling.original
        if key not in self._tables:
            kind = "all" if "all" in self.factors else "long" if key[1] else "short"
            factors = self.factors.get(kind) if rope.factors else None
            self._tables[key] = RopeTable(rope.dimensions, rope.base, rope.scaling, factors)
        return self._tables[key].rows(lo, hi)

    def at(self, rope: Rope, length: int, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same at positions on several axes: (n, 4) → (n, dimensions / 2) each."""
        cos, sin = self.rows(rope, length, 0, int(axes.max()) + 1)
        places, pairs = axes[:, rope.axes()], np.arange(rope.dimensions // 2)  # (n, pairs), (pairs,)
        return cos[places, pairs], sin[places, pairs]


class RopeTable:
    """Cosines and sines for one base and scaling.

    Parameters
    ----------
    dimensions : how many numbers of a head turn.
    base : of the frequencies.
    scaling : how they are stretched.
    factors : array of shape (dimensions / 2,), float32, that divides the angles; or None.
    """

    def __init__(self, dimensions: int, base: float, scaling: RopeScaling, factors: np.ndarray | None = None):
        self.dimensions = dimensions
        self.factors = factors
        self.scaling = scaling
        self._step = np.float32(np.float32(base) ** np.float32(-2.0 / dimensions))
        self._kept = _kept(dimensions, base, scaling)
        self._cos = np.empty((0, dimensions // 2), np.float32)
        self._sin = self._cos

    def rows(self, lo: int, hi: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines of positions `lo:hi`, arrays of shape (hi - lo, dimensions / 2), float32."""
        if hi > len(self._cos):
            self._grow(max(hi, len(self._cos) * 2, _STEP))
        return self._cos[lo:hi], self._sin[lo:hi]

    def _grow(self, length: int) -> None:
        angles = np.empty((length, self.dimensions // 2), np.float32)  # (position, pair)
        angles[:, 0] = np.arange(length, dtype=np.float32)
        angles[:, 1:] = self._step
        np.multiply.accumulate(angles, axis=1, out=angles)
        if self.factors is not None:
            angles /= self.factors
        scale = np.float32(1 / self.scaling.factor)
        magnitude = np.float32(self.scaling.attention_factor)
        if self._kept is None:
            angles *= scale
        else:
            angles = angles * scale * (np.float32(1) - self._kept) + angles * self._kept
            if self.scaling.factor > 1:
                magnitude *= np.float32(1 + 0.1 * math.log(self.scaling.factor))
        self._cos, self._sin = np.cos(angles) * magnitude, np.sin(angles) * magnitude


def _kept(dimensions: int, base: float, scaling: RopeScaling) -> np.ndarray | None:
    """Of each pair, how much of its own frequency yarn keeps: array of shape (dimensions / 2,), or None."""
    if not scaling.extrapolation:
        return None

    def pair_of(turns: float) -> float:
        return dimensions * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(0.0, math.floor(pair_of(scaling.beta_fast)))
    high = min(dimensions - 1.0, math.ceil(pair_of(scaling.beta_slow)))
    pairs = np.arange(dimensions // 2, dtype=np.float32)
    ramp = np.clip((pairs - np.float32(low)) / np.float32(max(0.001, high - low)), 0, 1)
    result: np.ndarray = ((1 - ramp) * scaling.extrapolation).astype(np.float32)
    return result
