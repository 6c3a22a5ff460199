"""Weights that pass through once: from a large file, to another one.

    read_direct          into memory of our own, past the system's cache
    streamed             … or through it, and what was read is given back
    reserve              room on the disk for all that will be written
    write_streamed       through the cache and on to the device

A model of 20 GB in the system's cache pushes everything else out of it, and new pages for it cost more than reading
does. All of this is Linux's; elsewhere, and on file systems that cannot, bytes are read and written as usual.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from functools import cache
from mmap import PAGESIZE
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DirectReader", "reserve", "streamed", "streamed_all", "write_streamed"]

_LINUX = sys.platform == "linux"

# Bytes below which a call to the system costs more than the memory it gives back.
_LARGE = 1 << 17
# Bytes between two calls that give pages back. What was read last is not yet among them: another thread may be at the
# pages beside it, and to wait for those takes the system a millisecond.
_STRIDE = 8 << 20
# What addresses, places in the file and sizes must be multiples of to read past the cache; some devices want less.
_ALIGNED = 4096

# RWF_DONTCACHE of Linux 6.14: written pages start on their way to the device and then leave the cache by themselves.
_DONTCACHE = 0x80
# cachestat of Linux 6.5: which pages of a file the cache holds.
_CACHESTAT = 451


class DirectReader:
    """Reads parts of an open file past the system's cache, but for those that lie there already.

    Parameters
    ----------
    handle : its descriptor. Another one is opened, which `close` closes.

    Attributes
    ----------
    works : the system and the file system can do it, so that what is to be read as usual was in the cache before.
    """

    def __init__(self, handle: int):
        self._handle, self._direct = handle, -1
        if _LINUX and _cached(handle, 0, 0) is not None:
            with suppress(OSError):  # the file system cannot, or there is no /proc
                self._direct = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        self.works = self._direct >= 0

    def read(self, offset: int, n: int) -> np.ndarray | None:
        """Bytes from byte `offset` on: array of shape (n,), uint8, read-only. None where they must be read as usual."""
        if not self.works or n < _LARGE or _cached(self._handle, offset, n):
            return None
        import numpy as np

        head = offset % _ALIGNED
        size = -(-(head + n) // _ALIGNED) * _ALIGNED
        memory = np.empty(size + _ALIGNED, np.uint8)
        start = -memory.ctypes.data % _ALIGNED
        try:
            found = os.preadv(self._direct, [memory[start : start + size].data], offset - head)
        except OSError:  # as usual it may work, or fail for a better reason
            self.works = False
            return None
        if found < head + n:
            return None
        part = memory[start + head : start + head + n]
        part.flags.writeable = False
        return part

    def close(self) -> None:
        if not self.works:
            streamed_all(self._handle)
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1


def _cached(handle: int, offset: int, n: int) -> bool | None:
    """Whether most of a part of a file is in the system's cache; None if the system does not say."""
    import ctypes

    part = (ctypes.c_uint64 * 2)(offset, n)
    found = (ctypes.c_uint64 * 5)()  # pages: in the cache, dirty, being written, and two more
    if _cachestat()(_CACHESTAT, handle, part, found, 0):
        return None
    return 2 * found[0] * PAGESIZE >= n


@cache
def _cachestat() -> Any:
    """A call to the system that takes a microsecond, so without giving the interpreter's lock away."""
    import ctypes

    return ctypes.PyDLL(None).syscall


def streamed(handle: int, offset: int, n: int) -> None:
    """Give back the pages of what was read or written, and will not be looked at again soon.

    What was written starts on its way to the device: the flush at the end finds less to do.
    """
    start = max(0, offset // _STRIDE - 3) * _STRIDE
    end = ((offset + n) // _STRIDE - 1) * _STRIDE
    if n > -offset % _STRIDE and end > start and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, start, end - start, os.POSIX_FADV_DONTNEED)


def streamed_all(handle: int) -> None:
    """As `streamed`, all that is left of a file."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)


def reserve(handle: int, size: int) -> None:
    """Make a file `size` bytes long and take the room for them where the system can: zeros until they are written.

    What is written there cannot run out of disk any more, and costs a third less than into a hole.

    Raises
    ------
    OSError : the disk has not that much room left.
    """
    before = os.fstat(handle).st_size
    os.ftruncate(handle, size)
    if not _LINUX:
        return
    import ctypes

    # os.posix_fallocate writes to every block where the file system cannot do it.
    allocate = ctypes.CDLL(None, use_errno=True).fallocate
    if allocate(handle, 0, ctypes.c_long(0), ctypes.c_long(size)):
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            os.ftruncate(handle, before)  # gives back what there was
            raise OSError(code, os.strerror(code))


def write_streamed(handle: int, data: memoryview, offset: int) -> int:
    """Write bytes that will not be looked at again soon; returns how many the system took.

    Parts of a page stay in the cache: the system would have to read them again for whoever writes the rest.
    """
    head = -offset % PAGESIZE
    whole = (len(data) - head) // PAGESIZE * PAGESIZE
    if _LINUX and whole >= _LARGE:
        if head:
            return os.pwrite(handle, data[:head], offset)
        try:
            return os.pwritev(handle, [data[:whole]], offset, _DONTCACHE)
        except NotImplementedError:  # this libc cannot
            pass
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise  # else this kernel or file system cannot
    n = os.pwrite(handle, data, offset)
    streamed(handle, offset, n)
    return n
