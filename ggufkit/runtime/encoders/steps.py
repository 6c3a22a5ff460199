"""From the rows of an encoder to those of the language model, step by step, as `arch.tower` names them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ggufkit.arch.tower import Activate, Gated, Join, Matrix, Normalize, Scale, Standardize
from ggufkit.runtime.feed_forward import FeedForward
from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.ops import Array, Linear, Norm, Ops
from ggufkit.tensors.views import matrix, reshaped

__all__ = ["Step", "load_steps", "through"]

Step = Callable[[Array], Array]  # rows to rows


def load_steps(
    load: Tensors,
    parts: Sequence[Any],
    width: int,
    out: int,
    epsilon: float,
    side: int = 1,
    activation: str = "",
) -> list[Step]:
    """Functions of rows, with their tensors checked and taken.

    Parameters
    ----------
    parts : of `arch.tower`.
    width, out : numbers of a row at the beginning and at the end.
    epsilon : of norms that have none of their own.
    activation : of gated networks.
    side : `Join` makes one row of so many in each direction, which lie beside each other.

    Raises
    ------
    ArchitectureError : a tensor is missing or has another shape, or the last rows have another width.
    """
    found: list[Step] = []
    first = width
    for part in parts:
        if isinstance(part, Join):
            found.append(_joining(part.how, side))
            width *= 1 if part.how == "mean" else side**2
        elif isinstance(part, Activate):
            found.append(_activating(load.ops, part.kind))
        elif isinstance(part, Scale):
            found.append(_scaling(load.ops, math.sqrt(first)))
        elif isinstance(part, Standardize):
            if load.has(part.bias) and load.has(part.scale):
                vectors = (load.vector(name, width).reshape(1, -1) for name in (part.bias, part.scale))
                found.append(_standardizing(*(load.ops.vector(v) for v in vectors)))
        elif isinstance(part, Normalize) and not part.name:
            found.append(_norming(load.ops, _plain_norm(load.ops, part, width, epsilon)))
        elif isinstance(part, Gated):
            found.append(_feeding(load, part, width, activation))
        elif part.optional and not load.has(f"{part.name}.weight"):
            continue
        elif isinstance(part, Normalize):
            norm = load.norm_of(part.kind, part.name, width, epsilon if part.epsilon is None else part.epsilon)
            if norm is None:
                load.tensor(f"{part.name}.weight", width)  # which says that it is missing
            found.append(_norming(load.ops, norm))
        else:
            linear = _matrix(load, part, width)
            width = linear.rows
            found.append(_multiplying(load.ops, linear))
    if width != out:
        raise load.fail(f"the encoder ends with rows of {width} numbers, and projection_dim is {out}")
    return found


def through(steps: Sequence[Step], x: Array) -> Array:
    """What the steps make of rows."""
    for step in steps:
        x = step(x)
    return x


def _matrix(load: Tensors, part: Matrix, width: int) -> Linear:
    name = f"{part.name}.weight"
    if not part.transposed:
        if load.has(name) and len(load.tensors[name].shape) == 4:  # a convolution
            whole = load.tensors[name].shape
            load.tensors = {**load.tensors, name: reshaped(load.tensors[name], (whole[0], math.prod(whole[1:])))}
        return load.linear(part.name, -1, width)
    numbers = load.tensor(name, width, -1).floats()
    turned = matrix(name, numbers.reshape(width, -1).T)
    return Linear(load.ops.weight(turned), name, turned.rows, turned.cols)


def _plain_norm(ops: Ops, part: Normalize, width: int, epsilon: float) -> Norm:
    own = epsilon if part.epsilon is None else part.epsilon
    return Norm(part.kind, own, width, ops.vector(np.ones((1, width), np.float32)))


def _feeding(load: Tensors, part: Gated, width: int, activation: str) -> Step:
    gate = load.linear(part.gate, -1, width)
    up = load.linear(part.up, gate.rows, width)
    network = FeedForward(gate, up, load.linear(part.down, width, gate.rows), activation)
    return lambda x: network.run(load.ops, x)


def _joining(how: str, side: int) -> Step:
    def join(x: Array) -> Array:
        squares = x.reshape(len(x) // side**2, side**2, -1)
        if how == "mean":
            return squares.mean(axis=1)
        return (squares.transpose(0, 2, 1) if how == "channels" else squares).reshape(len(squares), -1)

    return join


def _activating(ops: Ops, kind: str) -> Step:
    return lambda x: ops.activate(None, x, kind)


def _norming(ops: Ops, norm: Norm | None) -> Step:
    assert norm is not None
    return lambda x: ops.norm(x, norm)


def _multiplying(ops: Ops, linear: Linear) -> Step:
    return lambda x: ops.linear(x, linear)[0]


def _scaling(ops: Ops, factor: float) -> Step:
    return lambda x: ops.scale(x, factor)


def _standardizing(bias: Array, scale: Array) -> Step:
    return lambda x: (x - bias) * scale
