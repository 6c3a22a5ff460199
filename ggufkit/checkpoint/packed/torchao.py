"""torchao: the parts of its tensor subclasses, flattened.

    …q_proj._weight_qdata        (rows, cols) I8 or F8_E4M3
    …q_proj._weight_scale        (rows, groups)
    …q_proj._weight_zero_point   (rows, groups) I8

Int8 and Intx are w = scale · (code - zero), Float8 is w = level · scale. Subclasses whose codes are packed for a
device are not known. Source: torchao/quantization/quantize_/workflows.
"""

from __future__ import annotations

from ggufkit.checkpoint.packed.fp8 import fp8_matrix
from ggufkit.checkpoint.packed.int8 import int8_matrix
from ggufkit.checkpoint.packed.small_floats import FP8
from ggufkit.checkpoint.packed.stored import Reading, Source, parts_of
from ggufkit.errors import CheckpointError, printable

__all__ = ["read"]


def read(source: Source) -> Reading | None:
    """Modules with `_weight_qdata`."""
    tensors = source.tensors
    reading = Reading("torchao")
    for module in parts_of(tensors, "_weight_qdata"):
        data, scale = tensors[f"{module}_weight_qdata"], tensors.get(f"{module}_weight_scale")
        zero, name = tensors.get(f"{module}_weight_zero_point"), f"{module}weight"
        if scale is None:
            raise CheckpointError(f"{printable(data.name)} has no scale beside it")
        if data.format.name in FP8:
            matrix = fp8_matrix(data, scale, None, name)
        elif data.format.name == "I8" and len(data.shape) == 2:
            matrix = int8_matrix(data, scale, zero, "torchao", name)
        else:
            raise CheckpointError(
                f"{printable(data.name)} is {data.format.name} {list(data.shape)}, which is not known"
            )
        reading.add(data.name, matrix, (scale.name, f"{module}_weight_zero_point"))
    return reading if reading.matrices else None
