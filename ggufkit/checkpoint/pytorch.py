"""PyTorch's `.bin` and `.pt` files without PyTorch: names, shapes and row ranges of their tensors.

Since version 1.6 a ZIP archive whose entries are not compressed:

    NAME/data.pkl    a pickle: {"lm_head.weight": _rebuild_tensor_v2(storage "7", offset, size, stride, …), …}
    NAME/data/7      the storage, raw

before that five pickles and the storages one after the other:

    magic | protocol | {"little_endian": …} | the state | [storage key, …] | for each key: i64 count, data

Source: torch/serialization.py (both layouts), torch/_utils.py (the rebuild functions).
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ggufkit.checkpoint.safetensors import DTYPES, RAW_DTYPES
from ggufkit.checkpoint.shard import ShardFile
from ggufkit.checkpoint.unpickle import MAX_PICKLE, Name, read_pickle
from ggufkit.errors import CheckpointError, GGUFError, os_errors, printable
from ggufkit.formats.table import Format
from ggufkit.storage.regular import open_regular
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["read_pytorch"]

_MAX_DIMS = 8  # GGUF has 4

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

_FORMATS = DTYPES | RAW_DTYPES

# torch's names → safetensors'. A storage's type is that of its tensors; an untyped one leaves it to them.
_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_UNTYPED = "UntypedStorage"
_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.uint16": "U16",
    "torch.uint32": "U32",
    "torch.uint64": "U64",
    "torch.bool": "BOOL",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e8m0fnu": "F8_E8M0",
}


@dataclass
class _Storage:
    """Memory that tensors share: `nbytes` from byte `start` of the file; of `format` unless it is untyped."""

    key: str
    format: Format | None
    count: int
    start: int = -1
    nbytes: int = -1


@dataclass(frozen=True)
class _View:
    """A tensor: element (i, j, …) of it is element offset + i * stride[0] + j * stride[1] + … of the storage."""

    storage: _Storage
    format: Format
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_pytorch(path: Path) -> Iterator[Tensor]:
    """The tensors of a file, in its order.

    Raises
    ------
    FileError : the file cannot be read.
    CheckpointError : it is malformed, or would run code.
    """
    try:
        with os_errors(path, "read"), os.fdopen(open_regular(path), "rb") as file:
            state = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
        views = {name: value for name, value in state.items() if isinstance(value, _View)}
        for name, view in views.items():
            if not isinstance(name, str):
                raise CheckpointError("the name of a tensor must be a text")
            _check(name, view)
    except CheckpointError as e:
        raise CheckpointError(f"{printable(path)}: {e}") from None
    if not views:
        raise CheckpointError(f"{printable(path)}: there is no tensor in it, or it is no state_dict")
    shard = ShardFile(path)
    for name, view in views.items():
        yield Tensor(name, view.shape, view.format, _reader(shard, name, view))


def _read_zip(file: IO[bytes]) -> dict[Any, Any]:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as e:
        raise CheckpointError(
            f"it is no whole ZIP archive ({printable(e)}); the file is damaged or truncated"
        ) from None
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1 or len(entries) != len(archive.infolist()):
        raise CheckpointError("it is a ZIP archive, but not one of torch.save: it must have one data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if entries[pickles[0]].file_size > MAX_PICKLE:
        raise CheckpointError(f"its data.pkl has {entries[pickles[0]].file_size} bytes, the limit is {MAX_PICKLE}")
    order = entries.get(f"{folder}byteorder")
    if order is not None and _at(file, order, 3) == b"big":
        raise CheckpointError(
            "it was written on a big-endian machine, which is not supported; save it again on another"
        )
    world = _World()
    state = world.load(io.BytesIO(_at(file, entries[pickles[0]], MAX_PICKLE)))
    for storage in world.storages.values():
        entry = entries.get(f"{folder}data/{storage.key}")
        if entry is None:
            raise CheckpointError(f"it lacks the storage {printable(storage.key)}")
        storage.start, storage.nbytes = _data_start(file, entry), entry.file_size
    return state


def _read_legacy(file: IO[bytes]) -> dict[Any, Any]:
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    plain = _World()
    try:
        magic, protocol = plain.value(file), plain.value(file)
    except CheckpointError:
        magic = protocol = None
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise CheckpointError("it is not a file of torch.save")
    system = plain.value(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(
            "it was written on a big-endian machine, which is not supported; save it again on another"
        )
    world = _World()
    state = world.load(file)
    keys = plain.value(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError("its list of storages is malformed")
    at = file.tell()
    for key in keys:
        storage = world.storages.get(key)
        if storage is None or storage.format is None:
            raise CheckpointError(f"its storage {printable(key)} belongs to no tensor")
        file.seek(at)
        head = file.read(8)
        (count,) = struct.unpack("<q", head) if len(head) == 8 else (-1,)
        storage.start, storage.nbytes = at + 8, count * storage.format.type_size
        at = storage.start + storage.nbytes
        if count != storage.count or at > size:
            raise CheckpointError(
                f"storage {printable(key)} must have {storage.count} elements (byte {storage.start}); "
                "the file is damaged or truncated"
            )
    if missing := world.storages.keys() - set(keys):
        raise CheckpointError(f"it lacks the storage {printable(min(missing))}")
    return state


@dataclass
class _World:
    """What the pickles of a file may name: storages, and the functions that make tensors of them."""

    storages: dict[str, _Storage] = field(default_factory=dict)

    def load(self, file: IO[bytes]) -> dict[Any, Any]:
        state = self.value(file)
        if not isinstance(state, dict):
            raise CheckpointError(f"it holds a {type(state).__name__}, not a state_dict")
        return state

    def value(self, file: IO[bytes]) -> Any:
        constructors: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": _ordered_dict,
            "torch.Size": tuple,
            "torch.device": lambda *where: None,
            "torch._utils._rebuild_tensor": _rebuild,
            "torch._utils._rebuild_tensor_v2": _rebuild,
            "torch._utils._rebuild_tensor_v3": _rebuild_v3,
            "torch._utils._rebuild_parameter": lambda tensor, *rest: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *rest: tensor,
            "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
        }
        return read_pickle(file, constructors, self._storage)

    def _storage(self, reference: Any) -> _Storage:
        """(“storage”, type, key, device, elements), in legacy files with (view key, offset, elements) or None."""
        if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
            raise CheckpointError("it refers to something that is no storage")
        _, kind, key, _, count = reference[:5]
        name = kind.name.rpartition(".")[2] if isinstance(kind, Name) else ""
        if not isinstance(key, str) or type(count) is not int or count < 0:
            raise CheckpointError("a reference to a storage is malformed")
        if len(reference) == 6 and reference[5] is not None:
            raise CheckpointError("it has views of storages, as torch before 0.4 wrote them; save it again with torch")
        if name not in _STORAGES and name != _UNTYPED:
            raise CheckpointError(f"storage {printable(key)} is a {printable(name)}, which cannot be converted")
        format = None if name == _UNTYPED else _FORMATS[_STORAGES[name]]
        storage = self.storages.setdefault(key, _Storage(key, format, count))
        if (storage.format, storage.count) != (format, count):
            raise CheckpointError(f"storage {printable(key)} has two types or sizes")
        return storage


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    found = {}
    for key, value in items:
        if not isinstance(key, str):
            raise CheckpointError("the name of a tensor must be a text")
        found[key] = value
    return found


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _View:
    if not isinstance(storage, _Storage) or storage.format is None:
        raise CheckpointError("a tensor has no typed storage")
    return _View(storage, storage.format, offset, size, stride)


def _rebuild_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> _View:
    name = dtype.name if isinstance(dtype, Name) else type(dtype).__name__
    if not isinstance(storage, _Storage) or name not in _DTYPES:
        raise CheckpointError(f"a tensor has dtype {printable(name)}, which cannot be converted")
    return _View(storage, _FORMATS[_DTYPES[name]], offset, size, stride)


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    functions = {"torch._utils._rebuild_tensor_v2": _rebuild, "torch._utils._rebuild_tensor_v3": _rebuild_v3}
    name = function.name if isinstance(function, Name) else type(function).__name__
    if name not in functions or not isinstance(arguments, tuple):
        raise CheckpointError(f"a tensor is made by {printable(name)}, which cannot be converted")
    return functions[name](*arguments)


def _check(name: str, view: _View) -> None:
    """All elements lie inside the storage, and the storage is as large as its tensors say."""
    where = f"tensor {printable(name)}"
    for numbers in (view.shape, view.stride):
        if isinstance(numbers, tuple) and len(numbers) > _MAX_DIMS:
            raise CheckpointError(f"{where} has {len(numbers)} dimensions, the limit is {_MAX_DIMS}")
    for numbers in (view.shape, view.stride, (view.offset,)):
        if not isinstance(numbers, tuple) or any(type(n) is not int or not 0 <= n < 1 << 62 for n in numbers):
            raise CheckpointError(f"{where} has a shape, stride or offset that is not a whole number of at least 0")
    if len(view.shape) != len(view.stride):
        raise CheckpointError(f"{where} has {len(view.shape)} dimensions and {len(view.stride)} strides")
    count = view.storage.nbytes // view.format.type_size
    elements = prod(view.shape)
    end = view.offset + sum((n - 1) * step for n, step in zip(view.shape, view.stride, strict=True)) + 1
    if elements and end > count:
        raise CheckpointError(f"{where} needs {end} elements of its storage, which has {count}; the file is damaged")
    if elements > count:
        raise CheckpointError(f"{where} repeats {count} elements {elements} times; save it as a contiguous tensor")


def _at(file: IO[bytes], entry: zipfile.ZipInfo, n: int) -> bytes:
    file.seek(_data_start(file, entry))
    return file.read(min(n, entry.file_size))


def _data_start(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Byte of the file where an entry's data lie, behind its local header and that one's name and extra field."""
    shown = printable(entry.filename)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
        raise CheckpointError(f"its entry {shown} is compressed or encrypted, which torch.save never does")
    file.seek(entry.header_offset)
    head = file.read(30)
    if len(head) < 30 or head[:4] != b"PK\3\4":
        raise CheckpointError(f"its entry {shown} has no header (byte {entry.header_offset}); the file is damaged")
    name, extra = struct.unpack_from("<HH", head, 26)
    start: int = entry.header_offset + 30 + name + extra
    if start + entry.file_size > os.fstat(file.fileno()).st_size:
        raise CheckpointError(f"its entry {shown} reaches beyond the end of the file, which is truncated")
    return start


