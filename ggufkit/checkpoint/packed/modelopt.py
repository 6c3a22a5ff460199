"""NVFP4 of NVIDIA's ModelOpt.

    …q_proj.weight           (rows, cols / 2) U8           byte j holds weights 2j (low half) and 2j + 1, E2M1
    …q_proj.weight_scale     (rows, cols / 16) F8_E4M3
    …q_proj.weight_scale_2   () F32                        multiplies; GGUF keeps it as a tensor `….scale`

Its FP8 is as everybody's. Source: modelopt/torch/export/quant_utils.py of NVIDIA/TensorRT-Model-Optimizer.
"""

from __future__ import annotations

from ggufkit.checkpoint.packed.fp4 import Fp4, pairs
from ggufkit.checkpoint.packed.stored import Matrix, Reading, Source, parts_of, require
from ggufkit.formats.table import FORMATS

__all__ = ["read"]


def read(source: Source) -> Reading | None:
    """Modules with `weight_scale_2` and weights of bytes."""
    tensors = source.tensors
    reading = Reading("ModelOpt NVFP4")
    for module in parts_of(tensors, ".weight_scale_2"):
        weight = require(tensors, f"{module}.weight", ("U8", "I8"), (-1, -1))
        rows, half = weight.shape
        scale = require(tensors, f"{module}.weight_scale", "F8_E4M3", (rows, half // 8))
        whole = tensors[f"{module}.weight_scale_2"]
        require(tensors, whole.name, "F32", (1,) * len(whole.shape))
        numbers = Fp4(
            (rows, 2 * half), pairs(weight), scale.read, FORMATS["NVFP4"], times=float(whole.floats().flat[0])
        )
        reading.add(weight.name, Matrix(weight.name, "NVFP4", numbers), (scale.name, whole.name))
    return reading if reading.matrices else None
