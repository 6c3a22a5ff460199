"""How an image becomes pictures of a size that its tower takes, and what text stands around them.

Source: tools/mtmd/mtmd-image.cpp and `mtmd_tokenizer` in tools/mtmd/mtmd.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import numpy as np

from ggufkit.arch.fits import (
    Canvas,
    Crops,
    Grid,
    Longest,
    NearestShape,
    Patches,
    RoundedUp,
    Shapes,
    Slices,
    Square,
    Stretch,
    Tiles,
    Views,
)
from ggufkit.arch.hyperparameters import Keys
from ggufkit.arch.tower import Mobile, Queried, Tower, Twofold
from ggufkit.errors import UsageError
from ggufkit.media.pictures import aligned_size, centred, fitted, resized, smooth
from ggufkit.runtime.encoders.shapes import (
    WIDE,
    aligned,
    best_grid,
    both,
    cut,
    least_grown,
    most_shown,
    near,
    nearest,
    shapes_of,
    side_of_squares,
    starts,
    whole_squares,
)

__all__ = ["Layout", "OneToken", "layout_of"]


class OneToken(str):
    """Text that is one token of the vocabulary, where it has such a token."""

    __slots__ = ()


# Text, and arrays of pixels (height, width, 3) uint8.
Layout = Callable[[np.ndarray], list[str | np.ndarray]]

_MOST_TILES = 256
_MOST_PIXELS = 1 << 28  # of all tiles of an image


def layout_of(tower: Tower | Twofold | Queried | Mobile, keys: Keys, patch: int, merge: int) -> Layout:
    """What makes pictures of an image, for the tower of a file.

    Parameters
    ----------
    keys : of ``clip.vision``.
    patch, merge : pixels of a patch, and patches of a row for the language model, in each direction.
    """
    inner = _pictures(tower.fit, keys, patch, merge)

    def layout(pixels: np.ndarray) -> list[str | np.ndarray]:
        return [tower.begin, *inner(pixels), tower.end]

    return layout


@singledispatch
def _pictures(fit: Any, keys: Keys, patch: int, merge: int) -> Layout:
    raise NotImplementedError(fit)


@_pictures.register
def _square(fit: Square, keys: Keys, patch: int, merge: int) -> Layout:
    size = keys.count("image_size", most=1 << 14)
    return lambda pixels: [fitted(pixels, (size, size), fit.method, fit.colour)]


@_pictures.register
def _patches(fit: Patches, keys: Keys, patch: int, merge: int) -> Layout:
    area = (patch * merge) ** 2
    least, most = (
        keys.count(f"image_{name}_pixels", None if fit.tokens is None else fit.tokens[i] * area)
        for i, name in enumerate(("min", "max"))
    )

    if least > most:
        raise keys.fail("image_min_pixels", f"is {least}, and image_max_pixels {most}")
    place = resized if fit.stretched else fitted
    return lambda pixels: [place(pixels, _aligned_size(pixels, patch * merge, least, most), fit.method)]


@_pictures.register
def _rounded_up(fit: RoundedUp, keys: Keys, patch: int, merge: int) -> Layout:
    step, f = patch * merge, np.float32

    def pictures(pixels: np.ndarray) -> list[str | np.ndarray]:
        height, width = pixels.shape[:2]
        scale = f(1)
        while scale > 0:
            across, down = (max(1, math.ceil(f(n) * scale / f(step))) for n in (width, height))
            if across * down <= fit.tokens:
                return [resized(pixels, (across * step, down * step), fit.method)]
            scale -= f(0.02)
        raise UsageError(f"an image of {width} × {height} pixels is too narrow for the model")

    return pictures


@_pictures.register
def _canvas(fit: Canvas, keys: Keys, patch: int, merge: int) -> Layout:
    step = patch * merge
    least, most = (keys.count(f"image_{name}_pixels") for name in ("min", "max"))
    if most < max(least, step * step):
        raise keys.fail("image_max_pixels", f"cannot be {most}")

    def aligned(length: int) -> int:
        return -(-length // step) * step

    def pictures(pixels: np.ndarray) -> list[str | np.ndarray]:
        height, width = pixels.shape[:2]
        down, across = aligned(height), aligned(width)
        if down * across < least:
            scale = math.sqrt(least / (height * width))
            down, across = (aligned(max(1, math.ceil(n * scale))) for n in (height, width))
        if down * across > most:
            down, across = step, step
            low, high = 1, height
            while low <= high:  # the largest that there is room for
                middle = (low + high) // 2
                size = aligned(middle), aligned(max(1, width * middle // height))
                if size[0] * size[1] <= most:
                    (down, across), low = size, middle + 1
                else:
                    high = middle - 1
        scale = min(down / height, across / width)
        if height * width >= least:
            scale = min(1.0, scale)
        inner = [max(1, min(room, math.floor(n * scale))) for n, room in ((width, across), (height, down))]
        out = np.zeros((down, across, 3), np.uint8)
        out[: inner[1], : inner[0]] = resized(pixels, (inner[0], inner[1]), fit.method)
        return [out]

    return pictures


@_pictures.register
def _nearest_shape(fit: NearestShape, keys: Keys, patch: int, merge: int) -> Layout:
    step = patch * merge

    def pictures(pixels: np.ndarray) -> list[str | np.ndarray]:
        height, width = pixels.shape[:2]
        down, across = height / step, width / step
        ratio = across / down
        if down * across > fit.tokens:
            down = math.sqrt(fit.tokens / ratio)
            across = down * ratio
        sizes = [(rows, columns) for rows in both(down) for columns in both(across)]
        sizes = [size for size in sizes if 0 < size[0] * size[1] <= fit.tokens]
        if sizes:
            wanted = height / width
            rows, columns = min(sizes, key=lambda size: (abs(size[0] / size[1] - wanted), -size[0] * size[1]))
        else:
            rows, columns = (max(1, math.floor(n + 0.5)) for n in (down, across))
        if rows * columns > fit.tokens:
            raise UsageError(f"an image of {width} × {height} pixels is too narrow for the model")
        return [resized(pixels, (columns * step, rows * step), fit.method)]

    return pictures


@_pictures.register
def _longest(fit: Longest, keys: Keys, patch: int, merge: int) -> Layout:
    edge, step = keys.count("preproc_image_size", 0, least=0, most=1 << 14), patch * merge
    side = np.float32(edge or keys.count("image_size", most=1 << 14))

    def pictures(pixels: np.ndarray) -> list[str | np.ndarray]:
        height, width = pixels.shape[:2]
        scale = min(side / np.float32(width), side / np.float32(height))
        across, down = (math.ceil(np.float32(n) * scale / np.float32(step)) * step for n in (width, height))
        return [fitted(pixels, (across, down), fit.method)]

    return pictures


def _aligned_size(pixels: np.ndarray, step: int, least: int, most: int) -> tuple[int, int]:
    """`aligned_size` of an image.

    Raises
    ------
    UsageError : it is so narrow that it would have far more than `most` pixels.
    """
    height, width = pixels.shape[:2]
    size = aligned_size((width, height), step, least, most)
    if size[0] * size[1] > 2 * max(most, least):
        raise UsageError(f"an image of {width} × {height} pixels is too narrow for the model")
    return size


@_pictures.register
def _tiles(fit: Tiles, keys: Keys, patch: int, merge: int) -> Layout:
    tile = keys.count("image_size", most=1 << 14)
    longest = keys.count("preproc_image_size", 0, least=0, most=1 << 16)

    def pictures(pixels: np.ndarray) -> list[str | np.ndarray]:
        height, width = pixels.shape[:2]
        if longest:
            aspect = width / height
            if width >= height:
                size = longest, int(longest / aspect) + int(longest / aspect) % 2
            else:
                size = int(longest * aspect) + int(longest * aspect) % 2, longest
            size = max(size[0], 1), max(size[1], 1)
            pixels = resized(pixels, size, fit.method)
        else:
            size = width, height
        columns, rows = -(-size[0] // tile), -(-size[1] // tile)
        if columns * rows > _MOST_TILES:
            raise UsageError(f"an image of {width} × {height} pixels makes {columns * rows} tiles, not {_MOST_TILES}")
        pixels = resized(pixels, (columns * tile, rows * tile), fit.method)
        found: list[str | np.ndarray] = []
        for row in range(rows):
            for column in range(columns):
                found.append(fit.tile.format(row=row + 1, column=column + 1))
                found.append(pixels[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile])
            if row < rows - 1:
                found.append(OneToken(fit.row_end))
        overview = resized(pixels, (tile, tile), fit.method)
        return [*found, *map(OneToken, fit.overview), overview, OneToken(fit.overview_end)]

    return pictures


@_pictures.register
def _grid(fit: Grid, keys: Keys, patch: int, merge: int) -> Layout:
    step = patch * merge
    least, most = (tokens * step**2 for tokens in fit.tokens)
    shapes = shapes_of(*fit.tiles)

    def pictures(pixels: np.ndarray) -> list[str | np.ndarray]:
        height, width = pixels.shape[:2]
        whole = resized(pixels, _aligned_size(pixels, step, least, most), fit.method)
        rounded = [max(patch, round(n / step) * step) for n in (width, height)]  # to even, as the reference does
        if rounded[0] * rounded[1] <= most * fit.tolerance:
            return [whole]
        columns, rows = nearest(width, height, fit.size, shapes)
        refined = fitted(pixels, (columns * fit.size, rows * fit.size), fit.method)
        found: list[str | np.ndarray] = []
        for row in range(rows):
            for column in range(columns):
                y, x = row * fit.size, column * fit.size
                found.append(fit.tile.format(row=row + 1, column=column + 1))
                found.append(refined[y : y + fit.size, x : x + fit.size])
        return [*found, OneToken(fit.overview), whole]

    return pictures


_SMALL = 32  # pixels of a side


@_pictures.register
def _crops(fit: Crops, keys: Keys, patch: int, merge: int) -> Layout:
    size = keys.count("image_size", most=1 << 14)
    longest = keys.count("preproc_image_size", 3024, least=0, most=1 << 14) or 3024

    def pictures(pixels: np.ndarray) -> list[str | np.ndarray]:
        height, width = pixels.shape[:2]
        if min(width, height) < _SMALL and max(width, height) > WIDE * min(width, height):
            square = np.zeros((max(width, height), max(width, height), 3), np.uint8)
            square[:height, :width] = pixels
            pixels = square
        if max(pixels.shape) > longest:
            scale = np.float32(longest) / np.float32(max(pixels.shape))
            smaller = [max(1, math.floor(np.float32(n) * scale)) for n in pixels.shape[1::-1]]
            pixels = resized(pixels, (smaller[0], smaller[1]), "bilinear")
        whole: list[str | np.ndarray] = [
            OneToken(fit.overview[0]),
            smooth(pixels, (size, size)),
            OneToken(fit.overview[1]),
        ]
        height, width = pixels.shape[:2]
        side = side_of_squares(max(width, height), min(width, height), size, fit.tile)
        if not side:
            return whole
        across, down = (whole_squares(n, side) for n in (width, height))
        refined = resized(pixels, (across, down), "bilinear")
        found: list[str | np.ndarray] = []
        rows, columns = (starts(n, side) for n in (down, across))
        if len(rows) * len(columns) > _MOST_TILES:
            raise UsageError(f"an image of {width} × {height} pixels is too narrow for the model")
        for y in rows:
            for x in columns:
                part = np.zeros((side, side, 3), np.uint8)
                inside = refined[y : y + side, x : x + side]
                part[: inside.shape[0], : inside.shape[1]] = inside
                found += [OneToken(fit.part[0]), smooth(part, (fit.tile, fit.tile)), OneToken(fit.part[1])]
            if y != rows[-1]:
                found.append(OneToken(fit.row_end))
        return [*found, *whole]

    return pictures


@_pictures.register
def _views(fit: Views, keys: Keys, patch: int, merge: int) -> Layout:
    least, most = keys.count("preproc_min_tiles", 2), keys.count("preproc_max_tiles", 9, most=_MOST_TILES)
    shapes = shapes_of(least, most)

    def pictures(pixels: np.ndarray) -> list[str | np.ndarray]:
        height, width = pixels.shape[:2]
        found: list[str | np.ndarray] = []
        if max(width, height) > fit.tile:
            columns, rows = nearest(width, height, fit.tile, shapes)
            refined = resized(pixels, (columns * fit.tile, rows * fit.tile), fit.method)
            found += cut(refined, columns, rows) if fit.apart else np.split(refined, rows)
        return [*found, centred(pixels, (fit.base, fit.base), fit.method, fit.colour)]

    return pictures


@_pictures.register
def _best_shown(fit: Shapes, keys: Keys, patch: int, merge: int) -> Layout:
    size = keys.count("image_size", most=1 << 14)
    if fit.side:
        most = fit.side**2
        shapes = [(x, y) for x in range(1, fit.side + 1) for y in range(1, fit.side + 1)][1:]
    else:
        least = keys.count("preproc_min_tiles", fit.tiles[0])
        most = keys.count("preproc_max_tiles", fit.tiles[1], least=least, most=_MOST_TILES)
        shapes = [(x, y) for x in range(least, most + 1) for y in range(max(least, -(-least // x)), most // x + 1)]
    _require_room(keys, size, most)

    def pictures(pixels: np.ndarray) -> list[str | np.ndarray]:
        whole = resized(pixels, (size, size), fit.method)
        height, width = pixels.shape[:2]
        if max(width, height) <= size or not shapes:
            return [whole]
        columns, rows = most_shown(width, height, size, shapes)
        return [*cut(fitted(pixels, (columns * size, rows * size), fit.method), columns, rows), whole]

    return pictures


def _require_room(keys: Keys, size: int, tiles: int) -> None:
    if size**2 * tiles > _MOST_PIXELS:
        raise keys.fail("image_size", f"of {size} makes more than {_MOST_PIXELS} pixels of {tiles} tiles")


@_pictures.register
def _stretch(fit: Stretch, keys: Keys, patch: int, merge: int) -> Layout:
    size, most = keys.count("image_size", most=1 << 14), keys.count("preproc_max_tiles", most=_MOST_TILES)
    _require_room(keys, size, most)

    def pictures(pixels: np.ndarray) -> list[str | np.ndarray]:
        columns, rows = least_grown(pixels.shape[1], pixels.shape[0], size, most)
        tiles = []
        if columns * rows > 1:
            tiles = cut(resized(pixels, (columns * size, rows * size), fit.method), columns, rows)
        tiles.append(resized(pixels, (size, size), fit.method))
        return [part for tile in tiles for part in (tile, OneToken(fit.end))]

    return pictures


@_pictures.register
def _slices(fit: Slices, keys: Keys, patch: int, merge: int) -> Layout:
    size, step = keys.count("image_size", most=1 << 14), patch * merge
    small = merge == 2  # of which single pictures keep their shape

    def pictures(pixels: np.ndarray) -> list[str | np.ndarray]:
        height, width = pixels.shape[:2]
        if max(width, height) > 64 * min(width, height):
            raise UsageError(f"an image of {width} × {height} pixels is too narrow for the model")
        ratio = float(np.float32(width * height) / np.float32(size * size))
        alone = (ratio <= 1 and small) or max(width, height) <= size
        whole = near(width, height, size, step, alone) if small or not alone else (size, size)
        found: list[str | np.ndarray] = [
            OneToken(fit.overview[0]),
            resized(pixels, whole, fit.method),
            OneToken(fit.overview[1]),
        ]
        if alone:
            return found
        columns, rows = best_grid(width, height, min(math.ceil(ratio), fit.most), fit.most)
        parts = aligned(width, columns) // columns, aligned(height, rows) // rows
        across, down = near(*parts, size, step, True)
        refined = fitted(pixels, (across * columns, down * rows), fit.method)
        for row in range(rows):
            for column in range(columns):
                part = refined[row * down : (row + 1) * down, column * across : (column + 1) * across]
                found += [OneToken(fit.tile[0]), part, OneToken(fit.tile[1])]
            if row < rows - 1:
                found.append(OneToken(fit.row_end))
        return found

    return pictures
