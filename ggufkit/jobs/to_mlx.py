"""GGUF files to folders that mlx-lm loads: config.json, safetensors, tokenizer.

    export_mlx("model-Q4_K_M.gguf", "model-mlx")

A quantized tensor becomes MLX's arrays with the same numbers (`runtime.mlx.arrays`); one that MLX has no arrays for
(Q6_K, Q3_K, Q2_K, the IQ formats) becomes a matrix of float16. Scales, norms and biases are float16 when that rounds
none of them, else float32, unless a dtype is asked for.

A GGUF that came from an MLX checkpoint remembers its settings, and gets the same arrays back.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufkit.arch.export import Exported, exported
from ggufkit.arch.registry import export_of
from ggufkit.checkpoint.packed.mlx import QUANTIZATION_KEY
from ggufkit.checkpoint.safetensors_writer import DTYPE_BYTES, SafetensorsWriter
from ggufkit.errors import FileError, Hint, UsageError, os_errors, printable
from ggufkit.formats.affine import AFFINE
from ggufkit.gguf.reader import GGUF
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.runtime.mlx.arrays import QUANTIZED
from ggufkit.storage.files import default_mode
from ggufkit.tensors.tensor import Tensor
from ggufkit.tokenizer.to_huggingface import tokenizer_files

if TYPE_CHECKING:
    import numpy as np

__all__ = ["export_mlx"]

# dtype names of the command line → safetensors'
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}

_SHARD = 5 << 30  # bytes per file, as mlx-lm has them
_CHUNK = 1 << 20  # weights read at a time

# Called with bytes done and a tensor's name.
Progress = Callable[[int, str], None]


@dataclass(frozen=True)
class _Part:
    """One array of the safetensors: its name, dtype and bytes per row come from here, its rows are the tensor's."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        count = DTYPE_BYTES[self.dtype]
        for n in self.shape:
            count *= n
        return count


@dataclass(frozen=True)
class _Repacked:
    """A tensor, the arrays it becomes, and how rows of blocks become rows of these."""

    tensor: Tensor
    parts: tuple[_Part, ...]
    make: Callable[[np.ndarray], list[np.ndarray]]
    quantization: dict[str, Any] | None = None

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


@dataclass(frozen=True)
class _Settings:
    """Which arrays are wanted.

    Attributes
    ----------
    dtype : of scales, norms and biases; ``"F16"``, ``"BF16"`` or ``"F32"``.
    dense : of matrices that are not quantized arrays; None keeps float16 and bfloat16 as they are.
    rounding : scales may be rounded, because the user asked for the dtype.
    origin : the settings of the MLX checkpoint that the model came from.
    """

    dtype: str
    dense: str | None
    rounding: bool
    origin: Mapping[str, Any]


