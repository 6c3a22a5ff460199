"""Weights that pass once: from a large file, to another one.

    OnceReader           reads into memory of our own, past the system's cache; or through it, and gives the pages back
    reserve              takes the room on the disk for all that will be written
    write_streamed       writes through the cache and on to the device

A model of 20 GB in the system's cache pushes everything else out of it, and new pages for it cost more than reading
does. Linux has all of this. macOS takes the room (F_PREALLOCATE) and reads past its cache (F_NOCACHE); it has no
O_DIRECT, nor does it say what is cached. Elsewhere, and on file systems that cannot, bytes are read and written as
usual.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import threading
from contextlib import suppress
from functools import cache
from mmap import PAGESIZE
from typing import TYPE_CHECKING, Any

from ggufkit.storage.memory import Pool

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OnceReader", "reserve", "write_streamed"]

_LINUX = sys.platform == "linux"
_MACOS = sys.platform == "darwin"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Bytes below which all of this costs more than it saves.
_LARGE = 1 << 17
# Bytes between two calls that give pages back. What was read last is not yet among them: another thread may be at the
# pages beside it, and to wait for those takes the system a millisecond.
_STRIDE = 8 << 20
# What addresses, places in the file and sizes must be multiples of to read past the cache; some devices want less.
_ALIGNED = 4096

# What was read into is read into again.
_POOL = Pool(64 << 20)

# RWF_DONTCACHE of Linux 6.14: written pages start on their way to the device and then leave the cache by themselves.
_DONTCACHE = 0x80
# What must be in the cache behind a part that is read from there: else the system would read ahead, again and again.
_BEHIND = 16 << 20
# cachestat of Linux 6.5: which pages of a file the cache holds.
_CACHESTAT = 451

# Commands of macOS's fcntl, and the start and end of its fstore_t: flags, how to count (from the end of what the file
# has on the disk), offset, length, and what was taken.
_F_PREALLOCATE, _F_NOCACHE = 42, 48
_ALLOCATE_ALL, _FROM_END = 4, 3
_STORE = struct.Struct("=Iiqqq")


class OnceReader:
    """Reads an open file that is not read again soon, and leaves the system's cache as it is.

    Safe to use from several threads.

    Parameters
    ----------
    handle : its descriptor. Another one may be opened, which `close` closes.
    """

    def __init__(self, handle: int):
        self._handle = handle
        self._lock = threading.Lock()
        self._reading = -1  # a descriptor that reads past the cache, if there is one
        self._direct: int | None = None  # the same while it works; None until it was tried
        self._through = 0  # bytes at the start of the file that have parts read through the cache, to give back

    def read(self, offset: int, n: int) -> np.ndarray | None:
        """Bytes from byte `offset` on: array of shape (n,), uint8, read-only. None where they must be read as usual."""
        if n < _LARGE or self._opened() < 0 or self._cached(offset, n):
            return None
        start = offset % _ALIGNED
        memory = _POOL.take(-(-(start + n) // _ALIGNED) * _ALIGNED)
        try:
            found = os.preadv(self._opened(), [memory.data], offset - start)
        except OSError:  # as usual it may work, or fail for a better reason
            self._direct = -1
            return None
        part = memory[start : start + n]
        part.flags.writeable = False
        return part if found >= start + n else None

    def was_read(self, offset: int, n: int) -> None:
        """Note that bytes were read as usual. Their pages are given back, unless they were in the cache before."""
        if n >= _LARGE and self._opened() < 0:
            self._through = max(self._through, offset + n)
            _give_back(self._handle, offset, n)

    def close(self) -> None:
        if self._through:
            _advise(self._handle, 0, self._through)
        if self._reading >= 0:
            os.close(self._reading)
        self._direct = self._reading = -1

    def _cached(self, offset: int, n: int) -> bool:
        """Whether a part of the file and what lies behind it are in the system's cache."""
        if _cached_pages(self._handle, offset, n) * PAGESIZE < n:
            return False  # most often, and known sooner
        n = min(n + _BEHIND, os.fstat(self._handle).st_size - offset)
        return _cached_pages(self._handle, offset, n) * PAGESIZE >= n

    def _opened(self) -> int:
        if self._direct is None:
            with self._lock:
                if self._direct is None:
                    self._reading = _open_direct(self._handle)
                    self._direct = self._reading
        return self._direct


