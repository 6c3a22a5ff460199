"""Tiny checkpoints of many architectures become what llama.cpp's converter makes of them, byte for byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from make_convert_goldens import pre_tokenizer, summary
from tiny_checkpoints import write
from tiny_families import FAMILIES

from ggufkit.errors import UsageError
from ggufkit.jobs.convert import convert


@pytest.mark.parametrize("name", FAMILIES)
def test_convert_equals_the_reference(name: str, fixtures: Path, tmp_path: Path):
    expected = json.loads((fixtures / "convert.json").read_text(encoding="utf-8"))[name]
    folder = write(FAMILIES[name](), tmp_path / "hf")
    pre = pre_tokenizer(folder)
    base = folder / "target" if (folder / "target").is_dir() else None  # of a model that drafts
    found = summary(convert(folder, tmp_path / "f16.gguf", "F16", pre=pre, base=base))
    assert list(found["metadata"].items()) == list(expected["metadata"].items())
    assert list(found["tensors"].items()) == list(expected["tensors"].items())
    assert found["sha256"] == expected["sha256"]
    small = convert(folder, tmp_path / "q8_0.gguf", "Q8_0", pre=pre, base=base)
    assert hashlib.sha256(small.read_bytes()).hexdigest() == expected["Q8_0"]


def test_convert_refuses_a_draft_without_its_model(tmp_path: Path):
    folder = write(FAMILIES["eagle3"](), tmp_path / "hf")
    with pytest.raises(UsageError, match="drafts for another model"):
        convert(folder, tmp_path / "out.gguf", "F16")
    with pytest.raises(UsageError, match="for models that draft"):
        convert(folder / "target", tmp_path / "out.gguf", "F16", base=folder, vocab_only=True)
    assert not (tmp_path / "out.gguf").exists()
