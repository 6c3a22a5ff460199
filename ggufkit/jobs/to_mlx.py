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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufkit.arch.export import Exported, Source, exported
from ggufkit.arch.forwards import check_forwards
from ggufkit.arch.mlx_checkpoint import exported_for_mlx
from ggufkit.arch.registry import exports_of
from ggufkit.checkpoint.packed.mlx import QUANTIZATION_KEY
from ggufkit.errors import ArchitectureError, Hint, UsageError, printable
from ggufkit.formats.affine import AFFINE
from ggufkit.gguf.reader import GGUF
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.jobs.checkpoint_folder import (
    Part,
    Repacked,
    Report,
    as_json,
    cast,
    dtype_named,
    exact,
    ranges,
    write_folder,
)
from ggufkit.runtime.mlx.arrays import QUANTIZED
from ggufkit.tensors.tensor import Tensor
from ggufkit.tokenizer.to_huggingface import tokenizer_files

if TYPE_CHECKING:
    import numpy as np

__all__ = ["export_mlx"]


@dataclass(frozen=True)
class _Planned(Repacked):
    """A tensor and MLX's arrays of it; and what config.json says of a quantized one."""

    quantization: dict[str, Any] | None = None


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
    report: Report | None = None,
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
    kind = dtype_named(dtype)
    with open_gguf(path) as model:
        model.read_once()
        name = model.get("general.architecture", str)
        seen, left = _exported(Source(name, model.metadata, model.tensors))
        planned, config = _plan(model, seen, kind)
        files = {"config.json": as_json(config), **tokenizer_files(model)}
        write_folder(Path(folder), files, planned, kind="mlx", force=force, report=report, source=path)
    return [*left, *_notes(planned)]


def _exported(source: Source) -> tuple[Exported, list[str]]:
    """The model as mlx-lm's checkpoint, and a note on what that does without."""
    exports = [export for export in exports_of(source.architecture) if export.mlx is not None]
    if not exports:
        raise ArchitectureError(f"{printable(source.architecture)} models cannot be exported for MLX")
    published = exported(exports, source)
    check_forwards(published, source)
    seen = exported_for_mlx(exports, source)
    left = [name for name in published.tensors if seen.export.mlx is not None and seen.export.mlx.skip(source, name)]
    if not left:
        return seen, []
    return seen, [f"{len(left)} tensors are left out, of which mlx-lm has none; the first is {printable(left[0])}"]


# -- plan -------------------------------------------------------------------------------------------------


def _plan(model: GGUF, seen: Exported, dtype: str | None) -> tuple[list[_Planned], dict[str, Any]]:
    """What becomes of the tensors, and config.json."""
    origin = json.loads(model.metadata.get(QUANTIZATION_KEY, "{}"))
    known = dtype or origin.get("dtype")
    if known is None:
        known = "F16" if all(map(_fits_halves, seen.tensors.values())) else "F32"
    settings = _Settings(known, dtype, dtype is not None, origin)
    planned = [_repacked(tensor, settings) for tensor in seen.tensors.values()]
    return planned, {**seen.config, **_quantization(planned)}


def _fits_halves(tensor: Tensor) -> bool:
    """Whether float16 scales, norms and biases round nothing of it."""
    if tensor.format.name in ("Q4_K", "Q5_K"):
        return False  # a scale is the product of a half and a code of six bits
    if tensor.format.name != "F32" or len(tensor.shape) > 1:
        return True
    return exact(tensor.floats(), "F16")


