"""Matrices of integers: w = scale · (code - zero)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from ggufkit.checkpoint.packed.matrix import (
    SIGNED,
    Groups,
    Numbers,
    Reader,
    Steps,
    chunks,
    encoded,
    exactly,
    finite,
    joined,
    rounding,
    unevenness,
)
from ggufkit.formats.table import FORMATS, Format

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Integers"]


class _Survey(NamedTuple):
    """What the scales and zero points of `Integers` say.

    lowest, highest : what levels there may be. whole : zero points are integers. exact : float16 holds all scales, and
    the biases that fractional zero points make. off : how far float16 moves a weight, in steps. sixteen : formats of
    16 bits that hold all products. smallest, largest : scale. ratio : of scales in a block of 32.
    """

    lowest: float
    highest: float
    whole: bool
    exact: bool
    off: float
    sixteen: tuple[str, ...]
    smallest: float
    largest: float
    ratio: float


@dataclass(frozen=True)
class Integers(Numbers):
    """w = scale · (code - zero).

    Attributes
    ----------
    codes : (n, cols), uint8.
    bits : of the codes.
    scales : (n, groups), float32.
    zeros : (n, groups), numbers; or one integer for all.
    groups : of the columns.
    ternary : the levels are -1, 0 and 1.
    times : see `factor`.
    extremes : yields the lowest and highest code of one part of the matrix after the other, where that is found faster
        than by `codes`.
    distinct : the different scales, where these are found faster than by `scales`: array of shape (n,), float32.
    direct : rows lo:hi as blocks of Q4_0 of codes of 4 bits, of Q8_0 of 8, where these are made faster than by `codes`;
        called with lo, hi and what to add to each code, modulo 2^bits. None: by `codes`.
    """

    codes: Reader
    bits: int
    scales: Reader
    zeros: Reader | int
    groups: Groups
    ternary: bool = False
    times: float = 1.0
    extremes: Callable[[], Iterator[tuple[int, int]]] | None = None
    distinct: Callable[[], np.ndarray] | None = None
    direct: Callable[[int, int, int], np.ndarray | None] | None = None

    @property
    def factor(self) -> float:
        return self.times

    def _zeros(self, lo: int, hi: int) -> np.ndarray | int:
        return self.zeros if isinstance(self.zeros, int) else self.zeros(lo, hi)

    def floats(self, lo: int, hi: int) -> np.ndarray:
        import numpy as np

        values = self._plain(lo, hi)
        return values if self.times == 1 else values * np.float32(self.times)

    def _plain(self, lo: int, hi: int) -> np.ndarray:
        import numpy as np

        values = self.codes(lo, hi).astype(np.float32)
        zeros = self._zeros(lo, hi)
        values -= np.float32(zeros) if isinstance(zeros, int) else self.groups.spread(zeros.astype(np.float32))
        values *= self.groups.spread(self.scales(lo, hi))
        return values

    def _surveyed(self, name: str) -> _Survey:
        import numpy as np

        least, most = (self.zeros, self.zeros) if isinstance(self.zeros, int) else (np.inf, -np.inf)
        whole, exact, off, sixteen = True, True, 0.0, ["BF16", "F16"]
        smallest, largest, ratio, top = np.inf, 0.0, 1.0, (1 << self.bits) - 1
        blocks = self.groups.of_blocks(32)
        for scales, zeros in self._scales_and_zeros():
            finite(scales, name, "scale")
            biases = None
            if not isinstance(zeros, int):
                finite(zeros, name, "zero point")
                if zeros.size:
                    least, most = min(least, float(zeros.min())), max(most, float(zeros.max()))
                if zeros.dtype.kind == "f" and (zeros != np.rint(zeros)).any():
                    whole, biases = False, -zeros.astype(np.float64) * scales
            held, moved = rounding(scales, biases, max(top, 1))
            exact, off = exact and held, max(off, moved)
            sixteen = [f for f in sixteen if self._products_fit(scales, f)]
            magnitudes = np.abs(scales)
            used = magnitudes[magnitudes > 0]
            smallest, largest = min(smallest, float(used.min(initial=np.inf))), max(largest, float(used.max(initial=0)))
            if blocks is None:
                ratio = max(ratio, unevenness(self.groups.spread(magnitudes)))
        if not least <= most:
            least = most = 0
        lowest, highest = (-1, 1) if self.ternary else (-most, top - least)
        return _Survey(lowest, highest, whole, exact, off, tuple(sixteen), smallest, largest, ratio)

    def _scales_and_zeros(self) -> Iterator[tuple[np.ndarray, np.ndarray | int]]:
        """All scales with their zero points, (n, groups), or the different scales, (1, n), where no more is asked."""
        if self.distinct is not None and isinstance(self.zeros, int) and self.groups.of_blocks(32) is not None:
            yield self.distinct()[None], self.zeros
            return
        for lo, hi in chunks(self.rows, self.groups.count):
            yield self.scales(lo, hi), self._zeros(lo, hi)

    def _products_fit(self, scales: np.ndarray, format: str) -> bool:
        """Whether F16 or BF16 holds all levels times these scales; looked at only where most have few digits."""
        import numpy as np

        odd = np.float32((1 << (self.bits - 1)) - 1 or 1)
        return self.times == 1 and isinstance(self.zeros, int) and exactly(scales * odd, format)

    @cached_property
    def _survey(self) -> _Survey:
        return self._surveyed("a matrix")

    @cached_property
    def _keeping(self) -> list[str]:
        """The block formats that have a place for every level and zero point, were it not for digits of scales."""
        survey = self._survey
        if self.groups.of_blocks(32) is None or survey.largest > 65504:
            return []
        found = ["TQ1_0"] if self.ternary and self.groups.of_blocks(256) is not None else []
        if survey.whole:
            return found + [format for format, most in SIGNED if self._fits(survey, most)]
        return [format for format, bits in (("Q4_1", 4), ("Q5_1", 5)) if self.bits <= bits]

    def holding(self, name: str) -> list[Format]:
        survey = self._surveyed(name)
        self.__dict__["_survey"] = survey
        found = [*(self._keeping if survey.exact else ()), *survey.sixteen, "F32"]
        return [FORMATS[format] for format in found]

    def near(self) -> Format | None:
        if self._keeping and self._survey.off < 0.25 and self._keeping[0] != "TQ1_0":
            return FORMATS[self._keeping[0]]
        return None

    def apart(self, format: Format) -> bool:
        return format.name in self._keeping

    def _fits(self, survey: _Survey, most: int) -> bool:
        """Whether all levels are from -most to most - 1: by the zero points, else by all codes."""
        if -most <= survey.lowest and survey.highest < most:
            return True
        if isinstance(self.zeros, int):
            low, high = self.zeros - most, self.zeros + most
            return all(low <= least and last < high for least, last in (self.extremes or self._extremes)())
        for lo, hi in chunks(self.rows, self.cols):
            levels = self._levels(lo, hi)
            if levels.min(initial=0) < -most or levels.max(initial=0) >= most:
                return False
        return True

    def _extremes(self) -> Iterator[tuple[int, int]]:
        for lo, hi in chunks(self.rows, self.cols):
            codes = self.codes(lo, hi)
            if codes.size:
                yield int(codes.min()), int(codes.max())

    def _levels(self, lo: int, hi: int) -> np.ndarray:
        """(hi - lo, cols), int16."""
        import numpy as np

        levels = self.codes(lo, hi).astype(np.int16)
        zeros = self._zeros(lo, hi)
        levels -= np.int16(zeros) if isinstance(zeros, int) else self.groups.spread(zeros.astype(np.int16))
        return levels

    def blocks(self, format: Format, lo: int, hi: int) -> np.ndarray:
        import numpy as np

        most = dict(SIGNED).get(format.name)
        keeps = format.name in self._keeping
        if keeps and self.direct is not None and isinstance(self.zeros, int) and most == 1 << (self.bits - 1):
            made = self.direct(lo, hi, (most - self.zeros) % (2 * most))
            if made is not None:
                return made
        of = self.groups.of_blocks(32)
        if not keeps or of is None:
            return super().blocks(format, lo, hi)
        if format.name == "TQ1_0":
            return encoded(self._plain(lo, hi), format, lo)
        scales = self.scales(lo, hi)
        if most is None:
            biases = -self._zeros(lo, hi).astype(np.float64) * scales  # type: ignore[union-attr]
            return joined(self.codes(lo, hi), scales[:, of], biases[:, of], format)
        if isinstance(self.zeros, int):  # modulo 256, as all sums are from 0 to 255
            codes = self.codes(lo, hi) + np.uint8((most - self.zeros) % 256)
        else:
            codes = (self._levels(lo, hi) + np.int16(most)).astype(np.uint8)
        with np.errstate(over="ignore"):
            halves = scales.astype(np.float16)[:, of]  # before they are repeated: NumPy converts slowly
        return joined(codes, halves, None, format)

    def steps(self) -> Steps:
        survey = self._survey
        most = max(abs(survey.lowest), abs(survey.highest), 1)
        return Steps(most * survey.ratio, most, survey.smallest, survey.largest * most)

    def reordered(self, order: np.ndarray) -> Integers:
        codes = self.codes
        moved = Groups(self.groups.of[order])
        return replace(self, codes=lambda lo, hi: codes(lo, hi)[:, order], groups=moved, direct=None)
