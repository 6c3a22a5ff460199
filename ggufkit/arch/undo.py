"""What takes back single transforms of `arch.transforms`, for the exports of specs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ggufkit.arch.export import Source, Undo
from ggufkit.arch.pieces import decoded
from ggufkit.arch.transforms import decays
from ggufkit.errors import ArchitectureError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import computed, reshaped, stacked, take_columns, take_rows

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "as_it_is",
    "behind_zeros",
    "columns_back",
    "decays_of_heads",
    "logarithms",
    "one_channel",
    "one_dimension",
    "rows_back",
]

# Places of a transformed tensor's rows or columns in the checkpoint's, as the transform took them.
Order = Callable[[Source], "np.ndarray"]


def as_it_is(source: Source, tensor: Tensor) -> Tensor:
    return tensor


def behind_zeros(count: Callable[[Source], int]) -> Undo:
    """So many rows of zeros in front: those that `transforms.first_rows` left out, because no model reads them."""

    def undo(source: Source, tensor: Tensor) -> Tensor:
        import numpy as np

        tensor, rows = decoded(tensor), count(source)

        def read(lo: int, hi: int) -> np.ndarray:
            return np.zeros((hi - lo, tensor.row_bytes), np.uint8)

        zeros = replace(tensor, shape=(rows, tensor.cols), read=read)
        return stacked(tensor.name, [zeros, tensor], (rows + tensor.rows, tensor.cols))

    return undo


def one_channel(source: Source, tensor: Tensor) -> Tensor:
    """A matrix (channels, kernel) as the convolution (channels, 1, kernel) that it was; its bias as it is."""
    return tensor if len(tensor.shape) == 1 else reshaped(tensor, (tensor.shape[0], 1, tensor.shape[-1]))


def one_dimension(source: Source, tensor: Tensor) -> Tensor:
    """The numbers as a vector."""
    return reshaped(tensor, (tensor.size,))


def decays_of_heads(source: Source, tensor: Tensor) -> Tensor:
    """Logarithms of the heads' decays, as a vector."""
    return one_dimension(source, logarithms(source, tensor))


def rows_back(order: Order) -> Undo:
    """Rows, or entries of a vector, go back to where `order` took them from."""

    def undo(source: Source, tensor: Tensor) -> Tensor:
        return take_rows(
            tensor, _inverse(order(source), tensor, tensor.cols if len(tensor.shape) == 1 else tensor.rows)
        )

    return undo


def columns_back(order: Order) -> Undo:
    """Columns go back to where `order` took them from."""

    def undo(source: Source, tensor: Tensor) -> Tensor:
        back = _inverse(order(source), tensor, tensor.cols)
        moved = take_columns(tensor, back)
        return moved if moved.format == tensor.format else take_columns(decoded(tensor), back)

    return undo


def _inverse(order: np.ndarray, tensor: Tensor, count: int) -> np.ndarray:
    import numpy as np

    if len(order) != count:
        raise ArchitectureError(
            f"{printable(tensor.name)} has {count} rows or columns to put back, the metadata calls for {len(order)}"
        )
    return np.argsort(order)


def logarithms(source: Source, tensor: Tensor) -> Tensor:
    """The logarithms of a state's decay, `transforms.decay` undone: those that give the same numbers again.

    bfloat16 where there is one, else the float32 next to the logarithm; where none gives the number, the nearest.
    """

    def undone(values: np.ndarray) -> np.ndarray:
        import numpy as np

        with np.errstate(divide="ignore", invalid="ignore"):
            exact = np.log(-values.astype(np.float64))
        found = exact.astype(np.float32)
        with np.errstate(invalid="ignore"):
            bits = found.view(np.uint32)
            brain = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
            below, above = np.nextafter(found, np.float32(-np.inf)), np.nextafter(found, np.float32(np.inf))
            result = found.copy()
            for candidate in (below, above, found, brain):  # the last that fits
                fits = decays(candidate) == values
                result[fits] = candidate[fits]
        return result

    return computed(tensor, undone)
