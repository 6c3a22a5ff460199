"""Folders of checkpoints that appear whole or not at all: JSON files, tokenizer, weights in safetensors.

What exports of GGUF files have in common: each tensor becomes arrays, which are planned before one is read.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufkit.checkpoint.safetensors_writer import DTYPE_BYTES, SafetensorsWriter
from ggufkit.errors import FileError, UsageError, os_errors, printable
from ggufkit.storage.files import default_mode
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "DTYPES",
    "Part",
    "Progress",
    "Repacked",
    "Report",
    "as_json",
    "cast",
    "dtype_named",
    "exact",
    "ranges",
    "write_folder",
]

# Names of dtypes as users know them → safetensors'.
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}

_SHARD = 5 << 30  # bytes per file, as other tools have them
_CHUNK = 1 << 20  # weights read at a time

# Called with bytes done and a tensor's name.
Progress = Callable[[int, str], None]
# Shows the progress of so many bytes of a kind of work, e.g. `cli.progress.byte_bar`.
Report = Callable[[int, str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Part:
    """One array of the safetensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return DTYPE_BYTES[self.dtype] * prod(self.shape)


@dataclass(frozen=True)
class Repacked:
    """A tensor, and the arrays that it becomes.

    Attributes
    ----------
    make : rows from `lo` on, of blocks (n, row_bytes), to (row, array) for each of `parts`: where the array's rows go.
        Rows come in multiples of 32, but for the last.
    whole : `make` is called once, with all rows: its arrays lie the other way round.
    """

    tensor: Tensor
    parts: tuple[Part, ...]
    make: Callable[[int, np.ndarray], Iterable[tuple[int, np.ndarray]]]
    whole: bool = field(default=False, kw_only=True)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


def dtype_named(dtype: str | None) -> str | None:
    """safetensors' name of a dtype.

    Raises
    ------
    UsageError : there is none of this name.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"the dtype must be one of {', '.join(DTYPES)}, not {printable(dtype)}")
    return None if dtype is None else DTYPES[dtype]


def exact(values: np.ndarray, dtype: str) -> bool:
    """Whether `dtype` holds float32 `values` without rounding."""
    import numpy as np

    return np.array_equal(_floats(cast(values, dtype), dtype), values)


def cast(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as bytes of `dtype`, rounded to nearest."""
    import numpy as np

    from ggufkit.formats.codec import encode

    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    return encode(values, dtype) if values.size else np.empty((*values.shape[:-1], 0), np.uint8)


def _floats(stored: np.ndarray, dtype: str) -> np.ndarray:
    import numpy as np

    from ggufkit.formats.codec import decode

    return stored.astype(np.float32) if dtype == "F16" else decode(stored, dtype)


def ranges(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold about a million weights, multiples of 32 rows."""
    step = -(max(1, _CHUNK // max(tensor.cols, 1)) // -32) * 32
    for lo in range(0, tensor.rows, step):
        yield lo, min(lo + step, tensor.rows)


def write_folder(
    folder: Path,
    files: Mapping[str, bytes],
    planned: Sequence[Repacked],
    *,
    kind: str,
    force: bool,
    report: Report | None,
    source: str | os.PathLike[str],
) -> None:
    """Write a folder with small files and weights.

    Parameters
    ----------
    files : file name → contents.
    kind : safetensors' "format": "mlx" or "pt".
    force : replace an existing folder; never one that `source` lies in.

    Raises
    ------
    FileError : it exists, or cannot be written. Nothing appears.
    """
    if force and Path(source).resolve().is_relative_to(folder.resolve()):
        raise FileError(f"{printable(folder)} holds the model itself, and would be replaced", "choose another folder")
    with _NewFolder(folder, force) as temp:
        for name, contents in files.items():
            (temp / name).parent.mkdir(exist_ok=True)
            (temp / name).write_bytes(contents)
        nbytes = sum(p.tensor.nbytes for p in planned)
        with report(nbytes, "exporting") if report else nullcontext(lambda n, name: None) as progress:
            _write_weights(temp, planned, progress, kind)


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")


class _NewFolder:
    """A folder that appears whole or not at all."""

    def __init__(self, folder: Path, force: bool):
        self.folder = folder
        if folder.exists() and not force and (not folder.is_dir() or any(folder.iterdir())):
            raise FileError(f"{printable(folder)} exists already", "give {force=True} to replace it")

    def __enter__(self) -> Path:
        with os_errors(self.folder, "write"):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.temp = Path(tempfile.mkdtemp(".tmp", f".{self.folder.name[:60]}.", self.folder.parent))
        return self.temp

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        try:
            if kind is None:
                with os_errors(self.folder, "write"):
                    self._rename()
        finally:
            shutil.rmtree(self.temp, ignore_errors=True)
        if isinstance(value, OSError):
            with os_errors(self.folder, "write"):
                raise value

    def _rename(self) -> None:
        os.chmod(self.temp, default_mode(0o777))
        if self.folder.exists():
            old = Path(tempfile.mkdtemp(".old", f".{self.folder.name[:60]}.", self.folder.parent))
            self.folder.rename(old / "old")
            self.temp.rename(self.folder)
            shutil.rmtree(old)
        else:
            self.temp.rename(self.folder)


def _write_weights(folder: Path, planned: Sequence[Repacked], progress: Progress, kind: str) -> None:
    shards = _shards(planned)
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        parts = {part.name: (part.dtype, part.shape) for p in shard for part in p.parts}
        weight_map.update(dict.fromkeys(parts, name))
        with SafetensorsWriter(folder / name, parts, {"format": kind}) as file:
            for p in shard:
                for lo, hi in [(0, p.tensor.rows)] if p.whole else ranges(p.tensor):
                    arrays = p.make(lo, p.tensor.read(lo, hi))
                    for part, (row, array) in zip(p.parts, arrays, strict=True):
                        file.write(part.name, row, array)
                    progress((hi - lo) * p.tensor.row_bytes, p.tensor.name)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(p.nbytes for p in planned)},
            "weight_map": dict(sorted(weight_map.items())),
        }
        (folder / "model.safetensors.index.json").write_bytes(as_json(index))


def _shards(planned: Sequence[Repacked]) -> list[list[Repacked]]:
    shards: list[list[Repacked]] = [[]]
    size = 0
    for p in planned:
        if shards[-1] and size + p.nbytes > _SHARD:
            shards.append([])
            size = 0
        shards[-1].append(p)
        size += p.nbytes
    return shards
