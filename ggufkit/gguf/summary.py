"""What one wants to know about a model at first sight, from its header alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from ggufkit.gguf.header import TensorInfo
from ggufkit.gguf.reader import GGUF

__all__ = ["Role", "TypeShare", "file_type_name", "layer_of", "roles", "summary", "type_shares"]

# general.file_type (`enum llama_ftype`), which is not the tensor type's id. Source: include/llama.h of llama.cpp.
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
    1024: "guessed",
}

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class TypeShare:
    """The tensors of one format: how many, their weights and bytes."""

    format: str
    tensors: int
    weights: int
    nbytes: int


@dataclass(frozen=True)
class Role:
    """The tensors that differ in their layer's number only.

    Attributes
    ----------
    name : with ``*`` for the layer, e.g. ``blk.*.attn_q.weight``.
    layers : format name → the layers that have it; empty lists for a tensor outside the layers.
    infos : the tensors.
    """

    name: str
    layers: dict[str, list[int]]
    infos: list[TensorInfo]


def layer_of(name: str) -> int | None:
    """The layer number in a name that starts with ``blk.N.``, or None."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else None


def type_shares(infos: Iterable[TensorInfo]) -> list[TypeShare]:
    """The formats by bytes, largest first."""
    sums: dict[str, list[int]] = {}
    for info in infos:
        share = sums.setdefault(info.format.name, [0, 0, 0])
        share[0] += 1
        share[1] += prod(info.shape)
        share[2] += info.nbytes
    return sorted((TypeShare(name, *share) for name, share in sums.items()), key=lambda s: -s.nbytes)


def roles(infos: Iterable[TensorInfo]) -> list[Role]:
    """The tensors grouped by what they are, in order of first appearance."""
    found: dict[str, Role] = {}
    for info in infos:
        match = _LAYER.search(info.name)
        name = _LAYER.sub(".*.", info.name, count=1)
        role = found.setdefault(name, Role(name, {}, []))
        layers = role.layers.setdefault(info.format.name, [])
        if match:
            layers.append(int(match[1]))
        role.infos.append(info)
    return list(found.values())


def ranges(numbers: Iterable[int]) -> Iterator[str]:
    """Runs of numbers as text: 0, 1, 2, 5 → "0–2", "5"."""
    run: list[int] = []
    for n in [*sorted(numbers), None]:
        if run and n != run[-1] + 1:
            yield str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}"
            run = []
        if n is not None:
            run.append(n)


def file_type_name(number: int) -> str:
    return FILE_TYPES.get(number, str(number))


def summary(model: GGUF) -> dict[str, Any]:
    """The model in a few numbers. Keys that the file does not tell are absent.

    Returns
    -------
    dict with, among others, ``parameters``, ``bytes`` (of tensors), ``bits_per_weight``, and the load-bearing
    hyperparameters. Values are as the file has them: of unexpected types when the file is odd.
    """
    fields = model.fields
    parameters = sum(prod(info.shape) for info in model.info.values())
    nbytes = sum(info.nbytes for info in model.info.values())
    facts: dict[str, Any] = {"size": model.size, "files": len(model.parts)}

    def note(name: str, key: str) -> None:
        if key in fields and fields[key].item_type is None:
            facts[name] = fields[key].value

    note("architecture", "general.architecture")
    note("name", "general.name")
    note("file_type", "general.file_type")
    if isinstance(facts.get("file_type"), int):
        facts["file_type"] = file_type_name(facts["file_type"])
    arch = facts.get("architecture")
    for name, key in [
        ("context_length", "context_length"),
        ("embedding_length", "embedding_length"),
        ("layers", "block_count"),
        ("heads", "attention.head_count"),
        ("kv_heads", "attention.head_count_kv"),
        ("feed_forward_length", "feed_forward_length"),
        ("experts", "expert_count"),
        ("experts_used", "expert_used_count"),
    ]:
        note(name, f"{arch}.{key}")
    note("tokenizer", "tokenizer.ggml.model")
    if "tokenizer.ggml.tokens" in fields:
        facts["vocabulary"] = len(fields["tokenizer.ggml.tokens"])
    facts.update(tensors=len(model.info), parameters=parameters, bytes=nbytes)
    if parameters:
        facts["bits_per_weight"] = 8 * nbytes / parameters
    return facts
