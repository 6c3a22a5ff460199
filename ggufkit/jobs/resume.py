"""Resume: what a run has written so far, beside the file that it writes.

    model.gguf.partial             the output to be, full size, zeros where nothing is written yet
    model.gguf.partial.resume      b3f1…c2          the key: hash of header, source, options and version
                                   4096 589824      a piece: byte of the file, bytes
                                   593920 589824

Once a second the output is flushed to the device, then the lines of what was written before are added. So every line
is true, after a kill or a power loss; what is lost is at most the work of a second. A record with another key is no
help and starts again from nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ggufkit import __version__
from ggufkit.errors import FileError, GgufkitError, os_errors, printable
from ggufkit.gguf.writer import FileLayout
from ggufkit.storage.files import lock_file, sync_file
from ggufkit.storage.regular import kind_of_file

__all__ = ["ResumeLog"]

# Bytes of a log that are looked at: 30 a line, and a line for at least a megabyte of the model.
_MAX_LOG = 64 << 20

_LINE = re.compile(r"([0-9]{1,19}) ([0-9]{1,19})")

_SECONDS = 1.0  # between two flushes


class ResumeLog:
    """The record of one partial output; holds a lock on it. Use as a context manager.

    Parameters
    ----------
    partial : the partial output. It is removed here when it is of no use.
    layout : the output's.
    key : what the contents depend on beyond its header.

    Raises
    ------
    FileError : the folder is not writable, or another process is writing the same output.
    """

    def __init__(self, partial: Path, layout: FileLayout, key: bytes):
        self.partial = partial
        self.path = Path(f"{partial}.resume")
        self.layout = layout
        self._lock = threading.Lock()
        self._written: dict[int, int] = {}  # byte of the file → bytes, of an earlier run
        self._waiting: list[str] = []  # lines of what may not have reached the device yet
        self._output = -1  # a descriptor of the output, from the first such line on: it hears of all that fails then
        self._failed = False
        self._due = time.monotonic() + _SECONDS
        with os_errors(self.path, "write"):
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o644)
            try:
                if (kind := kind_of_file(os.fstat(self._handle).st_mode)) is not None:
                    raise FileError(f"{printable(self.path)} is {kind}, in the way of notes on what is written")
                if not lock_file(self._handle):
                    target = printable(partial.with_suffix(""))
                    raise FileError(f"cannot write {target}: another process is writing it")
                self._load(_digest(layout, key))
            except BaseException:
                os.close(self._handle)
                raise

    @property
    def resumed(self) -> bool:
        """Whether an earlier run left something to continue from."""
        return bool(self._written)

    @property
    def useful(self) -> bool:
        """Whether this run or an earlier one left something."""
        return self.resumed or self._output >= 0

    def has(self, name: str, row: int, nbytes: int) -> bool:
        """Whether an earlier run wrote these rows of a tensor."""
        return self._written.get(self._at(name, row)) == nbytes

    def record(self, name: str, row: int, nbytes: int) -> None:
        """Note that rows of a tensor were written. Once a second the caller flushes them to the device.

        Raises
        ------
        FileError : that failed, or the line cannot be written.
        """
        with self._lock:
            if self._output < 0:
                with os_errors(self.partial, "write"):
                    self._output = os.open(self.partial, os.O_RDWR)
            self._waiting.append(f"{self._at(name, row)} {nbytes}\n")
            if time.monotonic() < self._due:
                return
            self._due = float("inf")  # the other threads go on
        try:
            self.flush()
        finally:
            self._due = time.monotonic() + _SECONDS

    def flush(self) -> None:
        """Flush the output to the device, and add the lines of what was written before.

        After a flush that failed there are no more lines: the next one would say that all is well.

        Raises
        ------
        FileError : see `record`.
        """
        with self._lock:
            lines, self._waiting = "".join(self._waiting).encode(), []
        if self._failed or not lines:
            return
        self._failed = True
        with os_errors(self.partial, "write"):
            sync_file(self._output)
        with os_errors(self.path, "write"):
            while lines:  # a disk that fills up takes a part
                lines = lines[os.write(self._handle, lines) :]
        self._failed = False

    def remove(self) -> None:
        """Forget everything: the output is complete, or of no use."""
        self._waiting = []
        with suppress(FileNotFoundError):
            self.path.unlink()

    def __enter__(self) -> ResumeLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with suppress(GgufkitError, KeyboardInterrupt):  # what has no line is written again
                self.flush()
        finally:
            os.close(self._handle)
            if self._output >= 0:
                os.close(self._output)

    def _at(self, name: str, row: int) -> int:
        info = self.layout.infos[name]
        return self.layout.file_offset(name) + row * info.format.row_bytes(info.shape[-1] if info.shape else 1)

    def _load(self, key: str) -> None:
        # A line for each piece of work: hundreds of times those of the largest models fit.
        size = min(os.fstat(self._handle).st_size, _MAX_LOG)
        head, *lines = os.pread(self._handle, size, 0).decode("ascii", "replace").split("\n")
        if head == key and self.partial.exists() and self.partial.stat().st_size == self.layout.size:
            # The last line is empty, or cut by a kill or a full disk.
            for line in lines[:-1]:
                if found := _LINE.fullmatch(line):
                    self._written[int(found[1])] = int(found[2])
            whole = len(head) + 1 + sum(len(line) + 1 for line in lines[:-1])
            os.ftruncate(self._handle, whole)
            return
        self.partial.unlink(missing_ok=True)
        os.ftruncate(self._handle, 0)
        os.write(self._handle, f"{key}\n".encode())


def _digest(layout: FileLayout, key: bytes) -> str:
    digest = hashlib.sha256()
    for part in (__version__.encode(), layout.header, key):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
