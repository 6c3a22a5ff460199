"""Read and write importance matrices: llama-imatrix's GGUF files, and the .dat files of before.

    GGUF   blk.0.attn_q.weight.in_sum2   (experts, cols) f32   sums of squared activations
           blk.0.attn_q.weight.counts    (experts, 1)    f32   how many activations
    .dat   entries i32, then each: name, calls i32, values i32, values f32 (mean × calls); then chunks i32, dataset

Source: common/imatrix-loader.cpp, `load_imatrix` in tools/quantize/quantize.cpp, `save_imatrix` and
`save_imatrix_legacy` in tools/imatrix/imatrix.cpp of llama.cpp.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ggufkit.errors import GGUFError, PolicyError, os_errors, printable
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.reader import GGUF
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.gguf.writer import Writer
from ggufkit.storage.files import AtomicFile

if TYPE_CHECKING:
    from ggufkit.arrays import FloatArray

__all__ = ["Imatrix", "Sums", "read_imatrix", "write_imatrix"]


@dataclass(frozen=True)
class Imatrix:
    """The importance of each column of each weight matrix: the mean squared activation that meets it.

    Attributes
    ----------
    path : where it was read from, as given.
    values : tensor name → array of shape (experts × cols,), float32.
    chunks : chunks of text it was computed on; 0 if unknown.
    datasets : names of the texts.
    """

    path: str
    values: Mapping[str, FloatArray]
    chunks: int = 0
    datasets: tuple[str, ...] = ()

    def selected(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> Imatrix:
        """Only the tensors whose names contain one of `include` (if any) and none of `exclude`.

        Raises
        ------
        PolicyError : a text occurs in no name.
        """
        include, exclude = list(include), list(exclude)
        for text in (*include, *exclude):
            if not any(text in name for name in self.values):
                raise PolicyError(f"no tensor of the importance matrix {printable(self.path)} has {text!r} in its name")
        kept = {
            name: v
            for name, v in self.values.items()
            if (not include or any(t in name for t in include)) and not any(t in name for t in exclude)
        }
        return replace(self, values=kept)


def read_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """Read an importance matrix, GGUF or .dat.

    Raises
    ------
    FileError : the file cannot be read.
    GGUFError : it is no importance matrix, or a value is not finite.
    """
    with os_errors(path, "read"), open(path, "rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    if is_gguf:
        with open_gguf(path) as gguf:
            found = _from_gguf(os.fspath(path), gguf)
    else:
        with os_errors(path, "read"):
            data = Path(path).read_bytes()
        found = _from_dat(os.fspath(path), data)
    if not found.values:
        raise GGUFError("an importance matrix without tensors", path)
    for name, values in found.values.items():
        bad = ~(np.isfinite(values) & (values >= 0))
        if bad.any():
            at = int(bad.argmax())
            raise GGUFError(
                f"importance of {printable(name)}, value {at}: {values[at]} is not finite or negative", path
            )
    return found


def _from_gguf(path: str, gguf: GGUF) -> Imatrix:
    values: dict[str, np.ndarray] = {}
    # The order of names decides nothing, but llama.cpp's is sorted, and so is ours.
    for name in sorted(n.removesuffix(".in_sum2") for n in gguf.tensors if n.endswith(".in_sum2")):
        counts = gguf.tensors.get(f"{name}.counts")
        sums = gguf.tensors[f"{name}.in_sum2"]
        if counts is None:
            raise GGUFError(f"the tensor {printable(name)}.counts is missing", path)
        if sums.format.name != "F32" or counts.format.name != "F32":
            raise GGUFError(f"sums and counts of {printable(name)} must be F32", path)
        if counts.size == 0 or sums.size % counts.size:
            raise GGUFError(f"{printable(name)} has {sums.size} sums, no multiple of its {counts.size} counts", path)
        sum2 = sums.floats().reshape(counts.size, -1)  # (experts, cols)
        count = np.rint(counts.floats()).reshape(-1, 1).astype(np.float32)  # (experts, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            # An expert that was never called: every column matters the same.
            mean = np.where(count > 0, sum2 / count, np.float32(1))
        values[name] = mean.astype(np.float32).reshape(-1)
    if not values:
        raise GGUFError("no importance matrix: it has no tensor called ….in_sum2", path)
    missing = [k for k in ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size") if k not in gguf.fields]
    if missing:
        raise GGUFError(f"no importance matrix: the key {missing[0]} is missing", path)
    datasets = gguf.get("imatrix.datasets", list)
    return Imatrix(path, values, gguf.get("imatrix.chunk_count", int), tuple(map(str, datasets)))


class _Dat:
    """The bytes of a .dat file, read from front to back."""

    def __init__(self, path: str, data: bytes):
        self.path, self.data, self.at = path, data, 0

    def take(self, n: int, what: str) -> bytes:
        if n < 0 or self.at + n > len(self.data):
            left = len(self.data) - self.at
            raise GGUFError(f"no importance matrix: {what} needs {n} bytes, {left} are left", self.path, self.at)
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, what: str) -> int:
        result: int = struct.unpack("<i", self.take(4, what))[0]
        return result

    def text(self, what: str) -> str:
        raw = self.take(self.number(f"the length of {what}"), what)
        return raw.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _from_dat(path: str, data: bytes) -> Imatrix:
    file = _Dat(path, data)
    entries = file.number("the number of entries")
    if entries < 1:
        raise GGUFError(f"no importance matrix: {entries} entries", path, 0)
    values: dict[str, np.ndarray] = {}
    for i in range(entries):
        name = file.text(f"name {i}")
        calls = file.number(f"the calls of {printable(name)}")
        n = file.number(f"the size of {printable(name)}")
        if n < 1:
            raise GGUFError(f"no importance matrix: {printable(name)} has {n} values", path, file.at - 4)
        sums = np.frombuffer(file.take(4 * n, f"the values of {printable(name)}"), "<f4")
        values[name] = sums / np.float32(calls) if calls > 0 else sums
    if file.at == len(data):
        return Imatrix(path, values)
    chunks = file.number("the number of chunks")
    dataset = file.text("the dataset's name") if file.at < len(data) else ""
    return Imatrix(path, values, chunks, (dataset,) if dataset else ())


# ---- Writing ----------------------------------------------------------------------------------------------------


@dataclass
class Sums:
    """What met a matrix, or each of a stack of experts.

    Attributes
    ----------
    squares : array of shape (experts, cols), float64: sums of squares.
    counts : array of shape (experts,), int64: of how many activations.
    """

    squares: np.ndarray
    counts: np.ndarray


def write_imatrix(
    path: str | os.PathLike[str],
    sums: Mapping[str, Sums],
    datasets: Iterable[str],
    chunks: int,
    chunk_size: int,
    *,
    legacy: bool = False,
    force: bool = False,
) -> None:
    """Write an importance matrix as llama-imatrix does.

    Parameters
    ----------
    datasets : names of the texts.
    chunks, chunk_size : how many windows of text were read, of how many tokens.
    legacy : as a .dat file.

    Raises
    ------
    FileError : the file exists without `force`, cannot be written, or the disk is full.
    """
    ordered = {name: sums[name] for name in sorted(sums)}
    if legacy:
        data = _as_dat(ordered, list(datasets), chunks, chunk_size)
        with AtomicFile(path, force) as output, os_errors(path, "write"):
            left = memoryview(data)
            while left:
                left = left[output.file.write(left) :]
        return
    f32 = FORMATS["F32"]
    arrays: dict[str, np.ndarray] = {}
    for name, found in ordered.items():
        experts, cols = found.squares.shape
        # GGML drops dimensions of 1 at the end.
        shape = (experts, cols) if experts > 1 else (cols,)
        arrays[f"{name}.in_sum2"] = found.squares.astype(np.float32).reshape(shape)
        arrays[f"{name}.counts"] = found.counts.astype(np.float32).reshape((experts, 1) if experts > 1 else (1,))
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": Value(ValueType.ARRAY, list(datasets), ValueType.STRING),
        "imatrix.chunk_count": Value(ValueType.UINT32, chunks),
        "imatrix.chunk_size": Value(ValueType.UINT32, chunk_size),
    }
    infos = [(name, array.shape, f32) for name, array in arrays.items()]
    with Writer(path, metadata, infos, force=force) as writer:
        for name, array in arrays.items():
            writer.write(name, 0, array.reshape(-1, array.shape[-1]).view(np.uint8))


def _as_dat(sums: Mapping[str, Sums], datasets: list[str], chunks: int, chunk_size: int) -> bytes:
    entries = {name: found for name, found in sums.items() if found.counts.any()}
    parts = [struct.pack("<i", len(entries))]
    for name, found in entries.items():
        calls = -(-int(found.counts.max()) // chunk_size)
        counts = found.counts[:, None].astype(np.float32)
        # An expert that was never called: every column matters the same.
        squares = np.where(counts > 0, found.squares, 1).astype(np.float32)
        mean = squares / np.maximum(counts, np.float32(1)) * np.float32(calls)
        raw = name.encode("utf-8", "surrogateescape")
        parts += [struct.pack("<i", len(raw)), raw, struct.pack("<ii", calls, mean.size)]
        parts.append(mean.astype("<f4").tobytes())
    raw = ("" if not datasets else datasets[-1]).encode("utf-8", "surrogateescape")
    parts += [struct.pack("<ii", chunks, len(raw)), raw]
    return b"".join(parts)
