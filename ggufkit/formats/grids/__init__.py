"""The grids of the block formats: which weights a block can stand for, and how it says so.

    weight = step · unit − offset        step = d · steps[scale]        offset = dmin · min

A unit is one of the format's levels, or a number of a codebook's row with a sign. `scale` and `min` are small integers
of a sub-block, d and dmin floats of a block; formats without one of them have a constant there.

    Q4_K    unit 0 … 15, scale and min 0 … 63 for 32 weights, d and dmin for 256
    IQ3_S   rows of 4 from 512, signs, scale 0 … 15: steps 1 + 2 scale
    Q4_1    unit 0 … 15, d and −m for 32 weights: a min that is always 1
    MXFP4   unit 0, ±1 … ±12, scale: steps 2^(scale − 128), d always 1

Source: dequantize_row_q2_K … of ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ggufkit.formats.iquants.grids import codebook
from ggufkit.formats.microscale import HALF_E8M0, UE4M3
from ggufkit.formats.table import FORMATS

__all__ = ["GRIDS", "Grid", "Shape"]


class Shape(NamedTuple):
    """A grid's numbers, for kernels; see `Grid`."""

    block: int
    sub: int
    low: int
    high: int
    base: np.float32  # steps[scale] = base + slope · scale; slope 0: they are not evenly spaced
    slope: np.float32
    mins: int
    offsets: bool
    fixed: bool
    first: np.float32  # unit = first + spacing · level; spacing 0: they are not evenly spaced
    spacing: np.float32
    levels: int
    dims: int
    even: bool
    radius: int


@dataclass(frozen=True, eq=False)
class Grid:
    """What a format's blocks can say.

    Attributes
    ----------
    name : of the format.
    block, sub : weights that share d, and that share a scale.
    levels : (n,) float32, rising: the units; of a codebook the numbers that its rows have.
    steps : (n,) float32: the multiples of d, by scale.
    low : the scale of the first of them.
    mins : the largest integer min; 0 if there is none, or a constant one.
    offsets : whether blocks have a dmin.
    fixed : d is 1 and no part of the block.
    book : rows of magnitudes, (rows, 4 or 8) float32; or None.
    even : the number of minus signs of eight weights is even.
    """

    name: str
    block: int
    sub: int
    levels: np.ndarray
    steps: np.ndarray
    low: int = 0
    mins: int = 0
    offsets: bool = False
    fixed: bool = False
    book: np.ndarray | None = None
    even: bool = False

    @property
    def dims(self) -> int:
        return 0 if self.book is None else self.book.shape[1]

    @cached_property
    def shape(self) -> Shape:
        spacing = _spacing(self.levels)
        slope = _spacing(self.steps)
        return Shape(
            self.block,
            self.sub,
            self.low,
            self.low + len(self.steps) - 1,
            np.float32(self.steps[0] - slope * self.low),
            slope,
            self.mins,
            self.offsets,
            self.fixed,
            np.float32(self.levels[0]),
            spacing,
            len(self.levels),
            self.dims,
            self.even,
            0 if len(self.steps) == 1 else 2 if slope else 1,
        )

    @cached_property
    def middles(self) -> np.ndarray:
        """Between each level and the next: (levels − 1,) float32."""
        return ((self.levels[1:] + self.levels[:-1]) / 2).astype(np.float32)

    def level_of(self, units: np.ndarray) -> np.ndarray:
        """The number of each unit's level, uint8."""
        if spacing := self.shape.spacing:
            return ((units - self.levels[0]) / spacing).astype(np.uint8)
        return np.searchsorted(self.middles, units).astype(np.uint8)


def _spacing(values: np.ndarray) -> np.float32:
    """By how much each value is above the last; 0 if that differs."""
    differences = np.diff(values)
    even = len(differences) > 0 and (differences == differences[0]).all()
    return np.float32(differences[0] if even else 0)


def _range(low: int, high: int) -> np.ndarray:
    return np.arange(low, high + 1, dtype=np.float32)


_ONE = _range(1, 1)
_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_E2M1 = np.array([-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12], np.float32)


def _plain(name: str, low: int, high: int, minimum: bool = False) -> Grid:
    """A format with a float or two for a block and nothing below."""
    block = FORMATS[name].block_size
    return Grid(name, block, block, _range(low, high), _ONE, low=1, offsets=minimum)


def _codebook(name: str, sub: int, base: float, slope: float, even: bool = False) -> Grid:
    book = codebook(name).astype(np.float32)
    steps = (base + slope * _range(0, 15)).astype(np.float32)
    return Grid(name, 256, sub, np.unique(book), steps, book=book, even=even)


_MAKERS: dict[str, Callable[[], Grid]] = {
    "Q4_0": lambda: _plain("Q4_0", -8, 7),
    "Q4_1": lambda: _plain("Q4_1", 0, 15, minimum=True),
    "Q5_0": lambda: _plain("Q5_0", -16, 15),
    "Q5_1": lambda: _plain("Q5_1", 0, 31, minimum=True),
    "Q8_0": lambda: _plain("Q8_0", -127, 127),
    "IQ4_NL": lambda: Grid("IQ4_NL", 32, 32, _IQ4, _ONE, low=1),
    "Q2_K": lambda: Grid("Q2_K", 256, 16, _range(0, 3), _range(0, 15), mins=15, offsets=True),
    "Q3_K": lambda: Grid("Q3_K", 256, 16, _range(-4, 3), _range(-32, 31), low=-32),
    "Q4_K": lambda: Grid("Q4_K", 256, 32, _range(0, 15), _range(0, 63), mins=63, offsets=True),
    "Q5_K": lambda: Grid("Q5_K", 256, 32, _range(0, 31), _range(0, 63), mins=63, offsets=True),
    "Q6_K": lambda: Grid("Q6_K", 256, 16, _range(-32, 31), _range(-128, 127), low=-128),
    "IQ4_XS": lambda: Grid("IQ4_XS", 256, 32, _IQ4, _range(-32, 31), low=-32),
    "IQ3_S": lambda: _codebook("IQ3_S", 32, 1, 2),
    "IQ3_XXS": lambda: _codebook("IQ3_XXS", 32, 0.25, 0.5, even=True),
    "IQ2_S": lambda: _codebook("IQ2_S", 16, 0.125, 0.25),
    "IQ2_XS": lambda: _codebook("IQ2_XS", 16, 0.125, 0.25, even=True),
    "IQ2_XXS": lambda: _codebook("IQ2_XXS", 32, 0.125, 0.25, even=True),
    "TQ1_0": lambda: _plain("TQ1_0", -1, 1),
    "TQ2_0": lambda: _plain("TQ2_0", -1, 1),
    "Q1_0": lambda: Grid("Q1_0", 128, 128, np.array([-1, 1], np.float32), _ONE, low=1),
    "Q2_0": lambda: _plain("Q2_0", -1, 2),
    "MXFP4": lambda: Grid("MXFP4", 32, 32, _E2M1, HALF_E8M0[:255], fixed=True),
    "NVFP4": lambda: Grid("NVFP4", 64, 16, _E2M1, UE4M3[:127], fixed=True),
}


class _Grids(dict[str, Grid]):
    """Grids by format, made when they are first asked for: codebooks are."""

    def __missing__(self, name: str) -> Grid:
        self[name] = _MAKERS[name]()
        return self[name]

    def __contains__(self, name: object) -> bool:
        return name in _MAKERS

    def names(self) -> list[str]:
        return list(_MAKERS)


GRIDS = _Grids()
