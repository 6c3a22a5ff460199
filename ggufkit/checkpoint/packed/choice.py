"""Which format each quantized matrix gets, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ggufkit.checkpoint.packed.matrix import Numbers, Steps
from ggufkit.checkpoint.packed.permute import Moves, find_moves
from ggufkit.checkpoint.packed.stored import Matrix
from ggufkit.formats.table import FORMATS, Format
from ggufkit.tensors.tensor import Origin, Tensor
from ggufkit.tensors.views import take_rows

__all__ = ["choose"]

# An expert's number: the matrices of a layer's experts become one tensor, of one format.
_EXPERT = re.compile(r"\.experts\.\d+\.")

# A weight of Q8_0 is off by half of 1/127 of the largest in its block, and a little for the scale in float16.
_Q8_0_ERROR = 0.51 / 127

# Half of the last place: of float16 and bfloat16; and half of float16's smallest number.
_HALF_ERROR, _BRAIN_ERROR, _HALF_LEAST = 2.0**-12, 2.0**-9, 2.0**-25


def choose(
    matrices: Sequence[Matrix], other: Mapping[str, Tensor], config: Mapping[str, Any], inexact: str, keep: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A tensor for each matrix, by its name; and those of the other tensors that must change with them."""
    holding = {m.name: m.numbers.holding(m.name) for m in matrices}
    if not keep:
        return {m.name: _as(m, m.numbers, FORMATS["F32"], None) for m in matrices}, {}
    moves = find_moves(matrices, holding, other, config)
    alike: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        alike.setdefault(_EXPERT.sub(".experts.", matrix.name), []).append(matrix)
    made = {}
    for together in alike.values():
        made.update(_chosen(together, holding, moves, inexact))
    rows = {name: take_rows(made.get(name) or other[name], order) for name, order in moves.rows.items()}
    made.update((name, tensor) for name, tensor in rows.items() if name in made)
    return made, {name: tensor for name, tensor in rows.items() if name not in made}


def _chosen(
    matrices: Sequence[Matrix], holding: Mapping[str, list[Format]], moves: Moves, inexact: str
) -> dict[str, Tensor]:
    """Tensors of one format for matrices that become one."""
    numbers, formats = {}, {}
    for m in matrices:
        numbers[m.name], formats[m.name] = (
            moves.numbers.get(m.name, m.numbers),
            moves.holding.get(m.name, holding[m.name]),
        )
    common = [format for format in formats[matrices[0].name] if all(format in found for found in formats.values())]
    exact = common[0]
    if exact.is_quantized or (exact.name != "F32" and inexact != "preset"):
        moved = "; inputs in another order, as the rows that make them" if matrices[0].name in moves.numbers else ""
        return {
            m.name: _as(m, numbers[m.name], exact, Origin(f"{m.what}: exact{moved}", True, order=_order(m, moves)))
            for m in matrices
        }
    if inexact == "preset":
        return {m.name: _as(m, numbers[m.name], FORMATS["F32"], None) for m in matrices}
    if inexact == "F32":
        return {m.name: _as(m, numbers[m.name], exact, Origin(f"{m.what}: exact, only in F32", True)) for m in matrices}
    if inexact == "step":
        format, why = _rounded([numbers[m.name] for m in matrices])
    else:
        format, why = FORMATS[inexact], f"rounded, as {inexact} was asked for where no block is exact"
    return {m.name: _as(m, numbers[m.name], format, Origin(f"{m.what}: {why}", format is exact)) for m in matrices}


def _order(matrix: Matrix, moves: Moves) -> tuple[int, ...]:
    return tuple(moves.orders[matrix.name].tolist()) if matrix.name in moves.orders else ()


def _rounded(numbers: Sequence[Numbers]) -> tuple[Format, str]:
    """The smallest format that rounds by less than the matrices' own steps, and what is said of it."""
    near = [n.near() for n in numbers]
    if all(format is not None and format == near[0] for format in near) and near[0] is not None:
        return near[0], "codes kept, their scales rounded to float16"
    format = max((_fine(n) for n in numbers), key=lambda format: format.bits_per_weight)
    return (
        format,
        "exact, only in F32" if format.name == "F32" else "rounded by less than its own steps, no block holds it",
    )


def _fine(numbers: Numbers) -> Format:
    """The smallest of Q8_0, F16, BF16 and F32 that rounds by less than the steps between the matrix's own levels."""
    steps = numbers.steps()
    if steps is None or numbers.cols == 0:
        return FORMATS["F32"]
    if numbers.cols % 32 == 0 and steps.reach * _Q8_0_ERROR < 1 and _in_half(steps):
        return FORMATS["Q8_0"]
    if steps.relative * _HALF_ERROR < 1 and steps.smallest > _HALF_LEAST and _in_half(steps):
        return FORMATS["F16"]
    return FORMATS["BF16" if steps.relative * _BRAIN_ERROR < 1 else "F32"]


def _in_half(steps: Steps) -> bool:
    return steps.largest <= 65504


def _as(matrix: Matrix, numbers: Numbers, format: Format, origin: Origin | None) -> Tensor:
    if origin is not None and numbers.factor != 1 and numbers.apart(format):
        origin = replace(origin, factors=(numbers.factor,))

    def read(lo: int, hi: int) -> Any:
        import numpy as np

        if lo == hi:
            return np.empty((0, format.row_bytes(numbers.cols)), np.uint8)
        return numbers.blocks(format, lo, hi).view(np.uint8)

    return Tensor(matrix.name, numbers.shape, format, read, origin)
