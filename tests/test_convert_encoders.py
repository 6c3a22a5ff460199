"""Encoders become llama.cpp's mmproj files, byte for byte; configs without sense get one line."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tiny_checkpoints import weights, write
from tiny_encoders import COMPUTED, ENCODERS, WAVES, digest
from tiny_towers import WIDTH

import ggufkit
from ggufkit.errors import GgufkitError
from ggufkit.jobs.convert import conversion, convert
from ggufkit.runtime.cpu.ops import CpuOps
from ggufkit.runtime.encoders.media import load_media
from ggufkit.runtime.seen import Shown

PARTS = "sees", "hears"
# Their encoders are of a kind that cannot be run.
CONVERTED_ONLY = {
    *("granitespeech", "granitespeechplus", "granite4vision"),
    *("deepseekv4", "dots3note", "dots3notegeneration", "d1omni"),
}


def described(config: dict[str, Any]) -> set[str]:
    """Which encoders a config has."""
    inside = config.get("thinker_config", config)
    hears = {"audio_config", "whisper_config", "speech_config", "encoder"} & set(inside)
    return {part for part, there in zip(PARTS, ("vision_config" in inside, hears), strict=True) if there}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_equal_the_references(fixtures: Path, tmp_path: Path, name: str):
    expected = json.loads((fixtures / "encoders.json").read_text())
    tiny = ENCODERS[name]()
    folder = write(tiny, tmp_path / "hf")
    path = convert(folder, tmp_path / "mmproj.gguf", "F16", mmproj=True)
    assert digest(path, name) == expected[name]
    if name.startswith(("nemotron", "step3")):  # whose sizes are always those of a large one, and not these tensors'
        return
    if name in CONVERTED_ONLY:
        with pytest.raises(GgufkitError, match=r"an encoder of (images|sound) with the projector \S+ cannot be run$"):
            load_media(path, cast(Any, None), CpuOps(1), Shown(), WIDTH)
        return
    media = load_media(path, cast(Any, None), CpuOps(1), Shown(), WIDTH)  # it can be run, and all of it is read
    parts = described(tiny.config) - ({"hears"} if name == "gemma3n" else set())  # it is converted, and not run
    assert [media.pictures is None, media.sounds is None] == [part not in parts for part in PARTS]
    media.gguf.close()
    if COMPUTED.get(name) == WAVES:
        with ggufkit.open(path) as gguf:
            waves = gguf.tensors["a.position_embd.weight"].floats().reshape(1500, 2, -1)
        angles = np.arange(1500)[:, None] * 10000 ** (-np.arange(waves.shape[2]) / (waves.shape[2] - 1))
        np.testing.assert_allclose(waves, np.stack([np.sin(angles), np.cos(angles)], axis=1), atol=1e-4)


def test_a_norm_of_batches_becomes_a_factor_and_a_bias(tmp_path: Path):
    folder, at = write(ENCODERS["lfm2audio"](), tmp_path / "hf"), "conformer.layers.3.conv.batch_norm."
    path = convert(folder, tmp_path / "mmproj.gguf", "F32", mmproj=True)
    weight, bias, mean, variance = (weights(at + x, (32,)) for x in ("weight", "bias", "running_mean", "running_var"))
    factor = weight / np.sqrt(variance.astype(np.float64) + 1e-5)
    with ggufkit.open(path) as gguf:
        found = [gguf.tensors[f"a.blk.3.conv_norm.{kind}"].floats().reshape(-1) for kind in ("weight", "bias")]
    np.testing.assert_allclose(found, [factor, bias - mean * factor], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "llama4",
            "voxtral",
            "internvl",
            "janus",
            "phi4v",
            "paddleocr",
            "meralion",
            "kimik25",
            "hunyuanvl",
            "step3vl",
        ),
        *("youtuvl", "exaone45", "minimaxm3", "museglimmer", "granitespeechplus", "granite4vision", "deepseekocr"),
        *("deepseekocr2", "deepseekv4", "gemma4unified", "gemma3n"),
    ],
)
def test_configs_without_sense_get_one_line(tmp_path: Path, name: str):
    tiny = ENCODERS[name]()
    folder = write(tiny, tmp_path / "hf")
    parts = "vision_config", "audio_config", "speech_config", "encoder_config"
    part = next((key for key in parts if key in tiny.config), "")
    settings = {"config.json": tiny.config, "preprocessor_config.json": tiny.files["preprocessor_config.json"]}
    changes = [("config.json", part, key) for key in [*tiny.config.get(part, {}), "spatial_merge_size", "depth"]]
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
