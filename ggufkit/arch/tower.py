"""What encoders of images compute, as data: towers of blocks over patches, and the way to the language model.

    Tower(
        fit=Square("bilinear"),
        positions="table",
        project=(Join("mean"), Normalize("mm.soft_emb_norm", "rms"), Matrix("mm.input_projection", transposed=True)),
        begin="<start_of_image>",
        end="<end_of_image>",
        whole=True,
    )

    image ─ fit ─► pictures ─ patches, positions ─ block × layers ─ norm ─ project ─► rows for the language model

Each file of `arch.projectors` says it of its kinds of projector, beside how they are converted.

Source: tools/mtmd/clip.cpp, tools/mtmd/models/*.cpp and tools/mtmd/mtmd.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "Activate",
    "Ear",
    "Gated",
    "Grid",
    "Join",
    "Matrix",
    "Normalize",
    "Patches",
    "Scale",
    "Slices",
    "Square",
    "Standardize",
    "Tiles",
    "Tower",
]


# ---- how an image becomes pictures of a size that the tower takes ------------------------------------------------


@dataclass(frozen=True)
class Square:
    """One picture of `image_size`, black where the image is narrower."""

    method: str


@dataclass(frozen=True)
class Patches:
    """One picture as large as the image, within the fewest and most tokens, which the file may say otherwise."""

    method: str
    tokens: tuple[int, int]


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


Fit = Square | Patches | Tiles | Grid | Slices


# ---- from the tower's rows to the language model's: steps, one after the other ----------------------------------


@dataclass(frozen=True)
class Join:
    """Each square of neighbours becomes one row: their ``"mean"``; or their numbers, those of one after those of
    another (``"rows"``), or each number's of all beside each other (``"channels"``, as a convolution has them)."""

    how: str


@dataclass(frozen=True)
class Normalize:
    """A norm, ``"rms"`` or ``"layer"``; the epsilon is the tower's own where none is given. Without a name it has no
    weights."""

    name: str
    kind: str
    epsilon: float | None = None
    optional: bool = False


@dataclass(frozen=True)
class Matrix:
    """A matrix and its bias, if it has one; `transposed` as Gemma 3 stores it, `optional` where some go without.

    A convolution over a square of rows is one, behind `Join("channels")`.
    """

    name: str
    transposed: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Activate:
    """An activation."""

    kind: str


@dataclass(frozen=True)
class Gated:
    """down(activation(gate x) × up x), with the activation of the blocks."""

    gate: str
    up: str
    down: str


@dataclass(frozen=True)
class Scale:
    """Rows are multiplied by the square root of the tower's width."""


@dataclass(frozen=True)
class Standardize:
    """A vector is taken off and another multiplied with, where the file has them."""

    bias: str
    scale: str


Step = Join | Normalize | Matrix | Activate | Gated | Scale | Standardize


@dataclass(frozen=True)
class Tower:
    """An encoder of images.

    Attributes
    ----------
    fit : how an image becomes pictures.
    project : from the tower's rows to the language model's.
    norm : of the blocks: ``"layer"`` or ``"rms"``.
    activation : of the blocks, where the file says neither GELU nor SiLU.
    positions : what is added to patches, where the file has a table: ``"table"``: a row each; ``"smoothed"``,
        ``"corners"``, ``"cubic"``: rows of the table brought to the picture's size, by PyTorch's bilinear way with
        antialiasing, with corners on corners, or its bicubic way; ``"axes"``: a row of the table's first part by the
        column and one of its second by the row; ``"buckets"``: a row of the table, to whose grid the
        picture's is stretched; ``""``: nothing.
    rope : how queries and keys turn by row and column: ``"halves"``: the first half of the pairs by the row, the second
        by the column, as Qwen's; ``"neighbours"``: numbers side by side turn together, the first half of a head by the
        row, the other by the column with frequencies in between, as Pixtral's; ``"quarters"``: each half of a head
        as a head of its own, the first by the column, the second by the row, as Gemma 4's; ``""``: not at all.
    rope_base : of the frequencies.
    merge : how many patches in each direction become one row, where the file does not say.
    merge_key : where it does.
    middle : what the names of a network begin with that makes one row of four patches behind one of the blocks; or "".
    windows : where the file has a period, only every so many layers see the whole picture, the others windows of so
        many pixels; 0 for no such thing.
    contrast : pixels are multiplied by 2, and 1 is taken off.
    plain_scores : queries are not divided by the root of their size; values are normalised, without weights.
    deep : outputs of some blocks also go to the language model's first blocks.
    row_end : the tensor that stands behind each row of patches but the last; or "".
    begin, end : the text around an image.
    whole : whether the rows of an image see each other in the language model, of its width.
    """

    fit: Fit
    project: tuple[Step, ...]
    norm: str = "layer"
    activation: str = "gelu_quick"
    positions: str = ""
    rope: str = ""
    rope_base: float = 10000.0
    merge: int = 1
    merge_key: str = "projector.scale_factor"
    middle: str = ""
    windows: int = 0
    contrast: bool = False
    plain_scores: bool = False
    deep: bool = False
    row_end: str = ""
    begin: str = ""
    end: str = ""
    whole: Callable[[int], bool] = lambda width: False


@dataclass(frozen=True)
class Ear:
    """An encoder of sound: Whisper's, over half minutes.

    Attributes
    ----------
    project : from its rows to the language model's.
    pooled : of two rows, one behind the other, the mean goes on.
    begin, end : the text around sound.
    """

    project: tuple[Step, ...]
    pooled: bool = False
    begin: str = ""
    end: str = ""
