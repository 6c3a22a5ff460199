"""optimum-quanto.

    …q_proj.weight._data          (rows, cols) I8 or F8       w = scale · data
    …q_proj.weight._scale         (rows, 1)
    …q_proj.weight._data._data    (groups / 2, group) U8      int4: the first half of the groups in LOW halves
    …q_proj.weight._data._data    (groups / 4, group) U8      int2: quarters, the first in the lowest bits
    …q_proj.weight._scale, ._shift (groups, 1)                w = scale · data - shift

The shape of the matrix is not stored: the inputs are those of the module, by config.json.
Source: optimum/quanto/tensor/packed.py, grouped.py and weights/qbits.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggufkit.checkpoint.config import text_model
from ggufkit.checkpoint.packed.fp8 import fp8_matrix
from ggufkit.checkpoint.packed.int8 import int8_matrix
from ggufkit.checkpoint.packed.matrix import Groups, Offsets, Reader
from ggufkit.checkpoint.packed.small_floats import FP8
from ggufkit.checkpoint.packed.stored import Matrix, Reading, Source, parts_of, require
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["read"]

_FLOATS = ("F32", "F16", "BF16")


def read(source: Source) -> Reading | None:
    """Weights with `_data`."""
    tensors = source.tensors
    reading = Reading("quanto")
    for name in parts_of(tensors, "._data._data"):
        packed = tensors[f"{name}._data._data"]
        reading.add(packed.name, _packed(source, name, packed), (f"{name}._scale", f"{name}._shift"))
    for name in parts_of(tensors, "._data"):
        data = tensors[f"{name}._data"]
        if data.name.endswith("._data._data"):
            continue
        scale = require(tensors, f"{name}._scale", _FLOATS, (-1,) * len(tensors.get(f"{name}._scale", data).shape))
        if data.format.name in FP8:
            matrix = fp8_matrix(data, scale, None, name)
        elif data.format.name == "I8" and len(data.shape) == 2:
            matrix = int8_matrix(data, scale, None, "quanto", name)
        else:
            raise CheckpointError(
                f"{printable(data.name)} is {data.format.name} {list(data.shape)}, which is not known"
            )
        reading.add(data.name, matrix, [scale.name])
    return reading if reading.matrices else None


def _packed(source: Source, name: str, packed: Tensor) -> Matrix:
    scale = require(source.tensors, f"{name}._scale", _FLOATS, (-1, 1))
    shift = require(source.tensors, f"{name}._shift", _FLOATS, scale.shape)
    require(source.tensors, packed.name, "U8", (-1, -1))
    (lines, size), groups = packed.shape, scale.rows
    parts = -(groups // -max(lines, 1))
    cols = _inputs(name, source.config)
    if parts not in (2, 4) or lines != -(groups // -parts) or cols % size or groups * size % cols:
        raise CheckpointError(
            f"{printable(name)}: {list(packed.shape)} bytes and {groups} scales are no matrix of {cols} inputs"
        )
    bits, count = 8 // parts, cols // size
    rows = groups // count

    def codes(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        found = np.empty(((hi - lo) * count, size), np.uint8)
        for part in range(parts):
            begin, end = max(lo * count, part * lines), min(hi * count, (part + 1) * lines)
            if begin < end:
                bytes_ = packed.read(begin - part * lines, end - part * lines)
                found[begin - lo * count : end - lo * count] = bytes_ >> bits * part & (1 << bits) - 1
        return found.reshape(hi - lo, cols)

    def per_row(tensor: Tensor, sign: int) -> Reader:
        return lambda lo, hi: sign * tensor.floats(lo * count, hi * count).reshape(hi - lo, count)

    numbers = Offsets((rows, cols), codes, bits, per_row(scale, 1), per_row(shift, -1), Groups.even(cols, size))
    return Matrix(name, f"quanto, {bits} bits in groups of {size}", numbers)


def _inputs(name: str, config: Any) -> int:
    """The inputs of a module."""
    settings = text_model(config)
    width, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    module = name.removesuffix(".weight").rpartition(".")[2]
    if module in ("down_proj", "w2", "fc2"):
        key = (
            "moe_intermediate_size"
            if ".experts." in name and "moe_intermediate_size" in settings
            else "intermediate_size"
        )
        width = settings.get(key)
    elif module in ("o_proj", "out_proj") and type(settings.get("head_dim")) is int and type(heads) is int:
        width = heads * settings["head_dim"]
    if type(width) is not int or width < 1:
        raise CheckpointError(f"config.json does not say how many inputs {printable(name)} has")
    return width
