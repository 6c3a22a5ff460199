"""Weights of eight-bit integers with a scale for a matrix, a row or a group, under the names that most tools share.

…q_proj.weight              (rows, cols) I8
…q_proj.weight_scale        (), (1,), (rows,), (rows, 1) or (rows, groups)    w = scale · (code - zero)
…q_proj.weight_zero_point   of the same shape; absent: 0
…q_proj.SCB                 (rows,) F32, of bitsandbytes: w = code · SCB / 127
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggufkit.checkpoint.packed.integers import Integers
from ggufkit.checkpoint.packed.matrix import Groups, Reader
from ggufkit.checkpoint.packed.stored import Matrix, Reading, Source, require
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["int8_matrix", "per_group", "read"]

_FLOATS = ("F32", "F16", "BF16")


def read(source: Source) -> Reading | None:
    """All weights of int8 that other layouts left."""
    tensors = source.tensors
    reading = Reading("INT8")
    for name in [
        n for n, t in tensors.items() if t.format.name == "I8" and n.endswith(".weight") and len(t.shape) == 2
    ]:
        module = name.removesuffix(".weight")
        zero = f"{name}_zero_point"
        if f"{module}.SCB" in tensors:
            scale = require(tensors, f"{module}.SCB", "F32", (tensors[name].rows,))
            parts = [scale.name, f"{module}.weight_format"]
            reading.add(name, _bitsandbytes(tensors[name], scale), parts)
        elif f"{name}_scale" in tensors:
            matrix = int8_matrix(tensors[name], tensors[f"{name}_scale"], tensors.get(zero), "INT8")
            reading.add(name, matrix, [f"{name}_scale", zero])
        else:
            raise CheckpointError(f"{printable(name)} is I8 and has no scale beside it")
    return reading if reading.matrices else None


def int8_matrix(weight: Tensor, scale: Tensor, zero: Tensor | None, what: str, name: str = "") -> Matrix:
    """A matrix of signed bytes.

    Raises
    ------
    CheckpointError : scales or zero points do not fit it.
    """
    if scale.format.name not in _FLOATS or (
        zero is not None and zero.format.name not in ("I8", "I32", "I64", *_FLOATS)
    ):
        raise CheckpointError(
            f"{printable(scale.name)} is {scale.format.name}; scales are floats, zero points integers"
        )
    scales, groups = per_group(weight.name, weight.shape, scale)
    zeros: Reader | int = 128
    if zero is not None:
        stored, others = per_group(weight.name, weight.shape, zero)
        if (others.of != groups.of).any():
            raise CheckpointError(
                f"{printable(zero.name)} of shape {list(zero.shape)} does not go with {list(scale.shape)}"
            )
        zeros = lambda lo, hi: stored(lo, hi) + 128  # noqa: E731

    def codes(lo: int, hi: int) -> np.ndarray:
        return weight.read(lo, hi) ^ 128  # signed → from 0 on

    each = "each matrix" if scale.size == 1 else "each row" if groups.count == 1 else f"{weight.cols // groups.count}"
    numbers = Integers(weight.shape, codes, 8, scales, zeros, groups)
    return Matrix(name or weight.name, f"{what}, a scale for {each}", numbers)


def per_group(name: str, shape: tuple[int, ...], scale: Tensor, size: Any = None) -> tuple[Reader, Groups]:
    """A reader of numbers for a matrix, for each row, or for groups of columns: (n, groups), float32.

    size: of a group, where the settings say; then the last may be smaller.
    """
    import numpy as np

    rows, cols = shape
    if scale.size == 1:
        return lambda lo, hi: np.broadcast_to(scale.floats().reshape(1, 1), (hi - lo, 1)), Groups.even(cols, cols)
    if scale.size == rows and scale.shape[0] == rows:
        if len(scale.shape) == 1:
            return lambda lo, hi: scale.floats().reshape(-1, 1)[lo:hi], Groups.even(cols, cols)
        return scale.floats, Groups.even(cols, cols)
    if len(scale.shape) == 2 and scale.shape[0] == rows and scale.cols:
        if type(size) is int and size > 0 and -(cols // -size) == scale.cols:
            return scale.floats, Groups.even(cols, size)
        if cols % scale.cols == 0:
            return scale.floats, Groups.even(cols, cols // scale.cols)
    raise CheckpointError(
        f"{printable(scale.name)} of shape {list(scale.shape)} does not fit {printable(name)} of shape {list(shape)}"
    )


def _bitsandbytes(weight: Tensor, scale: Tensor) -> Matrix:
    import numpy as np

    def scales(lo: int, hi: int) -> np.ndarray:
        return scale.floats().reshape(-1, 1)[lo:hi] * (np.float32(1) / np.float32(127))

    numbers = Integers(
        weight.shape, lambda lo, hi: weight.read(lo, hi) ^ 128, 8, scales, 128, Groups.even(weight.cols, weight.cols)
    )
    return Matrix(weight.name, "bitsandbytes INT8", numbers)
