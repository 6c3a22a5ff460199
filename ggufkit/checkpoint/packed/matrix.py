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
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from ggufkit.errors import CheckpointError, printable
from ggufkit.formats.table import FORMATS, Format

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "SIGNED",
    "Floats",
    "Groups",
    "Levels",
    "Numbers",
    "Offsets",
    "Reader",
    "Steps",
    "chunks",
    "encoded",
    "exactly",
    "finite",
    "joined",
    "rounding",
    "unevenness",
]

# Rows lo:hi of something, array of shape (hi - lo, …).
Reader = Callable[[int, int], "np.ndarray"]

# Numbers looked at at once.
_CHUNK = 1 << 20

# Formats of signed integers, and the largest level that each has on both sides.
SIGNED = (("Q4_0", 8), ("Q5_0", 16), ("Q8_0", 128))

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
        return encoded(self.floats(lo, hi), format, lo)

    def steps(self) -> Steps | None:
        """How fine the matrix is; None where that is not known."""
        return None

    def reordered(self, order: np.ndarray) -> Numbers | None:
        """The matrix with column i from column `order[i]`; None for a kind whose columns must stay."""
        return None


def finite(values: np.ndarray, name: str, what: str) -> None:
    import numpy as np

    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)].flat[0]
        raise CheckpointError(f"{printable(name)}: a {what} is {bad}, and no weight can be made of it")


def encoded(values: np.ndarray, format: Format, lo: int) -> np.ndarray:
    from ggufkit.formats.codec import encode

    return encode(values, format, threads=1, first_row=lo)


def rounding(scales: np.ndarray, biases: np.ndarray | None, top: int) -> tuple[bool, float]:
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


def joined(codes: np.ndarray, scales: np.ndarray, biases: np.ndarray | None, format: Format) -> np.ndarray:
    """Blocks of codes from 0 on, scales and biases of 32, which are rounded to float16: (n, row_bytes), uint8."""
    import numpy as np

    from ggufkit.formats.affine import Affine, join

    if format.name == "Q4_0":
        from ggufkit.formats.codec import frozen
        from ggufkit.formats.streams import q4_0_blocks

        out = np.empty((len(codes), format.row_bytes(codes.shape[1])), np.uint8)
        bits = np.ascontiguousarray(scales.astype(np.float16)).view(np.uint16).reshape(-1)
        q4_0_blocks(frozen(np.ascontiguousarray(codes).reshape(-1, 32)), frozen(bits), out.reshape(-1, 18))
        return out
    halves = scales.astype(np.float16).astype(np.float32)
    if biases is None:
        offsets = halves * np.float32(-dict(SIGNED)[format.name])
    else:
        offsets = biases.astype(np.float16).astype(np.float32)
    return join(Affine(codes, halves, offsets), format).reshape(len(codes), format.row_bytes(codes.shape[1]))


def unevenness(scales: np.ndarray) -> float:
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
            finite(scales, name, "scale")
            finite(biases, name, "bias")
            if possible:
                possible = _holding(possible, scales, biases)
        self.__dict__["_exact"] = [FORMATS[format] for format, _ in possible] + [FORMATS["F32"]]
        return self._exact

    def near(self) -> Format | None:
        if self.groups.of_blocks(32) is None or self.bits > 5:
            return None
        off = 0.0
        for lo, hi in chunks(self.rows, self.groups.count):
            off = max(off, rounding(self.scales(lo, hi), self.biases(lo, hi), (1 << self.bits) - 1)[1])
        return FORMATS["Q4_1" if self.bits <= 4 else "Q5_1"] if off < 0.25 else None

    def blocks(self, format: Format, lo: int, hi: int) -> np.ndarray:
        of = self.groups.of_blocks(32)
        symmetric = format.name in dict(SIGNED)
        if of is None or format.name not in {name for name, *_ in _AFFINE} or (symmetric and format not in self._exact):
            return super().blocks(format, lo, hi)
        biases = None if symmetric else self.biases(lo, hi)[:, of]
        return joined(self.codes(lo, hi), self.scales(lo, hi)[:, of], biases, format)

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
            reach = max(reach, inside * (1.0 if even else unevenness(self.groups.spread(scales))))
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
            finite(scales, name, "scale")
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
            ratio = ratio if even else max(ratio, unevenness(self.groups.spread(scales)))
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
