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

from ggufkit.arch.fits import Fit, Views

__all__ = [
    "Activate",
    "Around",
    "Chunked",
    "Columns",
    "Conformer",
    "Ear",
    "Either",
    "FastConformer",
    "Frames",
    "Gated",
    "Halve",
    "Halves",
    "Join",
    "Matrix",
    "Mobile",
    "Normalize",
    "Queried",
    "Resample",
    "RowEnds",
    "Scale",
    "Silent",
    "Standardize",
    "Tower",
    "Twofold",
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
class Halve:
    """A convolution over 3 × 3 rows of a picture, of which every other is taken in both directions.

    Attributes
    ----------
    before : how many times as many rows the picture has here in each direction as at the end.
    """

    name: str
    before: int


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
    Join
    | Halve
    | Normalize
    | Matrix
    | Activate
    | Gated
    | Halves
    | Scale
    | Standardize
    | Columns
    | RowEnds
    | Around
    | Resample
)


_PATCH_NORMS = Normalize("", ""), Normalize("v.norm_embd", ""), Normalize("v.pre_ln", "")


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
    named : it is asked for them.
    extra : what the blocks have behind the patches, from the file, which is then left out: ``"row"``: one, for which
        the table of positions has its last; ``"rows"``: some without positions; ``""``: nothing.
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
        head as a head of its own, the first by the column, the second by the row, as Gemma 4's; ``"sixths"``: a sixth
        of a head, or a little less, with the next one by time, which does not go on, two by the row and two by the
        column, as MiniMax's; ``""``: not at all.
    rope_base, rope_first : of the frequencies, and the number of the first row and column.
    raster : patches that become one row do not lie beside each other, but row by row: steps are convolutions.
    merge : how many patches in each direction become one row, where the file does not say.
    merge_key : where it does, or "".
    middle : what the names of a network begin with that makes one row of four patches behind one of the blocks; or "".
    windows : what most blocks see; or None: all see the whole picture.
    colours_last : the patches' matrix has the colours of a pixel side by side.
    whole_patches : patches are those of all that becomes one row.
    patch_norms : of patches: of their pixels, of what the matrix gives, and of that with positions; without a kind
        that of the blocks.
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
    named: bool = True
    extra: str = ""
    positions: str = ""
    rope: str = ""
    rope_base: float = 10000.0
    rope_first: int = 0
    raster: bool = False
    merge: int = 1
    merge_key: str = "projector.scale_factor"
    middle: str = ""
    windows: Windows | None = None
    colours_last: bool = False
    whole_patches: bool = False
    patch_norms: tuple[Normalize, ...] = _PATCH_NORMS
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


@dataclass(frozen=True)
class Frames:
    """No encoder of sound: each so many samples of the wave are a row.

    Attributes
    ----------
    project : from these rows to the language model's.
    begin, end : the text around sound.
    """

    project: tuple[Step, ...]
    samples: int
    begin: str = ""
    end: str = ""


@dataclass(frozen=True)
class Twofold:
    """An encoder of images: SAM, and CLIP over the rows that it gives; rows of both side by side are multiplied.

    Behind each row of a picture stands a vector, and one more behind the whole image.

    Attributes
    ----------
    fit : how an image becomes pictures.
    begin, end : the text around an image.
    """

    fit: Views
    begin: str = ""
    end: str = ""


@dataclass(frozen=True)
class Queried:
    """An encoder of images: SAM, and blocks of a language model, which read its rows and then as many learned queries.

    What they make of the queries is multiplied; a vector stands behind the whole image.

    Attributes
    ----------
    fit : how an image becomes pictures; there are queries for those of `base` and of `tile` pixels.
    begin, end : the text around an image.
    """

    fit: Views
    begin: str = ""
    end: str = ""


@dataclass(frozen=True)
class Mobile:
    """An encoder of images: MobileNet V5.

    Attributes
    ----------
    fit : how an image becomes pictures.
    project : from the rows of 16 × 16 places to the language model's.
    unread : tensors of the file that it does without.
    begin, end : the text around an image.
    """

    fit: Fit
    project: tuple[Step, ...]
    unread: tuple[str, ...] = ()
    begin: str = ""
    end: str = ""


@dataclass(frozen=True)
class Silent:
    """An encoder of sound that is not run; its file is, for images."""
