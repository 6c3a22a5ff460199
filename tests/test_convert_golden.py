"""Converted checkpoints equal llama.cpp's converter, byte for byte: 20 architectures in each type it writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ggufkit.gguf import reader
from ggufkit.gguf.header import Field, ValueType
from ggufkit.jobs.convert import CheckpointModel, as_gguf, plan_convert
from ggufkit.jobs.job import Job

# The types beside F16 and BF16 that there are references of.
MORE_TYPES = {
    "bert": ["Q8_0"],
    "bitnet": ["TQ1_0", "TQ2_0"],
    "falcon": [],
    "gemma": [],
    "gemma2": ["Q8_0"],
    "gpt-oss": ["Q8_0"],
    "gpt2": ["Q8_0"],
    "gptneox": [],
    "granite": [],
    "llama": [],
    "llama-spm": ["Q8_0"],
    "mistral": ["Q8_0"],
    "mixtral": ["Q8_0"],
    "olmo2": ["Q8_0"],
    "phi3": [],
    "qwen2": [],
    "qwen2moe": ["Q8_0"],
    "qwen3": [],
    "stablelm": [],
    "t5": ["Q8_0"],
}
CASES = [(name, type_) for name, more in MORE_TYPES.items() for type_ in ("F16", "BF16", *more)]


@cache
def opened(folder: Path) -> CheckpointModel:
    return as_gguf(folder)


@pytest.mark.parametrize(("name", "type_"), CASES)
def test_convert_writes_the_reference_file(checkpoints: Path, tmp_path: Path, name: str, type_: str):
    ending = "" if type_ == "F16" else f"_{type_.lower()}"
    expected = json.loads((checkpoints / name / f"ref{ending}.json").read_text())
    path = tmp_path / "out.gguf"
    Job(path, plan_convert(opened(checkpoints / name / "hf"), type_), b"", "").write(threads=2)
    with reader.open(path) as model:
        assert list(described(model.fields.values())) == [(key, wanted(entry)) for key, entry in expected["kv"].items()]
        found = [
            (t.name, list(reversed(t.shape)), t.format.name, hashlib.sha256(t.read(0, t.rows)).hexdigest())
            for t in model.tensors.values()
        ]
        assert found == [(t["name"], t["shape"], t["type"], t["sha256"]) for t in expected["tensors"]]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == expected["file_sha256"]


def wanted(entry: dict[str, Any]) -> tuple[str, Any]:
    """(type, value or the SHA-256 of a long array) of a reference's pair."""
    return entry["type"], entry.get("sha256", entry.get("value"))


def described(fields: Any) -> Iterator[tuple[str, tuple[str, Any]]]:
    """The pairs of a file as the references describe theirs."""
    for field in fields:
        yield field.key, (type_of(field), contents(field))


def type_of(field: Field) -> str:
    return f"arr[{field.item_type.short}]" if field.item_type is not None else field.type.short


def contents(field: Field) -> Any:
    if field.type is ValueType.ARRAY and field.count > 16:
        return hashlib.sha256(field.raw).hexdigest()
    return field.value
