"""Several conversations in one pass give what each gives alone; caches that are copied, saved and cut do, too."""

from __future__ import annotations

import numpy as np
import pytest
from verify_runtime import divergence

import ggufkit
from ggufkit.errors import UsageError
from ggufkit.jobs.convert import convert
from ggufkit.runtime.batch import Piece
from ggufkit.runtime.sizes import LIMIT

RNG = np.random.default_rng(7)
LONG, SHORT = RNG.integers(3, 4000, 41).tolist(), RNG.integers(3, 4000, 7).tolist()


@pytest.fixture(scope="module")
def path(fixtures, tmp_path_factory):
    return convert(fixtures / "pylib-llama", tmp_path_factory.mktemp("batch") / "f32.gguf", "F32")


@pytest.fixture(scope="module", params=["cpu", "mlx"])
def model(path, request):
    if request.param == "mlx":
        pytest.importorskip("mlx.core")
    with ggufkit.load(path, backend=request.param) as model:
        yield model


def caches(model, n, keys="F32", values="F32", length=64):
    return [model.new_cache(length, keys, values) for _ in range(n)]


def alone(model, tokens, **kinds):
    (cache,) = caches(model, 1, **kinds)
    return model.forward(tokens, cache, logits="all")


def test_sequences_of_different_length_give_what_each_gives_alone(model):
    found = model.step([Piece(c, t, "all") for c, t in zip(caches(model, 2), (LONG, SHORT), strict=True)])
    for tokens, logits in zip((LONG, SHORT), found, strict=True):
        assert divergence(alone(model, tokens), logits).max() < 1e-6


@pytest.mark.parametrize("type", ["F16", "Q8_0", "Q5_1"])
def test_a_row_gives_the_same_bits_whatever_is_beside_it(fixtures, tmp_path, type):
    with ggufkit.load(convert(fixtures / "pylib-llama", tmp_path / "m.gguf", type), backend="cpu") as model:
        expected = alone(model, LONG)
        for cuts in ([1] * 41, [3, 8, 9, 1, 20]):
            (cache,), found, at = caches(model, 1), [], 0
            for n in cuts:
                other = Piece(model.new_cache(64), SHORT, None)
                found.append(model.step([other, Piece(cache, LONG[at : at + n], "all")])[1])
                at += n
            assert np.array_equal(np.concatenate(found), expected)


def test_pieces_of_prompts_and_single_tokens_mix(model):
    a, b, c = caches(model, 3)
    model.step([Piece(a, LONG[:10], None), Piece(b, SHORT[:3], None)])
    found = model.step([Piece(a, LONG[10:11]), Piece(b, SHORT[3:], "all"), Piece(c, LONG[:30], 2)])
    assert [x.shape for x in found] == [(model.vocabulary,), (4, model.vocabulary), (2, model.vocabulary)]
    found += model.step([Piece(c, LONG[30:31]), Piece(a, LONG[11:12])])
    expected, short = alone(model, LONG), alone(model, SHORT)
    wanted = [expected[10:11], short[3:], expected[28:30], expected[30:31], expected[11:12]]
    for logits, want in zip(found, wanted, strict=True):
        assert divergence(want, np.atleast_2d(logits)).max() < 1e-6
    assert a.tokens == LONG[:12]
    assert b.tokens == SHORT
    assert c.tokens == LONG[:31]


def test_greedy_text_is_that_of_each_alone(model):
    def greedy(prompts):
        own = caches(model, len(prompts))
        tokens, texts = prompts, [[] for _ in prompts]
        for _ in range(16):
            logits = model.step([Piece(cache, t) for cache, t in zip(own, tokens, strict=True)])
            tokens = [[int(x.argmax())] for x in logits]
            for text, (token,) in zip(texts, tokens, strict=True):
                text.append(token)
        return texts

    prompts = [[1, 600, 700], LONG[:20], [1, 31, 32, 33, 34]]
    assert greedy(prompts) == [greedy([prompt])[0] for prompt in prompts]


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_caches_of_other_types_mix(model, kind):
    own = [model.new_cache(64, kind, "F16"), model.new_cache(48, "F16", kind)]
    found = model.step([Piece(c, t, "all") for c, t in zip(own, (LONG, SHORT), strict=True)])
    expected = alone(model, LONG, keys=kind, values="F16"), alone(model, SHORT, keys="F16", values=kind)
    for want, logits in zip(expected, found, strict=True):
        assert divergence(want, logits).max() < 1e-4


def test_what_is_longer_than_a_pass_is_cut(model):
    tokens = RNG.integers(3, 4000, LIMIT + 100).tolist()
    a, b = caches(model, 2, length=LIMIT + 200)
    found = model.step([Piece(a, tokens, 150), Piece(b, SHORT, "all")])
    assert divergence(alone(model, tokens, length=LIMIT + 200)[-150:], found[0]).max() < 1e-6
    assert divergence(alone(model, SHORT), found[1]).max() < 1e-6


def test_nothing_is_computed_where_a_piece_is_wrong(model):
    a, b = caches(model, 2, length=8)
    for pieces, text in [
        ([Piece(a, [1]), Piece(a, [2])], "the same cache"),
        ([Piece(a, [1]), Piece(b, list(range(9)))], "room for 8 tokens"),
        ([Piece(a, [1]), Piece(b, [])], "no token to run"),
        ([Piece(a, [1]), Piece(b, [-4])], "-4 is no"),
    ]:
        with pytest.raises(UsageError, match=text):
            model.step(pieces)
    assert not a.tokens
    assert not b.tokens
    assert model.step([]) == []


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_caches_are_copied_and_saved(model, kind):
    (cache,) = caches(model, 1, kind, kind)
    model.forward(LONG[:25], cache)
    copied, loaded = cache.copy(20, 40), model.new_cache(32, kind, kind)
    loaded.load(cache.save())
    model.forward([5, 6, 7], cache)  # does not touch the others
    assert copied.tokens == LONG[:20]
    assert loaded.tokens == LONG[:25]
    expected = alone(model, LONG[:30], keys=kind, values=kind)
    limit = 1e-9 if kind in ("F32", "F16") else 1e-6
    assert divergence(expected[20:30], model.forward(LONG[20:30], copied, "all")).max() < limit
    assert divergence(expected[25:30], model.forward(LONG[25:30], loaded, "all")).max() < limit


def test_saved_caches_are_checked(model):
    (cache,) = caches(model, 1)
    model.forward(LONG[:20], cache)
    data = cache.save()
    for wrong, text in [(data[:-1], "whole one"), (data[:10], "whole one"), (b"x" + data, "whole one")]:
        with pytest.raises(UsageError, match=text):
            caches(model, 1)[0].load(wrong)
    with pytest.raises(UsageError, match="another model, backend or type"):
        model.new_cache(64, "F16").load(data)
    with pytest.raises(UsageError, match="room for 8 tokens, and the saved one holds 20"):
        caches(model, 1, length=8)[0].load(data)
    with pytest.raises(UsageError, match="room for 8"):
        cache.copy(length=8)
