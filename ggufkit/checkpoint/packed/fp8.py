"""Weights in eight-bit floats: one scale for a matrix, a row, or a block of any size; or none at all.

    …q_proj.weight             (rows, cols) F8_E4M3          w = level · scale
    …q_proj.weight_scale_inv   (⌈rows / 128⌉, ⌈cols / 128⌉)  DeepSeek; "inv" as it is what to multiply with
    …q_proj.weight_scale       (), (rows,), (rows, 1), …     AutoFP8, fbgemm, ModelOpt, compressed-tensors

Blocks at the edges are cut. Where the settings do not say the size of a block, the shapes do. GGUF has no type of
eight-bit floats.
Source: `dequant_model` of llama.cpp's conversion/base.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from ggufkit.checkpoint.packed.fp4 import Fp4, pairs
from ggufkit.checkpoint.packed.matrix import Groups, Levels, Reader
from ggufkit.checkpoint.packed.small_floats import FP8, e8m0, levels_of
from ggufkit.checkpoint.packed.stored import Matrix, Reading, Source
from ggufkit.errors import CheckpointError, printable
from ggufkit.formats.table import FORMATS
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["fp8_matrix", "read"]

# How the names of scales end, after that of the weight.
_SCALES = ("_scale_inv", "_scale")


def read(source: Source) -> Reading | None:
    """All weights in eight-bit floats that other layouts left.

    Raises
    ------
    CheckpointError : a weight has no scale though the settings say that it was scaled, or one of another shape.
    """
    tensors = source.tensors
    small = [name for name, tensor in tensors.items() if tensor.format.name in FP8]
    packed = [name for name in tensors if _is_fp4(name, tensors)]
    if not small and not packed:
        return None
    reading = Reading("FP8")
    for name in small:
        reading.add(name, *_found(name, source))
    for name in packed:
        reading.add(name, _fp4(tensors[name], tensors[f"{name}_scale_inv"]), [f"{name}_scale_inv"])
    return reading


def _found(name: str, source: Source) -> tuple[Matrix, list[str]]:
    tensors = source.tensors
    mistral = f"{name.removesuffix('weight')}qscale_weight"
    scale_name = next((n for n in (*(name + ending for ending in _SCALES), mistral) if n in tensors), None)
    weight = tensors[name]
    if scale_name is None:
        if "fp8" in source.method or len(weight.shape) < 2:
            raise CheckpointError(f"{printable(name)} is {weight.format.name} and has no scale beside it")
        return fp8_matrix(weight, None, None), []
    return fp8_matrix(weight, tensors[scale_name], block_of(source.settings)), [scale_name]


def block_of(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a scale, where the settings say that blocks do."""
    sizes = settings.get("weight_block_size")
    if isinstance(sizes, Sequence) and len(sizes) == 2 and all(type(size) is int and size > 0 for size in sizes):
        return sizes[0], sizes[1]
    return None


def fp8_matrix(weight: Tensor, scale: Tensor | None, block: tuple[int, int] | None, name: str = "") -> Matrix:
    """A weight and what its levels are multiplied with.

    Parameters
    ----------
    block : rows and columns that share a scale, where the settings say so.
    name : what it is called; default the weight's.
    """
    name = name or weight.name
    what = weight.format.name.replace("F8_", "FP8 ")
    table = levels_of(weight.format.name)
    if scale is None:
        return Matrix(
            name,
            f"{what} as it is",
            Levels(weight.shape, weight.read, table, None, Groups.even(weight.cols, weight.cols)),
        )
    scales, (high, wide) = scales_of(weight.name, weight.shape, scale, block)
    each = "each row" if (high, wide) == (1, weight.cols) else f"{high} × {wide} weights"
    each = "each matrix" if (high, wide) == (weight.shape[-2], weight.cols) and high > 1 else each
    return Matrix(
        name,
        f"{what}, a scale for {each}",
        Levels(weight.shape, weight.read, table, scales, Groups.even(weight.cols, wide)),
    )


