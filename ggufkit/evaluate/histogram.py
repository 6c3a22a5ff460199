"""How the weights of a tensor are spread, all of them, read once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Histogram", "histogram"]

_CHUNK = 1 << 22  # weights decoded at a time
_FINE = 1 << 12  # bins while reading, from −limit to +limit


@dataclass(frozen=True)
class Histogram:
    """Counts of weights.

    Attributes
    ----------
    count, broken, zeros : all weights; those that are not finite; those that are 0.
    mean, rms, least, largest : of the finite ones.
    bins : (from, to) of each bin.
    counts : weights in each.
    """

    count: int
    broken: int
    zeros: int
    mean: float
    rms: float
    least: float
    largest: float
    bins: tuple[tuple[float, float], ...]
    counts: tuple[int, ...]

    @property
    def outlier(self) -> float:
        """The largest magnitude over the rms."""
        return max(abs(self.least), abs(self.largest)) / self.rms if self.rms else 0.0


def histogram(tensor: Tensor, bins: int = 24) -> Histogram:
    """Read a tensor and count.

    Parameters
    ----------
    bins : at most so many, of equal width, from the least to the largest weight.

    Raises
    ------
    FileError, GGUFError : it cannot be read.
    CodecError : its format holds no weights.

    Notes
    -----
    While reading there are 4096 bins around 0, whose range doubles when a weight lies beyond. Those of the result are
    made of some of these each, and one of their borders is 0.
    """
    import numpy as np

    fine, limit = np.zeros(_FINE, np.int64), 2.0**-20
    count = broken = zeros = 0
    total = squares = 0.0
    least, largest = math.inf, -math.inf
    step = max(1, _CHUNK // max(tensor.cols, 1))
    for lo in range(0, tensor.rows, step):
        x = tensor.floats(lo, min(lo + step, tensor.rows)).reshape(-1)
        finite = x[np.isfinite(x)].astype(np.float64)
        count, broken = count + x.size, broken + x.size - finite.size
        if not finite.size:
            continue
        zeros += int(np.count_nonzero(finite == 0))
        total, squares = total + float(finite.sum()), squares + float(np.square(finite).sum())
        least, largest = min(least, float(finite.min())), max(largest, float(finite.max()))
        while max(-least, largest) >= limit:
            fine, limit = _doubled(fine), 2 * limit
        fine += np.histogram(finite, _FINE, (-limit, limit))[0]
    n = count - broken
    if not n:
        return Histogram(count, broken, 0, 0.0, 0.0, 0.0, 0.0, (), ())
    borders, counts = _coarse(fine, limit, bins)
    return Histogram(count, broken, zeros, total / n, math.sqrt(squares / n), least, largest, borders, counts)


def _doubled(fine: np.ndarray) -> np.ndarray:
    """The same counts in bins that are twice as wide."""
    import numpy as np

    wide = np.zeros_like(fine)
    quarter = len(fine) // 4
    wide[quarter:-quarter] = fine.reshape(-1, 2).sum(axis=1)
    return wide


def _coarse(fine: np.ndarray, limit: float, bins: int) -> tuple[tuple[tuple[float, float], ...], tuple[int, ...]]:
    """The fine bins from the first to the last that is not empty, put together to at most `bins`."""
    used = fine.nonzero()[0]
    first, last = int(used[0]), int(used[-1]) + 1
    width, zero = 2 * limit / len(fine), len(fine) // 2
    each = max(1, -(-(last - first) // max(bins - 1, 1)))  # one bin more where 0 cuts one in two
    starts = range(zero - -(-(zero - first) // each) * each, last, each)
    borders = tuple(((start - zero) * width, (start + each - zero) * width) for start in starts)
    return borders, tuple(int(fine[max(start, 0) : start + each].sum()) for start in starts)
