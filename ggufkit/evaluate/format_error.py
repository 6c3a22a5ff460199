"""What a format costs: how far weights move when they are encoded and decoded again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ggufkit.errors import CodecError
from ggufkit.formats import codec
from ggufkit.formats.table import Format
from ggufkit.tensors.tensor import Tensor

__all__ = ["NORMAL_ERROR", "Error", "measure", "measure_tensors", "sample"]

# rms error over rms weight of normally distributed rows of 4096 weights, without importance (with equal
# importance where a format needs it). Constants, because the formats' bytes are; a test measures them again.
NORMAL_ERROR = {
    "F16": 0.000208,
    "Q4_0": 0.086,
    "Q4_1": 0.0782,
    "Q5_0": 0.0427,
    "Q5_1": 0.0378,
    "Q8_0": 0.00535,
    "Q2_K": 0.297,
    "Q3_K": 0.151,
    "Q4_K": 0.0713,
    "Q5_K": 0.0361,
    "Q6_K": 0.0177,
    "IQ2_XXS": 0.344,
    "IQ2_XS": 0.3,
    "IQ3_XXS": 0.213,
    "IQ1_S": 0.486,
    "IQ4_NL": 0.0761,
    "IQ3_S": 0.166,
    "IQ2_S": 0.265,
    "IQ4_XS": 0.0767,
    "IQ1_M": 0.583,
    "BF16": 0.00166,
    "TQ1_0": 0.807,
    "TQ2_0": 0.807,
    "MXFP4": 0.115,
    "NVFP4": 0.0951,
    "Q1_0": 0.6,
    "Q2_0": 0.718,
}

# Weights that are encoded, decoded and compared at a time.
_CHUNK = 1 << 21


@dataclass
class Error:
    """Sums over weights, and the worst block.

    Attributes
    ----------
    weights : how many.
    squares : Σ w².
    error_squares : Σ (w' - w)².
    worst : rms error of the block with the largest.
    worst_at : its tensor, row and first column.
    """

    weights: int = 0
    squares: float = 0.0
    error_squares: float = 0.0
    worst: float = 0.0
    worst_at: tuple[str, int, int] = ("", 0, 0)

    @property
    def rmse(self) -> float:
        """Root of the mean squared error, in the unit of the weights."""
        return math.sqrt(self.error_squares / self.weights) if self.weights else 0.0

    @property
    def relative(self) -> float:
        """rms error over rms weight; 0 where all weights are 0."""
        return math.sqrt(self.error_squares / self.squares) if self.squares else 0.0

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise, decibels; infinite for no error."""
        return -20 * math.log10(self.relative) if self.error_squares else math.inf

    def add(self, other: Error) -> None:
        self.weights += other.weights
        self.squares += other.squares
        self.error_squares += other.error_squares
        if other.worst > self.worst:
            self.worst, self.worst_at = other.worst, other.worst_at


def measure(
    rows: np.ndarray,
    format: Format,
    importance: np.ndarray | None = None,
    *,
    name: str = "",
    first_row: int = 0,
    threads: int | None = None,
) -> Error:
    """Encode and decode `rows`, array of shape (rows, cols), float32, and compare.

    Formats that need importance get equal importance for all columns when there is none.

    Raises
    ------
    CodecError : as `codec.encode`.
    """
    if importance is None and format.needs_importance:
        importance = np.ones(rows.shape[1], np.float32)
    blocks = codec.encode(rows, format, importance, name=name, first_row=first_row, threads=threads)
    errors = codec.decode(blocks, format, threads=threads) - rows
    squares = np.square(errors, dtype=np.float64).reshape(len(rows), -1, format.block_size).mean(2)
    row, block = np.unravel_index(squares.argmax(), squares.shape)
    return Error(
        weights=rows.size,
        squares=float(np.square(rows, dtype=np.float64).sum()),
        error_squares=float(squares.sum() * format.block_size),
        worst=math.sqrt(squares[row, block]),
        worst_at=(name, int(first_row + row), int(block * format.block_size)),
    )


def sample(tensor: Tensor, rows: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, rows as float32) of a tensor, a chunk at a time; of `rows` rows, evenly spread.

    0 rows are all.
    """
    step = max(1, _CHUNK // max(tensor.cols, 1))
    if 0 < rows < tensor.rows:
        step = min(step, max(1, rows // 16))
        starts = np.linspace(0, tensor.rows - step, max(1, rows // step)).astype(int).tolist()
    else:
        starts = list(range(0, tensor.rows, step))
    for lo in starts:
        yield lo, tensor.floats(lo, min(lo + step, tensor.rows))


def measure_tensors(
    tensors: Iterable[Tensor], formats: list[Format], rows: int = 0, threads: int | None = None
) -> tuple[dict[str, Error], dict[str, str]]:
    """The error of each format over all tensors, and why a format cannot hold them.

    Parameters
    ----------
    rows : rows of each tensor to look at, evenly spread; 0 for all.
    """
    errors = {format.name: Error() for format in formats}
    refused: dict[str, str] = {}
    for tensor in tensors:
        for lo, x in sample(tensor, rows):
            for format in formats:
                if format.name in refused:
                    continue
                try:
                    errors[format.name].add(measure(x, format, name=tensor.name, first_row=lo, threads=threads))
                except CodecError as e:
                    refused[format.name] = e.message
    return {name: error for name, error in errors.items() if name not in refused}, refused
