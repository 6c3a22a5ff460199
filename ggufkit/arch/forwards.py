"""A check of the way back: what the converter would make of a checkpoint that does not exist yet.

Before a GGUF becomes a checkpoint, its config.json and names are read as if they were one. Tensors, shapes and
hyperparameters must be those of the GGUF, or the checkpoint would be of another model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ggufkit.arch.export import Exported, Source
from ggufkit.arch.registry import architecture_of
from ggufkit.errors import ArchitectureError, printable
from ggufkit.tensors.tensor import Tensor

__all__ = ["check_forwards"]

# Keys of which a checkpoint says nothing, though a converter once wrote them.
_SAYS_NOTHING = {"tensor_data_layout"}


def check_forwards(exported: Exported, source: Source) -> None:
    """Refuse an export that would not become its GGUF again; reads no weight but rope factors.

    Raises
    ------
    ArchitectureError : a tensor or a hyperparameter would be lost or another.
    CheckpointError : the checkpoint would be malformed.
    """
    texts = {name: json.dumps(value) for name, value in exported.files.items()}
    spec, config = architecture_of(exported.config, texts.get, exported.tensors)
    if spec.name != source.architecture:
        raise ArchitectureError(
            f"a {exported.export.model_class} would become a {spec.name}, not a {printable(source.architecture)} again"
        )
    _check_tensors({t.name: t for t in spec.tensors(exported.tensors.values(), config)}, source.tensors)
    found: dict[str, Any] = {}
    for row in (*spec.preamble, *spec.metadata):
        found.update((key, value.value) for key, value in row(spec.name, config))
    prefix = f"{source.architecture}."
    for key, value in source.metadata.items():
        if not key.startswith(prefix) or (name := key.removeprefix(prefix)) in _SAYS_NOTHING:
            continue
        if key in found:
            if not _same(found[key], value):
                raise ArchitectureError(
                    f"{printable(key)} is {_shown(value)}, and config.json can only say {_shown(found[key])}"
                )
        elif not _follows(name, value, source):
            raise ArchitectureError(f"{printable(key)}, {_shown(value)}, has no place in config.json")


def _check_tensors(again: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if name not in again:
            raise ArchitectureError(f"the tensor {printable(name)} would be lost in a checkpoint")
        if _without_ones(again[name].shape) != _without_ones(tensor.shape):
            raise ArchitectureError(
                f"the tensor {printable(name)} of shape {list(tensor.shape)} would come back as "
                f"{list(again[name].shape)}"
            )
    if (extra := next((name for name in again if name not in tensors), None)) is not None:
        raise ArchitectureError(f"a checkpoint of this kind would have a tensor {printable(extra)}")


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape as llama-quantize leaves it."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _same(found: Any, value: Any) -> bool:
    if isinstance(found, list) or isinstance(value, list):
        return (
            isinstance(found, list)
            and isinstance(value, list)
            and len(found) == len(value)
            and all(map(_same, found, value))
        )
    if isinstance(found, float) and isinstance(value, (int, float)):
        return bool(abs(found - value) <= 1e-6 * abs(value))
    return bool(found == value)


def _follows(name: str, value: Any, source: Source) -> bool:
    """Whether a key that the converter does not write says what is so without it."""
    if not value or value == "none":
        return True
    if name == "vocab_size":
        return bool(value == source.tensors["token_embd.weight"].shape[0])
    if name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        return bool(value == source.width // source.heads)
    return name == "rope.scaling.factor" and bool(value == 1)


def _shown(value: Any) -> str:
    return printable(repr(value), 60)
