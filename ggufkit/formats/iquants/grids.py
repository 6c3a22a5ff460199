"""The codebooks of the IQ formats, from the gguf package.

A codebook ("grid") has rows of four or eight small numbers; a block stores row numbers.

Source: the tables `iq2xxs_grid` … `iq1s_grid` of ggml/src/ggml-common.h, as gguf-py carries them.
"""

from __future__ import annotations

from functools import cache

import numpy as np

__all__ = ["SIGNS", "codebook", "words"]

# 7 bits → the signs of eight weights, bit i for weight i: the eighth bit makes their number even.
SIGNS = np.array([s | (s.bit_count() & 1) << 7 for s in range(128)], np.uint8)


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
    packed = rows.view(np.uint32 if rows.shape[1] == 4 else np.uint64)[:, 0]
    packed.flags.writeable = False
    return packed
