"""Where the bytes of a file go: `write(offset, data)`, in any order, and the file is there when all are written."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Protocol

from ggufkit.errors import os_errors
from ggufkit.storage.files import AtomicFile
from ggufkit.storage.once import reserve, write_streamed

__all__ = ["FileSink", "Sink"]

# Linux moves at most 2 GiB - 4 KiB in one call.
_MAX_WRITE = 1 << 30


class Sink(Protocol):
    """A file of known size to be written at random. A context manager: a clean exit commits, an exception discards.

    Attributes
    ----------
    path : where it will be, for messages.
    size : bytes. What is never written reads as zeros.
    """

    size: int

    @property
    def path(self) -> str: ...

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at a byte of the file; safe to call from several threads."""

    def commit(self) -> None:
        """Make the file appear under its name, whole and on the device."""

    def discard(self) -> None:
        """Forget it: what was at `path` stays."""


class FileSink:
    """A local file: an `AtomicFile` of a size that is known.

    Parameters
    ----------
    path, force, temp : see `AtomicFile`.
    size : bytes of the file.
    reserved : take the room on the disk at once, see `once.reserve`. Not for copies that may share the source's
        blocks.

    Raises
    ------
    FileError : see `AtomicFile`; the disk is full.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: int,
        *,
        force: bool = False,
        temp: str | os.PathLike[str] | None = None,
        reserved: bool = False,
    ):
        self.size = size
        self._output = AtomicFile(path, force, temp)
        try:
            with os_errors(path, "write"):
                if reserved:
                    reserve(self.fileno(), size)
                else:
                    self._output.file.truncate(size)
        except BaseException:
            self._output.discard()
            raise

    @property
    def path(self) -> str:
        """The target, links resolved."""
        return self._output.path

    def fileno(self) -> int:
        """The descriptor of the temporary file, for copies inside the kernel."""
        return self._output.file.fileno()

    def write(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        # File systems write to a file one call at a time. To wait for that in the kernel takes less than to wake up.
        with os_errors(self.path, "write"):
            while view:
                n = write_streamed(self.fileno(), view[:_MAX_WRITE], offset)
                view, offset = view[n:], offset + n

    def commit(self) -> None:
        self._output.commit()

    def discard(self) -> None:
        self._output.discard()

    def __enter__(self) -> FileSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._output.__exit__(kind, value, trace)
