"""Where the bytes of a file come from: `read(offset, n)` and nothing else."""

from __future__ import annotations

import os
from typing import Protocol

from ggufkit.errors import FileError, GGUFError, os_errors, printable

__all__ = ["FileSource", "Source", "is_address", "open_source"]


class Source(Protocol):
    """Random access to a file's bytes.

    Attributes
    ----------
    name : path or address, for messages.
    size : bytes.
    """

    name: str
    size: int

    def read(self, offset: int, n: int) -> bytes:
        """Exactly `n` bytes from byte `offset`; safe to call from several threads."""

    def close(self) -> None:
        """Give the file back."""


def is_address(path: str) -> bool:
    """Whether `path` is an address that is read over the network."""
    return path.startswith(("https://", "http://", "hf://"))


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open a local path, or an address.

    Raises
    ------
    FileError : it is missing or unreadable.
    """
    name = os.fspath(path)
    if not is_address(name):
        return FileSource(name)
    from ggufkit.gguf.remote import RemoteSource

    return RemoteSource(name)


class FileSource:
    """A local file, read with `pread`.

    Reading beats mapping here: memory stays bounded while a large file streams through, and a file that somebody
    truncates meanwhile gives an error instead of a bus error.
    """

    # Linux moves at most 2 GiB - 4 KiB in one call.
    MAX_READ = 1 << 30

    def __init__(self, path: str | os.PathLike[str]):
        self.name = os.fspath(path)
        with os_errors(path, "read"):
            self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            try:
                self.size = os.lseek(self._handle, 0, os.SEEK_END)
                if os.path.isdir(path):
                    raise FileError(f"cannot read {printable(self.name)}: is a directory")
            except BaseException:
                os.close(self._handle)
                raise

    def fileno(self) -> int:
        return self._handle

    def read(self, offset: int, n: int) -> bytes:
        with os_errors(self.name, "read"):
            data = os.pread(self._handle, min(n, self.MAX_READ), offset)
            if len(data) == n:
                return data
            parts = [data]
            done = len(data)
            while done < n and data:
                data = os.pread(self._handle, min(n - done, self.MAX_READ), offset + done)
                parts.append(data)
                done += len(data)
        if done < n:
            raise GGUFError(
                f"the file ends {n - done} bytes early; it was cut while being read", self.name, offset + done
            )
        return b"".join(parts)

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __del__(self) -> None:
        if getattr(self, "_handle", -1) >= 0:
            self.close()
