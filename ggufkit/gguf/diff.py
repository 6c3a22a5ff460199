"""How two models differ: their metadata, and each tensor's type, shape and contents.

identical      the same type and bytes
same values    other bytes that decode to the same numbers (F16 stored as F32)
requantized    another type, and the numbers are a little off: by how much, as rms error over rms weight
differs        the same type, other numbers
shape          other shapes: nothing to compare
only in A/B    there is no such tensor in the other model
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggufkit.gguf.copy import Advance, nothing
from ggufkit.gguf.header import Field, TensorInfo
from ggufkit.gguf.reader import GGUF
from ggufkit.kernels.threads import for_each, thread_count
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FieldDiff", "TensorDiff", "diff_bytes", "diff_fields", "diff_tensors"]

# Weights that are decoded at a time, of each model.
_STEP = 1 << 20


@dataclass(frozen=True)
class FieldDiff:
    """A metadata key whose type or value differs, or that only one model has.

    Attributes
    ----------
    key : the key.
    a, b : the pair in each model, or None.
    items : for two arrays of one type, how many items differ; the longer one's extra items count.
    first : index of the first of them.
    """

    key: str
    a: Field | None
    b: Field | None
    items: int = 0
    first: int | None = None


@dataclass(frozen=True)
class TensorDiff:
    """A tensor of one or both models.

    Attributes
    ----------
    name : its name.
    a, b : where it is in each model, or None.
    status : see the module.
    rms : root mean square of the difference; NaN where a number is not finite in one model only.
    relative : `rms` over the root mean square of A's weights.
    largest : largest difference.
    """

    name: str
    a: TensorInfo | None
    b: TensorInfo | None
    status: str
    rms: float = 0.0
    relative: float = 0.0
    largest: float = 0.0


# -- metadata ---------------------------------------------------------------------------------------------


def diff_fields(a: Mapping[str, Field], b: Mapping[str, Field]) -> list[FieldDiff]:
    """The metadata that differs, in A's order, then what only B has."""
    found = []
    for key, field in a.items():
        if (other := b.get(key)) is None:
            found.append(FieldDiff(key, field, None))
        elif not _same(field, other):
            found.append(_changed(field, other))
    found += [FieldDiff(key, None, field) for key, field in b.items() if key not in a]
    return found


def _same(a: Field, b: Field) -> bool:
    if (a.type, a.item_type, a.count) != (b.type, b.item_type, b.count):
        return False
    return a.raw == b.raw or all(map(_equal, a.items(), b.items()))


def _equal(x: Any, y: Any) -> bool:
    return x == y or (isinstance(x, float) and isinstance(y, float) and math.isnan(x) and math.isnan(y))


def _changed(a: Field, b: Field) -> FieldDiff:
    if a.item_type is None or a.item_type is not b.item_type:
        return FieldDiff(a.key, a, b)
    different = [i for i, (x, y) in enumerate(zip(a.items(), b.items(), strict=False)) if not _equal(x, y)]
    extra = abs(a.count - b.count)
    first = different[0] if different else min(a.count, b.count)
    return FieldDiff(a.key, a, b, len(different) + extra, first)


# -- tensors ----------------------------------------------------------------------------------------------


def diff_bytes(a: GGUF, b: GGUF) -> int:
    """The bytes that `diff_tensors` looks at, of A."""
    return sum(info.nbytes for name, info in a.info.items() if name in b.info)


def diff_tensors(
    a: GGUF, b: GGUF, *, data: bool = True, threads: int | None = None, advance: Advance = nothing
) -> list[TensorDiff]:
    """All tensors of both models, in A's order, then what only B has.

    Parameters
    ----------
    data : compare the contents; without, tensors of equal shapes are ``"same type"`` or ``"other type"``.
    """
    found: dict[str, TensorDiff] = {}

    def compare(name: str) -> None:
        one, other = a.info[name], b.info[name]
        if _trimmed(one.shape) != _trimmed(other.shape):
            found[name] = TensorDiff(name, one, other, "shape")
        elif not data:
            found[name] = TensorDiff(name, one, other, "same type" if one.format == other.format else "other type")
        else:
            found[name] = _compare(a.tensors[name], b.tensors[name], one, other, advance)

    # Large tensors of both are never in memory as a whole, so as many at a time as there are threads.
    for_each(compare, (name for name in a.info if name in b.info), thread_count(threads))
    only_a = {name: TensorDiff(name, info, None, "only in A") for name, info in a.info.items() if name not in b.info}
    only_b = [TensorDiff(name, None, info, "only in B") for name, info in b.info.items() if name not in a.info]
    return [found.get(name) or only_a[name] for name in a.info] + only_b


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without leading ones, which GGML does not distinguish."""
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


def _pieces(tensor: Tensor) -> Iterator[tuple[int, int]]:
    step = max(1, _STEP // max(tensor.cols, 1))
    for lo in range(0, tensor.rows, step):
        yield lo, min(lo + step, tensor.rows)


def _compare(a: Tensor, b: Tensor, one: TensorInfo, other: TensorInfo, advance: Advance) -> TensorDiff:
    progress = _once(a, advance)
    if a.format == b.format and _same_bytes(a, b, progress):
        progress(a.rows)
        return TensorDiff(a.name, one, other, "identical")
    squares, weights, largest, same, count = 0.0, 0.0, 0.0, True, 0
    for lo, hi in _pieces(a):
        x, y = _floats(a, lo, hi), _floats(b, lo, hi)  # (hi - lo, cols)
        piece = _difference(x, y)
        squares, weights, largest = squares + piece[0], weights + piece[1], max(largest, piece[2], key=_nan_last)
        same = same and piece[3]
        count += x.size
        progress(hi)
    if same:
        return TensorDiff(a.name, one, other, "same values")
    rms, scale = math.sqrt(squares / count), math.sqrt(weights / count)
    status = "differs" if a.format == b.format else "requantized"
    return TensorDiff(a.name, one, other, status, rms, rms / scale if scale else math.inf, largest)


def _once(tensor: Tensor, advance: Advance) -> Callable[[int], None]:
    """Report rows up to one once, though a tensor may be read twice."""
    done = 0

    def progress(row: int) -> None:
        nonlocal done
        if row > done:
            advance((row - done) * tensor.row_bytes, tensor.name)
            done = row

    return progress


def _same_bytes(a: Tensor, b: Tensor, progress: Callable[[int], None]) -> bool:
    for lo, hi in _pieces(a):
        if a.read(lo, hi).tobytes() != b.read(lo, hi).tobytes():
            return False
        progress(hi)
    return True


def _floats(tensor: Tensor, lo: int, hi: int) -> np.ndarray:
    from ggufkit.formats.codec import decode

    return decode(tensor.read(lo, hi), tensor.format, threads=1)


def _difference(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float, bool]:
    """(sum of squared differences, of squared x, largest difference, whether all numbers are the same)."""
    import numpy as np

    if np.array_equal(x, y, equal_nan=True):
        return 0.0, float(np.sum(np.square(x, dtype=np.float64))), 0.0, True
    with np.errstate(invalid="ignore", over="ignore"):
        delta = np.subtract(x, y, dtype=np.float64)
        delta[(x == y) | (np.isnan(x) & np.isnan(y))] = 0  # infinities of one sign, and NaN
        largest = float(np.abs(delta).max())
        return float(np.sum(np.square(delta))), float(np.sum(np.square(x, dtype=np.float64))), largest, False


def _nan_last(x: float) -> float:
    return math.inf if math.isnan(x) else x
