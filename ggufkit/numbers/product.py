"""W8A8: products of INT8 activations and INT8 weights, summed exactly.

y = s_token · s_row · Σ q_x q_w      |Σ| ≤ 127² · cols < 2³¹ for up to 133,144 columns
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufkit.errors import CodecError
from ggufkit.numbers.integers import Int8

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MOST_COLUMNS", "multiply_int8", "sums_int8"]

MOST_COLUMNS = (2**31 - 1) // 127**2

_EXACT = 1024  # columns whose products float32 sums exactly: 1024 · 127² < 2²⁴


def sums_int8(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x @ wᵀ of int8 codes −127 … 127, (n, cols) and (rows, cols): array of shape (n, rows), int32, exact.

    Raises
    ------
    CodecError : the columns differ, or are so many that int32 may not hold the sums.
    """
    import numpy as np

    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
        raise CodecError(f"codes of shapes {list(x.shape)} and {list(w.shape)} cannot be multiplied")
    if x.shape[1] > MOST_COLUMNS:
        raise CodecError(f"sums of {x.shape[1]} products do not fit int32; up to {MOST_COLUMNS} columns do")
    total = np.zeros((len(x), len(w)), np.int32)
    for lo in range(0, x.shape[1], _EXACT):
        # Whole numbers below 2²⁴ all the way, so the order of the sum does not matter.
        part = x[:, lo : lo + _EXACT].astype(np.float32) @ w[:, lo : lo + _EXACT].astype(np.float32).T
        total += part.astype(np.int32)
    return total


def multiply_int8(x: Int8, w: Int8) -> np.ndarray:
    """activations @ weightsᵀ of quantized matrices (n, cols), (rows, cols): array of shape (n, rows), float32.

    Both are symmetric with one scale per tensor, row or token.

    Raises
    ------
    CodecError : they have zero points or blocks, or see `sums_int8`.
    """
    import numpy as np

    for part in (x, w):
        if part.zeros is not None or part.scales.shape[1] != 1:
            raise CodecError("this product takes symmetric codes with a scale per tensor, row or token")
    factors = x.scales.astype(np.float64) * w.scales.reshape(1, -1)
    result: np.ndarray = (sums_int8(x.codes, w.codes) * factors).astype(np.float32)
    return result
