"""Resume: what a run has written so far, beside the file that it writes.

    model.gguf.partial             the output to be, full size, holes where nothing is written yet
    model.gguf.partial.journal     b3f1…c2          the key: hash of header, source, options and version
                                   4096 589824 9ad1c8f0d2b34e71   a piece: byte of the file, bytes, XXH64
                                   593920 589824 11c07a3e90a5f36c

A line is written after its piece. So after a kill every line is true; after a power loss the hash finds the pieces
that never reached the disk. A journal with another key is no help and starts again from nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ggufkit import __version__
from ggufkit.errors import FileError, os_errors, printable
from ggufkit.files import lock_file
from ggufkit.gguf.writer import Plan
from ggufkit.streaming import streamed

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Journal"]

_LINE = re.compile(r"([0-9]{1,19}) ([0-9]{1,19}) ([0-9a-f]{16})")


class Journal:
    """The journal of one partial output; holds a lock on it. Use as a context manager.

    Parameters
    ----------
    partial : the partial output. It is removed here when it is of no use.
    plan : the output's plan.
    key : what the contents depend on beyond the plan.

    Raises
    ------
    FileError : the folder is not writable, or another process is writing the same output.
    """

    def __init__(self, partial: Path, plan: Plan, key: bytes):
        self.partial = partial
        self.path = Path(f"{partial}.journal")
        self.plan = plan
        self._lock = threading.Lock()
        self._written: dict[int, tuple[int, str]] = {}  # byte of the file → (bytes, XXH64)
        with os_errors(self.path, "write"):
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                if not lock_file(self._handle):
                    target = printable(partial.with_suffix(""))
                    raise FileError(f"cannot write {target}: another process is writing it")
                self._load(_digest(plan, key))
            except BaseException:
                os.close(self._handle)
                raise

    @property
    def resumed(self) -> bool:
        """Whether an earlier run left something to continue from."""
        return bool(self._written)

    def has(self, name: str, row: int, nbytes: int) -> bool:
        """Whether an earlier run wrote these rows of a tensor, and the file still holds them."""
        at = self._at(name, row)
        found = self._written.get(at)
        if found is None or found[0] != nbytes:
            return False
        with open(self.partial, "rb", buffering=0) as file:
            same = _hash(os.pread(file.fileno(), nbytes, at)) == found[1]
            streamed(file.fileno(), at, nbytes)
            return same

    def record(self, name: str, row: int, blocks: np.ndarray) -> None:
        """Note that rows of a tensor are in the file."""
        line = f"{self._at(name, row)} {blocks.nbytes} {_hash(blocks.data)}\n".encode()
        with self._lock, os_errors(self.path, "write"):
            while line:  # a disk that fills up takes a part
                line = line[os.write(self._handle, line) :]

    def remove(self) -> None:
        """Forget everything: the output is complete, or of no use."""
        with suppress(FileNotFoundError):
            self.path.unlink()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)

    def _at(self, name: str, row: int) -> int:
        info = self.plan.infos[name]
        return self.plan.file_offset(name) + row * info.format.row_bytes(info.shape[-1] if info.shape else 1)

    def _load(self, key: str) -> None:
        head, *lines = os.pread(self._handle, os.fstat(self._handle).st_size, 0).decode("ascii", "replace").split("\n")
        if head == key and self.partial.exists() and self.partial.stat().st_size == self.plan.size:
            # The last line is empty, or cut by the kill; a line before it may be cut by a full disk.
            for line in lines[:-1]:
                if found := _LINE.fullmatch(line):
                    self._written[int(found[1])] = (int(found[2]), found[3])
            whole = len(head) + 1 + sum(len(line) + 1 for line in lines[:-1])
            os.ftruncate(self._handle, whole)
            return
        self.partial.unlink(missing_ok=True)
        os.ftruncate(self._handle, 0)
        os.write(self._handle, f"{key}\n".encode())


def _hash(data: bytes | memoryview) -> str:
    from ggufkit.kernels.xxh64 import XXH64

    found = XXH64()
    found.update(data)
    return found.hexdigest()


def _digest(plan: Plan, key: bytes) -> str:
    digest = hashlib.sha256()
    for part in (__version__.encode(), plan.header, key):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
