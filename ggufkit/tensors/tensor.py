"""The lazy tensor that flows through the whole program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from ggufkit.errors import CheckpointError, printable
from ggufkit.formats.table import Format

if TYPE_CHECKING:
    import numpy as np

    from ggufkit.arrays import ByteArray, FloatArray

__all__ = ["Origin", "Tensor"]


@dataclass(frozen=True)
class Origin:
    """Of a tensor that another program quantized: what became of it.

    Attributes
    ----------
    note : what it was and how its format was chosen, for people: "GPTQ, 4 bits in groups of 128: exact".
    exact : the format holds every weight of the checkpoint.
    factors : what each of its matrices is multiplied with when the model runs; () where that is 1.
    order : column i was column `order[i]` of the checkpoint; () where none changed its place.
    computed : the model computes with its weights before they are stored, so that nothing is left of the blocks.
    """

    note: str
    exact: bool
    factors: tuple[float, ...] = ()
    order: tuple[int, ...] = ()
    computed: bool = False


@dataclass(frozen=True)
class Tensor:
    """A tensor that is read in slices of rows, when they are asked for.

    A row is what the last dimension spans (GGUF's `ne[0]`); a tensor of one dimension, or none, has one row.

    Attributes
    ----------
    name : its name.
    shape : NumPy order; ``(rows, cols)`` for a weight matrix.
    format : the block format of its rows.
    read : rows `lo:hi` as blocks, array of shape (hi - lo, row_bytes), uint8, read-only. Little-endian, whatever
        the file is. Safe to call from several threads.
    origin : where it was quantized before, how it was taken over.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    read: Callable[[int, int], ByteArray]
    origin: Origin | None = None

    @cached_property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @cached_property
    def cols(self) -> int:
        """Weights a row."""
        return self.shape[-1] if self.shape else 1

    @cached_property
    def size(self) -> int:
        """Weights in all."""
        return self.rows * self.cols

    @cached_property
    def row_bytes(self) -> int:
        return self.format.row_bytes(self.cols)

    @cached_property
    def nbytes(self) -> int:
        """Bytes in all, without padding."""
        return self.rows * self.row_bytes

    def records(self, lo: int = 0, hi: int | None = None) -> np.ndarray:
        """Rows `lo:hi` as records of the format's fields: array of shape (hi - lo, blocks per row), `format.dtype`.

        The view shares the memory of the blocks: ``tensor.records()["d"]`` are the scales.
        """
        blocks = self.read(lo, self.rows if hi is None else hi)
        return blocks.view(self.format.dtype) if self.row_bytes else blocks.reshape(len(blocks), 0).view("u1")

    def floats(self, lo: int = 0, hi: int | None = None) -> FloatArray:
        """Rows `lo:hi` decoded: array of shape (hi - lo, cols), float32.

        Raises
        ------
        CheckpointError : it is stored in a dtype of a checkpoint that GGUF has not.
        """
        from ggufkit.formats.codec import decode

        self.require_numbers()
        return decode(self.read(lo, self.rows if hi is None else hi), self.format)

    def require_numbers(self) -> None:
        """Refuse a dtype that only the layout of a quantized checkpoint gives a meaning, before somebody computes."""
        if self.format.family == "raw":
            raise CheckpointError(
                f"{printable(self.name)} is stored as {self.format.name}, which says nothing by itself; F32, F16 or "
                "BF16 is expected here"
            )

    def renamed(self, name: str) -> Tensor:
        """The same tensor under another name."""
        return replace(self, name=name)
