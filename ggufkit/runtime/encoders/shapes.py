"""In how many tiles, of what size, an image is cut: arithmetic of widths and heights, in float32 as the reference's.

Source: tools/mtmd/mtmd-image.cpp of llama.cpp.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = [
    "WIDE",
    "aligned",
    "best_grid",
    "both",
    "cut",
    "least_grown",
    "most_shown",
    "near",
    "nearest",
    "shapes_of",
    "side_of_squares",
    "starts",
    "whole_squares",
]

WIDE, _LONG = 4.0, 1.5  # images much longer than wide


def both(number: float) -> tuple[int, int]:
    """The whole numbers around a number."""
    return math.floor(number), math.ceil(number)


def side_of_squares(longer: int, shorter: int, size: int, tile: int) -> int:
    """Of an image with these sides; 0 where it has none."""
    shape = np.float32(longer) / np.float32(shorter)
    if longer <= size:
        return shorter if shape > _LONG else 0
    return min(shorter, tile) if shape > WIDE else tile


def whole_squares(length: int, side: int) -> int:
    """The length in whole squares, one more where more than a fifth of it is left; of less than one as it is."""
    ratio = np.float32(length) / np.float32(side)
    if ratio < 1:
        return length
    whole = math.floor(ratio)
    return side * (whole + bool(ratio - np.float32(whole) > np.float32(0.2)))


def starts(length: int, side: int) -> list[int]:
    """Where squares begin, of which the last ends where the image does."""
    count = 1 if length <= side else math.ceil((length - side) / side + 1)
    return [min(side * i, max(0, length - side)) for i in range(count)]


def most_shown(width: int, height: int, tile: int, shapes: list[tuple[int, int]]) -> tuple[int, int]:
    """The first grid in which the image has the most pixels, and of equal ones the smallest."""
    f, best, most, wasted = np.float32, (1, 1), 0, math.inf
    for columns, rows in shapes:
        scale = min(f(columns * tile) / f(width), f(rows * tile) / f(height))
        shown = min(int(f(width) * scale) * int(f(height) * scale), width * height)
        rest = columns * rows * tile * tile - shown
        if shown > most or (shown == most and rest < wasted):
            best, most, wasted = (columns, rows), shown, rest
    return best


def cut(pixels: np.ndarray, columns: int, rows: int) -> list[np.ndarray]:
    """Equal tiles, row by row."""
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    return [
        pixels[y * height : (y + 1) * height, x * width : (x + 1) * width] for y in range(rows) for x in range(columns)
    ]


def least_grown(width: int, height: int, tile: int, most: int) -> tuple[int, int]:
    """The grid of up to `most` tiles for which an image grows least; if it is larger than all, shrinks least."""

    def badness(grid: tuple[int, int]) -> tuple[bool, float]:
        scale = min(grid[0] * tile / width, grid[1] * tile / height)
        return scale < 1, scale if scale >= 1 else -scale

    return min(((x, n // x) for n in range(1, most + 1) for x in range(1, n + 1) if n % x == 0), key=badness)


def shapes_of(least: int, most: int) -> list[tuple[int, int]]:
    """Columns and rows of grids with so many tiles, those of fewer first."""
    found = [
        (columns, rows)
        for n in range(least, most + 1)
        for columns in range(1, n + 1)
        for rows in range(1, n + 1)
        if least <= columns * rows <= most
    ]
    return sorted(dict.fromkeys(found), key=lambda shape: shape[0] * shape[1])


def nearest(width: int, height: int, tile: int, shapes: list[tuple[int, int]]) -> tuple[int, int]:
    """The grid whose shape is most like an image's; of equal ones the largest that it fills by half."""
    f = np.float32
    aspect, area = f(width) / f(height), f(width * height)
    best, least = (1, 1), float("inf")
    for columns, rows in shapes:
        away = float(abs(aspect - f(columns) / f(rows)))
        if away < least or (away == least and area > f(0.5) * f(tile * tile * columns * rows)):
            best, least = (columns, rows), away
    return best


def aligned(length: int, step: int) -> int:
    """The nearest multiple of `step`, at least one."""
    return max(int(math.floor(np.float32(length) / np.float32(step) + np.float32(0.5)) * step), step)


def near(width: int, height: int, size: int, step: int, larger: bool) -> tuple[int, int]:
    """A size of about `size`² pixels and the same shape in multiples of `step`; smaller ones stay unless `larger`."""
    if width * height > size * size or larger:
        aspect = np.float32(width) / np.float32(height)
        height = int(np.float32(size) / np.sqrt(aspect))
        width = int(np.float32(height) * aspect)
    return aligned(width, step), aligned(height, step)


def best_grid(width: int, height: int, parts: int, most: int) -> tuple[int, int]:
    """Columns and rows of about so many parts whose shape is most like an image's."""
    aspect = np.float32(math.log(np.float32(width) / np.float32(height)))
    best, least = (1, 1), np.float32(np.inf)
    for count in (parts - 1, parts, parts + 1):
        if count == 1 or count > most:
            continue
        for columns in range(1, count + 1):
            if count % columns == 0:
                away = np.float32(abs(float(aspect) - math.log(columns / (count // columns))))
                if away < least:
                    best, least = (columns, count // columns), away
    return best
