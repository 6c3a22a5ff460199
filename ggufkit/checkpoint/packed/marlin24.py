"""marlin-24 of compressed-tensors: half of the codes, two of each four neighbours, in the order of a GPU's tiles.

    …weight_packed   (cols / 32, rows · bits / 2) I32   codes of the weights that are there, in tiles of 16 × 64
    …meta            (cols / 32, 2 · rows) I16          for each four neighbours which two these are
    …scale_packed    (groups, rows) F16                 w = scale · (code - 2^(bits - 1))

A tile has 16 of the kept inputs of 64 outputs, and its 1024 codes lie in the order in which 32 lanes load them. Each
I16 of `meta` tells of 16 weights, four bits for four of them: the place of the first that is there, that of the second.
Its rows are swizzled among 64.
Source: marlin_24.py and permutations_24.py among the compressors of compressed-tensors before 0.19, and its
semi_structured_conversions.py, after CUTLASS.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ggufkit.checkpoint.packed.integers import Integers
from ggufkit.checkpoint.packed.matrix import Groups
from ggufkit.checkpoint.packed.stored import Matrix, Source, require
from ggufkit.errors import CheckpointError, printable

if TYPE_CHECKING:
    import numpy as np

__all__ = ["PARTS", "marlin24"]

PARTS = ("weight_packed", "scale_packed", "meta")

_TILE_ROWS, _TILE = 64, 1024
# Which code of eight, or of four, comes next in a word.
_INTERLEAVED = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}


def marlin24(source: Source, module: str) -> Matrix:
    """One module.

    Raises
    ------
    CheckpointError : a part is missing, or their shapes do not belong together.
    """
    tensors = source.tensors
    stored = require(tensors, f"{module}.weight_packed", ("I32", "U32"), (-1, -1))
    scales = require(tensors, f"{module}.scale_packed", ("F16", "BF16", "F32"), (-1, -1))
    (tiles, words), (count, rows) = stored.shape, scales.shape
    cols = 32 * tiles
    bits = 2 * words // max(rows, 1)
    if bits not in _INTERLEAVED or 2 * words != bits * rows or rows % _TILE_ROWS or not count or cols % count:
        raise CheckpointError(
            f"{printable(module)}: weight_packed {list(stored.shape)} and scale_packed {list(scales.shape)} do not "
            "belong together"
        )
    meta = require(tensors, f"{module}.meta", "I16", (tiles, 2 * rows))
    zero = 1 << (bits - 1)

    def codes(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        first, last = lo // _TILE_ROWS * _TILE_ROWS, -(hi // -_TILE_ROWS) * _TILE_ROWS
        kept = _untiled(source.columns(stored, first * bits // 2, last * bits // 2), bits)  # (rows, cols / 2)
        places = _places(source.columns(meta, 2 * first, 2 * last))  # (rows, cols / 4, 2)
        found = np.full((last - first, cols // 4, 4), zero, np.uint8)
        np.put_along_axis(found, places, kept.reshape(places.shape), axis=2)
        return found.reshape(len(found), cols)[lo - first : hi - first]

    # Scales of groups lie in another order where there is more than one group of the kept inputs.
    swizzled = count > 1 and cols // count < cols // 2

    def scale(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        from ggufkit.checkpoint.packed.gptq import transposed_floats

        first, last = lo // _TILE_ROWS * _TILE_ROWS, -(hi // -_TILE_ROWS) * _TILE_ROWS
        values = transposed_floats(source, scales, first, last)
        if swizzled:
            order = np.array([0, 4, 1, 5, 2, 6, 3, 7])
            values = values.reshape(-1, 8, count)[:, np.argsort(order)].reshape(-1, count)
        return values[lo - first : hi - first]

    each = f"in groups of {cols // count}" if count > 1 else "a scale for each row"
    numbers = Integers((rows, cols), codes, bits, scale, zero, Groups.even(cols, cols // count))
    return Matrix(f"{module}.weight", f"marlin-24, {bits} bits {each}, two weights of four", numbers)


@cache
def _order(bits: int) -> np.ndarray:
    """Where in a tile of (16, 64), row by row of four tiles (16, 16), each of its stored codes belongs: (1024,)."""
    import numpy as np

    places = []
    for lane in range(32):
        column, rows = lane // 4, [2 * (lane % 4) + row for row in (0, 1, 8, 9)]
        for step in range(4):
            start = column // 2 * 256 + 8 * (column % 2) + step
            places += [16 * row + start + 4 * block for block in (0, 1) for row in rows]
    interleaved = np.array(_INTERLEAVED[bits])
    return np.array(places).reshape(-1, len(interleaved))[:, interleaved].reshape(-1)


def _untiled(words: np.ndarray, bits: int) -> np.ndarray:
    """(cols / 32, words of n rows) → codes of the kept weights, (n, cols / 2), uint8."""
    import numpy as np

    from ggufkit.formats.affine import unpack_codes

    stored = unpack_codes(np.ascontiguousarray(words).view(np.uint8), bits).reshape(len(words), -1, _TILE)
    tiles = np.empty_like(stored)
    tiles[:, :, _order(bits)] = stored
    whole = tiles.reshape(len(words), -1, 16, 16)  # (tiles of inputs, of outputs, inputs, outputs)
    return np.ascontiguousarray(whole.transpose(1, 3, 0, 2)).reshape(-1, 16 * len(words))


def _places(stored: np.ndarray) -> np.ndarray:
    """(cols / 32, 2 n) I16 → which two of each four neighbours are there: (n, cols / 4, 2), int64."""
    import numpy as np

    n = stored.shape[1] // 2
    pairs = np.ascontiguousarray(stored).view(np.uint16).reshape(len(stored), n, 2)
    row, column = np.arange(n)[:, None], np.arange(2)[None]
    swizzled = row // 64 * 64 + row % 2 * 2 + row % 8 // 4 + row % 32 % 4 // 2 * 32 + row % 64 // 8 * 4
    turned = (swizzled % 2 == 0) * (column == 1) * 1 - (swizzled % 2 == 1) * (column == 0) * 1
    taken = pairs[:, swizzled + turned, column - turned]  # (cols / 32, n, 2)
    words = taken.transpose(1, 0, 2).reshape(n, -1)
    bits = words[:, :, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    return bits.astype(np.int64).reshape(n, -1, 2)
