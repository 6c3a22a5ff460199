"""The codebooks of the IQ formats, and which of their rows are near which point.

A codebook ("grid") has rows of four or eight small numbers; a block stores row numbers. Only some of the possible
rows are in it, so an encoder rounds its weights to a point, a "cell", and where the cell has no row of its own it
tries the rows around it. Which rows those are is derived here, once a process: 30 milliseconds for the largest.

Source: iq2xs_init_impl and iq3xs_init_impl of ggml-quants.c; the tables are in `codebooks`.
"""

from __future__ import annotations

from base64 import b64decode
from functools import cache
from typing import NamedTuple

import numpy as np

from ggufkit.formats.iquants.codebooks import LEVELS, ROWS
from ggufkit.kernels.lanes import LANES

__all__ = ["OFF_GRID", "ROW", "SIGNS", "Neighbours", "codebook", "neighbours", "words"]

# 7 bits → the signs of eight weights, bit i for weight i: the eighth bit makes their number even.
SIGNS = np.array([s | (s.bit_count() & 1) << 7 for s in range(128)], np.uint8)

# A row that was chosen: its number, and whether it was only near the cell.
ROW, OFF_GRID = 0x3FFF, 0x4000

# How many different distances the rows around a cell may have.
_DISTANCES = {"IQ3_XXS": 2, "IQ3_S": 3, "IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ1_S": 3}


@cache
def codebook(name: str) -> np.ndarray:
    """The rows of a format's codebook: array of shape (rows, 4 or 8), int8. IQ1_M uses IQ1_S's."""
    levels = np.array(LEVELS[name], np.int8)
    rows = np.frombuffer(b64decode(ROWS[name]), "<u2").astype(np.int64)  # (rows,)
    dims = 8 if len(levels) == 3 else 4
    return levels[rows[:, None] // len(levels) ** np.arange(dims) % len(levels)]


@cache
def words(name: str) -> np.ndarray:
    """The rows as little-endian words, the first number in the lowest byte: (rows,) uint32 or uint64."""
    rows = codebook(name)
    return _frozen(rows.view(np.uint32 if rows.shape[1] == 4 else np.uint64)[:, 0])


class Neighbours(NamedTuple):
    """The candidates of each cell, in groups of 16, nearest first; the first one fills up the last group.

    A cell is the number of its levels, the first level in the lowest digit, base 3 (rows of 8) or 8 (rows of 4).

        cells[c]      0000nnnn nnnnnnnn gggggggg gggggggg      n groups of candidates, of which g is the first
                      00000000 00000000 00rrrrrr rrrrrrrr      no groups: the cell is row r
    """

    cells: np.ndarray  # (cells,) int32
    points: np.ndarray  # (groups · dims · 16,) int8: the candidates' numbers, candidates in lanes
    rows: np.ndarray  # (groups · 16,) uint16: ROW | OFF_GRID
    packed: np.ndarray  # (rows · dims / 4,) int32: the numbers of each row, four to a word


@cache
def neighbours(name: str) -> Neighbours:
    """The candidates of the codebook `name`, whose numbers are 1, 3, 5 … (IQ1_S: -1, 0, 1)."""
    rows = codebook(name)
    numbers = np.unique(rows)
    levels = np.searchsorted(numbers, rows).astype(np.int8)
    values = levels - np.int8(1) if name == "IQ1_S" else 2 * levels + np.int8(1)
    cells, found = _candidates(levels, len(numbers), _DISTANCES[name])
    points = np.ascontiguousarray(values[found].reshape(-1, LANES, rows.shape[1]).swapaxes(1, 2)).reshape(-1)
    packed = np.ascontiguousarray(values).view(np.int32).reshape(-1)
    return Neighbours(_frozen(cells), _frozen(points), _frozen(found | np.uint16(OFF_GRID)), _frozen(packed))


def _candidates(levels: np.ndarray, base: int, want: int) -> tuple[np.ndarray, np.ndarray]:
    """`Neighbours.cells`, and the row numbers of all groups. levels: (rows, dims) int8

    The candidates of a cell are all rows whose distance is among the `want` smallest that occur, by distance and then
    by number.
    """
    rows = len(levels)
    distances = np.zeros((1, rows), np.uint8)  # becomes (cells, rows): squares, a dimension after the other
    for of_rows in levels.T:
        along = ((np.arange(base, dtype=np.int8)[:, None] - of_rows) ** 2).astype(np.uint8)
        distances = (along[:, None] + distances).reshape(-1, rows)
    nearest, furthest = distances.argmin(axis=1), distances.min(axis=1)
    is_row = furthest == 0
    for _ in range(want - 1):
        beyond = furthest + np.uint8(1)
        furthest = beyond + (distances - beyond[:, None]).min(axis=1)  # what is nearer wraps round to the far end
    near = distances <= furthest[:, None]
    near[is_row] = False
    where = np.flatnonzero(near)
    cell, row = np.divmod(where, rows)
    row = row[np.lexsort((distances.reshape(-1)[where], cell))]
    count = np.bincount(cell, minlength=len(distances))
    groups = -(-count // LANES)
    first = np.cumsum(groups) - groups
    found = np.repeat(nearest, LANES * groups)
    found[np.arange(cell.size) + (LANES * first - (np.cumsum(count) - count))[cell]] = row
    return np.where(is_row, nearest, groups << 16 | first).astype(np.int32), found.astype(np.uint16)


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
