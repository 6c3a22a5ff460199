"""Models of real sizes that take no room on the disk: headers with names and shapes, and tensors that are holes.

for name, path in write_wide(folder).items(): ...      # loads in llama.cpp, with all weights 0
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from random_hybrid import MODELS, TOKENS

from ggufkit.arch.typical import TYPICAL
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.writer import Writer

__all__ = ["write_sparse", "write_wide"]

# Parts of names of matrices that llama.cpp wants as numbers.
_NUMBERS = ("norm", "gate_inp", "conv1d", "ssm_a", "ssm_d")


def write_sparse(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    format: str = "Q8_0",
) -> None:
    """Write a model whose matrices are of `format`, without its weights."""

    def format_of(name: str, shape: tuple[int, ...]) -> str:
        matrix = len(shape) > 1 and not any(part in name for part in _NUMBERS)
        return format if matrix and shape[-1] % FORMATS[format].block_size == 0 else "F32"

    infos = [(name, shape, FORMATS[format_of(name, shape)]) for name, shape in shapes.items()]
    with Writer(path, {**metadata, "tokenizer.ggml.model": "no_vocab"}, infos, force=True) as out:
        for name, info in out.layout.infos.items():
            out.wrote(name, info.nbytes)  # the data stays a hole


def write_wide(folder: Path) -> dict[str, Path]:
    """Dense models, one of experts, and two hybrids, as wide as real ones."""
    paths = {}
    for size, layers in (("0.6B", 28), ("1B", 16), ("30B-A3B", 4)):  # of few, as reading holes takes time, too
        shape = replace(TYPICAL[size], layers=layers)
        keys = {**shape.metadata, "llama.vocab_size": shape.vocabulary}
        paths[size] = folder / f"{size}.gguf"
        write_sparse(paths[size], keys, shape.shapes)
    for name, make in MODELS.items():
        found, tensors = make()
        keys = {"general.architecture": name, **{f"{name}.{key}": value for key, value in found.items()}}
        paths[name] = folder / f"{name}.gguf"
        write_sparse(paths[name], {**keys, f"{name}.vocab_size": TOKENS}, dict(tensors))
    return paths
