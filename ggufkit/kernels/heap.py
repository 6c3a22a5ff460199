"""The C library's heap, in which arrays lie that are made and dropped again and again.

A pass over a prompt does so with tens of megabytes, layer after layer; a conversion, with each piece of a tensor. GNU's
library takes each from the system and gives it back, and the system clears every page again: a tenth of the time of a
prompt, a fifth of that of a conversion that only repacks.
"""

from __future__ import annotations

import ctypes
import functools

__all__ = ["keep_arrays"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # M_… of malloc.h
_ARRAY, _KEPT = 32 << 20, 256 << 20  # malloc takes no larger limit for arrays


@functools.cache
def keep_arrays() -> None:
    """Have the heap keep up to 256 MB that are free, and hold arrays up to 32 MB; does nothing with other libraries."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, _ARRAY)
    mallopt(_TRIM_THRESHOLD, _KEPT)
    mallopt(_TOP_PAD, _KEPT)  # or the heaps of threads, 64 MB each, are given back when they are empty
