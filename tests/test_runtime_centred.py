"""Keys that are kept as their distance from a mean: what it is for, and that the mean stays what it was."""

from __future__ import annotations

import numpy as np
import pytest
from verify_runtime import divergence

import ggufkit
from ggufkit.errors import UsageError
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.gguf.writer import Writer
from ggufkit.jobs.convert import convert
from ggufkit.runtime.cpu.cache import LayerCache
from ggufkit.runtime.kv.types import TYPES, cache_type
from ggufkit.runtime.ops import AttentionSpec, CacheSpec

TOKENS = np.random.default_rng(7).integers(10, 4000, 80).astype(np.int32)
TYPE = "tq4-centred"


def _biased(path, target):
    """The same model, its keys far from 0 in the pairs that rope turns slowly."""
    with open_gguf(path) as model:
        heads, head = model.metadata["llama.attention.head_count_kv"], 64
        layers = model.metadata["llama.block_count"]
        bias = np.zeros((heads, head), np.float32)
        bias[:, -16:] = np.random.default_rng(1).standard_normal((heads, 16)) * 40
        tensors = [(t.name, t.shape, t.format) for t in model.tensors.values()]
        biases = [(f"blk.{i}.attn_k.bias", (heads * head,), FORMATS["F32"]) for i in range(layers)]
        with Writer(target, model.metadata, tensors + biases) as writer:
            for t in model.tensors.values():
                writer.write(t.name, 0, t.read(0, t.rows))
            for name, _, _ in biases:
                writer.write(name, 0, bias.reshape(1, -1).view(np.uint8))
    return target


@pytest.fixture(scope="module")
def path(fixtures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("centred")
    return _biased(convert(fixtures / "pylib-llama", folder / "f32.gguf", "F32"), folder / "biased.gguf")


@pytest.fixture(scope="module", params=["cpu", "mlx"])
def model(path, request):
    if request.param == "mlx":
        pytest.importorskip("mlx.core")
    with ggufkit.load(path, backend=request.param) as model:
        yield model


def logits(model, keys):
    return np.array(model.forward(TOKENS, model.new_cache(96, keys, "F16"), logits="all"))


def test_large_bias_costs_little_where_keys_are_centred(model):
    expected = logits(model, "F32")
    plain, centred = (divergence(expected, logits(model, kind)).mean() for kind in ("tq4", TYPE))
    assert centred < 0.2 * plain


def test_what_follows_is_kept_with_the_same_mean(model):
    whole = logits(model, TYPE)
    cache = model.new_cache(96, TYPE, "F16")
    model.forward(TOKENS[:40], cache)
    steps = [np.array(model.forward([token], cache)) for token in TOKENS[40:50]]
    # The mean is that of 36 tokens, not of 76, so the codes are others.
    assert divergence(whole[40:50], np.stack(steps)).mean() < 0.05
    cache.truncate(44)
    again = [np.array(model.forward([token], cache)) for token in TOKENS[44:50]]
    np.testing.assert_array_equal(np.stack(again), np.stack(steps[4:]))
    other = model.new_cache(96, TYPE, "F16")
    cache.truncate(44)
    other.load(cache.save())
    copied = cache.copy()
    for cache in (other, copied):
        np.testing.assert_array_equal(np.stack([model.forward([t], cache) for t in TOKENS[44:50]]), np.stack(again))


def test_new_conversation_finds_its_own_mean(model):
    expected = logits(model, TYPE)
    cache = model.new_cache(96, TYPE, "F16")
    model.forward(TOKENS[::-1], cache)
    cache.truncate(0)
    np.testing.assert_array_equal(expected, np.array(model.forward(TOKENS, cache, logits="all")))


def test_few_tokens_have_no_mean(path):
    with ggufkit.load(path, backend="cpu") as model:
        found = [model.forward(TOKENS[:10], model.new_cache(32, kind, "F16")) for kind in ("tq4", TYPE)]
        cache = model.new_cache(32, TYPE, "F16")
        # A mean key for each layer is all that comes on top.
        more = sum(
            a.nbytes - b.nbytes for a, b in zip(cache.layers, model.new_cache(32, "tq4", "F16").layers, strict=True)
        )
    np.testing.assert_array_equal(*found)
    assert more == len(cache.layers) * 2 * 64 * 4


@pytest.mark.parametrize(("name", "values"), [("F16-centred", False), ("q4_0-centred", True), ("Q9-centred", False)])
def test_only_quantized_keys_are_centred(name, values):
    with pytest.raises(UsageError, match=r"centred|the cache can be"):
        cache_type(name, 64, values=values)
    assert not any(kind.centred for kind in TYPES.values())


@pytest.mark.parametrize("more", [{"cap": 50.0}, {"sinks": np.zeros(2)}])
def test_scores_that_softmax_would_see_shifted_are_refused(more):
    spec = AttentionSpec(heads=2, kv_heads=2, head_k=64, head_v=64, scale=0.125, **more)
    with pytest.raises(UsageError, match="keys cannot be centred: "):
        LayerCache(spec, CacheSpec(TYPE, "F16"), 32)
