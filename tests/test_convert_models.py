"""Models of 2024–2026 equal llama.cpp's converter, byte for byte."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "tools" / "verify"))
import verify_models

ARCHIVE = Path(__file__).parents[1].parent / "shared" / "architectures" / "checkpoints.tar.xz"

# One of each kind; tools/verify/verify_models.py compares all of them, in all types.
MODELS = (
    "deepseekv32",
    "falconh1",
    "gemma3n",
    "gemma4-e",
    "glm4moe",
    "lfm2moe",
    "llama4",
    "mimo2",
    "minicpmv46",
    "mistral3",
    "modernbert",
    "nemotronh-moe",
    "qwen25vl",
    "qwen2audio",
    "qwen35moe-vl",
    "qwen3next",
    "qwen4exp",
)
KINDS = ("", "mmproj")  # F16


@pytest.fixture(scope="module")
def models(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds `<name>/hf` and `<name>/ref*.json`."""
    folder = tmp_path_factory.mktemp("models")
    if not ARCHIVE.is_file():
        pytest.skip("the checkpoints beside the repository are not here")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_convert_models_equal_the_references(models: Path, name: str):
    for reference in sorted((models / name).glob("ref*.json")):
        kind = reference.stem.removeprefix("ref").removeprefix("_")
        if kind in KINDS:
            assert verify_models.compare(models / name, kind, json.loads(reference.read_text())) is None
