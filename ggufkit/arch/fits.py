"""How an image becomes pictures of a size that its encoder takes, as data: see `arch.tower`.

Source: tools/mtmd/mtmd-image.cpp of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Canvas",
    "Crops",
    "Fit",
    "Grid",
    "Longest",
    "NearestShape",
    "Patches",
    "RoundedUp",
    "Shapes",
    "Slices",
    "Square",
    "Stretch",
    "Tiles",
    "Views",
]


@dataclass(frozen=True)
class Square:
    """One picture of `image_size`, of this colour where the image is narrower."""

    method: str
    colour: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Patches:
    """One picture as large as the image, within the fewest and most tokens.

    Attributes
    ----------
    tokens : where the file does not say how many pixels that are; of None it must.
    stretched : the image fills the picture; or else, with its shape kept, is in the middle of a black one.
    """

    method: str
    tokens: tuple[int, int] | None
    stretched: bool = False


@dataclass(frozen=True)
class RoundedUp:
    """The image stretched to whole rows of the language model; and a fiftieth less until there are at most `tokens`."""

    method: str
    tokens: int


@dataclass(frozen=True)
class Canvas:
    """The image, no larger than it is, at the upper left of a black picture that holds it, of whole rows of the
    language model, as few and as many as the file says."""

    method: str


@dataclass(frozen=True)
class NearestShape:
    """The image stretched to whole rows of the language model, in the shape most like its own of at most `tokens`."""

    method: str
    tokens: int


@dataclass(frozen=True)
class Longest:
    """One picture whose longer side has `preproc_image_size` pixels, or `image_size` where the file does not say."""

    method: str


@dataclass(frozen=True)
class Tiles:
    """Tiles of `image_size`, and then the whole image as small as one of them.

    The image is first made so large that its longer side has `preproc_image_size` pixels.

    Attributes
    ----------
    tile : the text in front of a tile, of its row and column from 1 on.
    row_end : behind each row of tiles but the last.
    overview, overview_end : around the whole image.
    """

    method: str
    tile: str
    row_end: str
    overview: tuple[str, ...]
    overview_end: str


@dataclass(frozen=True)
class Grid:
    """One picture as `Patches`; or of an image with more than `tolerance` times as many pixels as its most tokens have,
    tiles, and then the whole image as one such picture.

    Attributes
    ----------
    size : of a tile, in pixels.
    tiles : the fewest and the most.
    tile, overview : the text in front of a tile, of its row and column from 1 on, and in front of the whole image.
    """

    method: str
    tokens: tuple[int, int]
    tolerance: float
    size: int
    tiles: tuple[int, int]
    tile: str
    overview: str


@dataclass(frozen=True)
class Shapes:
    """Of an image larger than `image_size`, tiles of this size, in that of several shapes which shows most of it, black
    where it is narrower; and then, stretched, the whole image as large as one of them.

    Attributes
    ----------
    side : there are shapes of up to so many tiles in each direction; or
    tiles : of so many tiles at least and at most, where the file does not say.
    """

    method: str
    side: int = 0
    tiles: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Stretch:
    """The image stretched to tiles of `image_size`, at most `preproc_max_tiles`, in the shape for which it grows least,
    or else shrinks least; and then the whole image as large as one of them.

    Attributes
    ----------
    end : the text behind each picture.
    """

    method: str
    end: str


@dataclass(frozen=True)
class Slices:
    """The image about as large as `image_size`, and of a larger one then its slices, each of about that size.

    Attributes
    ----------
    most : slices.
    overview, tile : the text around the image and around a slice, before and behind.
    row_end : behind each row of slices but the last.
    """

    method: str
    most: int
    overview: tuple[str, str]
    tile: tuple[str, str]
    row_end: str


@dataclass(frozen=True)
class Crops:
    """Squares of an image that is larger than `image_size`, or much longer than wide, and then the whole image, as they
    are stretched to `tile` pixels and to `image_size`: smoothly, without rounding.

    The image is first made so small that its longer side has `preproc_image_size` pixels.

    Attributes
    ----------
    part, overview : the text around a square and around the whole image, before and behind.
    row_end : behind each row of squares but the last.
    """

    tile: int
    part: tuple[str, str]
    overview: tuple[str, str]
    row_end: str


@dataclass(frozen=True)
class Views:
    """Of an image larger than `tile` pixels rows of tiles, stretched to the shape most like its own, and then the whole
    image with its shape kept, in the middle of a grey square of `base` pixels.

    Attributes
    ----------
    apart : each tile is a picture, not each row of them.
    """

    method: str
    base: int
    tile: int
    colour: tuple[int, int, int]
    apart: bool = False


Fit = (
    Square
    | Patches
    | RoundedUp
    | Canvas
    | Crops
    | NearestShape
    | Views
    | Longest
    | Tiles
    | Grid
    | Shapes
    | Stretch
    | Slices
)