def _repacked(tensor: Tensor, settings: _Settings) -> _Planned:
    mode = QUANTIZED.get(tensor.format.name)
    base, _, ending = tensor.name.rpartition(".")
    if mode is None or ending != "weight":
        return _dense(tensor, settings)
    kind, bits, group = mode
    if kind != "affine":
        quantization = {"group_size": group, "bits": bits, "mode": kind}
        outer, cols = tensor.shape[:-1], tensor.cols
        codes = Part(tensor.name, "U32", (*outer, cols * bits // 32))
        scales = Part(f"{base}.scales", "U8", (*outer, cols // group))
        return _Planned(tensor, (codes, scales), lambda lo, blocks: _fp4(lo, blocks, tensor), quantization)
    bits, group = _original(tensor, base, settings) or (bits, group)
    parts = (
        Part(tensor.name, "U32", (*tensor.shape[:-1], tensor.cols * bits // 32)),
        Part(f"{base}.scales", settings.dtype, (*tensor.shape[:-1], tensor.cols // group)),
        Part(f"{base}.biases", settings.dtype, (*tensor.shape[:-1], tensor.cols // group)),
    )
    quantization = {"group_size": group, "bits": bits, "mode": "affine"}

    def make(lo: int, blocks: np.ndarray) -> list[tuple[int, np.ndarray]]:
        return [(lo, array) for array in _affine(blocks, tensor, bits, group, settings)]

    return _Planned(tensor, parts, make, quantization)


def _dense(tensor: Tensor, settings: _Settings) -> _Planned:
    if len(tensor.shape) <= 1:
        dtype = settings.dtype
    elif settings.dense is not None:
        dtype = settings.dense
    else:
        dtype = tensor.format.name if tensor.format.name in ("F32", "BF16") else "F16"

    def make(lo: int, blocks: np.ndarray) -> list[tuple[int, np.ndarray]]:
        from ggufkit.formats.codec import decode

        return [(lo, blocks if dtype == tensor.format.name else cast(decode(blocks, tensor.format), dtype))]

    return _Planned(tensor, (Part(tensor.name, dtype, tensor.shape),), make)


def _fp4(lo: int, blocks: np.ndarray, tensor: Tensor) -> list[tuple[int, np.ndarray]]:
    from ggufkit.runtime.mlx.arrays import repack

    packed = repack(blocks, tensor.format)
    if packed is None:
        raise UsageError(f"{printable(tensor.name)} has a scale of 480, for which MLX has no code")
    return [(lo, packed.codes), (lo, packed.scales)]


def _affine(blocks: np.ndarray, tensor: Tensor, bits: int, group: int, settings: _Settings) -> list[np.ndarray]:
    from ggufkit.formats.affine import pack_codes, split

    affine = split(blocks, tensor.format)
    repeats = group // AFFINE[tensor.format.name][1]
    made = [pack_codes(affine.codes.reshape(len(blocks), -1), bits)]
    for values in (affine.scales, affine.biases):
        values = values.reshape(len(blocks), -1)[:, ::repeats]  # noqa: PLW2901
        if not settings.rounding and not exact(values, settings.dtype):
            raise UsageError(
                f"{printable(tensor.name)} has a scale or bias that {settings.dtype} cannot hold",
                Hint("give {dtype=float32}", "another to round it"),
            )
        made.append(cast(values, settings.dtype))
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
    for lo, hi in ranges(tensor):
        affine = split(tensor.read(lo, hi), tensor.format)
        if affine.codes.max(initial=0) >> bits:
            return None
        for values in (affine.scales, affine.biases):
            groups = values.reshape(-1, group // 32)
            if not np.array_equal(groups, np.broadcast_to(groups[:, :1], groups.shape)):
                return None
    return bits, group


def _quantization(planned: Sequence[_Planned]) -> dict[str, Any]:
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


def _notes(planned: Sequence[_Planned]) -> list[str]:
    rounded = [p for p in planned if p.quantization is None and p.tensor.format.is_quantized]
    if not rounded:
        return []
    kinds = ", ".join(sorted({p.tensor.format.name for p in rounded}))
    return [
        f"{len(rounded)} of {len(planned)} tensors are {kinds}, for which MLX has no arrays: "
        f"they are matrices of {rounded[0].parts[0].dtype}, the first is {printable(rounded[0].tensor.name)}"
    ]
