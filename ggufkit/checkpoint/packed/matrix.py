"""A quantized matrix of a checkpoint as numbers, and the formats that hold these numbers without rounding.

A layout says where codes, scales and zero points lie; what they mean is one of five kinds:

    Integers   w = scale · (code - zero)     GPTQ, AWQ, int8, ternary       Q4_0, Q5_0, Q8_0, TQ1_0
    Offsets    w = scale · code + bias       MLX, quanto, GEMV_FAST         Q4_1, Q5_1
    Levels     w = level of code · scale     FP8, NF4                       BF16 where the scales are powers of two
    Fp4        the same in blocks of GGML's  MXFP4, NVFP4                   these
    Floats     nothing of these              EXL2                           F16

Each decodes to the float32 numbers that its tool means, products taken in float32 from the stored scales; names the
formats that hold all of them, tested on the values and not on the label; and writes the blocks of one of these.
Scales are looked at when a checkpoint is opened, codes only where they decide.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from ggufkit.errors import CheckpointError, printable
from ggufkit.formats.table import FORMATS, Format

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Floats", "Groups", "Integers", "Levels", "Numbers", "Offsets", "Reader", "Steps", "chunks", "exactly"]

# Rows lo:hi of something, array of shape (hi - lo, …).
Reader = Callable[[int, int], "np.ndarray"]

# Numbers looked at at once.
_CHUNK = 1 << 20

# Formats of signed integers, and the largest level that each has on both sides.
_SIGNED = (("Q4_0", 8), ("Q5_0", 16), ("Q8_0", 128))

# What each format with codes from 0 on has for a zero; None for a bias of its own. And its bits.
_AFFINE = (("Q4_0", 4, -8), ("Q4_1", 4, None), ("Q5_0", 5, -16), ("Q5_1", 5, None), ("Q8_0", 8, -128))


class Steps(NamedTuple):
    """How fine a matrix is, to know what rounding it bears.

    Attributes
    ----------
    reach : largest weight of a block of 32 over the smallest step in it, the largest of such.
    relative : largest weight over its own distance to the next.
    smallest, largest : step and weight of the whole matrix.
    """

    reach: float
    relative: float
    smallest: float
    largest: float


@dataclass(frozen=True)
class Groups:
    """Which group, and so which scale, each column belongs to.

    Attributes
    ----------
    of : array of shape (cols,), int.
    """

    of: np.ndarray

    @staticmethod
    def even(cols: int, size: int) -> Groups:
        """Groups of `size` neighbours; the last may be smaller."""
        import numpy as np

        return Groups(np.arange(cols) // max(size, 1))

    @cached_property
    def count(self) -> int:
        return int(self.of.max(initial=0)) + 1

    def spread(self, values: np.ndarray) -> np.ndarray:
        """(n, groups) → (n, cols)."""
        return values if values.shape[1] == 1 and not self.of.any() else values[:, self.of]

    def of_blocks(self, size: int) -> np.ndarray | None:
        """The group of each block of `size` columns; None where a block has columns of several, or is not whole."""
        if not len(self.of) or len(self.of) % size:
            return None
        blocks = self.of.reshape(-1, size)
        return blocks[:, 0] if (blocks == blocks[:, :1]).all() else None


def chunks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold about a million numbers."""
    step = max(1, _CHUNK // max(width, 1))
    for lo in range(0, rows, step):
        yield lo, min(lo + step, rows)


def exactly(values: np.ndarray, format: str) -> bool:
    """Whether F16 or BF16 holds all `values`, float32."""
    import numpy as np

    if format == "BF16":
        return not (np.ascontiguousarray(values, np.float32).view(np.uint32) & 0xFFFF).any()
    with np.errstate(over="ignore"):
        return np.array_equal(values.astype(np.float16).astype(np.float32), values)


@dataclass(frozen=True)
class Numbers(ABC):
    """What the codes of a matrix mean.

    Attributes
    ----------
    shape : (…, rows, cols).
    """

    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def cols(self) -> int:
        return self.shape[-1]

    @property
    def factor(self) -> float:
        """What the decoded blocks must be multiplied with: NVFP4's scale of the tensor."""
        return 1.0

    def apart(self, format: Format) -> bool:
        """Whether blocks of `format` are without `factor`."""
        return False

    def near(self) -> Format | None:
        """A block format that keeps all codes and only rounds their scales, by much less than a step; None: none."""
        return None

    @abstractmethod
    def floats(self, lo: int, hi: int) -> np.ndarray:
        """Rows lo:hi, array of shape (hi - lo, cols), float32."""

    @abstractmethod
    def holding(self, name: str) -> list[Format]:
        """The formats that hold every weight, the smallest first.

        Raises
        ------
        CheckpointError : a scale is not finite. name: what it is called then.
        """

    def blocks(self, format: Format, lo: int, hi: int) -> np.ndarray:
        """Rows lo:hi in one of the formats of `holding`, or rounded to another: (hi - lo, row_bytes), uint8."""
        return _encoded(self.floats(lo, hi), format, lo)

    def steps(self) -> Steps | None:
        """How fine the matrix is; None where that is not known."""
        return None

    def reordered(self, order: np.ndarray) -> Numbers | None:
        """The matrix with column i from column `order[i]`; None for a kind whose columns must stay."""
        return None


def _finite(values: np.ndarray, name: str, what: str) -> None:
    import numpy as np

    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)].flat[0]
        raise CheckpointError(f"{printable(name)}: a {what} is {bad}, and no weight can be made of it")


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
    """

    codes: Reader
    bits: int
    scales: Reader
    zeros: Reader | int
    groups: Groups
    ternary: bool = False
    times: float = 1.0

    @property
    def factor(self) -> float:
        return self.times

    def _zeros(self, lo: int, hi: int) -> np.ndarray | int:
        return self.zeros if isinstance(self.zeros, int) else self.zeros(lo, hi)

    def floats(self, lo: int, hi: int) -> np.ndarray:
        values = self._plain(lo, hi)
        return values if self.times == 1 else values * np_float(self.times)

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
        for lo, hi in chunks(self.rows, self.groups.count):
            scales = self.scales(lo, hi)
            _finite(scales, name, "scale")
            zeros = self._zeros(lo, hi)
            biases = None
            if not isinstance(zeros, int):
                _finite(zeros, name, "zero point")
                if zeros.size:
                    least, most = min(least, float(zeros.min())), max(most, float(zeros.max()))
                if zeros.dtype.kind == "f" and (zeros != np.rint(zeros)).any():
                    whole, biases = False, -zeros.astype(np.float64) * scales
            held, moved = _rounding(scales, biases, max(top, 1))
            exact, off = exact and held, max(off, moved)
            sixteen = [f for f in sixteen if self._products_fit(scales, f)]
            magnitudes = np.abs(scales)
            used = magnitudes[magnitudes > 0]
            smallest, largest = min(smallest, float(used.min(initial=np.inf))), max(largest, float(used.max(initial=0)))
            if blocks is None:
                ratio = max(ratio, _unevenness(self.groups.spread(magnitudes)))
        if not least <= most:
            least = most = 0
        lowest, highest = (-1, 1) if self.ternary else (-most, top - least)
        return _Survey(lowest, highest, whole, exact, off, tuple(sixteen), smallest, largest, ratio)

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
            return found + [format for format, most in _SIGNED if self._fits(survey, most)]
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
        for lo, hi in chunks(self.rows, self.cols):
            levels = self._levels(lo, hi)
            if levels.min(initial=0) < -most or levels.max(initial=0) >= most:
                return False
        return True

    def _levels(self, lo: int, hi: int) -> np.ndarray:
        """(hi - lo, cols), int16."""
        import numpy as np

        levels = self.codes(lo, hi).astype(np.int16)
        zeros = self._zeros(lo, hi)
        levels -= np.int16(zeros) if isinstance(zeros, int) else self.groups.spread(zeros.astype(np.int16))
        return levels

    def blocks(self, format: Format, lo: int, hi: int) -> np.ndarray:
        import numpy as np

        of = self.groups.of_blocks(32)
        if format.name not in self._keeping or of is None:
            return super().blocks(format, lo, hi)
        if format.name == "TQ1_0":
            return _encoded(self._plain(lo, hi), format, lo)
        scales = self.scales(lo, hi)
        if (most := dict(_SIGNED).get(format.name)) is None:
            biases = -self._zeros(lo, hi).astype(np.float64) * scales  # type: ignore[union-attr]
            return _joined(self.codes(lo, hi), scales[:, of], biases[:, of], format)
        return _joined((self._levels(lo, hi) + np.int16(most)).astype(np.uint8), scales[:, of], None, format)

    def steps(self) -> Steps:
        survey = self._survey
        most = max(abs(survey.lowest), abs(survey.highest), 1)
        return Steps(most * survey.ratio, most, survey.smallest, survey.largest * most)

    def reordered(self, order: np.ndarray) -> Integers:
        codes = self.codes
        return replace(self, codes=lambda lo, hi: codes(lo, hi)[:, order], groups=Groups(self.groups.of[order]))


def np_float(value: float) -> Any:
    import numpy as np

    return np.float32(value)


def _encoded(values: np.ndarray, format: Format, lo: int) -> np.ndarray:
    from ggufkit.formats.codec import encode

    return encode(values, format, threads=1, first_row=lo)


def _rounding(scales: np.ndarray, biases: np.ndarray | None, top: int) -> tuple[bool, float]:
    """Whether float16 holds scales and biases, and how far it moves a weight of code `top` at most, in steps."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        moved = np.abs(scales.astype(np.float16).astype(np.float64) - scales) * top
        if biases is not None:
            moved += np.abs(biases.astype(np.float16).astype(np.float64) - biases)
    used = scales != 0
    if not moved.any():
        return True, 0.0
    if moved[~used].any():
        return False, np.inf
    return False, float((moved[used] / np.abs(scales[used])).max(initial=0))


