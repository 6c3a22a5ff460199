"""T5 computes what llama.cpp computes: an encoder reads, a decoder answers."""

from __future__ import annotations

import llama
import numpy as np
import pytest
import tiny_models
from recipes_late import encoders
from tiny_models import write_tiny
from verify_runtime import divergence, tokens_for

import ggufkit
from ggufkit.errors import UsageError
from ggufkit.runtime import embedding
from ggufkit.runtime.batch import hidden
from ggufkit.runtime.embedding import together
from ggufkit.runtime.relative import buckets

RECIPES = encoders()


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_models, "RECIPES", tiny_models.RECIPES | RECIPES)
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize("backend", ["cpu", "mlx"])
@pytest.mark.parametrize("name", ["t5+gated", "t5+plain"])
def test_logits_equal_the_reference(path, name, backend):
    if backend == "mlx":
        pytest.importorskip("mlx.core")
    write_tiny(path, name)
    with ggufkit.load(path, backend=backend) as model:
        text, answer = tokens_for(model, 40), np.array([3, 7, 8, 30, 11, 12], np.int32)
        cache = model.new_cache(32)
        model.read(text, cache)
        own = model.forward(answer, cache, "all")
        model.read(text[:9], cache)  # another text
        other = np.stack([model.forward([token], cache) for token in answer])
        copied = cache.copy(3)
        again = model.forward(answer[3:], copied, "all")
    np.testing.assert_allclose(again, other[3:], atol=5e-3)  # GELU is a table
    for part, found in ((text, own), (text[:9], other)):
        with llama.Model(path, 64, cache=(0, 0), flash_attn_type=0) as reference:
            reference.encode(part)
            expected = reference.logits(answer)
        assert divergence(expected, found).max() < (1e-6 if "plain" in name and backend == "cpu" else 1e-5)


@pytest.mark.parametrize("backend", ["cpu", "mlx"])
def test_an_encoder_alone_equals_the_reference(path, backend):
    if backend == "mlx":
        pytest.importorskip("mlx.core")
    write_tiny(path, "t5encoder")
    with ggufkit.load(path, backend=backend) as model:
        text = tokens_for(model, 40)
        own = model.embed(text, "none")
    with llama.Model(path, 64, embeddings=True, flash_attn_type=0, pooling_type=0) as reference:
        reference.encode(text)
        expected = reference.states(len(text))
    cosines = (own * expected).sum(1) / np.linalg.norm(own, axis=1) / np.linalg.norm(expected, axis=1)
    assert 1 - cosines.min() < 1e-6


def test_nothing_is_answered_that_was_not_read(path):
    write_tiny(path, "t5+gated")
    with ggufkit.load(path, backend="cpu") as model:
        with pytest.raises(UsageError, match="has read no text"):
            model.forward([3], model.new_cache(8))
        with pytest.raises(UsageError, match="the text has 65 tokens; the model reads 64 at most"):
            model.read([5] * 65, model.new_cache(8))


@pytest.mark.parametrize("two_sided", [True, False])
def test_near_keys_have_buckets_of_their_own(two_sided):
    found = buckets(np.array([200]), np.arange(400), 32, two_sided)[0]
    assert found.min() == 0
    assert found.max() == 31
    near = found[200 - 7 : 201][::-1]
    assert near.tolist() == list(range(8))
    assert (found[: 200 - 128] == found[0]).all()
    if not two_sided:
        assert (found[200:] == 0).all()


ENCODERS = ("bert+mean", "nomic-bert", "nomic-bert-moe", "eurobert", "neo-bert", "modern-bert", "jina-bert-v2+gate")
ENCODERS += ("gemma-embedding", "gemma-embedding2")


@pytest.mark.parametrize("name", [*ENCODERS, "llama", "llama-embed", "t5encoder"])
def test_texts_that_go_together_have_the_vectors_that_they_have_alone(path, name, monkeypatch):
    write_tiny(path, name)
    with ggufkit.load(path, backend="cpu") as model:
        texts = [tokens_for(model, n) for n in (7, 1, 20, 33, 2)]
        alone = [[model.embed(text, kind) for text in texts] for kind in ("mean", "none")]
        passes = []
        monkeypatch.setattr(embedding, "hidden", lambda model, runs: passes.append(len(runs)) or hidden(model, runs))
        for kind, expected in zip(("mean", "none"), alone, strict=True):
            for found, one in zip(model.embed_all(texts, kind), expected, strict=True):
                np.testing.assert_array_equal(found, one)
        assert passes == [5, 5]
    assert [len(run) for run in together([[0] * n for n in (500, 12, 1, 600, 3)])] == [2, 1, 1, 1]
