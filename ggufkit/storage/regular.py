"""Files that are files: a FIFO would be waited for, a device never ends, and a sparse file may claim a terabyte."""

from __future__ import annotations

import os
import stat

from ggufkit.errors import FileError, os_errors, printable

__all__ = ["kind_of_file", "open_regular", "read_small"]

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def kind_of_file(mode: int) -> str | None:
    """What a file is that is no regular file: "a FIFO"; None for a regular one."""
    return next((kind for test, kind in _KINDS if test(mode)), None if stat.S_ISREG(mode) else "not a regular file")


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY, doing: str = "read") -> int:
    """A handle of a regular file; never waits for somebody at the other end.

    Raises
    ------
    FileError : it is missing, unreadable, or something else than a file.
    """
    flags |= getattr(os, "O_CLOEXEC", 0)
    with os_errors(path, doing):
        try:
            handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
        except BlockingIOError:  # a file that somebody has leased, to change it: worth the wait
            handle = os.open(path, flags)
    if (kind := kind_of_file(os.fstat(handle).st_mode)) is not None:
        os.close(handle)
        raise FileError(f"cannot {doing} {printable(os.fspath(path))}: it is {kind}, not a file")
    return handle


def read_small(path: str | os.PathLike[str], limit: int) -> bytes:
    """The contents of a regular file of at most `limit` bytes.

    Raises
    ------
    FileError : it is missing, unreadable, something else than a file, or larger.
    """
    with os.fdopen(open_regular(path), "rb") as file, os_errors(path, "read"):
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise FileError(f"cannot read {printable(os.fspath(path))}: it has {size} bytes, the limit is {limit}")
        return file.read(limit)
