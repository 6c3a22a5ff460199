"""Encoders become llama.cpp's mmproj files, byte for byte; configs without sense get one line."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import write
from tiny_encoders import ENCODERS, digest

from ggufkit.errors import GgufkitError
from ggufkit.jobs.convert import convert


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_equal_the_references(fixtures: Path, tmp_path: Path, name: str):
    expected = json.loads((fixtures / "encoders.json").read_text())
    folder = write(ENCODERS[name](), tmp_path / "hf")
    assert digest(convert(folder, tmp_path / "mmproj.gguf", "F16", mmproj=True)) == expected[name]


@pytest.mark.parametrize("name", ["llama4", "voxtral"])
def test_configs_without_sense_get_one_line(tmp_path: Path, name: str):
    tiny = ENCODERS[name]()
    folder = write(tiny, tmp_path / "hf")
    part = next(key for key in ("vision_config", "audio_config") if key in tiny.config)
    for key in [*tiny.config[part], "spatial_merge_size", "depth"]:
        for odd in (None, -1, 10**30, "many"):
            values: dict[str, Any] = {**tiny.config, part: {**tiny.config[part], key: odd}}
            (folder / "config.json").write_text(json.dumps(values))
            with contextlib.suppress(GgufkitError):
                convert(folder, tmp_path / "mmproj.gguf", "F16", mmproj=True, force=True)