def _reader(shard: ShardFile, name: str, view: _View) -> Any:
    cols = view.shape[-1] if view.shape else 1
    step = view.stride[-1] if view.stride else 1
    leading, strides = view.shape[:-1], view.stride[:-1]
    size = view.format.type_size

    def elements(first: int, count: int) -> np.ndarray:
        """`count` elements of the storage: array of shape (count, size), uint8."""
        try:
            found = shard.array(view.storage.start + (view.offset + first) * size, count * size)
        except GGUFError:
            raise CheckpointError(f"{printable(shard.name)}: the file ends inside tensor {printable(name)}") from None
        return found.reshape(count, size)

    def read(lo: int, hi: int) -> np.ndarray:
        """Rows lo:hi as bytes, (hi - lo, cols * size) uint8, read-only."""
        import numpy as np

        rows = hi - lo
        out = np.empty((rows, cols, size), np.uint8)
        starts = np.zeros(rows, np.int64)  # (rows,) first element of each row
        if leading:
            for index, stride in zip(np.unravel_index(np.arange(lo, hi), leading), strides, strict=True):
                starts += index * stride
        if out.size == 0:
            pass
        elif (step == 1 or cols == 1) and _adjacent(starts, cols):
            out[:] = elements(int(starts[0]), rows * cols).reshape(out.shape)
        elif _adjacent(starts, 1):
            # Transposed: a column's elements lie side by side.
            for column in range(cols):
                out[:, column] = elements(int(starts[0]) + column * step, rows)
        else:
            for row, start in enumerate(starts.tolist()):
                out[row] = elements(start, (cols - 1) * step + 1)[:: max(step, 1)]
        blocks = out.reshape(rows, cols * size)
        blocks.flags.writeable = False
        return blocks

    return read


def _adjacent(starts: np.ndarray, distance: int) -> bool:
    return bool((starts[1:] - starts[:-1] == distance).all())
