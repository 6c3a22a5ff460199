"""Patches on a grid: their order, their positions, by what they turn, which of them see each other.

Source: `clip_graph::resize_position_embeddings` and `clip_encode` in tools/mtmd/clip.cpp of llama.cpp;
`ggml_compute_forward_upscale_f32` of ggml, which has PyTorch's `interpolate` as its source.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ggufkit.arrays import FloatArray

__all__ = ["by_block", "by_nested_block", "by_window", "interpolated", "side_by_side", "turns", "weights_of"]


def by_block(rows: int, columns: int, side: int) -> np.ndarray:
    """The order in which squares of `side` × `side` patches lie beside each other: (rows × columns,)."""
    numbers = np.arange(rows * columns).reshape(rows // side, side, columns // side, side)
    return numbers.transpose(0, 2, 1, 3).reshape(-1)


def by_nested_block(rows: int, columns: int) -> np.ndarray:
    """The order in which squares of 4 × 4 patches lie beside each other, and in each of them squares of 2 × 2."""
    squares = by_block(rows, columns, 2).reshape(-1, 4)
    order: np.ndarray = squares[by_block(rows // 2, columns // 2, 2)].reshape(-1)
    return order


def by_window(rows: int, columns: int, side: int) -> tuple[np.ndarray, list[int]]:
    """The order in which squares of `side` × `side`, or what is left of them at the edges, lie beside each other.

    Returns
    -------
    order : array of shape (rows × columns,).
    sizes : how many each square has.
    """
    numbers = np.arange(rows * columns).reshape(rows, columns)
    windows = [
        numbers[y : y + side, x : x + side].reshape(-1) for y in range(0, rows, side) for x in range(0, columns, side)
    ]
    return np.concatenate(windows), [len(window) for window in windows]


def turns(kind: str, rows: int, columns: int, head: int, base: float, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of all patches, row by row: (rows × columns, head / 2) each; see `Tower.rope`."""
    y, x = ((axis.reshape(-1, 1) + first).astype(np.float32) for axis in np.indices((rows, columns)))
    if kind == "sixths":
        sixth = head // 6
        frequencies = np.float32(base) ** (-np.arange(sixth, dtype=np.float32) / np.float32(sixth))
        still, rest = (np.zeros((len(y), n), np.float32) for n in (sixth, head // 2 - 3 * sixth))
        angles = np.concatenate([still, y * frequencies, x * frequencies, rest], axis=1)
        return np.cos(angles), np.sin(angles)
    quarter = head // 4
    frequencies = np.float32(base) ** (-np.arange(quarter, dtype=np.float32) * np.float32(4 / head))
    between = np.float32(base ** (-2 / head)) if kind == "neighbours" else np.float32(1)
    if kind in ("quarters", "beside"):
        y, x = x, y
    angles = np.concatenate([y * frequencies, x * frequencies * between], axis=1)
    return np.cos(angles), np.sin(angles)


def side_by_side(kind: str, head: int) -> np.ndarray | None:
    """The order of a head's numbers in which those that turn together are half a head apart; None: they are.

    Of ``"quarters"`` each half of a head turns as a head of its own: a b | c d, where a and b turn together, and c and
    d. As a c | b d they are one head, of which the first half of the pairs turns by one axis, and the second by the
    other. Of ``"sixths"`` so are t t | y y | x x | rest: t y x rest | t y x rest.
    """
    if kind == "quarters":
        turned, parts = head, 2
    elif kind == "sixths":
        turned, parts = head // 6 * 6, 3
    else:
        return None
    own, rest = np.arange(turned).reshape(parts, 2, -1), np.arange(turned, head).reshape(2, -1)
    order: np.ndarray = np.concatenate([own.transpose(1, 0, 2).reshape(2, -1), rest], axis=1).reshape(-1)
    return order


def interpolated(table: np.ndarray, rows: int, columns: int, how: str) -> np.ndarray:
    """A table of a grid for another grid: (rows × columns, width) float32.

    Parameters
    ----------
    table : (down, across, width), or (side², width) of a square grid.
    how : ``"smoothed"``, ``"corners"``, ``"cubic"``, …, see `Tower.positions`; or ``"smooth cubic"``, PyTorch's bicubic
        way with antialiasing.
    """
    side = math.isqrt(len(table))
    grid = table.reshape(side, side, -1) if table.ndim == 2 else table
    if (rows, columns) == grid.shape[:2] and how != "nudged":
        return grid.reshape(rows * columns, -1)
    down, across = weights_of(len(grid), rows, how), weights_of(grid.shape[1], columns, how)
    grid = np.tensordot(down, grid, axes=(1, 0))  # (rows, side, width)
    grid = np.tensordot(across, grid, axes=(1, 1))  # (columns, rows, width)
    result: np.ndarray = np.ascontiguousarray(grid.transpose(1, 0, 2).reshape(rows * columns, -1), np.float32)
    return result


def weights_of(old: int, new: int, how: str) -> FloatArray:
    """How much of each of `old` numbers is in each of `new`: (new, old) float32."""
    at, places = np.arange(new) + 0.0, np.arange(old)
    if how in ("smoothed", "smooth cubic"):
        centre = (at + 0.5) * old / new
        away: np.ndarray = np.abs(places + 0.5 - centre[:, None]) / max(1.0, old / new)
        shares: np.ndarray = np.maximum(1 - away, 0) if how == "smoothed" else _cubic(away, -0.5)
        whole: FloatArray = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
        return whole
    corners = how == "corners"
    if corners and new > 1 and old > 1:
        place = at * ((old - 1) / (new - 1))
    elif how == "nudged":
        place = (at + 0.5) * old / (new + 0.1) - 0.5
    else:
        place = at * old / new if corners else (at + 0.5) * old / new - 0.5
    low = np.floor(place).astype(int)
    weights = np.zeros((new, old))
    for step in (-1, 0, 1, 2) if how == "cubic" else (0, 1):
        away = np.abs(place - low - step)
        share = _cubic(away) if how == "cubic" else np.maximum(1 - away, 0)
        np.add.at(weights, (np.arange(new), np.clip(low + step, 0, old - 1)), share)
    return weights.astype(np.float32)


def _cubic(x: FloatArray, a: float = -0.75) -> FloatArray:
    """Keys' kernel."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    return np.where(x <= 1, near, np.where(x < 2, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a, 0))
