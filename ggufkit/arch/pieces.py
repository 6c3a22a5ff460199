"""Tensors in more or fewer pieces: what exports take apart and put together, matrix by matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from ggufkit.errors import ArchitectureError, printable
from ggufkit.formats.table import FORMATS
from ggufkit.tensors.tensor import Origin, Tensor
from ggufkit.tensors.views import stacked

if TYPE_CHECKING:
    import numpy as np

__all__ = ["apart", "decoded", "matrices", "side_by_side", "together"]


def decoded(tensor: Tensor) -> Tensor:
    """A quantized tensor as float32 that remembers that it was in blocks; others as they are."""
    return _floats(tensor) if tensor.format.is_quantized else tensor


def _floats(tensor: Tensor) -> Tensor:
    def read(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        return tensor.floats(lo, hi).view(np.uint8)

    origin = Origin(f"{tensor.format.name}, decoded", exact=False) if tensor.format.is_quantized else tensor.origin
    return replace(tensor, format=FORMATS["F32"], read=read, origin=origin)


def apart(name: str, tensor: Tensor) -> Iterator[Tensor]:
    """The matrices of a stack, each under its name; or the tensor."""
    if "{xid}" not in name:
        yield tensor.renamed(name)
        return
    for number, matrix in enumerate(matrices(tensor)):
        yield matrix.renamed(name.replace("{xid}", str(number)))


def matrices(tensor: Tensor) -> Iterator[Tensor]:
    """The matrices, or vectors, that a tensor is a stack of."""
    rows = prod(tensor.shape[1:-1])
    for number in range(tensor.shape[0] if len(tensor.shape) > 1 else 0):
        first = number * rows

        def read(lo: int, hi: int, first: int = first) -> np.ndarray:
            return tensor.read(first + lo, first + hi)

        yield replace(tensor, shape=tensor.shape[1:], read=read)


def together(name: str, tensors: list[Tensor]) -> Tensor:
    """Matrices of one width below each other; of stacks, each matrix with those of the same number."""
    first = tensors[0]
    if len({tensor.format for tensor in tensors}) > 1:
        tensors = [_floats(tensor) for tensor in tensors]
    if any(len(t.shape) not in (2, 3) or t.shape[:-2] != first.shape[:-2] or t.cols != first.cols for t in tensors):
        raise ArchitectureError(f"{printable(first.name)} and its like have shapes that do not belong together")
    rows = sum(tensor.shape[-2] for tensor in tensors)
    stacks = [[t] if len(t.shape) == 2 else list(matrices(t)) for t in tensors]
    pieces = [matrix for same in zip(*stacks, strict=True) for matrix in same]
    return stacked(name, pieces, (*first.shape[:-2], rows, first.cols))


def side_by_side(name: str, tensors: list[Tensor]) -> Tensor:
    """Vectors, or stacks of them, one behind the other."""
    first = tensors[0]
    if any((t.format, t.shape[:-1]) != (first.format, first.shape[:-1]) for t in tensors):
        raise ArchitectureError(f"{printable(first.name)} and its like have shapes that do not belong together")

    def read(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        return np.concatenate([tensor.read(lo, hi) for tensor in tensors], axis=1)

    return Tensor(name, (*first.shape[:-1], sum(tensor.cols for tensor in tensors)), first.format, read)
