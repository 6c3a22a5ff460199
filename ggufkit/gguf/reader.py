"""Open GGUF files: one file, all shards of a split one, or a remote one, behind one interface.

with ggufkit.open("model.gguf") as model:
    model.metadata["general.architecture"]                 # 'llama'
    model.tensors["token_embd.weight"].floats(0, 10)       # ten rows, float32
"""

from __future__ import annotations

import copy
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ggufkit.errors import FileError, GGUFError, printable
from ggufkit.formats.table import Format
from ggufkit.gguf.edit.access import settle_edit
from ggufkit.gguf.header import Field, Header, Limits, TensorInfo, parse_header
from ggufkit.gguf.shards import check_shards, shard_count, sibling_names
from ggufkit.storage.source import FileSource, Source, open_source
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["GGUF", "Metadata", "Part", "open"]

T = TypeVar("T")
_REQUIRED = object()


@dataclass(frozen=True)
class Part:
    """One file of a model: where its bytes are, where the GGUF starts in it, its header."""

    source: Source
    start: int
    header: Header

    def file_offset(self, info: TensorInfo) -> int:
        """The byte of the file where the tensor's data starts."""
        return self.start + self.header.data_offset + info.offset


class Metadata(Mapping[str, Any]):
    """Metadata values as plain Python, decoded on first use.

    An array is a list; a string that is no UTF-8 keeps its bytes as surrogate escapes.
    """

    def __init__(self, fields: Mapping[str, Field]):
        self._fields = fields
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            self._values[key] = self._fields[key].value
        return self._values[key]

    def __contains__(self, key: object) -> bool:
        return key in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"<Metadata of {len(self)} keys>"


