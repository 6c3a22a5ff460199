"""Products of weights and activations, straight on the blocks: a file per format family.

Weights of any format become levels 0 … 255 in the order of the columns, a scale for each group of 16 or 32, and
what zero means: the same level for all (`OFFSET`) or a minimum for each group. 256 columns are a unit:

    levels   (256,) uint8                 w = scale · (level - OFFSET)       symmetric formats
    scales   (16,) float32, a group each  w = scale · level - min            the others
    mins     (16,) float32

Each format says how a unit is unpacked; `loops` multiplies units with activations that were quantized alike.
`floats` has the loops for weights that are floats already, or were decoded, `rounded` those that round as GGML does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ggufkit.formats.table import Format

__all__ = ["COLUMNS", "FEW", "UNIT", "Layout", "Product", "product_of"]

UNIT = 256

# Columns of floats that are taken together.
COLUMNS = 32

# Rows of activations up to which it is faster to unpack weights as they come than to lay out tiles of them.
FEW = 16


class Layout(NamedTuple):
    """How activations lie for tiles.

    Attributes
    ----------
    lay : the kernel that lays them so, see `scaled.lay` and `pairs.lay`.
    tokens : of a tile, or of two that lie together.
    planes, words : how often a tile lies there for each unit, and the int32 of a row of it.
    starts : how many sums of its rows start with a number.
    """

    lay: Callable[..., Any]
    tokens: int
    planes: int
    words: int
    starts: int


@dataclass(frozen=True)
class Product:
    """The kernels of a format.

    Attributes
    ----------
    vector, few, matrix : for one row of activations, for up to `few_rows`, and for many.
    form : how the activations are quantized, ``"Q8_0"`` or ``"Q8_K"``, or rounded, ``"F16"`` or ``"BF16"``; None if
        they stay float32.
    group : weights that share a scale.
    offset : the level that means zero; None if each group has its minimum.
    layout : how activations lie for `matrix`; None if it reads them as they are.
    few_rows : from more on `matrix` is faster.
    """

    vector: Callable[..., Any]
    few: Callable[..., Any]
    matrix: Callable[..., Any]
    form: str | None = None
    group: int = 32
    offset: int | None = None
    layout: Layout | None = None
    few_rows: int = FEW


_FAMILIES = {
    "scalar": "floats",
    "legacy": "legacy",
    "kquants": "kquants",
    "iquants": "codebooks",
    "microscale": "codebooks",
}


def product_of(format: Format) -> Product | None:
    """The kernels for weights of a format, or None if it has none of its own."""
    family = _FAMILIES.get(format.family)
    if family is None:
        return None
    module = importlib.import_module(f"ggufkit.runtime.cpu.products.{family}")
    return module.PRODUCTS.get(format.name)
