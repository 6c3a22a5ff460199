"""Bytes of the weights, where and how each engine keeps them; exact but for what is made of vectors.

llama.cpp   as in the file, mapped; tied embeddings lie twice where the output is on a card and they are not
CPU         matrices as in the file, mapped; vectors as float32 beside it
MLX         matrices as MLX's arrays: plain numbers as they are; codes with a scale and a bias of float32 for each
            group; other blocks as they are; vectors as float32
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ggufkit.memory.devices import Device
from ggufkit.memory.line import Line, amount
from ggufkit.memory.model import Matrix, Model
from ggufkit.memory.placement import Placement
from ggufkit.memory.setup import Setup

__all__ = ["mlx_bytes", "weight_lines"]

# Matrices that are read as numbers when a model is loaded, however many dimensions they have.
_NUMBERS = re.compile(r"norm\.|conv1d|shortconv\.conv\.|ssm_[ad]$|token_types\.|attn_sinks|\.bias$")

# Slopes of ALiBi and norms without weights come on top of the vectors of a file, at most so much of these.
_VECTORS = 0.15


def weight_lines(model: Model, setup: Setup, devices: Sequence[Device], placement: Placement) -> list[Line]:
    """The lines of the weights."""
    if setup.engine == "llama.cpp":
        return _llama(model, devices, placement)
    matrices = [matrix for matrix in model.used if _is_matrix(matrix)]
    vectors = [matrix for matrix in model.used if not _is_matrix(matrix)]
    if setup.engine == "cpu":
        nbytes = sum(matrix.nbytes for matrix in matrices)
        lines = [Line("weights", placement.host, nbytes, f"{_types(matrices)}, mapped from the file")]
    else:
        nbytes = sum(mlx_bytes(matrix) for matrix in matrices)
        lines = [Line("weights", placement.host, nbytes, f"{_types(matrices)}, as MLX's arrays")]
    numbers = sum(_numbers(vector) for vector in vectors)
    if numbers:
        text = f"{amount(len(vectors), 'vector')}, {numbers} numbers × 4 B"
        lines.append(Line("vectors", placement.host, 4 * numbers, text, _VECTORS))
    return lines


def _llama(model: Model, devices: Sequence[Device], placement: Placement) -> list[Line]:
    groups: dict[tuple[int, str], list[Matrix]] = {}
    for matrix in model.used:
        number = placement.of(matrix)
        expert = number == placement.host != placement.output and "_exps." in matrix.name
        groups.setdefault((number, "experts" if expert else "weights"), []).append(matrix)
    lines = [
        Line(part, number, sum(matrix.nbytes for matrix in group), _types(group))
        for (number, part), group in sorted(groups.items())
    ]
    tied = next((matrix for matrix in model.used if matrix.name == "token_embd.weight"), None)
    if model.tied and tied is not None and placement.output != placement.host:
        text = f"{_types([tied])}: the token embeddings once more, as the output matrix"
        lines.append(Line("weights", placement.output, tied.nbytes, text))
    return lines


def _is_matrix(matrix: Matrix) -> bool:
    row = matrix.name.endswith("ffn_gate_inp_shexp.weight")  # a matrix of one row
    return row or (len(matrix.shape) > 1 and _NUMBERS.search(matrix.name) is None)


def _numbers(vector: Matrix) -> int:
    first_row = vector.name.startswith("token_types.")  # the rest is not read
    return vector.shape[-1] if first_row and vector.shape else vector.size


def mlx_bytes(matrix: Matrix) -> int:
    """Bytes of a matrix on MLX's device.

    Notes
    -----
    An NVFP4 matrix one of whose scales is 480 becomes float32, which its header does not tell.
    """
    from ggufkit.formats.affine import AFFINE

    name, n = matrix.format.name, matrix.size
    if name in AFFINE:
        bits, group = AFFINE[name]
        return n * bits // 8 + n // group * 8
    if name in ("MXFP4", "NVFP4"):
        return n // 2 + n // (32 if name == "MXFP4" else 16)
    if matrix.format.is_quantized or name in ("F32", "F16", "BF16"):
        return matrix.nbytes
    return 4 * n


def _types(matrices: Iterable[Matrix]) -> str:
    """``"40 tensors: 3.9 GB Q4_K, 1.2 GB Q6_K"``, in bytes, the largest first."""
    sums: dict[str, int] = {}
    count = 0
    for matrix in matrices:
        count += 1
        sums[matrix.format.name] = sums.get(matrix.format.name, 0) + matrix.nbytes
    shares = " + ".join(f"{name} {nbytes}" for name, nbytes in sorted(sums.items(), key=lambda item: -item[1]))
    return f"{amount(count, 'tensor')}: {shares}"
