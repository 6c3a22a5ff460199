"""Encoders become llama.cpp's mmproj files, byte for byte; configs without sense get one line."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import write
from tiny_encoders import ENCODERS, WAVES, WITH_WAVES, digest

import ggufkit
from ggufkit.errors import GgufkitError
from ggufkit.jobs.convert import conversion, convert


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_equal_the_references(fixtures: Path, tmp_path: Path, name: str):
    expected = json.loads((fixtures / "encoders.json").read_text())
    folder = write(ENCODERS[name](), tmp_path / "hf")
    path = convert(folder, tmp_path / "mmproj.gguf", "F16", mmproj=True)
    assert digest(path, name) == expected[name]
    if name in WITH_WAVES:
        with ggufkit.open(path) as gguf:
            waves = gguf.tensors[WAVES].floats().reshape(1500, 2, -1)
        angles = np.arange(1500)[:, None] * 10000 ** (-np.arange(waves.shape[2]) / (waves.shape[2] - 1))
        np.testing.assert_allclose(waves, np.stack([np.sin(angles), np.cos(angles)], axis=1), atol=1e-4)


@pytest.mark.parametrize("name", ["llama4", "voxtral", "internvl", "janus", "phi4v", "paddleocr", "meralion"])
def test_configs_without_sense_get_one_line(tmp_path: Path, name: str):
    tiny = ENCODERS[name]()
    folder = write(tiny, tmp_path / "hf")
    part = next(key for key in ("vision_config", "audio_config", "speech_config") if key in tiny.config)
    settings = {"config.json": tiny.config, "preprocessor_config.json": tiny.files["preprocessor_config.json"]}
    changes = [("config.json", part, key) for key in [*tiny.config[part], "spatial_merge_size", "depth"]]
    changes += [("config.json", "", key) for key in tiny.config if key != part]
    changes += [("preprocessor_config.json", "", key) for key in settings["preprocessor_config.json"]]
    for file, inside, key in changes:
        for odd in (None, -1, 10**30, []):
            values: dict[str, Any] = dict(settings[file])
            values |= {inside: {**values[inside], key: odd}} if inside else {key: odd}
            (folder / file).write_text(json.dumps(values))
            with contextlib.suppress(GgufkitError):
                conversion(folder, tmp_path / "mmproj.gguf", "F16", mmproj=True)
        (folder / file).write_text(json.dumps(settings[file]))
