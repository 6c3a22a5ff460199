"""Quantizing: the whole files are llama-quantize's, from a GGUF and straight from a checkpoint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from ggufkit.convert import convert
from ggufkit.quantize import quantize


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def bf16(fixtures, tmp_path_factory) -> Path:
    """The bundled model as llama.cpp's converter writes it."""
    return convert(fixtures / "pylib-llama", tmp_path_factory.mktemp("model") / "bf16.gguf", "BF16")


@pytest.fixture(scope="module")
def golden(fixtures) -> dict:
    return json.loads((fixtures / "pylib-llama.json").read_text())


@pytest.mark.parametrize("preset", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M"])
def test_quantize_writes_llama_quantizes_file(bf16, golden, tmp_path, preset):
    quantize(bf16, tmp_path / "q.gguf", preset)
    assert golden["quantize_sha256"][preset] == sha256(tmp_path / "q.gguf")


@pytest.mark.parametrize("preset", ["Q4_0", "Q4_K_M"])
def test_convert_writes_the_file_of_convert_and_quantize(fixtures, golden, tmp_path, preset):
    convert(fixtures / "pylib-llama", tmp_path / "q.gguf", preset.lower())
    assert golden["quantize_sha256"][preset] == sha256(tmp_path / "q.gguf")
