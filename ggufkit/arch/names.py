"""What checkpoints call the tensors of each architecture: a table, made by tools/generate/make_names.py.

    rename = name_map("llama", layers=32)
    rename("model.layers.3.self_attn.q_proj.weight")     # blk.3.attn_q.weight

Source: `TensorNameMap` and `MODEL_TENSORS` of llama.cpp's gguf-py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["name_map"]

_SUFFIXES = (".weight", ".bias")


@cache
def _table() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(
        resources.files("ggufkit.arch").joinpath("names.json").read_text(encoding="utf-8")
    )
    return result


@cache
def _patterns(architecture: str) -> dict[str, str]:
    """Checkpoint name → GGUF name, both with ``{bid}`` for the layer; of two tensors the later one has a name."""
    table = _table()
    entries = {place: table["names"][place] for place in table["architectures"].get(architecture, ())}
    for number, (place, *entry) in enumerate(table["own"].get(architecture, ())):
        entries[len(table["names"]) + number if place is None else place] = entry
    patterns: dict[str, str] = {}
    for tensor, names in entries.values():
        patterns[tensor] = tensor
        patterns.update(dict.fromkeys(names, tensor))
    return patterns


def name_map(architecture: str, layers: int) -> Callable[[str], str | None]:
    """Checkpoint name → GGUF name; None for one that no model of so many layers has. GGUF's own names stay."""
    patterns = _patterns(architecture)

    def rename(name: str) -> str | None:
        for suffix in ("", *_SUFFIXES):
            if suffix and not name.endswith(suffix):
                continue
            stem = name.removesuffix(suffix)
            for pattern, layer in _readings(stem):
                if layer < layers and (known := patterns.get(pattern)) is not None:
                    return known.replace("{bid}", str(layer)) + suffix
        return None

    return rename


def _readings(name: str) -> Iterator[tuple[str, int]]:
    """The name itself, then (pattern, layer) for each number in it that may be the layer."""
    yield name, -1
    for number in re.finditer(r"(?<!\d)(0|[1-9]\d{0,4})(?!\d)", name):
        yield f"{name[: number.start()]}{{bid}}{name[number.end() :]}", int(number[0])
