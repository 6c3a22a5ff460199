"""Vectors in packed rows: 2 bytes of scale, then the codes of d coordinates.

    row    f2 scale    planes of the codes of each 32 coordinates (`planes`)      2 + d · bits / 8 bytes

The scale s is for levels of N(0, 1): x' = s Rᵀ c. Four scales take the same two bytes:

    norm       |x| / √d          the paper's; inner products shrink to 0.637, 0.883, 0.966, 0.991 at 1 … 4 bits
    matched    |x| / |c|         keeps the norm
    least      |x| ⟨y, c⟩ / |c|²  the least error of this vector                            (y: the rotated unit vector)
    unbiased   |x| / ⟨y, c⟩      keeps ⟨x, x'⟩ = |x|²: for search
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

from ggufkit.errors import CodecError, UsageError
from ggufkit.kernels.threads import for_ranges
from ggufkit.turboquant.codebooks import codebook
from ggufkit.turboquant.rotation import Hadamard, hartley

if TYPE_CHECKING:
    import numpy as np

    from ggufkit.turboquant.kernels import Code

__all__ = ["BITS", "SCALES", "Packed", "code_of", "decode", "encode", "inner_products", "row_bytes"]

BITS = range(1, 9)
SCALES = ("norm", "matched", "least", "unbiased")

_GRAIN = 1 << 19  # coordinates that a thread takes at a time


def row_bytes(length: int, bits: int) -> int:
    """Bytes of a packed vector of `length` coordinates."""
    return 2 + length * bits // 8


@dataclass(frozen=True)
class Packed:
    """Encoded vectors.

    Attributes
    ----------
    rows : array of shape (n, row bytes), uint8.
    length : coordinates of a vector, d.
    bits : per coordinate.
    seed : of the rotation's signs.
    """

    rows: np.ndarray
    length: int
    bits: int
    seed: int = 0

    def __post_init__(self) -> None:
        wanted = row_bytes(self.length, _checked_bits(self.bits))
        if self.rows.ndim != 2 or self.rows.dtype != "uint8" or self.rows.shape[1] != wanted:
            raise CodecError(
                f"vectors of {self.length} coordinates at {self.bits} bits are rows of {wanted} bytes, not "
                f"{self.rows.dtype} of shape {list(self.rows.shape)}"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.rows.nbytes

    @cached_property
    def scales(self) -> np.ndarray:
        """Array of shape (n,), float16."""
        import numpy as np

        return np.ascontiguousarray(self.rows[:, :2]).view(np.float16).reshape(-1)


def encode(x: np.ndarray, bits: int, *, scale: str = "matched", seed: int = 0, threads: int | None = None) -> Packed:
    """Encode vectors.

    Parameters
    ----------
    x : array of shape (n, d) or (d,), as float32. d is a multiple of 16: a power of two, or up to 64 times one.
    bits : per coordinate, 1 … 8.
    scale : ``"matched"``, ``"unbiased"`` (for search), ``"least"`` or ``"norm"``; see the module.
    seed : of the rotation; vectors that are compared must share it.
    threads : how many; the bytes are the same for any number.

    Raises
    ------
    CodecError : a vector is not finite, or so long that its scale is no float16 (a row is named).
    UsageError : there is no such scale or number of bits, or vectors of this length cannot be rotated.
    """
    import numpy as np

    from ggufkit.turboquant.kernels import kernels_of

    rows = np.ascontiguousarray(x, np.float32)
    if rows.ndim not in (1, 2):
        raise CodecError(f"vectors are rows of a matrix; this array has the shape {list(rows.shape)}")
    length = rows.shape[-1]
    code = code_of(bits, length, seed, scale)
    encode_rows = kernels_of(bits).encode_rows
    rows = rows.reshape(-1, length)
    out = np.empty((len(rows), row_bytes(length, bits)), np.uint8)
    for_ranges(lambda lo, hi: encode_rows(rows, code, out, lo, hi), len(rows), _GRAIN // length + 1, threads)
    packed = Packed(out, length, bits, seed)
    if not np.isfinite(packed.scales).all():
        row = int(np.flatnonzero(~np.isfinite(packed.scales))[0])
        what = "is longer than a scale of float16 can say" if np.isfinite(rows[row]).all() else "is not finite"
        raise CodecError(f"vector {row} {what}")
    return packed


def decode(packed: Packed, threads: int | None = None) -> np.ndarray:
    """The vectors: array of shape (n, d), float32."""
    import numpy as np

    from ggufkit.turboquant.kernels import kernels_of

    n = len(packed.rows)
    code = code_of(packed.bits, packed.length, packed.seed)
    decode_rows = kernels_of(packed.bits).decode_rows
    rows = np.ascontiguousarray(packed.rows)
    out = np.empty((n, packed.length), np.float32)
    for_ranges(lambda lo, hi: decode_rows(rows, code, out, lo, hi), n, _GRAIN // packed.length + 1, threads)
    return out


def inner_products(packed: Packed, query: np.ndarray, threads: int | None = None) -> np.ndarray:
    """⟨query, vector⟩ of each packed vector: the query is rotated once, the codes are read as they lie.

    Parameters
    ----------
    query : array of shape (d,).

    Returns
    -------
    array of shape (n,), float32
    """
    import numpy as np

    from ggufkit.turboquant.kernels import kernels_of

    if np.shape(query) != (packed.length,):
        raise CodecError(f"a query has {packed.length} coordinates here, not the shape {list(np.shape(query))}")
    code = code_of(packed.bits, packed.length, packed.seed)
    products = kernels_of(packed.bits).products
    turned = Hadamard(packed.length, packed.seed).forward(np.asarray(query, np.float32))
    n = len(packed.rows)
    rows, out = np.ascontiguousarray(packed.rows), np.empty(n, np.float32)
    grain = _GRAIN // packed.length + 1
    for_ranges(lambda lo, hi: products(rows, turned, code, out, lo, hi), n, grain, threads)
    return out


def _checked_bits(bits: int) -> int:
    if bits not in BITS:
        raise UsageError(f"TurboQuant has {BITS[0]} to {BITS[-1]} bits per coordinate, not {bits}")
    return bits


@cache
def code_of(bits: int, length: int, seed: int = 0, scale: str = "matched") -> Code:
    """What the kernels need to encode or decode vectors of this kind.

    Raises
    ------
    UsageError : see `encode`.
    """
    import numpy as np

    from ggufkit.turboquant.kernels import Code

    _checked_bits(bits)
    if scale not in SCALES:
        raise UsageError(f"the scale of a vector can be {', '.join(SCALES)}, not {scale}")
    rotation = Hadamard(length, seed)
    levels = codebook(bits)
    positive = levels[len(levels) // 2 :]
    borders = np.full(len(positive) // 16 * 16 + 16, np.inf, np.float32)
    borders[0], borders[1 : len(positive)] = 0, (positive[1:] + positive[:-1]) / 2
    # Cells half as wide as the narrowest gap between borders hold one border at most.
    narrowest = np.diff(borders[: len(positive)]).min() if len(positive) > 1 else np.float32(1)
    per_one = np.float32(2 / narrowest)
    starts = np.arange(int(positive[-1] * per_one) + 2, dtype=np.float32) / per_one
    cells = np.searchsorted(borders[1 : len(positive)], starts, side="left").astype(np.int32)
    table = np.zeros(-(-len(levels) // 16) * 16, np.float32)
    table[: len(levels)] = levels
    mix = hartley(length // rotation.part)
    for array in (table, borders, cells):
        array.flags.writeable = False
    return Code(SCALES.index(scale), rotation.part, mix, rotation.signs, table, borders, cells, per_one)