def scales_of(
    name: str, shape: tuple[int, ...], scale: Tensor, block: tuple[int, int] | None
) -> tuple[Reader, tuple[int, int]]:
    """A reader of the scales of rows, (n, ⌈cols / wide⌉), and the rows and columns of a block.

    Raises
    ------
    CheckpointError : they do not fit the weight.
    """
    if len(shape) < 2:
        raise CheckpointError(f"{printable(name)} of shape {list(shape)} has a scale and is no matrix")
    *outer, rows, cols = shape
    matrices = prod(outer)
    grid = [size for size in scale.shape if size != 1]
    found = None
    if scale.size == 1 or scale.size == matrices > 1:
        found = (max(rows, 1), max(cols, 1))
    elif scale.size == matrices * rows and (
        len(grid) <= len(outer) + 1 and (scale.cols == 1 or len(scale.shape) == len(outer) + 1)
    ):
        found = (1, max(cols, 1))
    elif len(scale.shape) >= 2:
        down, across = _grid(scale.shape, len(outer))
        found = _block(rows, cols, down, across, block)
    high, wide = found or block or (0, 0)
    per_row = -(cols // -wide) if wide else 0
    per_column = -(rows // -high) if high else 0
    if found is None or (scale.size != 1 and scale.size != matrices * per_column * per_row):
        raise CheckpointError(
            f"{printable(scale.name)} of shape {list(scale.shape)} does not fit {printable(name)} of shape "
            f"{list(shape)}" + ("" if block is None else f" in blocks of {block[0]} × {block[1]}")
        )
    one = scale.size == 1

    def read(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        if one:
            return np.broadcast_to(_entries(scale, 0, 1), (hi - lo, 1))
        numbers = np.arange(lo, hi)
        lines = numbers // rows * per_column + numbers % rows // high  # the line of the grid of each row
        if not len(lines):
            return np.empty((0, per_row), np.float32)
        first, last = int(lines[0]), int(lines[-1]) + 1
        result: np.ndarray = _entries(scale, first * per_row, last * per_row).reshape(last - first, per_row)[
            lines - first
        ]
        return result

    return read, (high, wide)


def _grid(shape: tuple[int, ...], outer: int) -> tuple[int, int]:
    """Lines and columns of a grid of scales; ModelOpt writes (a, 1, b, 1)."""
    if outer == 0 and len(shape) == 4 and shape[1] == shape[3] == 1:
        return shape[0], shape[2]
    return shape[-2], shape[-1]


def _block(rows: int, cols: int, down: int, across: int, block: tuple[int, int] | None) -> tuple[int, int] | None:
    """The size of a block: as the settings say, else as the shapes do."""
    sizes = []
    for size, count, said in ((rows, down, block and block[0]), (cols, across, block and block[1])):
        choices = [said] if said and count != size else [1 if count == size else 0, 128]
        if not said and count and size % count == 0:
            choices.append(size // count)
        sizes.append(next((n for n in choices if n and -(size // -n) == count), 0))
    return (sizes[0], sizes[1]) if all(sizes) else None


def _entries(tensor: Tensor, lo: int, hi: int) -> np.ndarray:
    """Numbers lo:hi of a tensor in the order of its memory, float32."""
    cols = max(tensor.cols, 1)
    rows = lo // cols, -(hi // -cols)
    values = e8m0(tensor.read)(*rows) if tensor.format.name in ("U8", "F8_E8M0") else tensor.floats(*rows)
    return values.reshape(-1)[lo % cols :][: hi - lo]


def _is_fp4(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Two E2M1 in each byte of an int8 weight, with a scale of E8M0 for 32."""
    weight, scale = tensors[name], tensors.get(f"{name}_scale_inv")
    return (
        scale is not None
        and weight.format.name in ("I8", "U8")
        and scale.format.name in ("F8_E8M0", "U8")
        and weight.shape[:-1] == scale.shape[:-1]
        and weight.cols == 16 * scale.cols
    )


def _fp4(weight: Tensor, scale: Tensor) -> Matrix:
    shape = (*weight.shape[:-1], 2 * weight.cols)
    return Matrix(weight.name, "MXFP4 among FP8", Fp4(shape, pairs(weight), scale.read, FORMATS["MXFP4"]))
