"""Write a model as several files, in llama.cpp's way of splitting.

    with ShardedWriter("model", metadata, tensors, max_bytes=4_000_000_000) as out:
        out.write("token_embd.weight", 0, blocks)          # whichever file it belongs to
    out.paths                                              # model-00001-of-00003.gguf, …

A file is opened with the first row that belongs to it and gets its name with the last one, so few are open at a time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ggufkit.errors import FileError, GGUFError, printable
from ggufkit.formats.table import Format
from ggufkit.gguf.shards import split_names, split_tensors
from ggufkit.gguf.writer import FileLayout, Writer, with_alignment

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ShardedWriter"]


class ShardedWriter:
    """Stream tensors into the files of a new split model; after an exception none of them is left.

    Use as a context manager. Rows may come in any order and from several threads; in file order only one file is
    open at a time.

    Parameters
    ----------
    target : path of the files without ``-00001-of-0000N.gguf``.
    metadata, tensors, alignment, byteorder : see `FileLayout`.
    max_tensors, max_bytes, no_tensor_first_split : see `split_tensors`.
    force : replace existing files.

    Attributes
    ----------
    paths : the files, in order.
    shards : what goes into each.

    Raises
    ------
    FileError : a file exists without `force`, cannot be written, or the disk is full.
    GGUFError : see `FileLayout`; at the end, rows are missing.
    UsageError : see `split_tensors`.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        metadata: Mapping[str, object],
        tensors: Iterable[tuple[str, tuple[int, ...], Format]],
        *,
        max_tensors: int | None = None,
        max_bytes: int | None = None,
        no_tensor_first_split: bool = False,
        alignment: int | None = None,
        byteorder: str = "little",
        force: bool = False,
    ):
        alignment, metadata = with_alignment(metadata, alignment)
        whole = FileLayout(metadata, tensors, byteorder=byteorder)
        self.shards = split_tensors(
            metadata,
            whole.infos,
            max_tensors=max_tensors,
            max_bytes=max_bytes,
            no_tensor_first_split=no_tensor_first_split,
        )
        self.paths = split_names(os.fspath(target), len(self.shards))
        self._infos, self._byteorder, self._force = whole.infos, byteorder, force
        self._shard_of = {name: i for i, shard in enumerate(self.shards) for name in shard.tensors}
        self._open: dict[int, Writer] = {}
        self._written: set[int] = set()
        self._lock = threading.Lock()
        for path in self.paths:
            if not force and os.path.lexists(path):
                raise FileError(f"{printable(path)} exists already", "give {force=True} to replace it")

    def write(self, name: str, row: int, blocks: np.ndarray) -> None:
        """Write rows of a tensor, see `Writer.write`."""
        self.writer_of(name).write(name, row, blocks)
        self.finish(name)

    def writer_of(self, name: str) -> Writer:
        """The writer of the file that a tensor belongs to. Call `finish` after writing with it."""
        if name not in self._shard_of:
            raise GGUFError(f"no tensor {printable(name)} was planned", self.paths[0])
        with self._lock:
            return self._writer(self._shard_of[name])

    def _writer(self, i: int) -> Writer:
        if i not in self._open:
            shard = self.shards[i]
            tensors = [(info.name, info.shape, info.format) for info in map(self._infos.__getitem__, shard.tensors)]
            self._open[i] = Writer(self.paths[i], shard.metadata, tensors, byteorder=self._byteorder, force=self._force)
        return self._open[i]

    def finish(self, name: str) -> None:
        """Give the file of a tensor its name if nothing is missing in it."""
        with self._lock:
            i = self._shard_of[name]
            if i in self._open and not self._open[i].missing:
                self._commit(i)

    def _commit(self, i: int) -> None:
        writer = self._writer(i)
        del self._open[i]
        writer.__exit__(None, None, None)
        self._written.add(i)

    def close(self) -> None:
        """Give all files their names; a context manager does it at its end.

        Raises
        ------
        GGUFError : rows are missing; no file is left.
        FileError : a file cannot be written; no file is left.
        """
        try:
            for i in range(len(self.shards)):
                if i not in self._written:
                    self._commit(i)  # without tensors, or one that says what is missing
        except BaseException as e:
            self._discard(type(e), e)
            raise

    def __enter__(self) -> ShardedWriter:
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None:
            self.close()
        else:
            self._discard(kind, value)

    def _discard(self, kind: Any, value: Any) -> None:
        for writer in self._open.values():
            with suppress(FileError):
                writer.__exit__(kind, value, None)
        for i in self._written:
            with suppress(OSError):
                os.unlink(self.paths[i])
