"""The files that the weights of a checkpoint lie in.

Models have hundreds of shards, so not all can stay open. But one that is read again and again should: the system
reads ahead of an open file in ever larger steps, and starts from nothing for one that was just opened.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from ggufkit.errors import FileError, os_errors, printable
from ggufkit.storage.regular import kind_of_file
from ggufkit.storage.source import FileSource

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ShardFile"]

# How many files stay open: those that threads read at the same time where one ends and the next begins.
_OPEN = 8

_recent: deque[weakref.ref[ShardFile]] = deque()
_lock = threading.Lock()


class ShardFile:
    """A local file as a `Source` that opens when it is read, and is closed when enough others were opened after it."""

    def __init__(self, path: Path):
        self._path = path
        self._file: FileSource | None = None
        self.name = str(path)
        with os_errors(path, "read"):
            found = os.stat(path)
        if (kind := kind_of_file(found.st_mode)) is not None:
            raise FileError(f"cannot read {printable(path)}: it is {kind}, not a file")
        self.size = found.st_size

    def read(self, offset: int, n: int) -> bytes:
        return self._opened().read(offset, n)

    def array(self, offset: int, n: int) -> np.ndarray:
        return self._opened().array(offset, n)

    def close(self) -> None:
        # Whoever reads meanwhile has the file, too: it is closed when the last one lets go of it.
        self._file = None

    def _opened(self) -> FileSource:
        if (file := self._file) is not None:
            return file
        with _lock:
            if (file := self._file) is None:
                file = FileSource(self._path)
                file.read_once()
                self._file = file
                _recent.append(weakref.ref(self))
                if len(_recent) > _OPEN and (oldest := _recent.popleft()()) is not None:
                    oldest.close()
            return file
