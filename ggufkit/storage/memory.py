"""Memory that is used again, as the system clears what is new, and that takes longer than to read into it; and memory
of which only what is written takes any."""

from __future__ import annotations

import mmap
import weakref
from collections import defaultdict, deque
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Pool", "sparse_zeros"]

_PAGE = 4096

# How many times as large as needed memory may be.
_LARGER = 4

# Bytes from which an array is worth a mapping of its own.
_MAPPED = 1 << 16


class Pool:
    """Arrays of bytes whose memory comes back when nobody has them or a view of them any more.

    Safe to use from several threads.

    Parameters
    ----------
    limit : bytes that may lie here unused.
    """

    def __init__(self, limit: int):
        self._limit = limit
        # By size. Memory may come back wherever Python collects garbage: no lock, only steps that are whole.
        self._free: defaultdict[int, deque[mmap.mmap]] = defaultdict(deque)

    @property
    def unused(self) -> int:
        """Bytes that lie here."""
        return sum(size * len(free) for size, free in list(self._free.items()))

    def take(self, n: int) -> np.ndarray:
        """Array of shape (n,), uint8, at an address that is a multiple of a page; its contents are anything."""
        import numpy as np

        grain = max(_PAGE, 1 << max(0, n.bit_length() - 4))  # so that arrays of nearly a size fit
        size = max(1, -(-n // grain)) * grain
        for fitting in sorted(known for known in list(self._free) if size <= known <= _LARGER * size):
            with suppress(IndexError):
                memory, size = self._free[fitting].pop(), fitting
                break
        else:
            memory = _new(size)
        array = np.frombuffer(memory, np.uint8, n)
        weakref.finalize(array, self._back, memory, size).atexit = False
        return array

    def _back(self, memory: mmap.mmap, size: int) -> None:
        for other in list(self._free):  # make room: what is needed now is of this size
            if self.unused + size <= self._limit:
                break
            if other != size:
                self._free[other].clear()
        if self.unused + size <= self._limit:
            self._free[size].append(memory)


def _new(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    return _mapped(size, "MADV_HUGEPAGE")


def sparse_zeros(n: int) -> np.ndarray:
    """Array of shape (n,), uint8, of zeros, of which pages are taken when they are first written.

    `np.zeros` gives none such: it asks for huge pages, and what was freed before is cleared as a whole.

    Raises
    ------
    MemoryError : the system does not give so much.
    """
    import numpy as np

    if n < _MAPPED or not hasattr(mmap, "MAP_PRIVATE"):
        return np.zeros(n, np.uint8)
    try:
        return np.frombuffer(_mapped(n, "MADV_NOHUGEPAGE"), np.uint8)
    except (OSError, OverflowError) as e:
        raise MemoryError(f"no room for {n} bytes") from e


def _mapped(size: int, advice: str) -> mmap.mmap:
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, advice):
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(getattr(mmap, advice))
    return memory
