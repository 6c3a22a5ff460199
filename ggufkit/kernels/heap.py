"""The C library's heap, in which arrays lie that are made and dropped again and again.

A pass over a prompt does so with tens of megabytes, layer after layer; a conversion, with each piece of a tensor. GNU's
library takes each from the system and gives it back, and the system clears every page again.
"""

from __future__ import annotations

import ctypes
import functools

__all__ = ["keep_arrays"]

_ARRAY, _KEPT = 32 << 20, 256 << 20  # malloc takes no larger limit for arrays
# M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD of malloc.h: without the last the heaps of threads, 64 MB each, are
# given back when they are empty.
_LIMITS = {-3: _ARRAY, -1: _KEPT, -2: _KEPT}


@functools.cache
def keep_arrays() -> bool:
    """Have the heap keep up to 256 MB that are free, and hold arrays up to 32 MB; False with other libraries."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    taken = [mallopt(limit, size) for limit, size in _LIMITS.items()]
    return all(taken)
