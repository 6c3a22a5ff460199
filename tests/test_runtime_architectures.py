"""Every architecture that runs gives llama.cpp's logits: tiny models with random weights."""

from __future__ import annotations

import llama
import numpy as np
import pytest
from recipes_late import encoders, ranking
from recipes_latest import diffusion
from test_runtime_converted import CONVERTED
from test_runtime_models import MODELS, OTHERS
from tiny_models import RECIPES, write_tiny
from verify_runtime import compare, compare_embeddings, divergence, tokens_for

import ggufkit
from ggufkit.arch.registry import known_models

ENCODERS = [name for name in RECIPES if "bert" in name or "embed" in name]


SILENT, RANKING = "chameleon", ranking()
BLOCKS = "minimax-m3+few"


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in [*ENCODERS, SILENT, BLOCKS]])
def test_logits_equal_the_reference(tmp_path, name):
    write_tiny(tmp_path / "tiny.gguf", name)
    prompt, single = compare(str(tmp_path / "tiny.gguf"), 48, "F32")
    assert prompt < 1e-6
    assert single < 1e-6


@pytest.mark.parametrize("name", ENCODERS)
def test_embeddings_equal_the_reference(tmp_path, name):
    write_tiny(tmp_path / "tiny.gguf", name)
    assert compare_embeddings(str(tmp_path / "tiny.gguf"), 40) < 1e-6


@pytest.mark.parametrize("name", RANKING)
def test_classification_heads_say_what_the_reference_says(tmp_path, name):
    recipe, keys, tensors = RANKING[name]
    keys = {f"{recipe.split('+')[0]}.{key}": value for key, value in keys.items()}
    write_tiny(tmp_path / "tiny.gguf", recipe, metadata=keys, tensors=tensors)
    with ggufkit.load(tmp_path / "tiny.gguf") as model:
        tokens = tokens_for(model, 24)
        own = model.embed(tokens, "rank")
    options = {"embeddings": True, "flash_attn_type": 0, "pooling_type": 4}
    with llama.Model(tmp_path / "tiny.gguf", 32, **options) as reference:
        expected = reference.embed(tokens)[: len(own)]
    assert own == pytest.approx(expected, abs=1e-4)


def test_tokens_of_images_are_never_given(tmp_path):
    """llama.cpp silences them in the first row of a batch, which is all that it needs to generate."""
    path, silent = tmp_path / "tiny.gguf", slice(4, 8196)
    write_tiny(path, SILENT)
    with ggufkit.load(path) as model:
        tokens = tokens_for(model, 24)
        own = model.forward(tokens, model.new_cache(24, "F32", "F32"), "all")
    with llama.Model(path, 32, cache=(0, 0), flash_attn_type=0) as reference:
        expected = reference.logits(tokens)
    assert (own[:, silent] == np.finfo(np.float32).min).all()
    assert (expected[0, silent] == np.finfo(np.float32).min).all()
    own, expected = (np.delete(logits, np.arange(4, 8196), axis=1) for logits in (own, expected))
    assert divergence(expected, own).max() < 1e-6


def test_blocks_of_keys_are_those_of_the_reference(tmp_path):
    """llama.cpp chooses blocks with flash attention alone, which rounds; of all 12 blocks a token sees 3."""
    path = tmp_path / "tiny.gguf"
    write_tiny(path, BLOCKS)
    with ggufkit.load(path) as model:
        tokens = tokens_for(model, 48)
        cache = model.new_cache(48, "F32", "F32")
        own = np.concatenate([model.forward(part, cache, "all") for part in (tokens[:40], tokens[40:41], tokens[41:])])
    found = []
    for flash in (1, 0):
        with llama.Model(path, 48, cache=(0, 0), flash_attn_type=flash) as reference:
            found.append(divergence(reference.logits(tokens), own))
    assert found[0].max() < 1e-4
    assert found[1][12:].max() > 1e-2


def test_every_architecture_that_runs_is_verified():
    specs = (spec for found in known_models().values() for spec in found)
    recipes = {name.split("+")[0] for name in [*RECIPES, *encoders(), *diffusion()]}
    assert {
        spec.name for spec in specs if spec.graph is not None
    } == recipes | MODELS.keys() | CONVERTED.keys() | OTHERS
