"""bitsandbytes in four bits: NF4 and FP4.

    …q_proj.weight              (n / 2, 1) U8        all weights in a row; byte j holds 2j in its HIGH half, 2j + 1
    …q_proj.weight.quant_map    (16,) F32            what each code means
    …q_proj.weight.absmax       (blocks,) F32        w = quant_map[code] · absmax of its 64
    …q_proj.weight.quant_state.bitsandbytes__nf4     JSON: shape, block size, …

Double quantization has `absmax` as U8, which means nested_quant_map[absmax] · nested_absmax of its 256 + the offset in
the JSON. Blocks take no notice of rows. Other dtypes than U8 hold the same bytes.
Source: bitsandbytes/functional.py, `QuantState`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from ggufkit.checkpoint.packed.matrix import Floats, Groups, Levels
from ggufkit.checkpoint.packed.stored import Matrix, Reading, Source, natural, require
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["read"]

_STATE = ".quant_state.bitsandbytes__"


def read(source: Source) -> Reading | None:
    """Weights that have a `quant_state`."""
    states = [name for name in source.tensors if _STATE in name]
    reading = Reading("bitsandbytes")
    for state in states:
        name = state.partition(_STATE)[0]
        parts = [other for other in source.tensors if other.startswith(f"{name}.") and other != name]
        reading.add(name, _matrix(source, name, state), parts)
    return reading if reading.matrices else None


def _matrix(source: Source, name: str, state_name: str) -> Matrix:
    import numpy as np

    tensors, shown = source.tensors, printable(name)
    if name not in tensors:
        raise CheckpointError(f"{printable(state_name)} has no weight beside it")
    state, weight = _state(tensors[state_name]), tensors[name]
    size = natural(state.get("blocksize"), f"{shown}: blocksize")
    shape = state.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and n > 0 for n in shape):
        raise CheckpointError(f"{shown}: the quant_state's shape must be two numbers, not {printable(shape)}")
    rows, cols = shape
    blocks = -(prod(shape) // -size)
    if weight.nbytes != -(prod(shape) // -2):
        raise CheckpointError(
            f"{shown} has {weight.nbytes} bytes, {rows} × {cols} weights of four bits need {-(prod(shape) // -2)}"
        )
    table = source.whole(require(tensors, f"{name}.quant_map", "F32", (16,)))
    if table[8] == 0:  # FP4's code for -0, which the map has without its sign
        table = np.where(np.arange(16) == 8, np.float32(-0.0), table)
    scales = _scales(source, name, state, blocks)

    def codes(lo: int, hi: int) -> np.ndarray:
        return _nibbles(weight, lo * cols, hi * cols).reshape(hi - lo, cols)

    kind = state_name.partition(_STATE)[2].upper()
    what = f"bitsandbytes {printable(kind)} in blocks of {size}"
    if cols % size == 0:
        groups = Groups.even(cols, size)
        return Matrix(
            name,
            what,
            Levels(
                (rows, cols),
                codes,
                table,
                lambda lo, hi: scales()[lo * groups.count : hi * groups.count].reshape(hi - lo, -1),
                groups,
            ),
        )

    def floats(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        of = np.arange(lo * cols, hi * cols) // size
        result: np.ndarray = table[codes(lo, hi)] * scales()[of].reshape(hi - lo, cols)
        return result

    def row_scales(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        result: np.ndarray = scales()[np.arange(lo * cols, hi * cols) // size].reshape(hi - lo, cols)
        return result

    each = Groups.even(cols, 1)
    return Matrix(
        name, what, Floats((rows, cols), floats, fineness=Levels((rows, cols), codes, table, row_scales, each).steps())
    )


def _state(tensor: Tensor) -> Mapping[str, Any]:
    try:
        value = json.loads(tensor.read(0, tensor.rows).tobytes())
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{printable(tensor.name)} is not valid JSON: {printable(e)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{printable(tensor.name)} must hold a JSON object, not {type(value).__name__}")
    return value


def _scales(source: Source, name: str, state: Mapping[str, Any], blocks: int) -> Any:
    """A function that returns the scale of each block: array of shape (blocks,), float32."""
    absmax = require(source.tensors, f"{name}.absmax", ("F32", "U8"), (blocks,))
    if absmax.format.name == "F32":
        return lambda: source.whole(absmax)
    size = natural(state.get("nested_blocksize"), f"{printable(name)}: nested_blocksize")
    offset = state.get("nested_offset")
    if not isinstance(offset, (int, float)):
        raise CheckpointError(f"{printable(name)}: nested_offset must be a number, not {printable(repr(offset))}")
    outer = require(source.tensors, f"{name}.nested_absmax", "F32", (-(blocks // -size),))
    table = require(source.tensors, f"{name}.nested_quant_map", "F32", (256,))

    def make() -> np.ndarray:
        import numpy as np

        codes = source.whole(absmax)
        result: np.ndarray = source.whole(table)[codes] * source.whole(outer)[np.arange(blocks) // size] + np.float32(
            offset
        )
        return result

    return lambda: source.derived(absmax.name, make)


def _nibbles(weight: Tensor, lo: int, hi: int) -> np.ndarray:
    """Codes lo:hi of all, (hi - lo,) uint8."""
    import numpy as np

    width = max(weight.row_bytes, 1)
    first, last = lo // 2, -(hi // -2)
    data = weight.read(first // width, -(last // -width)).reshape(-1)[first % width :][: last - first]
    codes = np.empty(2 * len(data), np.uint8)
    codes[0::2], codes[1::2] = data >> 4, data & 15
    return codes[lo - 2 * first :][: hi - lo]