def _open_direct(handle: int) -> int:
    """A descriptor that reads past the cache, or -1. On macOS `handle` itself does from now on."""
    if _MACOS:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.fcntl(handle, _F_NOCACHE, 1)
        return -1
    if not _LINUX or _cached_pages(handle, 0, 1) < 0:
        return -1
    try:
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:  # the file system cannot, or there is no /proc
        return -1


def _cached_pages(handle: int, offset: int, n: int) -> int:
    """How many pages of a part of a file are in the system's cache; -1 if the system does not say."""
    try:
        import ctypes

        part = (ctypes.c_uint64 * 2)(offset, n)
        found = (ctypes.c_uint64 * 5)()  # pages: in the cache, dirty, being written, and two more
        if _cachestat()(_CACHESTAT, handle, part, found, 0):
            return -1
    except (ImportError, OSError, AttributeError):
        return -1
    return found[0]


@cache
def _cachestat() -> Any:
    """A call to the system that takes a microsecond, so without giving the interpreter's lock away."""
    import ctypes

    return ctypes.PyDLL(None).syscall


def _give_back(handle: int, offset: int, n: int) -> None:
    """Give back the pages of what was read or written, up to some bytes before; now and then.

    What was written starts on its way to the device: the flush at the end finds less to do.
    """
    start = max(0, offset // _STRIDE - 3) * _STRIDE
    end = ((offset + n) // _STRIDE - 1) * _STRIDE
    if n > -offset % _STRIDE and end > start:
        _advise(handle, start, end - start)


def _advise(handle: int, start: int, n: int) -> None:
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(handle, start, n, os.POSIX_FADV_DONTNEED)


def reserve(handle: int, size: int) -> None:
    """Make a file `size` bytes long and, where the system can, take the room on the disk for the bytes that are new.

    They read as zeros. To write there costs a third less than into a hole, and on most file systems it cannot run out
    of disk any more.

    Raises
    ------
    OSError : the disk has not that much room left; the file is as it was.
    """
    before = os.fstat(handle).st_size
    if before == size:
        return
    if _MACOS and size > before and (code := _preallocate(handle, size - before)):
        raise OSError(code, os.strerror(code))
    os.ftruncate(handle, size)
    if size > before and (code := _allocate(handle, before, size - before)):
        os.ftruncate(handle, before)
        raise OSError(code, os.strerror(code))


def _preallocate(handle: int, n: int) -> int:
    """Take room behind a file's end, before it grows. 0, or the number of the error if the disk is full."""
    try:
        import fcntl

        fcntl.fcntl(handle, _F_PREALLOCATE, _STORE.pack(_ALLOCATE_ALL, _FROM_END, 0, n, 0))
    except ImportError:
        return 0
    except OSError as e:
        return e.errno if e.errno in _FULL else 0
    return 0


def _allocate(handle: int, start: int, n: int) -> int:
    """0, or the number of the error if the disk is full."""
    if not _LINUX:
        return 0
    try:
        import ctypes

        # os.posix_fallocate writes to every block where the file system cannot do it.
        allocate = ctypes.CDLL(None, use_errno=True).fallocate
        if ctypes.sizeof(ctypes.c_long) < 8 or not allocate(handle, 0, ctypes.c_long(start), ctypes.c_long(n)):
            return 0
        code = ctypes.get_errno()
    except (ImportError, OSError, AttributeError):
        return 0
    return code if code in _FULL else 0


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
    _give_back(handle, offset, n)
    return n
