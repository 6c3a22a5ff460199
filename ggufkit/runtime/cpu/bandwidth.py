"""A kernel that reads: what memory can do at best, to compare a model's speed with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ggufkit.kernels.dot import load_bytes
from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lanes import splat, total
from ggufkit.kernels.shares import take
from ggufkit.kernels.threads import SHARES, in_all_threads

__all__ = ["read_all"]

_CHUNK = 1 << 20


@kernel
def _read(turn, data):
    """All whole 256 bytes of `data`, shared by threads; the result is of no use."""
    a = b = c = d = splat(np.int32(0))
    first = take(turn, _CHUNK)
    while first < data.size:
        for i in range(first, min(first + _CHUNK, data.size) - 255, 256):
            a = a ^ load_bytes(data, i)
            b = b ^ load_bytes(data, i + 64)
            c = c ^ load_bytes(data, i + 128)
            d = d ^ load_bytes(data, i + 192)
        first = take(turn, _CHUNK)
    return total(a ^ b ^ c ^ d)


def read_all(arrays: Sequence[np.ndarray], threads: int | None = None) -> None:
    """Read flat arrays of bytes once, in all threads."""
    for first in range(0, len(arrays), SHARES):
        some = arrays[first : first + SHARES]

        def work(shares: Sequence[np.ndarray], some: Sequence[np.ndarray] = some) -> None:
            for data, turn in zip(some, shares, strict=False):
                _read(turn, data)

        in_all_threads(work, threads)
