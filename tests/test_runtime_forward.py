"""The forward pass: logits equal llama.cpp's; the cache and its limits."""

from __future__ import annotations

import mmap
import os

import llama
import numpy as np
import pytest
from verify_runtime import divergence

import ggufkit
from ggufkit.errors import UsageError
from ggufkit.jobs.convert import convert

PROMPT = "class TestCase(unittest.TestCase):\n    def test_"


@pytest.fixture(scope="module")
def path(fixtures, tmp_path_factory):
    return convert(fixtures / "pylib-llama", tmp_path_factory.mktemp("forward") / "f32.gguf", "F32")


@pytest.fixture(scope="module")
def reference(path):
    """(tokens, logits of all positions) of llama.cpp with F32 keys and values."""
    with llama.Model(path, cache=(llama.F32, llama.F32), flash_attn_type=0) as model:
        tokens = model.tokenize(PROMPT)
        return tokens, model.logits(tokens)


@pytest.fixture(scope="module")
def model(path):
    with ggufkit.load(path) as model:
        yield model


def test_logits_equal_the_reference(model, reference):
    tokens, expected = reference
    actual = model.forward(tokens, model.new_cache(64, "F32", "F32"), logits="all")
    assert divergence(expected, actual).max() < 1e-9


def test_tokens_one_by_one_give_the_same(model, reference):
    tokens, expected = reference
    cache = model.new_cache(64, "F32", "F32")
    actual = np.stack([model.forward([token], cache) for token in tokens])
    assert divergence(expected, actual).max() < 1e-9


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("F16", 1e-6),
        ("BF16", 1e-4),
        ("Q8_0", 1e-3),
        ("Q5_1", 0.05),
        ("Q5_0", 0.05),
        ("Q4_1", 0.1),
        ("Q4_0", 0.1),
        ("IQ4_NL", 0.1),
        ("tq8", 1e-3),
        ("tq6", 0.02),
        ("tq5", 0.05),
        ("tq4", 0.1),
    ],
)
def test_cache_of_every_type_stays_near(model, reference, kind, limit):
    tokens, expected = reference
    actual = model.forward(tokens, model.new_cache(64, kind, kind), logits="all")
    assert divergence(expected, actual).max() < limit


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL"])
def test_ggml_caches_give_llama_cpps_logits(model, reference, kind):
    tokens = np.random.default_rng(1).integers(10, 4096, 60).astype(np.int32)
    types = (llama.CACHE_TYPES[kind],) * 2
    with llama.Model(model.gguf.path, cache=types, flash_attn_type=int(kind != "BF16")) as other:
        expected = other.logits(tokens)
    actual = model.forward(tokens, model.new_cache(64, kind, kind), logits="all")
    assert divergence(expected, actual).mean() < 1e-4


def test_prefix_of_a_cache_is_used_again(model, reference):
    tokens = reference[0].tolist()
    cache = model.new_cache(64)
    whole = model.forward(tokens, cache)
    other = [*tokens[:5], 300, 301]
    assert cache.keep_prefix(other) == 5
    model.forward(other[5:], cache)
    kept = cache.keep_prefix(tokens)
    assert kept == 5
    np.testing.assert_allclose(model.forward(tokens[kept:], cache), whole, rtol=1e-4, atol=1e-4)


def test_last_token_of_a_known_prompt_is_computed_again(model):
    cache = model.new_cache(8)
    model.forward([1, 2, 3], cache)
    assert cache.keep_prefix([1, 2, 3]) == 2


def test_context_limit_is_told(model):
    cache = model.new_cache(4)
    with pytest.raises(UsageError, match="room for 4 tokens, not for 5 tokens; give a larger one with context=…"):
        model.forward([1, 2, 3, 4, 5], cache)
    model.forward([1, 2, 3], cache)
    with pytest.raises(UsageError, match="not for 3 tokens and 2 more"):
        model.forward([4, 5], cache)
    assert len(cache) == 3


@pytest.mark.parametrize(("tokens", "text"), [([], "no token to run"), ([4096], "4096 is no"), ([-1], "-1 is no")])
def test_tokens_that_are_none_are_refused(model, tokens, text):
    with pytest.raises(UsageError, match=text):
        model.forward(tokens, model.new_cache(8))


def test_cache_type_must_be_known(model):
    with pytest.raises(UsageError, match=r"F32, F16, .*tq2, not Q5_K"):
        model.new_cache(8, keys="Q5_K")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Linux tells how much memory is taken")
def test_conversations_take_the_memory_of_their_tokens_not_of_the_context(model):
    def taken() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE

    def talk():
        cache = model.new_cache(1 << 17)
        model.forward(list(range(5, 25)), cache)
        return cache

    del talk().layers[:]  # what is freed is not taken again as a whole, either
    before = taken()
    caches = [talk() for _ in range(3)]
    room = sum(layer.nbytes for cache in caches for layer in cache.layers)
    assert taken() - before < room / 20


def test_keys_and_values_begin_where_they_are_read_fast(model):
    for layer in model.new_cache(1 << 12).layers:
        assert [array.ctypes.data % 256 for array in (layer.keys, layer.values)] == [192, 192]
