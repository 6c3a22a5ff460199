"""The codebooks of the IQ formats, from the gguf package, and which of their rows are near which point.

A codebook ("grid") has rows of four or eight small numbers; a block stores row numbers. Only some of the possible
rows are in it, so an encoder rounds its weights to a point, a "cell", and where the cell has no row of its own it
tries the rows around it. Which rows those are is derived here, once a process: tens of milliseconds for the largest.

Source: the tables `iq2xxs_grid` … `iq1s_grid` of ggml/src/ggml-common.h, as gguf-py carries them;
iq2xs_init_impl and iq3xs_init_impl of ggml-quants.c.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from ggufkit.kernels.jit import helper, kernel
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
    from gguf import quants

    source = getattr(quants, name)
    source.init_grid()
    return np.ascontiguousarray(source.grid[0, 0], dtype=np.int8)


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
    base, dims, want = len(numbers), rows.shape[1], _DISTANCES[name]
    values = levels - np.int8(1) if name == "IQ1_S" else 2 * levels + np.int8(1)
    cells = np.empty(base**dims, np.int32)
    nothing = np.empty(0, np.int8), np.empty(0, np.uint16)
    groups = _find_candidates(levels, values, base, want, cells, *nothing)
    points, found = np.empty(groups * dims * LANES, np.int8), np.empty(groups * LANES, np.uint16)
    _find_candidates(levels, values, base, want, cells, points, found)
    packed = np.ascontiguousarray(values).view(np.int32).reshape(-1)
    return Neighbours(*map(_frozen, (cells, points, found, packed)))


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@kernel
def _find_candidates(levels, values, base, want, cells, points, rows):
    """Fill `cells`, and `points` and `rows` unless they are empty. Returns the number of groups.

    levels, values: (rows, dims) int8. The candidates of a cell are all rows whose distance is among the `want`
    smallest that occur, by distance and then by number.
    """
    count, dims = levels.shape
    distance = np.empty(count, np.int32)
    seen = np.empty(dims * (base - 1) ** 2 + 1, np.int32)
    digits = np.empty(dims, np.int32)
    group = 0
    for cell in range(cells.size):
        rest = cell
        for i in range(dims):
            digits[i] = rest % base
            rest //= base
        seen[:] = 0
        for r in range(count):
            d = 0
            for i in range(dims):
                d += (levels[r, i] - digits[i]) ** 2
            distance[r] = d
            seen[d] += 1
            if d == 0:
                cells[cell] = r
        if seen[0]:
            continue
        have = position = 0
        for d in range(1, seen.size):
            if seen[d] == 0 or have == want:
                continue
            have += 1
            if rows.size:
                for r in range(count):
                    if distance[r] == d:
                        _put(points, rows, group, position, values[r], r)
                        position += 1
            else:
                position += seen[d]
        groups = -(-position // LANES)
        if rows.size:
            nearest = rows[LANES * group] & ROW
            for filler in range(position, groups * LANES):
                _put(points, rows, group, filler, values[nearest], nearest)
        cells[cell] = groups << 16 | group
        group += groups
    return group


@helper
def _put(points, rows, group, position, numbers, row):
    group += position // LANES
    k = position % LANES
    rows[LANES * group + k] = row | OFF_GRID
    for i in range(numbers.size):
        points[(group * numbers.size + i) * LANES + k] = numbers[i]
