"""Inputs in the order of their groups, where what makes them can be put in that order, too.

GPTQ with activation order gives the columns of a matrix to groups in any order, and then no block of 32 neighbours has
one scale. Sorted by group they have. The model stays the same if the rows of the matrices that make these inputs are
sorted along:

    down_proj   by rows of gate_proj and up_proj: any order
    o_proj      by rows of v_proj: an order of the dimensions of each key-value head, the same for all its query heads

Inputs of q, k, v, gate and up come out of a norm that others read, too, and must stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ggufkit.checkpoint.config import text_model
from ggufkit.checkpoint.packed.integers import Integers
from ggufkit.checkpoint.packed.matrix import Numbers
from ggufkit.checkpoint.packed.stored import Matrix
from ggufkit.formats.table import Format
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Moves", "find_moves"]

# The end of a consumer's name → those of its producers; nothing else may lie between them.
_FEED_FORWARD = (("down_proj", ("gate_proj", "up_proj")), ("w2", ("w1", "w3")))
_BETWEEN = re.compile(r"norm|scale|act")


@dataclass
class Moves:
    """What changes places.

    Attributes
    ----------
    numbers, holding : of the consumers, with their inputs in the new order.
    orders : name of a consumer → the order of its inputs: column i comes from column `order[i]`.
    rows : name of a producer's weight or bias → the new order of its rows.
    """

    numbers: dict[str, Numbers] = field(default_factory=dict)
    holding: dict[str, list[Format]] = field(default_factory=dict)
    orders: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[str, np.ndarray] = field(default_factory=dict)


def find_moves(
    matrices: Sequence[Matrix],
    holding: Mapping[str, list[Format]],
    other: Mapping[str, Tensor],
    config: Mapping[str, Any],
) -> Moves:
    """The moves that make matrices exact that are not; none for all others."""
    moves = Moves()
    shapes = {m.name: m.numbers.shape for m in matrices} | {name: t.shape for name, t in other.items()}
    for matrix in matrices:
        if holding[matrix.name][0].name != "F32" or not isinstance(matrix.numbers, Integers):
            continue
        if matrix.numbers.groups.of_blocks(32) is not None or matrix.numbers.cols % 32:
            continue
        found = _feed_forward(matrix, shapes) or _attention(matrix, shapes, config)
        if found is None:
            continue
        order, producers = found
        numbers = matrix.numbers.reordered(order)
        if numbers.groups.of_blocks(32) is None or (formats := numbers.holding(matrix.name))[0].name == "F32":
            continue
        moves.numbers[matrix.name], moves.holding[matrix.name] = numbers, formats
        moves.orders[matrix.name] = order
        moves.rows.update(producers)
    return moves


def _feed_forward(matrix: Matrix, shapes: Mapping[str, tuple[int, ...]]) -> tuple[np.ndarray, dict[str, Any]] | None:
    import numpy as np

    for consumer, producers in _FEED_FORWARD:
        if not matrix.name.endswith(f".{consumer}.weight"):
            continue
        prefix = matrix.name.removesuffix(f"{consumer}.weight")
        order = np.argsort(matrix.numbers.groups.of, kind="stable")  # type: ignore[attr-defined]
        rows = {f"{prefix}{name}.weight": order for name in producers}
        if any(shapes.get(name, ())[:-1] != (len(order),) for name in rows):
            return None
        if any(name.startswith(prefix) and _BETWEEN.search(name.removeprefix(prefix)) for name in shapes):
            return None
        biases = {f"{prefix}{name}.bias": order for name in producers if f"{prefix}{name}.bias" in shapes}
        return order, {**rows, **biases}
    return None


def _attention(
    matrix: Matrix, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> tuple[np.ndarray, dict[str, Any]] | None:
    import numpy as np

    if not matrix.name.endswith(".self_attn.o_proj.weight"):
        return None
    prefix = matrix.name.removesuffix("o_proj.weight")
    values = shapes.get(f"{prefix}v_proj.weight", ())
    settings = text_model(config)
    heads, kv_heads = settings.get("num_attention_heads"), settings.get("num_key_value_heads")
    kv_heads = heads if kv_heads is None else kv_heads
    if type(heads) is not int or type(kv_heads) is not int or min(heads, kv_heads) < 1 or heads % kv_heads:
        return None
    of: np.ndarray = matrix.numbers.groups.of  # type: ignore[attr-defined]
    if len(values) != 2 or values[0] % kv_heads or values[0] // kv_heads * heads != len(of):
        return None
    if any(
        name.startswith(prefix) and re.search(r"(sub|inner|v|o)_?norm", name.removeprefix(prefix)) for name in shapes
    ):
        return None
    size = values[0] // kv_heads
    groups = of.reshape(kv_heads, heads // kv_heads, size)  # (key-value heads, query heads of each, dimensions)
    inside = np.stack([np.lexsort(head[::-1]) for head in groups])  # (key-value heads, dimensions)
    rows = (np.arange(kv_heads)[:, None] * size + inside).reshape(-1)
    columns = np.arange(heads)[:, None] * size + np.repeat(inside, heads // kv_heads, axis=0)
    producers = {f"{prefix}v_proj.weight": rows}
    if f"{prefix}v_proj.bias" in shapes:
        producers[f"{prefix}v_proj.bias"] = rows
    return columns.reshape(-1), producers