def export_mlx(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    force: bool = False,
    report: Callable[[int, str], AbstractContextManager[Progress]] | None = None,
) -> list[str]:
    """Write a folder that mlx-lm loads.

    Parameters
    ----------
    path : the GGUF file.
    folder : the folder to make.
    dtype : float16, bfloat16 or float32, for scales, norms and matrices that are not quantized; by default whatever
        rounds nothing.
    force : replace an existing folder.
    report : shows the progress, e.g. `cli.progress.byte_bar`.

    Returns
    -------
    notes, a sentence each

    Raises
    ------
    GgufkitError : the model cannot be exported, or the folder not be written. No folder appears.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"the dtype must be one of {', '.join(DTYPES)}, not {printable(dtype)}")
    folder = Path(folder)
    with open_gguf(path) as model:
        model.read_once()
        name = model.get("general.architecture", str)
        seen = exported(export_of(name), name, model.metadata, model.tensors)
        planned = _plan(model, seen, dtype)
        config = {**seen.config, **_quantization(planned)}
        with _new_folder(folder, force) as temp:
            _write_json(temp / "config.json", config)
            for name, text in tokenizer_files(model).items():
                (temp / name).write_text(text, encoding="utf-8")
            nbytes = sum(p.tensor.nbytes for p in planned)
            with report(nbytes, "exporting") if report else nullcontext(lambda n, name: None) as progress:
                _write_weights(temp, planned, progress)
    return _notes(planned)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class _new_folder:  # noqa: N801 - reads like a function
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


# -- plan -------------------------------------------------------------------------------------------------


def _plan(model: GGUF, exported: Exported, dtype: str | None) -> list[_Repacked]:
    origin = json.loads(model.metadata.get(QUANTIZATION_KEY, "{}"))
    known = DTYPES[dtype] if dtype else origin.get("dtype")
    if known is None:
        known = "F16" if all(map(_fits_halves, exported.tensors.values())) else "F32"
    settings = _Settings(known, DTYPES[dtype] if dtype else None, dtype is not None, origin)
    return [_repacked(tensor, settings) for tensor in exported.tensors.values()]


def _fits_halves(tensor: Tensor) -> bool:
    """Whether float16 scales, norms and biases round nothing of it."""
    if tensor.format.name in ("Q4_K", "Q5_K"):
        return False  # a scale is the product of a half and a code of six bits
    if tensor.format.name != "F32" or len(tensor.shape) > 1:
        return True
    return _exact(tensor.floats(), "F16")


def _exact(values: np.ndarray, dtype: str) -> bool:
    import numpy as np

    return np.array_equal(_floats(_cast(values, dtype), dtype), values)


def _cast(values: np.ndarray, dtype: str) -> np.ndarray:
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


def _repacked(tensor: Tensor, settings: _Settings) -> _Repacked:
    mode = QUANTIZED.get(tensor.format.name)
    base, _, ending = tensor.name.rpartition(".")
    if mode is None or ending != "weight":
        return _dense(tensor, settings)
    kind, bits, group = mode
    if kind != "affine":
        quantization = {"group_size": group, "bits": bits, "mode": kind}
        outer, cols = tensor.shape[:-1], tensor.cols
        codes = _Part(tensor.name, "U32", (*outer, cols * bits // 32))
        scales = _Part(f"{base}.scales", "U8", (*outer, cols // group))
        return _Repacked(tensor, (codes, scales), lambda blocks: _fp4(blocks, tensor), quantization)
    bits, group = _original(tensor, base, settings) or (bits, group)
    parts = (
        _Part(tensor.name, "U32", (*tensor.shape[:-1], tensor.cols * bits // 32)),
        _Part(f"{base}.scales", settings.dtype, (*tensor.shape[:-1], tensor.cols // group)),
        _Part(f"{base}.biases", settings.dtype, (*tensor.shape[:-1], tensor.cols // group)),
    )
    quantization = {"group_size": group, "bits": bits, "mode": "affine"}
    return _Repacked(tensor, parts, lambda blocks: _affine(blocks, tensor, bits, group, settings), quantization)


def _dense(tensor: Tensor, settings: _Settings) -> _Repacked:
    if len(tensor.shape) <= 1:
        dtype = settings.dtype
    elif settings.dense is not None:
        dtype = settings.dense
    else:
        dtype = tensor.format.name if tensor.format.name in ("F32", "BF16") else "F16"

    def make(blocks: np.ndarray) -> list[np.ndarray]:
        from ggufkit.formats.codec import decode

        return [blocks if dtype == tensor.format.name else _cast(decode(blocks, tensor.format), dtype)]

    return _Repacked(tensor, (_Part(tensor.name, dtype, tensor.shape),), make)


def _fp4(blocks: np.ndarray, tensor: Tensor) -> list[np.ndarray]:
    from ggufkit.runtime.mlx.arrays import repack

    packed = repack(blocks, tensor.format)
    if packed is None:
        raise UsageError(f"{printable(tensor.name)} has a scale of 480, for which MLX has no code")
    return [packed.codes, packed.scales]


def _affine(blocks: np.ndarray, tensor: Tensor, bits: int, group: int, settings: _Settings) -> list[np.ndarray]:
    from ggufkit.formats.affine import pack_codes, split

    affine = split(blocks, tensor.format)
    repeats = group // AFFINE[tensor.format.name][1]
    made = [pack_codes(affine.codes.reshape(len(blocks), -1), bits)]
    for values in (affine.scales, affine.biases):
        values = values.reshape(len(blocks), -1)[:, ::repeats]  # noqa: PLW2901
        if not settings.rounding and not _exact(values, settings.dtype):
            raise UsageError(
                f"{printable(tensor.name)} has a scale or bias that {settings.dtype} cannot hold",
                Hint("give {dtype=float32}", "another to round it"),
            )
        made.append(_cast(values, settings.dtype))
    return made


def _original(tensor: Tensor, base: str, settings: _Settings) -> tuple[int, int] | None:
    """Bits and group size of the MLX checkpoint that the tensor came from, if it still is what came from there."""
    import numpy as np

    from ggufkit.formats.affine import split

    own = settings.origin.get(base)
    origin = {**settings.origin, **own} if isinstance(own, dict) else settings.origin
    bits, group = origin.get("bits"), origin.get("group_size")
    if not isinstance(bits, int) or not isinstance(group, int) or AFFINE[tensor.format.name][1] != 32:
        return None
    if group % 32 or tensor.cols % group:
        return None
    for lo, hi in _ranges(tensor):
        affine = split(tensor.read(lo, hi), tensor.format)
        if affine.codes.max(initial=0) >> bits:
            return None
        for values in (affine.scales, affine.biases):
            groups = values.reshape(-1, group // 32)
            if not np.array_equal(groups, np.broadcast_to(groups[:, :1], groups.shape)):
                return None
    return bits, group


def _ranges(tensor: Tensor) -> Iterator[tuple[int, int]]:
    step = max(1, _CHUNK // max(tensor.cols, 1))
    for lo in range(0, tensor.rows, step):
        yield lo, min(lo + step, tensor.rows)


def _quantization(planned: list[_Repacked]) -> dict[str, Any]:
    """The quantization that config.json names: the most frequent one, and the matrices that differ."""
    by_base = {p.tensor.name.removesuffix(".weight"): p.quantization for p in planned if p.quantization}
    if not by_base:
        return {}
    kinds = [json.dumps(q) for q in by_base.values()]
    most = max(kinds, key=kinds.count)
    whole: dict[str, Any] = json.loads(most)
    whole.update({base: q for base, q in by_base.items() if json.dumps(q) != most})
    # A matrix that is not quantized says so, or mlx-lm would look for its scales.
    whole.update(
        {
            p.tensor.name.removesuffix(".weight"): False
            for p in planned
            if p.quantization is None and len(p.tensor.shape) > 1
        }
    )
    return {"quantization": whole, "quantization_config": whole}


def _notes(planned: list[_Repacked]) -> list[str]:
    rounded = [p for p in planned if p.quantization is None and p.tensor.format.is_quantized]
    if not rounded:
        return []
    kinds = ", ".join(sorted({p.tensor.format.name for p in rounded}))
    return [
        f"{len(rounded)} of {len(planned)} tensors are {kinds}, for which MLX has no arrays: "
        f"they are matrices of {rounded[0].parts[0].dtype}, the first is {printable(rounded[0].tensor.name)}"
    ]


# -- files ------------------------------------------------------------------------------------------------


def _write_weights(folder: Path, planned: list[_Repacked], progress: Progress) -> None:
    shards = _shards(planned)
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        parts = {part.name: (part.dtype, part.shape) for p in shard for part in p.parts}
        weight_map.update(dict.fromkeys(parts, name))
        with SafetensorsWriter(folder / name, parts, {"format": "mlx"}) as file:
            for p in shard:
                for lo, hi in _ranges(p.tensor):
                    arrays = p.make(p.tensor.read(lo, hi))
                    for part, array in zip(p.parts, arrays, strict=True):
                        file.write(part.name, lo, array)
                    progress((hi - lo) * p.tensor.row_bytes, p.tensor.name)
    if len(shards) > 1:
        total = sum(p.nbytes for p in planned)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / "model.safetensors.index.json", index)


def _shards(planned: list[_Repacked]) -> list[list[_Repacked]]:
    shards: list[list[_Repacked]] = [[]]
    size = 0
    for p in planned:
        if shards[-1] and size + p.nbytes > _SHARD:
            shards.append([])
            size = 0
        shards[-1].append(p)
        size += p.nbytes
    return shards
