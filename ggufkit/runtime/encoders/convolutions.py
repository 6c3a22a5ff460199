"""Convolutions of spectrograms, as matrices."""

from __future__ import annotations

import numpy as np

from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.ops import Array, Linear, Ops
from ggufkit.tensors.views import matrix

__all__ = ["halved", "load_square"]

_SIDE = 3


def load_square(load: Tensors, name: str, channels: int) -> Linear:
    """A convolution of 3 × 3, (rows, channels, 3, 3), as a matrix (rows, 9 · channels) for `halved`.

    Raises
    ------
    ArchitectureError : it is missing, or has another shape.
    """
    numbers = load.numbers(f"{name}.weight", -1, channels, _SIDE, _SIDE)
    rows = len(numbers)
    tensor = matrix(f"{name}.weight", np.ascontiguousarray(numbers.transpose(0, 2, 3, 1)).reshape(rows, -1))
    bias = None
    if load.has(f"{name}.bias"):
        # Some have it as (rows, 1, 1).
        shape = load.tensors[f"{name}.bias"].shape
        bias = load.ops.vector(load.numbers(f"{name}.bias", *((-1, 1, 1) if len(shape) == 3 else (-1,))).reshape(rows))
    return Linear(load.ops.weight(tensor), f"{name}.weight", rows, tensor.cols, bias)


def halved(ops: Ops, x: Array, shape: tuple[int, int], linear: Linear) -> tuple[Array, tuple[int, int]]:
    """Every other place in both directions with its neighbours, zeros beyond the edges.

    Parameters
    ----------
    x : (height · width, channels), row by row.
    shape : height and width.

    Returns
    -------
    (height′ · width′, rows), and height′ and width′: half of them, rounded up.
    """
    numbers = np.full((shape[0] + 2, shape[1] + 2), len(x))  # of the row of zeros
    numbers[1:-1, 1:-1] = np.arange(len(x)).reshape(shape)
    places = np.lib.stride_tricks.sliding_window_view(numbers, (_SIDE, _SIDE))[::2, ::2]
    picked = ops.pick(ops.concatenate([x, ops.zeros(1, x.shape[1])]), places.reshape(-1))
    (y,) = ops.linear(picked.reshape(places.shape[0] * places.shape[1], -1), linear)
    return y, (places.shape[0], places.shape[1])
