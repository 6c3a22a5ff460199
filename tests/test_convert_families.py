"""Tiny checkpoints of many architectures become what llama.cpp's converter makes of them, byte for byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from make_convert_goldens import pre_tokenizer, summary
from tiny_checkpoints import write
from tiny_families import FAMILIES

from ggufkit.jobs.convert import convert


@pytest.mark.parametrize("name", FAMILIES)
def test_convert_equals_the_reference(name: str, fixtures: Path, tmp_path: Path):
    expected = json.loads((fixtures / "convert.json").read_text(encoding="utf-8"))[name]
    folder = write(FAMILIES[name](), tmp_path / "hf")
    pre = pre_tokenizer(folder)
    found = summary(convert(folder, tmp_path / "f16.gguf", "F16", pre=pre))
    assert list(found["metadata"].items()) == list(expected["metadata"].items())
    assert list(found["tensors"].items()) == list(expected["tensors"].items())
    assert found["sha256"] == expected["sha256"]
    small = convert(folder, tmp_path / "q8_0.gguf", "Q8_0", pre=pre)
    assert hashlib.sha256(small.read_bytes()).hexdigest() == expected["Q8_0"]
