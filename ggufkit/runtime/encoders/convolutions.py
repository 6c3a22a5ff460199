"""Convolutions of spectrograms, as matrices, and of rows over time."""

from __future__ import annotations

import numpy as np

from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.ops import Array, Linear, Ops
from ggufkit.tensors.views import matrix

__all__ = ["along", "halved", "halved_each", "load_square", "load_taps"]

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
        ones = (1, 1) if len(load.tensors[f"{name}.bias"].shape) == 3 else ()
        bias = load.ops.vector(load.numbers(f"{name}.bias", rows, *ones).reshape(rows))
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
    return _convolved(ops, x, shape, linear, 2)


def convolved(ops: Ops, x: Array, shape: tuple[int, int], linear: Linear) -> Array:
    """As `halved`, of every place: (height · width, rows)."""
    return _convolved(ops, x, shape, linear, 1)[0]


def _convolved(ops: Ops, x: Array, shape: tuple[int, int], linear: Linear, step: int) -> tuple[Array, tuple[int, int]]:
    places, found = _places(x, shape, step)
    picked = ops.pick(ops.concatenate([x, ops.zeros(1, x.shape[1])]), places.reshape(-1))
    (y,) = ops.linear(picked.reshape(len(places), -1), linear)
    return y, found


def halved_each(ops: Ops, x: Array, shape: tuple[int, int], taps: Array) -> tuple[Array, tuple[int, int]]:
    """As `halved`, each channel by itself: taps (9, channels)."""
    places, found = _places(x, shape)
    whole = ops.concatenate([x, ops.zeros(1, x.shape[1])])
    y = ops.pick(whole, places[:, 0]) * taps[0:1]
    for i in range(1, _SIDE**2):
        y = ops.add(y, ops.pick(whole, places[:, i]) * taps[i : i + 1])
    return y, found


def load_taps(load: Tensors, name: str, width: int, taps: int) -> Array:
    """A convolution over time of each number by itself, (width, taps), as `along` takes it: (taps, width)."""
    return load.ops.vector(np.ascontiguousarray(load.numbers(name, width, taps).T))


def along(ops: Ops, x: Array, taps: Array) -> Array:
    """Each number of (n + taps − 1, width) with those behind it, by weights (taps, width): (n, width)."""
    n = len(x) - len(taps) + 1
    y = x[:n] * taps[0:1]
    for i in range(1, len(taps)):
        y = ops.add(y, x[i : i + n] * taps[i : i + 1])
    return y


def _places(x: Array, shape: tuple[int, int], step: int = 2) -> tuple[np.ndarray, tuple[int, int]]:
    """Rows around each `step`-th place, (height′ · width′, 9), those beyond behind the last; and height′, width′."""
    numbers = np.full((shape[0] + 2, shape[1] + 2), len(x))  # of the row of zeros
    numbers[1:-1, 1:-1] = np.arange(len(x)).reshape(shape)
    places = np.lib.stride_tricks.sliding_window_view(numbers, (_SIDE, _SIDE))[::step, ::step]
    return places.reshape(-1, _SIDE**2), (places.shape[0], places.shape[1])


def around(shape: tuple[int, int], side: int, step: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Squares of places around each `step`-th, zeros beyond the edges, of an odd number of them one more behind.

    Returns
    -------
    (height′ · width′, side²), where places beyond are behind the last; and height′, width′.
    """
    found = -(-shape[0] // step), -(-shape[1] // step)
    beyond = [max(0, (new - 1) * step + side - old) for new, old in zip(found, shape, strict=True)]
    numbers = np.full((shape[0] + beyond[0], shape[1] + beyond[1]), shape[0] * shape[1])
    top, left = beyond[0] // 2, beyond[1] // 2
    numbers[top : top + shape[0], left : left + shape[1]] = np.arange(shape[0] * shape[1]).reshape(shape)
    places = np.lib.stride_tricks.sliding_window_view(numbers, (side, side))[::step, ::step]
    return places.reshape(-1, side * side), found
