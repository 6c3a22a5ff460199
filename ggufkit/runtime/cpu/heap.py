"""The C library's heap, in which the arrays of a pass lie.

A pass over a prompt makes and drops arrays of tens of megabytes, layer after layer. GNU's library takes each from the
system and gives it back, and the system clears every page again: a tenth of the time of a prompt.
"""

from __future__ import annotations

import ctypes
import functools

__all__ = ["keep_arrays"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_… of malloc.h
_ARRAY, _KEPT = 64 << 20, 256 << 20


@functools.cache
def keep_arrays() -> None:
    """Have the heap keep up to 256 MB that are free, and hold arrays up to 64 MB; does nothing with other libraries."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, _ARRAY)
    mallopt(_TRIM_THRESHOLD, _KEPT)
