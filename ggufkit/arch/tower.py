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
    "Around",
    "Chunked",
    "Columns",
    "Conformer",
    "Ear",
    "Either",
    "FastConformer",
    "Gated",
    "Grid",
    "Halves",
    "Join",
    "Longest",
    "Matrix",
    "Normalize",
    "Patches",
    "Resample",
    "RoundedUp",
    "RowEnds",
    "Scale",
    "Shapes",
    "Slices",
    "Square",
    "Standardize",
    "Stretch",
    "Tiles",
    "Tower",
    "Windows",
]


class Either(str):
    """Text around what is seen: one token, or where the vocabulary has no such token, other text.

    Attributes
    ----------
    token : that token.
    """

    __slots__ = ("token",)
    token: str

    def __new__(cls, token: str, otherwise: str) -> Either:
        self = super().__new__(cls, otherwise)
        self.token = token
        return self


# ---- how an image becomes pictures of a size that the tower takes ------------------------------------------------


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


Fit = Square | Patches | RoundedUp | Longest | Tiles | Grid | Shapes | Stretch | Slices


# ---- from the tower's rows to the language model's: steps, one after the other ----------------------------------


@dataclass(frozen=True)
class Join:
    """Each square of neighbours, or of sound so many rows one behind the other, becomes one row: their ``"mean"``; or
    their numbers, those of one after those of another (``"rows"``), or each number's of all beside each other
    (``"channels"``, as a convolution has them)."""

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
    """An activation; ``"blocks"`` is that of the blocks."""

    kind: str


@dataclass(frozen=True)
class Gated:
    """down(activation(gate x) × up x), with the activation of the blocks where none is given."""

    gate: str
    up: str
    down: str
    activation: str = ""


@dataclass(frozen=True)
class Halves:
    """The first half of a row × SiLU of the second."""


@dataclass(frozen=True)
class Scale:
    """Rows are multiplied by the square root of the tower's width."""


@dataclass(frozen=True)
class Standardize:
    """A vector is taken off and another multiplied with, where the file has them."""

    bias: str
    scale: str


@dataclass(frozen=True)
class Resample:
    """Learned rows look at all, which have sines and cosines of their places with them: as many come out, whatever the
    picture. Names of its tensors begin with `at`; heads have `head` numbers.
    """

    at: str
    head: int


@dataclass(frozen=True)
class Columns:
    """Rows of the picture, which lie one after the other, become columns."""


@dataclass(frozen=True)
class RowEnds:
    """A vector stands behind each row of the picture, if the file has it; behind the `last`, too, or not."""

    name: str
    last: bool = False


@dataclass(frozen=True)
class Around:
    """A vector stands in front of all rows, and one behind them."""

    first: str
    last: str


Step = (
    Join | Normalize | Matrix | Activate | Gated | Halves | Scale | Standardize | Columns | RowEnds | Around | Resample
)


@dataclass(frozen=True)
class Windows:
    """Most blocks see windows of the picture, the others all of it.

    Attributes
    ----------
    pixels : of a window's side, where the file does not say it; 0: as many as its table of positions is for.
    whole : the key of the blocks that see all of it: a number, of so many the last, or a list of them. Without the
        key in the file all do; or of so many blocks the last where this is a number, and the very last.
    """

    pixels: int
    whole: str | int


