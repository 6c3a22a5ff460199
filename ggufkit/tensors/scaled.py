"""Blocks that are multiplied with a number and stay blocks: their scales take it in, where they stay halves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["scaled"]

# Numbers of a block, halves, that all of its weights are proportional to.
_SCALES = ("d", "m", "dmin")

_CHUNK = 1 << 20  # weights read at a time


def scaled(tensor: Tensor, factors: float | np.ndarray) -> Tensor | None:
    """The tensor with its weights multiplied, in blocks of the same format with the same codes.

    None where the format has no such scales, or where one would be rounded: then nothing of the blocks can be kept. All
    scales are read for that.

    Parameters
    ----------
    factors : one number, or one of each row, as float32.
    """
    import numpy as np

    names = [name for name, count, code in tensor.format.fields if name in _SCALES and (count, code) == (1, "f2")]
    if not tensor.format.is_quantized or not names:
        return None
    of_row = np.broadcast_to(np.asarray(factors, np.float32), (tensor.rows,))

    def multiplied(lo: int, hi: int) -> tuple[np.ndarray, bool]:
        """Rows as blocks, and whether each scale is the product."""
        blocks = tensor.read(lo, hi).view(tensor.format.dtype).copy()
        exact = True
        for name in names:
            with np.errstate(over="ignore", invalid="ignore"):
                products = blocks[name].astype(np.float64) * of_row[lo:hi, None]
                blocks[name] = products
            exact = exact and bool((np.isfinite(products) & (blocks[name] == products)).all())
        return blocks.view(np.uint8), exact

    if not all(multiplied(lo, hi)[1] for lo, hi in _ranges(tensor)):
        return None
    return replace(tensor, read=lambda lo, hi: multiplied(lo, hi)[0])


def _ranges(tensor: Tensor) -> Iterator[tuple[int, int]]:
    step = max(1, _CHUNK // max(tensor.cols, 1))
    for lo in range(0, tensor.rows, step):
        yield lo, min(lo + step, tensor.rows)