class GGUF:
    """An open GGUF model. Get one from `open`; use it as a context manager.

    Attributes
    ----------
    path : the path or address that was opened.
    parts : the files, in shard order; one unless the model is split.
    fields : metadata pairs with their types, from the first part.
    metadata : the same, as plain Python values.
    tensors : the lazy tensors of all parts, in file order.
    info : where each tensor is in its file's data section.
    changed : names of the tensors that are not those of the file; see `with_tensors`.
    """

    def __init__(self, path: str, parts: list[Part]):
        self.path = path
        self.parts = parts
        self.changed: frozenset[str] = frozenset()
        self._mappings: dict[str, mmap.mmap] = {}
        self.fields: Mapping[str, Field] = parts[0].header.fields
        self.metadata = Metadata(self.fields)
        self.info: dict[str, TensorInfo] = {}
        self._part_of: dict[str, Part] = {}
        for part in parts:
            for name, info in part.header.tensors.items():
                if name in self.info:
                    raise GGUFError(
                        f"the tensor {printable(name)} is also in {printable(self._part_of[name].source.name)}",
                        part.source.name,
                        part.start + info.at,
                    )
                self.info[name] = info
                self._part_of[name] = part

    # -- the file -----------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        return self.parts[0].header.version

    @property
    def byteorder(self) -> str:
        """``"little"`` or ``"big"``."""
        return self.parts[0].header.byteorder

    @property
    def alignment(self) -> int:
        return self.parts[0].header.alignment

    @property
    def data_offset(self) -> int:
        """Where the first part's data section starts, in bytes from its magic."""
        return self.parts[0].header.data_offset

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(part.source.size for part in self.parts)

    def part_of(self, name: str) -> Part:
        """The file that holds a tensor."""
        return self._part_of[name]

    def file_offset(self, name: str) -> int:
        """The byte in its file where a tensor's data starts."""
        return self._part_of[name].file_offset(self.info[name])

    def close(self) -> None:
        self._mappings.clear()
        for part in self.parts:
            part.source.close()

    def __enter__(self) -> GGUF:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<GGUF {printable(self.path)}: {len(self.fields)} keys, {len(self.info)} tensors>"

    # -- metadata -----------------------------------------------------------------------------------------

    @overload
    def get(self, key: str, type: type[T]) -> T: ...
    @overload
    def get(self, key: str, type: type[T], default: T | None) -> T | None: ...

    def get(self, key: str, type: type, default: Any = _REQUIRED) -> Any:
        """A metadata value that must be of a Python type: `int`, `float`, `bool`, `str` or `list`.

        Parameters
        ----------
        default : what an absent key gives; without it an absent key is an error.

        Raises
        ------
        GGUFError : the key is missing, or its value is of another type.
        """
        if key not in self.fields:
            if default is not _REQUIRED:
                return default
            raise GGUFError(f"the key {printable(key)} is missing", self.path)
        value = self.metadata[key]
        # bool is an int to Python, but no count of layers.
        if not isinstance(value, type) or (isinstance(value, bool) and type is not bool):
            field = self.fields[key]
            raise GGUFError(
                f"{printable(key)} should be of type {type.__name__}, but is {field.describe()}",
                self.path,
                field.offset,
            )
        return value

    # -- tensors ------------------------------------------------------------------------------------------

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        return {name: Tensor(name, info.shape, info.format, self._rows_of(info)) for name, info in self.info.items()}

    def with_tensors(self, changed: Mapping[str, Tensor]) -> GGUF:
        """The same model with other contents of some tensors, which are read from these.

        Parameters
        ----------
        changed : tensor name → a tensor of the same shape, or of one that the model lacks.
        """
        found = copy.copy(self)
        found.__dict__["tensors"] = {**self.tensors, **changed}
        found.changed = self.changed | changed.keys()
        return found

    def _rows_of(self, info: TensorInfo) -> Any:
        part = self._part_of[info.name]
        rows = 1
        for n in info.shape[:-1]:
            rows *= n
        row_bytes = info.nbytes // rows if rows else 0
        big = part.header.byteorder == "big"

        def read(lo: int, hi: int) -> np.ndarray:
            if not 0 <= lo <= hi <= rows:
                raise IndexError(f"rows {lo}:{hi} of {info.name}, which has {rows}")
            data = part.source.array(part.file_offset(info) + lo * row_bytes, (hi - lo) * row_bytes)
            blocks = data.reshape(hi - lo, row_bytes)
            if big:
                blocks = swapped(blocks, info.format)
                blocks.flags.writeable = False
            return blocks

        return read

    def read_once(self) -> None:
        """From now on weights are read about once: leave the system's cache alone; see `ggufkit.storage.once`."""
        for part in self.parts:
            if isinstance(part.source, FileSource):
                part.source.read_once()

    def mapped(self, name: str) -> np.ndarray:
        """A tensor's blocks mapped into memory: array of shape (rows, row_bytes), uint8, read-only.

        The pages are shared with other processes that map the file and are read on first touch. For local
        little-endian files.
        """
        import numpy as np

        part, tensor = self._part_of[name], self.tensors[name]
        if not isinstance(part.source, FileSource) or part.header.byteorder == "big":
            raise GGUFError("only a local little-endian file can be mapped into memory", part.source.name)
        shape = (tensor.rows, tensor.row_bytes)
        if 0 in shape:
            return np.empty(shape, np.uint8)
        start = part.file_offset(self.info[name])
        return self._mapping(part.source)[start : start + tensor.nbytes].reshape(shape)

    def _mapping(self, source: FileSource) -> np.ndarray:
        """A whole file in memory, for all of its tensors: each mapping holds a descriptor, of which there are few."""
        import numpy as np

        if source.name not in self._mappings:
            self._mappings[source.name] = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(self._mappings[source.name], np.uint8)

    def forget(self) -> None:
        """Give back the memory of mapped weights: those that are read again come from the system's cache, or the file.

        For passes over a model that should take no more memory than what they compute.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapping in self._mappings.values():
                mapping.madvise(mmap.MADV_DONTNEED)


def swapped(blocks: np.ndarray, format: Format) -> np.ndarray:
    """Blocks in the other byte order: every number of every field reversed.

    Parameters
    ----------
    blocks : array of shape (rows, row_bytes), uint8.
    format : their format.
    """
    out = blocks.copy()
    if out.size:
        records = out.view(format.swap_dtype)  # (rows, blocks per row)
        for name in records.dtype.names or ():
            if records.dtype[name].base.itemsize > 1:
                records[name] = records[name].byteswap()
    return out


def open(path: str | os.PathLike[str], *, offset: int = 0, shards: bool = True, limits: Limits | None = None) -> GGUF:
    """Open a GGUF file and read its header.

    Parameters
    ----------
    path : a file, any shard of a split model, or an address (``https://…``, ``hf://owner/repo/file``).
    offset : byte where the GGUF starts in the file.
    shards : for a shard, open the whole model; False opens this file alone.
    limits : other caps than the default ones.

    Raises
    ------
    FileError : the file, or another shard, is missing or unreadable.
    GGUFError : it is not a GGUF, or breaks a rule of the format, or the shards are not of one model.
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        from ggufkit.storage.foreign import foreign_folder

        what, todo = foreign_folder(os.listdir(name)) or ("a folder", "give a file")
        raise FileError(f"cannot read {printable(name)}: it is {what}, not a GGUF file", todo)
    with ExitStack() as opened:

        def add(name: str, offset: int = 0) -> Part:
            part = _open_part(name, offset, limits)
            opened.callback(part.source.close)
            return part

        first = add(name, offset)
        parts = [first]
        if shards and not offset and shard_count(first.header.fields) > 1:
            names = sibling_names(name, first.header)
            try:
                parts = [first if other == name else add(other) for other in names]
            except FileError as e:
                raise FileError(
                    f"{e.message}; it is one of {len(names)} files of the model", "open one alone with {shards=False}"
                ) from e
            check_shards(names, [part.header for part in parts])
        model = GGUF(name, parts)
        opened.pop_all()
        return model


def _open_part(name: str, offset: int, limits: Limits | None) -> Part:
    source = open_source(name, settle=settle_edit)
    try:
        return Part(source, offset, parse_header(source, offset, limits))
    except BaseException:
        source.close()
        raise
