"""Lazy rearrangements of one tensor: what transforms are made of.

Each function takes tensors and returns one whose `read(lo, hi)` works out, when it is called, which rows of its
sources it needs. Nothing here holds a weight, but for `transposed`, whose last few matrices stay in a cache that the
tensors of one transform share.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from ggufkit.errors import CheckpointError, printable
from ggufkit.formats.table import FORMATS
from ggufkit.tensors.tensor import Origin, Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "LastMatrices",
    "by_rows",
    "computed",
    "each_matrix",
    "matrix",
    "padded_rows",
    "reshaped",
    "stacked",
    "take_columns",
    "take_rows",
    "transposed",
    "vector",
]


def take_rows(tensor: Tensor, order: np.ndarray, shape: tuple[int, ...] | None = None) -> Tensor:
    """Row i of the result is row `order[i]`; of a vector, such as a bias, entry i is entry `order[i]`.

    Parameters
    ----------
    order : array of shape (n,), int. Neighbours should stay near: a slice reads all rows that it spans.
    shape : of the result, when it has more than two dimensions.
    """
    if len(tensor.shape) == 1:
        return take_columns(tensor, order)

    def read(lo: int, hi: int) -> np.ndarray:
        if lo == hi:
            return tensor.read(0, 0)
        wanted = order[lo:hi]
        first, last = int(wanted.min()), int(wanted.max())
        if last - first + 1 == hi - lo and wanted[0] == first and (wanted[1:] > wanted[:-1]).all():
            return tensor.read(first, last + 1)
        result: np.ndarray = tensor.read(first, last + 1)[wanted - first]
        return result

    return replace(tensor, shape=shape or (len(order), tensor.cols), read=read)


def take_columns(tensor: Tensor, order: np.ndarray) -> Tensor:
    """Column i of the result is column `order[i]`. Of blocks whole ones move, where that will do; else it is F32."""
    blocks = _whole_blocks(order, tensor.format.block_size)
    if blocks is None:
        return take_columns(_unpacked(tensor), order)

    def read(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        rows = tensor.read(lo, hi)
        stored = rows.reshape(len(rows), -1, tensor.format.type_size)  # (rows, blocks, bytes of one)
        return np.ascontiguousarray(stored[:, blocks]).reshape(len(rows), -1)

    return replace(tensor, shape=(*tensor.shape[:-1], len(order)), read=read)


def _whole_blocks(order: np.ndarray, size: int) -> np.ndarray | None:
    """The order of blocks of `size` columns; None where columns leave their neighbours."""
    import numpy as np

    if size == 1:
        return order
    if len(order) % size:
        return None
    blocks = order.reshape(-1, size)
    whole = (blocks == blocks[:, :1] + np.arange(size)).all() and not (blocks[:, 0] % size).any()
    return blocks[:, 0] // size if whole else None


def _unpacked(tensor: Tensor) -> Tensor:
    """A tensor of blocks as float32; others as they are."""
    if tensor.format.block_size == 1:
        return tensor

    def read(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        return tensor.floats(lo, hi).view(np.uint8)

    return replace(tensor, format=FORMATS["F32"], read=read)


def each_matrix(order: np.ndarray, matrices: int, rows: int) -> np.ndarray:
    """The row order that applies `order` to each of `matrices` stacked matrices of `rows` rows."""
    import numpy as np

    result: np.ndarray = (np.arange(matrices)[:, None] * rows + order).reshape(-1)
    return result


def stacked(name: str, tensors: Sequence[Tensor], shape: tuple[int, ...] | None = None) -> Tensor:
    """The rows of `tensors` one after the other; by default (n, *shape) of n tensors of one shape.

    Raises
    ------
    CheckpointError : their formats or shapes differ.
    """
    first = tensors[0]
    for tensor in tensors:
        if tensor.format != first.format or (tensor.shape if shape is None else tensor.cols) != (
            first.shape if shape is None else first.cols
        ):
            raise CheckpointError(
                f"{printable(tensor.name)} is {tensor.format.name} {list(tensor.shape)}, "
                f"{printable(first.name)} is {first.format.name} {list(first.shape)}; they cannot be put together"
            )
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + tensor.rows)

    def read(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        pieces = [
            tensor.read(max(lo, start) - start, min(hi, start + tensor.rows) - start)
            for tensor, start in zip(tensors, starts, strict=False)
            if start < hi and lo < start + tensor.rows
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [first.read(0, 0)])

    return Tensor(name, shape or (len(tensors), *first.shape), first.format, read, _joined(tensors))


def _joined(tensors: Sequence[Tensor]) -> Origin | None:
    """The origin of tensors that are put together: exact where all are."""
    origins = [tensor.origin for tensor in tensors]
    known = [origin for origin in origins if origin is not None]
    if not known:
        return None
    factors: tuple[float, ...] = ()
    if any(origin.factors for origin in known):
        factors = tuple(factor for origin in origins for factor in (origin.factors if origin else ()) or (1.0,))
    exact = all(origin is None or origin.exact for origin in origins)
    return Origin(known[0].note, exact, factors, computed=any(origin.computed for origin in known))


def padded_rows(tensor: Tensor, rows: int) -> Tensor:
    """A matrix with rows of zeros behind its own, `rows` in all; one that has as many stays as it is."""
    if tensor.rows >= rows:
        return tensor

    def read(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        own = tensor.read(min(lo, tensor.rows), min(hi, tensor.rows))
        return (
            np.concatenate([own, np.zeros((hi - lo - len(own), tensor.row_bytes), np.uint8)])
            if len(own) < hi - lo
            else own
        )

    return replace(tensor, shape=(rows, tensor.cols), read=read)


def reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same numbers in the same order under another shape.

    Raises
    ------
    CheckpointError : the shape has another number of weights.
    """
    if prod(shape) != tensor.size:
        raise CheckpointError(
            f"{printable(tensor.name)} of shape {list(tensor.shape)} cannot be {list(shape)}; "
            "is config.json the right one?"
        )
    target = replace(tensor, shape=shape)
    if target.cols == tensor.cols:
        return target

    def read(lo: int, hi: int) -> np.ndarray:
        if lo == hi or not tensor.cols:
            return tensor.read(0, 0).reshape(0, target.row_bytes)
        begin, end = lo * target.cols, hi * target.cols  # in weights
        first = begin // tensor.cols
        rows = tensor.read(first, -(-end // tensor.cols)).reshape(-1)
        skipped = (begin - first * tensor.cols) * tensor.format.type_size
        return rows[skipped : skipped + (hi - lo) * target.row_bytes].reshape(hi - lo, -1)

    return replace(target, read=read)


class LastMatrices:
    """The matrices that were transposed last, shared by the tensors of a transform: bounded memory."""

    def __init__(self, limit: int = 2):
        self._limit = limit
        self._kept: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int], make: Callable[[], np.ndarray]) -> np.ndarray:
        with self._lock:  # also while making: the other threads want the same matrix
            if key not in self._kept:
                while len(self._kept) >= self._limit:
                    self._kept.popitem(last=False)
                self._kept[key] = make()
            self._kept.move_to_end(key)
            return self._kept[key]


