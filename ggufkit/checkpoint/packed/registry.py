"""All layouts, and what becomes of the matrices that they find.

    unpacked = unpack(Source(checkpoint.tensors, checkpoint.config, checkpoint.json))
    unpacked.tensors        # as of a checkpoint that is not quantized, but with blocks where blocks hold the weights

For each matrix the first of these that is possible:

    a block format, or one of 16 bits, that holds every weight: the smallest
    the same after its inputs change places, where the rows that make them change places with them
    what `inexact` says: the smallest of Q8_0, F16, BF16 whose error is below the steps of the matrix itself, …

Adding a layout: a module in this folder with `read`, and its name in `_LAYOUTS`.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ggufkit.checkpoint.packed import INEXACT
from ggufkit.checkpoint.packed.choice import choose
from ggufkit.checkpoint.packed.mlx import hints as mlx_hints
from ggufkit.checkpoint.packed.stored import Reading, Source
from ggufkit.errors import CheckpointError, UsageError, printable
from ggufkit.tensors.tensor import Tensor

__all__ = ["Unpacked", "is_packed", "unpack"]

# In the order in which they are asked.
_LAYOUTS = (
    "mlx",
    "mxfp4",
    "gptq",
    "awq",
    "autoround",
    "exl2",
    "compressed_tensors",
    "modelopt",
    "bitsandbytes",
    "hqq",
    "bitnet",
    "torchao",
    "quanto",
    "int8",
    "fp8",
)

# Scales of activations and of the cache, for those who compute in fewer bits.
_UNUSED = (
    ".activation_scale",
    "_activation_scale",
    ".input_scale",
    ".input_scale_ub",
    ".input_global_scale",
    ".output_scale",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".qscale_act",
)

# How stored tensors of quantized checkpoints end, whatever the settings say.
_PACKED = (".qweight", ".weight_packed", ".weight.absmax", ".weight.quant_map", ".SCB", ".W_q", ".q_weight", "_blocks")

# dtypes that only quantized weights have.
_RAW = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "U32", "U8", "I8")


@dataclass(frozen=True)
class Unpacked:
    """A quantized checkpoint as one that is not.

    Attributes
    ----------
    tensors : name → `Tensor`; those that were quantized have an `Origin`.
    layouts : the names of the layouts, for people.
    kinds : how its matrices are quantized, the most frequent first: "4 bits in groups of 128".
    settings : the quantization settings, as JSON.
    mlx : what MLX's own arrays are made of again, where MLX made them.
    within : see `stored.Source.within`.
    """

    tensors: Mapping[str, Tensor]
    layouts: tuple[str, ...]
    kinds: tuple[str, ...]
    settings: str
    mlx: str | None = None
    within: Callable[[int], int] = lambda memory: memory


def is_packed(source: Source) -> bool:
    """Whether another program quantized the checkpoint; looks at settings, names and dtypes only."""
    if source.settings or isinstance(source.config.get("quantization"), dict):
        return True
    return any(t.format.name in _RAW or _looks_packed(n, t) for n, t in source.tensors.items())


def _looks_packed(name: str, tensor: Tensor) -> bool:
    """Some models call the weights of a norm q_weight; those of a matrix are numbers of bits."""
    return name.endswith(_PACKED) and not (name.endswith(".q_weight") and tensor.format.name in ("F32", "F16", "BF16"))


def unpack(source: Source, *, inexact: str = "step", keep: bool = True) -> Unpacked | None:
    """Put quantized matrices together; None where there are none.

    Parameters
    ----------
    inexact : what a matrix becomes that no block format holds: "step" the smallest of Q8_0, F16, BF16 and F32 whose
        error is below the steps of the matrix itself; F16, BF16 or F32; "preset" F32 for a preset to go on from.
    keep : False decodes all matrices to F32.

    Raises
    ------
    CheckpointError : parts are missing, do not fit each other or the settings, or the layout is not known.
    """
    if inexact not in INEXACT:
        raise UsageError(
            f"there is no {printable(inexact)} for matrices that no block holds; known: {', '.join(INEXACT)}"
        )
    if not is_packed(source):
        return None
    order, everything = list(source.tensors), Source(source.tensors, source.config)
    readings = []
    for module in _LAYOUTS:
        reading = importlib.import_module(f"ggufkit.checkpoint.packed.{module}").read(source)
        if reading is not None:
            readings.append(reading)
            for name in reading.parts:
                source.tensors.pop(name, None)
    _refuse_unknown(source)
    if not readings:
        return None
    for name in [name for name in source.tensors if name.endswith(_UNUSED)]:
        del source.tensors[name]
    settings = source.settings or source.config.get("quantization") or {}
    return Unpacked(
        _together(order, source, readings, inexact, keep),
        tuple(reading.layout for reading in readings),
        _kinds(readings),
        json.dumps(settings),
        mlx_hints(everything) if readings[0].layout == "MLX" else None,
        source.within,
    )


def _kinds(readings: Sequence[Reading]) -> tuple[str, ...]:
    counted = Counter(
        matrix.what.removeprefix(reading.layout).lstrip(", ")
        for reading in readings
        for matrix in reading.matrices.values()
    )
    return tuple(kind for kind, _ in counted.most_common())


def _refuse_unknown(source: Source) -> None:
    """Refuse weights that another program packed in a way that is not known here."""
    left = next((name for name, tensor in source.tensors.items() if _looks_packed(name, tensor)), None)
    if left is not None:
        method = f"by {printable(source.method)} " if source.method else ""
        raise CheckpointError(
            f"the checkpoint is quantized {method}({printable(left)}) in a way that is not known; convert the model "
            "that it was made from"
        )


def _together(
    order: Sequence[str], source: Source, readings: Sequence[Reading], inexact: str, keep: bool
) -> dict[str, Tensor]:
    """All tensors in the order of the checkpoint, each matrix in the place of its anchor."""
    matrices = {anchor: matrix for reading in readings for anchor, matrix in reading.matrices.items()}
    names = [matrix.name for matrix in matrices.values()]
    for name, count in Counter(names).items():
        if count > 1 or name in source.tensors:
            raise CheckpointError(f"there are two of {printable(name)}, one of them quantized")
    kept = dict(source.tensors)
    for reading in readings:
        kept.update(reading.other)
    made, moved = choose(list(matrices.values()), kept, source.config, inexact, keep)
    early = [anchor for reading in readings if reading.first for anchor in reading.matrices]
    found: dict[str, Tensor] = {}
    for name in (*early, *(name for name in order if name not in set(early))):
        if name in matrices:
            tensor = made[matrices[name].name]
        elif name in kept:
            tensor = moved.get(name, kept[name])
        else:
            continue
        found[tensor.name] = tensor
    return found
