"""Converted checkpoints of families whose code came with them compute llama.cpp's logits: tiny, random weights."""

from __future__ import annotations

import pytest
from make_convert_goldens import PRE_TOKENIZER
from tiny_checkpoints import write
from tiny_families import FAMILIES
from verify_runtime import compare

from ggufkit.jobs.convert import convert

# Architecture → the checkpoint of it.
CONVERTED = {
    "afmoe": "afmoe",
    "bailingmoe": "bailingmoe",
    "bailingmoe2": "bailingmoe2",
    "chatglm": "glm",
    "dbrx": "dbrx",
    "deepseek": "deepseek1",
    "jamba": "jamba",
    "kimi-linear": "kimi_linear",
    "maincoder": "maincoder",
    "openelm": "openelm",
    "refact": "refact",
}


@pytest.mark.parametrize("name", CONVERTED.values())
def test_logits_of_a_converted_checkpoint_equal_the_reference(tmp_path, name):
    model = convert(write(FAMILIES[name](), tmp_path / "hf"), tmp_path / "model.gguf", "F32", pre=PRE_TOKENIZER)
    prompt, single = compare(str(model), 48, "F32")
    assert prompt < 1e-6
    assert single < 1e-6
