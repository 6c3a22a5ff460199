"""Models of 2024–2026 equal llama.cpp's converter, byte for byte."""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path += [str(Path(__file__).parents[1] / "tools" / folder) for folder in ("verify", "generate")]
import make_catalogue
import verify_models

from ggufkit.arch.catalogue import ARCHITECTURES, CLASSES
from ggufkit.arch.projectors import projector_of
from ggufkit.arch.registry import architecture_of
from ggufkit.errors import ArchitectureError, GgufkitError

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


def test_catalogue_is_what_the_specs_say():
    classes, names = make_catalogue.catalogue()
    assert {key: list(modules) for key, modules in CLASSES.items()} == classes
    assert {key: list(modules) for key, modules in ARCHITECTURES.items()} == names


HOSTILE: tuple[Any, ...] = (None, -1, 0, 10**30, 1.5, "many", [], [10**9], {"x": 1}, True)


@pytest.mark.parametrize("name", CLASSES)
def test_configs_without_sense_get_one_line(name: str):
    """Each setting that a spec asks for, made nonsense in turn: metadata, or an error that says which."""
    for odd in HOSTILE:
        asked: set[str] = set()
        values = _Watched({"architectures": [name], "num_hidden_layers": 2}, asked)
        for _ in range(12):  # what is asked for grows with what is answered
            before = set(asked)
            _metadata(values)
            for key in asked - before:
                values[key] = odd
            if asked == before:
                break


class _Watched(dict[str, Any]):
    """A config that notes what it is asked for."""

    def __init__(self, values: dict[str, Any], asked: set[str]):
        super().__init__(values)
        self.asked = asked

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self.asked.add(key)
        return super().get(key, default)


def _metadata(values: dict[str, Any]) -> None:
    steps: list[Callable[[], Any]] = []
    try:
        spec, config = architecture_of(values)
    except ArchitectureError as e:
        return _check(e)
    config._values = values
    steps = [partial(lambda row: list(row(spec.name, config)), row) for row in (*spec.preamble, *spec.metadata)]
    for step in (*steps, lambda: spec.blocks(config)):
        try:
            step()
        except GgufkitError as e:
            _check(e)
    return None


def _check(error: GgufkitError) -> None:
    assert "\n" not in str(error)


@pytest.mark.parametrize("part", ["vision_config", "audio_config"])
def test_encoders_without_sense_get_one_line(part: str):
    with pytest.raises(ArchitectureError):
        projector_of({"architectures": ["Gemma3ForConditionalGeneration"], part: 3}, lambda name: None, {})[
            1
        ].vision.integer("image_size")
