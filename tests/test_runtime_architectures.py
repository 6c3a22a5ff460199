"""Every architecture that runs gives llama.cpp's logits: tiny models with random weights."""

from __future__ import annotations

import pytest
from test_runtime_converted import CONVERTED
from test_runtime_models import MODELS, OTHERS
from tiny_models import RECIPES, write_tiny
from verify_runtime import compare, compare_embeddings

from ggufkit.arch.registry import known_models

ENCODERS = [name for name in RECIPES if "bert" in name or "embed" in name]


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ENCODERS])
def test_logits_equal_the_reference(tmp_path, name):
    write_tiny(tmp_path / "tiny.gguf", name)
    prompt, single = compare(str(tmp_path / "tiny.gguf"), 48, "F32")
    assert prompt < 1e-6
    assert single < 1e-6


@pytest.mark.parametrize("name", ENCODERS)
def test_embeddings_equal_the_reference(tmp_path, name):
    write_tiny(tmp_path / "tiny.gguf", name)
    assert compare_embeddings(str(tmp_path / "tiny.gguf"), 40) < 1e-6


def test_every_architecture_that_runs_is_verified():
    specs = (spec for found in known_models().values() for spec in found)
    recipes = {name.split("+")[0] for name in RECIPES}
    assert {
        spec.name for spec in specs if spec.graph is not None
    } == recipes | MODELS.keys() | CONVERTED.keys() | OTHERS
