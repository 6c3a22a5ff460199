"""Where the bytes of a file come from: `read(offset, n)`, of a local file or of an address.

A local file is locked while it is open, and what settles an edit that died is handed in by whoever opens it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ggufkit.errors import FileError, GGUFError, os_errors, printable
from ggufkit.storage.files import lock_file
from ggufkit.storage.regular import open_regular

if TYPE_CHECKING:
    import numpy as np

    from ggufkit.storage.once import OnceReader

__all__ = ["FileSource", "Settle", "Source", "is_address", "open_source"]

# Takes back a change of the file that died half-way, given its path and a handle with the shared lock. What it could
# not take back it returns, to be read over the file's bytes: (offset, bytes) each. None: ask again in a moment.
Settle = Callable[[str, int], "list[tuple[int, bytes]] | None"]


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

    def array(self, offset: int, n: int) -> np.ndarray:
        """The same bytes as an array of shape (n,), uint8, read-only: for weights, which may be many."""

    def close(self) -> None:
        """Give the file back."""


def is_address(path: str) -> bool:
    """Whether `path` is an address that is read over the network."""
    return path.startswith(("https://", "http://", "hf://"))


def open_source(path: str | os.PathLike[str], settle: Settle | None = None) -> Source:
    """Open a local path, or an address.

    Parameters
    ----------
    settle : see `FileSource`.

    Raises
    ------
    FileError : it is missing or unreadable.
    """
    name = os.fspath(path)
    if not is_address(name):
        return FileSource(name, settle=settle)
    from ggufkit.storage.http import RemoteSource

    return RemoteSource(name)


def _nothing_to_settle(path: str, handle: int) -> list[tuple[int, bytes]]:
    return []


class FileSource:
    """A local file, read with `pread`.

    Reading beats mapping here: memory stays bounded while a large file streams through, and a file that somebody
    truncates meanwhile gives an error instead of a bus error.

    While it is open the file is locked (flock, shared), so that nobody who takes the lock changes it meanwhile.

    Parameters
    ----------
    writable : open it for writing, too.
    settle : called with path and handle under the lock, to take back what died half-way; see `Settle`.

    Attributes
    ----------
    overlay : what to read over the file's bytes: (offset, bytes) each.
    """

    # Linux moves at most 2 GiB - 4 KiB in one call.
    MAX_READ = 1 << 30
    # Bytes that cost next to nothing when something before them is read.
    AHEAD = 8 << 20
    # An edit in place takes milliseconds.
    WAIT = 10.0

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = False, settle: Settle | None = None):
        self.name = os.fspath(path)
        self._once: OnceReader | None = None
        with os_errors(path, "change" if writable else "read"):
            mode = os.O_RDWR if writable else os.O_RDONLY
            self._handle = open_regular(path, mode, "change" if writable else "read")
            try:
                self.size = os.lseek(self._handle, 0, os.SEEK_END)
                self.overlay = self._locked(settle or _nothing_to_settle)
            except BaseException:
                self.close()
                raise

    def _locked(self, settle: Settle) -> list[tuple[int, bytes]]:
        give_up = time.monotonic() + self.WAIT
        while True:
            if lock_file(self._handle, shared=True) and (overlay := settle(self.name, self._handle)) is not None:
                return overlay
            if time.monotonic() > give_up:
                raise FileError(f"cannot read {printable(self.name)}: another program is changing it")
            time.sleep(0.002)

    def fileno(self) -> int:
        return self._handle

    def read(self, offset: int, n: int) -> bytes:
        data = self._read(offset, n)
        for at, old in self.overlay:
            if at < offset + n and offset < at + len(old):
                part = old[max(0, offset - at) : offset + n - at]
                start = max(0, at - offset)
                data = data[:start] + part + data[start + len(part) :]
        return data

    def _read(self, offset: int, n: int) -> bytes:
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
            raise self._cut(n - done, offset + done)
        return b"".join(parts)

    def array(self, offset: int, n: int) -> np.ndarray:
        import numpy as np

        once = None if self.overlay else self._once
        if once is not None and n <= self.MAX_READ and (found := once.read(offset, n)) is not None:
            return found
        data = self.read(offset, n)
        if once is not None:
            once.was_read(offset, n)
        return np.frombuffer(data, np.uint8)

    def read_once(self) -> None:
        """From now on weights are read about once: `array` leaves the system's cache alone."""
        if self._once is None:
            from ggufkit.storage.once import OnceReader

            self._once = OnceReader(self._handle)

    def read_into(self, offset: int, view: memoryview) -> None:
        if self.overlay or not hasattr(os, "preadv"):
            view[:] = self.read(offset, len(view))
            return
        done = 0
        with os_errors(self.name, "read"):
            while done < len(view):
                n = os.preadv(self._handle, [view[done : done + self.MAX_READ]], offset + done)
                if not n:
                    break
                done += n
        if done < len(view):
            raise self._cut(len(view) - done, offset + done)

    def _cut(self, n: int, offset: int) -> GGUFError:
        return GGUFError(f"the file ends {n} bytes early; it was cut while being read", self.name, offset)

    def close(self) -> None:
        if self._handle >= 0:
            if self._once is not None:
                self._once.close()
            os.close(self._handle)
            self._handle = -1

    def __del__(self) -> None:
        if getattr(self, "_handle", -1) >= 0:
            self.close()
