"""From the rows of an encoder to those of the language model, step by step, as `arch.tower` names them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ggufkit.arch.tower import (
    Activate,
    Around,
    Columns,
    Gated,
    Halve,
    Halves,
    Join,
    Matrix,
    Normalize,
    Resample,
    RowEnds,
    Scale,
    Standardize,
)
from ggufkit.runtime.encoders.blocks import limit_of
from ggufkit.runtime.encoders.convolutions import halved, load_square
from ggufkit.runtime.encoders.resample import load_resampler
from ggufkit.runtime.feed_forward import FeedForward
from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.ops import Array, Linear, Norm, Ops
from ggufkit.tensors.views import matrix, reshaped

__all__ = ["Step", "load_steps", "through"]

Shape = tuple[int, int]  # of a picture: rows and columns of squares, which are or become rows here
Step = Callable[[Array, Shape], Array]  # rows to rows


def load_steps(
    load: Tensors,
    parts: Sequence[Any],
    width: int,
    out: int,
    epsilon: float,
    together: int = 1,
    activation: str = "",
    limit: float = 0.0,
) -> list[Step]:
    """Functions of rows, with their tensors checked and taken.

    Parameters
    ----------
    parts : of `arch.tower`.
    width, out : numbers of a row at the beginning and at the end.
    epsilon : of norms that have none of their own.
    together : `Join` makes one row of so many, which lie beside each other.
    activation, limit : of the encoder's blocks.

    Raises
    ------
    ArchitectureError : a tensor is missing or has another shape, or the last rows have another width.
    """
    found: list[Step] = []
    first = width
    for part in parts:
        if isinstance(part, Join):
            found.append(_joining(load.ops, part.how, together))
            width *= 1 if part.how == "mean" else together
        elif isinstance(part, Halve):
            square = load_square(load, part.name, width)
            found.append(_halving_picture(load.ops, square, part.before))
            width = square.rows
        elif isinstance(part, Halves):
            found.append(_halving(load.ops))
            width //= 2
        elif isinstance(part, Resample):
            resampler = load_resampler(load, part, width, epsilon)
            found.append(resampler.run)
            width = resampler.leave.rows
        elif isinstance(part, Columns):
            found.append(_turning(load.ops))
        elif isinstance(part, RowEnds):
            if load.has(part.name):
                found.append(_ending(load.ops, _vector(load, part.name, width), part.last))
        elif isinstance(part, Around):
            found.append(_framing(load.ops, *(_vector(load, name, width) for name in (part.first, part.last))))
        elif isinstance(part, Activate):
            found.append(_activating(load.ops, activation if part.kind == "blocks" else part.kind))
        elif isinstance(part, Scale):
            found.append(_scaling(load.ops, math.sqrt(first)))
        elif isinstance(part, Standardize):
            if load.has(part.bias) and load.has(part.scale):
                found.append(_standardizing(*(_vector(load, name, width) for name in (part.bias, part.scale))))
        elif isinstance(part, Normalize) and not part.name:
            found.append(_norming(load.ops, _plain_norm(load.ops, part, width, epsilon)))
        elif isinstance(part, Gated):
            network = replace(_network(load, part, width, activation), limit=limit_of(limit))
            found.append(_feeding(load.ops, network))
            width = network.down.rows
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


def through(steps: Sequence[Step], x: Array, shape: Shape = (1, 1)) -> Array:
    """What the steps make of the rows of a picture of this shape."""
    for step in steps:
        x = step(x, shape)
    return x


def _vector(load: Tensors, name: str, width: int) -> Array:
    return load.ops.vector(load.vector(name, width).reshape(1, -1))


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


def _network(load: Tensors, part: Gated, width: int, activation: str) -> FeedForward:
    gate = load.linear(part.gate, -1, width)
    up = load.linear(part.up, gate.rows, width)
    return FeedForward(gate, up, load.linear(part.down, -1, gate.rows), part.activation or activation)


def _feeding(ops: Ops, network: FeedForward) -> Step:
    return lambda x, shape: network.run(ops, x)


def _joining(ops: Ops, how: str, together: int) -> Step:
    def join(x: Array, shape: Shape) -> Array:
        if missing := -len(x) % together:  # at the end of sound
            x = ops.concatenate([x, ops.zeros(missing, x.shape[1])])
        squares = x.reshape(len(x) // together, together, -1)
        if how == "mean":
            return squares.mean(axis=1)
        return (squares.transpose(0, 2, 1) if how == "channels" else squares).reshape(len(squares), -1)

    return join


def _activating(ops: Ops, kind: str) -> Step:
    return lambda x, shape: ops.activate(None, x, kind)


def _halving_picture(ops: Ops, square: Linear, before: int) -> Step:
    return lambda x, shape: halved(ops, x, (shape[0] * before, shape[1] * before), square)[0]


def _halving(ops: Ops) -> Step:
    def halve(x: Array, shape: Shape) -> Array:
        first, second = ops.halves(x, 1)
        return ops.activate(second, first, "silu")

    return halve


def _norming(ops: Ops, norm: Norm | None) -> Step:
    assert norm is not None
    return lambda x, shape: ops.norm(x, norm)


def _multiplying(ops: Ops, linear: Linear) -> Step:
    return lambda x, shape: ops.linear(x, linear)[0]


def _scaling(ops: Ops, factor: float) -> Step:
    return lambda x, shape: ops.scale(x, factor)


def _standardizing(bias: Array, scale: Array) -> Step:
    return lambda x, shape: (x - bias) * scale


def _turning(ops: Ops) -> Step:
    return lambda x, shape: ops.pick(x, np.arange(len(x)).reshape(shape).T.reshape(-1))


def _ending(ops: Ops, end: Array, last: bool) -> Step:
    def put(x: Array, shape: Shape) -> Array:
        columns = shape[1]
        parts = [part for lo in range(0, len(x), columns) for part in (x[lo : lo + columns], end)]
        return ops.concatenate(parts if last else parts[:-1])

    return put


def _framing(ops: Ops, first: Array, last: Array) -> Step:
    return lambda x, shape: ops.concatenate([first, x, last])
