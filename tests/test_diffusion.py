"""Models that write by diffusion: llama.cpp's logits, and the texts that its algorithm makes of them."""

from __future__ import annotations

import llama
import numpy as np
import pytest
import tiny_models
from make_convert_goldens import PRE_TOKENIZER
from recipes_latest import diffusion
from tiny_checkpoints import write
from tiny_families import FAMILIES
from tiny_models import write_tiny
from verify_runtime import divergence, tokens_for

import ggufkit
from ggufkit.cli import main
from ggufkit.errors import GGUFError, UsageError
from ggufkit.jobs.convert import convert
from ggufkit.runtime.diffusion import BLOCK, Diffusion, whole
from ggufkit.runtime.kv.size import cache_sizes


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    monkeypatch.setattr(tiny_models, "RECIPES", tiny_models.RECIPES | diffusion())


@pytest.fixture(scope="module")
def dream(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dream")
    return convert(write(FAMILIES["dream"](), folder / "hf"), folder / "dream.gguf", "F32", pre=PRE_TOKENIZER)


@pytest.mark.parametrize("backend", ["cpu", "mlx"])
@pytest.mark.parametrize("name", diffusion())
def test_logits_equal_the_reference(tmp_path, name, backend):
    if backend == "mlx":
        pytest.importorskip("mlx.core")
    path = tmp_path / "tiny.gguf"
    write_tiny(path, name)
    with ggufkit.load(path, backend=backend) as model:
        tokens = tokens_for(model, 48)
        own = whole(model, tokens)
        np.testing.assert_allclose(whole(model, tokens, np.array([3, 40])), own[[3, 40]], atol=1e-5)
    with llama.Model(path, 48, cache=(0, 0), flash_attn_type=0) as reference:
        assert divergence(reference.logits(tokens), own).max() < 1e-9


def unmasked(reference, prompt, mask, length, passes):
    """The text by the rule, from llama.cpp's logits: the surest first, logits one place to the left."""
    ids = np.array([*prompt, *[mask] * length])
    for start in range(len(prompt), len(ids), BLOCK):
        end = min(start + BLOCK, len(ids))
        for number in range(passes):
            reference.clear()
            logits = reference.logits(ids).astype(np.float64)
            logits[:, mask] = -np.inf
            places = [i for i in range(start, end) if ids[i] == mask]
            chosen = {i: int(logits[i - 1].argmax()) for i in places}
            sure = {i: logits[i - 1].max() - np.logaddexp.reduce(logits[i - 1]) for i in places}
            for i in sorted(places, key=lambda i: -sure[i])[: -(-len(places) // (passes - number))]:
                ids[i] = chosen[i]
    return ids[len(prompt) :].tolist()


def test_texts_are_those_of_the_rule(dream):
    prompt = np.random.default_rng(3).integers(20, 200, 9).tolist()
    with ggufkit.load(dream) as model:
        mask = model.gguf.get("tokenizer.ggml.mask_token_id", int)
        generation = model.generate(prompt, max_tokens=40, passes=5, temperature=0, ignore_ends=True)
        assert "".join(generation) == model.tokenizer.decode(generation.tokens)
    assert (generation.reason, len(generation.tokens), mask in generation.tokens) == ("length", 40, False)
    with llama.Model(dream, 64, cache=(0, 0), flash_attn_type=0) as reference:
        assert unmasked(reference, prompt, mask, 40, 5) == generation.tokens


def test_a_text_ends_at_its_end_and_is_the_same_with_the_same_seed(dream):
    with ggufkit.load(dream) as model:
        free = model.generate([30, 31, 32], max_tokens=40, temperature=1.5, seed=2, ignore_ends=True)
        text = "".join(free)
        assert text == "".join(model.generate([30, 31, 32], max_tokens=40, temperature=1.5, seed=2, ignore_ends=True))
        model.tokenizer.vocab.ends = {free.tokens[7]}
        first = free.tokens.index(free.tokens[7])
        ended = model.generate([30, 31, 32], max_tokens=40, temperature=1.5, seed=2)
        assert "".join(ended) == model.tokenizer.decode(free.tokens[:first])
        assert (ended.reason, ended.tokens) == ("end", free.tokens[: first + 1])


def test_models_that_write_from_left_to_right_have_no_passes(fixtures, tmp_path):
    path = convert(fixtures / "pylib-llama", tmp_path / "tiny.gguf", "F16")
    with ggufkit.load(path) as model, pytest.raises(UsageError, match="passes are of models"):
        model.generate([5], passes=4)


def test_what_is_not_for_such_models_is_refused(dream, tmp_path):
    with ggufkit.load(dream) as model:
        with pytest.raises(UsageError, match="by diffusion, not token by token"):
            model.forward([5, 6], model.new_cache(8))
        with pytest.raises(UsageError, match="at least 1 of its passes"):
            model.generate([5], passes=0)
        with pytest.raises(UsageError, match="context room for 4"):
            model.generate([5] * 4, context=4)
        with pytest.raises(UsageError, match="are run, not served"):
            cache_sizes(model, ("F16", "F16"))
    write_tiny(tmp_path / "tiny.gguf", "dream")
    with ggufkit.load(tmp_path / "tiny.gguf") as model, pytest.raises(GGUFError, match="mask_token_id"):
        Diffusion(model, [5], length=8)


def test_run_writes_by_diffusion(dream, capsys):
    main(["run", str(dream), "-p", "a b", "-n", "3", "--passes", "1", "--seed", "1", "--ignore-eos"])
    assert "3 generated" in capsys.readouterr().err