def transposed(tensor: Tensor, cache: LastMatrices) -> Tensor:
    """The last two dimensions swapped, of blocks as F32. A matrix is read whole and stays in `cache` while rows are."""
    tensor = _unpacked(tensor)
    *outer, rows, cols = tensor.shape
    size = tensor.format.type_size

    def read(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        def matrix() -> np.ndarray:
            source = tensor.read(which * rows, (which + 1) * rows).reshape(rows, cols, size)
            return np.ascontiguousarray(source.swapaxes(0, 1)).reshape(cols, -1)

        pieces = [np.empty((0, rows * size), np.uint8)]
        while lo < hi:
            which, row = divmod(lo, cols)
            n = min(hi - lo, cols - row)
            pieces.append(cache.get((tensor.name, which), matrix)[row : row + n])
            lo += n
        return pieces[1] if len(pieces) == 2 else np.concatenate(pieces)

    return replace(tensor, shape=(*outer, cols, rows), read=read)


def computed(tensor: Tensor, function: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """`function` of the weights as float32, (rows, cols) → (rows, cols).

    The result is F16 when the tensor is and F32 otherwise: the precisions that the reference computes in.
    """
    return by_rows(tensor, lambda weights, lo: function(weights))


def by_rows(tensor: Tensor, function: Callable[[np.ndarray, int], np.ndarray]) -> Tensor:
    """As `computed`, for a `function` of (rows `lo:…` as float32, lo).

    What the matrix is multiplied with when the model runs stays that: of such matrices the function must be linear.
    """
    tensor.require_numbers()
    half = tensor.format.name == "F16"
    origin = None if tensor.origin is None else replace(tensor.origin, exact=False, computed=True)

    def read(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        result = function(tensor.floats(lo, hi), lo)
        return np.ascontiguousarray(result, np.float16 if half else np.float32).view(np.uint8)

    return replace(tensor, format=FORMATS["F16" if half else "F32"], read=read, origin=origin)


def vector(name: str, numbers: Sequence[float] | np.ndarray) -> Tensor:
    """A float32 tensor of one dimension that is held in memory."""
    return _held(name, numbers)


def matrix(name: str, numbers: np.ndarray) -> Tensor:
    """A float32 tensor of two dimensions that is held in memory."""
    return _held(name, numbers)


def _held(name: str, numbers: Sequence[float] | np.ndarray) -> Tensor:
    import numpy as np

    array = np.ascontiguousarray(numbers, np.float32)
    blocks = array.reshape(prod(array.shape[:-1]), array.shape[-1]).view(np.uint8)
    blocks.flags.writeable = False
    return Tensor(name, array.shape, FORMATS["F32"], lambda lo, hi: blocks[lo:hi])
