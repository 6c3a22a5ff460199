"""GGUF files to folders that transformers and vLLM load: config.json, safetensors, tokenizer.

    export_hf("model-Q4_0.gguf", "model-hf")

Names, rows and numbers go back to what the checkpoint had (`arch.export`), and what would come of the folder in
`convert` is compared with the GGUF before anything is written (`arch.forwards`).

Matrices of blocks in Q4_0, Q5_0 and Q8_0, and in Q4_1 where its bias is a whole number of steps, stay quantized with
the same numbers: in the layout of compressed-tensors (`jobs.pack_quantized`), of GPTQ (`pack_gptq`), or, those of 4
bits, of AWQ (`pack_awq`). Embeddings and the output are not, because vLLM reads none. All other blocks are decoded to
F16: of a block's grid its eleven digits keep everything that matters.
Whatever has 16 or 32 bits stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ggufkit.arch.export import Exported, Source, exported
from ggufkit.arch.forwards import check_forwards
from ggufkit.arch.registry import exports_of
from ggufkit.errors import Hint, UsageError, printable
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.jobs import pack_awq, pack_gptq, pack_mxfp4, pack_quantized
from ggufkit.jobs.checkpoint_folder import (
    DTYPES,
    Part,
    Repacked,
    Report,
    as_json,
    cast,
    dtype_named,
    exact,
    write_folder,
)
from ggufkit.jobs.pack_quantized import Scheme
from ggufkit.tensors.tensor import Tensor
from ggufkit.tokenizer.to_huggingface import tokenizer_files

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LAYOUTS", "export_hf"]

# How matrices stay quantized: modules that say which can, what arrays they become, and what config.json says of it.
LAYOUTS = {"compressed-tensors": pack_quantized, "gptq": pack_gptq, "awq": pack_awq}

# Formats whose powers of two float16 may not have, and whose few digits bfloat16 has.
_BRAIN = ("MXFP4", "NVFP4")

_NAMES = {stored: name for name, stored in DTYPES.items()}


def export_hf(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    decode: bool = False,
    layout: str = "compressed-tensors",
    force: bool = False,
    report: Report | None = None,
) -> list[str]:
    """Write a folder that transformers and vLLM load.

    Parameters
    ----------
    path : the GGUF file.
    folder : the folder to make.
    dtype : float16, bfloat16 or float32, for everything that does not stay quantized; by default whatever rounds
        nothing, and float16 for what is decoded.
    decode : let nothing stay quantized.
    layout : compressed-tensors, gptq or awq, of what stays quantized; gpt-oss has its own.
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
    if layout not in LAYOUTS:
        raise UsageError(f"the layout must be one of {', '.join(LAYOUTS)}, not {printable(layout)}")
    with open_gguf(path) as model:
        model.read_once()
        name = model.get("general.architecture", str)
        source = Source(name, model.metadata, model.tensors)
        seen = exported(exports_of(name), source)
        check_forwards(seen, source)
        own = pack_mxfp4 if seen.export.layout == "mxfp4" else LAYOUTS[layout]
        tokenizer = tokenizer_files(model)
        kept = {} if decode or not seen.export.packs else own.schemes(seen.tensors)
        computed = kind or _computed(seen, kept)
        planned = [
            own.packed(tensor, kept[tensor.name]) if tensor.name in kept else _dense(tensor, kind, computed)
            for tensor in seen.tensors.values()
        ]
        config = {**seen.config, "torch_dtype": _NAMES[computed], **own.quantization_config(seen.tensors, kept)}
        files = {"config.json": as_json(config), **tokenizer}
        files |= {name: as_json(value) for name, value in seen.files.items()}
        write_folder(Path(folder), files, planned, kind="pt", force=force, report=report, source=path)
    return _notes(planned, kept)


def _computed(seen: Exported, kept: dict[str, Scheme]) -> str:
    """What the model is to be run in: the scales of quantized matrices are halves."""
    stored = {t.format.name for t in seen.tensors.values() if len(t.shape) > 1}
    if seen.export.wide or (not kept and "BF16" in stored):
        return "BF16"
    return "F32" if stored <= {"F32"} else "F16"


def _dense(tensor: Tensor, asked: str | None, computed: str) -> Repacked:
    """The tensor as one array: as it is, or decoded."""
    if asked is not None:
        dtype = asked
    elif _was_quantized(tensor):
        dtype = "BF16" if _kind(tensor) in _BRAIN else "F16"
    elif len(tensor.shape) > 1:
        dtype = tensor.format.name
    else:
        dtype = computed if exact(tensor.floats(), computed) else "F32"

    def make(lo: int, blocks: np.ndarray) -> list[tuple[int, np.ndarray]]:
        if dtype == tensor.format.name:
            return [(lo, blocks)]
        from ggufkit.formats.codec import decode

        return [(lo, _fitting(decode(blocks, tensor.format), dtype, tensor))]

    return Repacked(tensor, (Part(tensor.name, dtype, tensor.shape),), make)


def _fitting(values: np.ndarray, dtype: str, tensor: Tensor) -> np.ndarray:
    import numpy as np

    result = cast(values, dtype)
    if dtype == "F16" and np.isinf(result).any() and not np.isinf(values).any():
        raise UsageError(
            f"{printable(tensor.name)} has weights that float16 cannot hold", Hint("give {dtype=float32} or bfloat16")
        )
    return result


def _notes(planned: Sequence[Repacked], kept: dict[str, Scheme]) -> list[str]:
    matrices = [p for p in planned if len(p.tensor.shape) > 1]
    notes = []
    if kept:
        kinds = sorted({str(scheme) for scheme in kept.values()})
        notes.append(f"{len(kept)} of {len(matrices)} matrices stay quantized: {'; '.join(kinds)}")
    decoded = [p for p in planned if p.tensor.name not in kept and _was_quantized(p.tensor)]
    if decoded:
        first = decoded[0]
        kinds = sorted({_kind(p.tensor) for p in decoded})
        notes.append(
            f"{len(decoded)} of {len(matrices)} matrices, of {', '.join(kinds)}, are decoded to {first.parts[0].dtype}"
            f"; the first is {printable(first.tensor.name)}"
        )
    return notes


def _was_quantized(tensor: Tensor) -> bool:
    return tensor.format.is_quantized or tensor.origin is not None


def _kind(tensor: Tensor) -> str:
    return tensor.format.name if tensor.origin is None else tensor.origin.note.split(",")[0]