def _joined(codes: np.ndarray, scales: np.ndarray, biases: np.ndarray | None, format: Format) -> np.ndarray:
    """Blocks of codes from 0 on, scales and biases of 32, which are rounded to float16: (n, row_bytes), uint8."""
    import numpy as np

    from ggufkit.formats.affine import Affine, join

    halves = scales.astype(np.float16).astype(np.float32)
    if biases is None:
        offsets = halves * np.float32(-dict(_SIGNED)[format.name])
    else:
        offsets = biases.astype(np.float16).astype(np.float32)
    return join(Affine(codes, halves, offsets), format).reshape(len(codes), format.row_bytes(codes.shape[1]))


def _unevenness(scales: np.ndarray) -> float:
    """The largest quotient of two scales, both not 0, in a block of 32 columns. scales: (n, cols), not negative."""
    import numpy as np

    whole = scales[:, : scales.shape[1] // 32 * 32].reshape(len(scales), -1, 32)
    if not whole.size:
        return 1.0
    least = np.where(whole > 0, whole, np.inf).min(axis=-1)
    return float(np.where(np.isfinite(least), whole.max(axis=-1) / least, 1).max(initial=1))


@dataclass(frozen=True)
class Offsets(Numbers):
    """w = scale · code + bias.

    Attributes
    ----------
    codes : (n, cols), uint8.
    bits : of the codes.
    scales, biases : (n, groups), float32.
    groups : of the columns.
    """

    codes: Reader
    bits: int
    scales: Reader
    biases: Reader
    groups: Groups

    def floats(self, lo: int, hi: int) -> np.ndarray:
        import numpy as np

        values = self.codes(lo, hi).astype(np.float32)
        values *= self.groups.spread(self.scales(lo, hi))
        values += self.groups.spread(self.biases(lo, hi))
        return values

    def holding(self, name: str) -> list[Format]:
        possible = [
            (format, zero) for format, bits, zero in _AFFINE if bits >= self.bits and zero in (None, -(1 << (bits - 1)))
        ]
        possible = [(format, zero) for format, zero in possible if zero is None or zero == -(1 << (self.bits - 1))]
        if self.groups.of_blocks(32) is None:
            possible = []
        for lo, hi in chunks(self.rows, self.groups.count):
            scales, biases = self.scales(lo, hi), self.biases(lo, hi)
            _finite(scales, name, "scale")
            _finite(biases, name, "bias")
            if possible:
                possible = _holding(possible, scales, biases)
        self.__dict__["_exact"] = [FORMATS[format] for format, _ in possible] + [FORMATS["F32"]]
        return self._exact

    def near(self) -> Format | None:
        if self.groups.of_blocks(32) is None or self.bits > 5:
            return None
        off = 0.0
        for lo, hi in chunks(self.rows, self.groups.count):
            off = max(off, _rounding(self.scales(lo, hi), self.biases(lo, hi), (1 << self.bits) - 1)[1])
        return FORMATS["Q4_1" if self.bits <= 4 else "Q5_1"] if off < 0.25 else None

    def blocks(self, format: Format, lo: int, hi: int) -> np.ndarray:
        of = self.groups.of_blocks(32)
        symmetric = format.name in dict(_SIGNED)
        if of is None or format.name not in {name for name, *_ in _AFFINE} or (symmetric and format not in self._exact):
            return super().blocks(format, lo, hi)
        biases = None if symmetric else self.biases(lo, hi)[:, of]
        return _joined(self.codes(lo, hi), self.scales(lo, hi)[:, of], biases, format)

    @cached_property
    def _exact(self) -> list[Format]:
        return self.holding("a matrix")

    def steps(self) -> Steps:
        import numpy as np

        reach, smallest, largest = 1.0, np.inf, 0.0
        even = self.groups.of_blocks(32) is not None
        for lo, hi in chunks(self.rows, self.groups.count):
            scales, biases = np.abs(self.scales(lo, hi)), self.biases(lo, hi)
            ends = np.maximum(np.abs(biases), np.abs(biases + self.scales(lo, hi) * ((1 << self.bits) - 1)))
            used = scales > 0
            with np.errstate(over="ignore"):
                inside = float((ends[used] / scales[used]).max(initial=1))
            reach = max(reach, inside * (1.0 if even else _unevenness(self.groups.spread(scales))))
            smallest = min(smallest, float(scales[used].min(initial=np.inf)))
            largest = max(largest, float(ends.max(initial=0)))
        return Steps(reach, reach, smallest, largest)


def _holding(
    possible: list[tuple[str, int | None]], scales: np.ndarray, biases: np.ndarray
) -> list[tuple[str, int | None]]:
    """Those of the possible formats that hold these scales and biases."""
    import numpy as np

    if not exactly(scales, "F16"):
        return []
    halves = exactly(biases, "F16")
    return [
        (name, zero)
        for name, zero in possible
        if (halves if zero is None else np.array_equal(biases, scales * np.float32(zero)))
    ]


@dataclass(frozen=True)
class Levels(Numbers):
    """w = what the code means · scale.

    Attributes
    ----------
    codes : (n, cols), uint8.
    table : what each code means, array of shape (256,) or (16,), float32; NaN for one that means nothing.
    scales : (n, groups), float32; None for 1.
    groups : of the columns.
    """

    codes: Reader
    table: np.ndarray
    scales: Reader | None
    groups: Groups

    def floats(self, lo: int, hi: int) -> np.ndarray:
        values = self.table[self.codes(lo, hi)]
        return values if self.scales is None else values * self.groups.spread(self.scales(lo, hi))

    def holding(self, name: str) -> list[Format]:
        import numpy as np

        levels = self.table[np.isfinite(self.table)]
        possible = ["BF16", "F16"]
        if self.scales is None:
            possible = [format for format in possible if exactly(levels, format)]
        for lo, hi in chunks(self.rows if self.scales else 0, self.groups.count):
            scales = np.unique(self._scales(lo, hi))
            _finite(scales, name, "scale")
            for some in np.array_split(scales, -(-len(scales) // 4096) or 1):
                if not possible:
                    break
                products = levels[:, None] * some
                possible = [format for format in possible if exactly(products, format)]
        return [FORMATS[format] for format in (*possible, "F32")]

    def _scales(self, lo: int, hi: int) -> np.ndarray:
        import numpy as np

        return self.scales(lo, hi) if self.scales else np.ones((hi - lo, 1), np.float32)

    def steps(self) -> Steps:
        import numpy as np

        levels = np.unique(self.table[np.isfinite(self.table)])
        gaps = np.diff(levels)
        own = np.minimum(np.append(gaps, np.inf), np.append(np.inf, gaps))
        smallest, largest, ratio = np.inf, 0.0, 1.0
        even = self.groups.of_blocks(32) is not None
        for lo, hi in chunks(self.rows, self.groups.count):
            scales = np.abs(self._scales(lo, hi))
            used = scales[scales > 0]
            smallest, largest = min(smallest, float(used.min(initial=np.inf))), max(largest, float(used.max(initial=0)))
            ratio = ratio if even else max(ratio, _unevenness(self.groups.spread(scales)))
        most, least = float(np.abs(levels).max()), float(gaps.min())
        relative = float((np.abs(levels) / own).max())
        return Steps(most / least * ratio, relative, smallest * least, largest * most)


@dataclass(frozen=True)
class Floats(Numbers):
    """Numbers of no regular kind, for which there is only F32, or F16.

    Attributes
    ----------
    read : (n, cols), float32.
    sixteen : F16 or BF16 where that holds them all.
    fineness : see `Numbers.steps`.
    """

    read: Reader
    sixteen: str = ""
    fineness: Steps | None = None

    def floats(self, lo: int, hi: int) -> np.ndarray:
        return self.read(lo, hi)

    def holding(self, name: str) -> list[Format]:
        return [FORMATS[format] for format in (self.sixteen, "F32") if format]

    def steps(self) -> Steps | None:
        return self.fineness