@dataclass(frozen=True)
class Tower:
    """An encoder of images.

    Attributes
    ----------
    fit : how an image becomes pictures.
    project : from the tower's rows to the language model's.
    norm : of the blocks: ``"layer"`` or ``"rms"``, or ``"either"``: those without biases are ``"rms"``.
    late_norm : the blocks' norms are behind their parts, not in front.
    activation : of the blocks, where the file says neither GELU nor SiLU.
    extra_row : behind the patches the blocks have one more row, which the file has, and which is then left out.
    positions : what is added to patches, where the file has a table: ``"table"``: a row each; ``"smoothed"``,
        ``"corners"``, ``"linear"``, ``"nudged"``, ``"cubic"``: rows of the table brought to the picture's size, by
        PyTorch's bilinear way with antialiasing, with corners on corners, with neither, or for a tenth of a row more,
        or its bicubic way; ``"axes"``: a row of the table's first part by the
        column and one of its second by the row; ``"buckets"``: a row of the table, to whose grid the
        picture's is stretched; ``""``: nothing.
    rope : how queries and keys turn by row and column: ``"halves"``: the first half of the pairs by the row, the second
        by the column, as Qwen's; ``"neighbours"``: numbers side by side turn together, the first half of a head by the
        row, the other by the column with frequencies in between, as Pixtral's; ``"beside"``: as these, the first by the
        column, the other by the row, with the same frequencies, as Llama 4's and Kimi's; ``"quarters"``: each half of a
        head as a head of its own, the first by the column, the second by the row, as Gemma 4's; ``""``: not at all.
    rope_base, rope_first : of the frequencies, and the number of the first row and column.
    merge : how many patches in each direction become one row, where the file does not say.
    merge_key : where it does, or "".
    middle : what the names of a network begin with that makes one row of four patches behind one of the blocks; or "".
    windows : what most blocks see; or None: all see the whole picture.
    colours_last : the patches' matrix has the colours of a pixel side by side.
    contrast : pixels are multiplied by 2, and 1 is taken off.
    plain_scores : queries are not divided by the root of their size; values are normalised, without weights.
    deep : outputs of some blocks also go to the language model's first blocks.
    framed : the steps put a vector behind each row of a picture, one in front of all and one behind them.
    begin, end : the text around an image.
    whole : whether the rows of an image see each other in the language model, of its width.
    unread : tensors of the file that it does without.
    least : a key of ``clip``, and the least number of it of which all this is true; or None.
    """

    fit: Fit
    project: tuple[Step, ...]
    norm: str = "layer"
    late_norm: bool = False
    activation: str = "gelu_quick"
    extra_row: bool = False
    positions: str = ""
    rope: str = ""
    rope_base: float = 10000.0
    rope_first: int = 0
    merge: int = 1
    merge_key: str = "projector.scale_factor"
    middle: str = ""
    windows: Windows | None = None
    colours_last: bool = False
    contrast: bool = False
    plain_scores: bool = False
    deep: bool = False
    framed: bool = False
    begin: str = ""
    end: str = ""
    whole: Callable[[int], bool] = lambda width: False
    unread: tuple[str, ...] = ()
    least: tuple[str, int] | None = None


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


@dataclass(frozen=True)
class Chunked:
    """An encoder of sound over windows of a few chunks, which three convolutions shorten in both directions, each chunk
    with positions of its own.

    Attributes
    ----------
    project : from its rows to the language model's.
    chunk, chunks : frames of a chunk, and chunks of a window at most.
    begin, end : the text around sound.
    """

    project: tuple[Step, ...]
    chunk: int
    chunks: int
    begin: str = ""
    end: str = ""


@dataclass(frozen=True)
class Conformer:
    """An encoder of sound that looks back a little: feed-forward, attention, a convolution over time, feed-forward.

    Attributes
    ----------
    project : from its rows to the language model's.
    seen : how many rows a row sees, itself the last of them.
    cap : soft cap of the scores of attention.
    begin, end : the text around sound.
    """

    project: tuple[Step, ...]
    seen: int
    cap: float
    begin: str = ""
    end: str = ""


@dataclass(frozen=True)
class FastConformer:
    """NeMo's encoder of sound: convolutions that make a row of eight frames, then blocks as a `Conformer`'s, of which
    the rows all see each other, by how far they are away.

    Attributes
    ----------
    project : from its rows to the language model's.
    unread : tensors of the file that it does without.
    begin, end : the text around sound.
    """

    project: tuple[Step, ...]
    unread: tuple[str, ...] = ()
    begin: str = ""
    end: str = ""
