"""Guessing tokens ahead changes no text, and guesses what repeats."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ggufkit
from ggufkit.cli import main
from ggufkit.errors import UsageError
from ggufkit.jobs.convert import convert
from ggufkit.runtime.kv.cache import common_prefix
from ggufkit.runtime.speculate import Ahead, Draft, FirstToKnow, Lookup, require_same_vocabulary

TEXT = "def first(a):\n    return a\n\n\ndef second(a):\n    return a\n\n\ndef first(a):\n"


@pytest.fixture(scope="module")
def paths(fixtures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("speculate")
    return [convert(fixtures / "pylib-llama", folder / f"{type}.gguf", type) for type in ("F16", "Q4_0")]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 9))
def test_lookup_guesses_what_followed_the_last_time(tokens, most):
    lookup = Lookup(4, 2)
    for n in range(1, len(tokens) + 1):
        found = lookup.guess(tokens[:n], most)
    for size in (4, 3, 2):
        places = [at for at in range(size, len(tokens)) if tokens[at - size : at] == tokens[len(tokens) - size :]]
        if places and size < len(tokens):
            assert len(found) == most
            assert found == [*tokens[places[-1] :], *found][:most]
            return
    assert found == []


@pytest.mark.parametrize("kind", ["lookup", "draft", "both"])
@pytest.mark.parametrize("how", [{"temperature": 0}, {"seed": 7}, {"seed": 8, "repeat_penalty": 1.2, "mirostat": 1}])
def test_the_text_is_the_same(paths, kind, how):
    with ggufkit.load(paths[0], backend="cpu") as model, ggufkit.load(paths[1], backend="cpu") as small:
        require_same_vocabulary(model, small)
        ahead = {
            "lookup": lambda n: Ahead(Lookup()),
            "draft": lambda n: Ahead(Draft(small, small.new_cache(n)), 5),
            "both": lambda n: Ahead(FirstToKnow(Lookup(), Draft(small, small.new_cache(n))), 5),
        }
        for n in (1, 2, 90):
            expected = model.generate(TEXT, max_tokens=n, context=128, ignore_ends=True, **how)
            found = model.generate(TEXT, max_tokens=n, context=128, ignore_ends=True, ahead=ahead[kind], **how)
            assert "".join(found) == "".join(expected)
            assert (found.tokens, found.reason) == (expected.tokens, expected.reason)
        assert found.ahead.right > 0


def test_wrong_guesses_are_forgotten(paths):
    class Wrong:
        def guess(self, tokens, most):
            return [random.Random(len(tokens)).randrange(3, 4000) for _ in range(most)]

    with ggufkit.load(paths[0], backend="cpu") as model:
        cache = model.new_cache(128)
        expected = "".join(model.generate(TEXT, max_tokens=30, temperature=0))
        found = model.generate(TEXT, max_tokens=30, temperature=0, cache=cache, ahead=lambda n: Ahead(Wrong()))
        assert "".join(found) == expected
        assert "".join(model.generate(TEXT, max_tokens=30, temperature=0, cache=cache)) == expected


def test_another_vocabulary_is_refused(paths, fixtures, tmp_path):
    with ggufkit.load(paths[0], backend="cpu") as model, ggufkit.load(paths[1], backend="cpu") as small:
        small.tokenizer.vocab.texts[9] += "x"
        with pytest.raises(UsageError, match="from token 9 on"):
            require_same_vocabulary(model, small)


def test_run_says_how_many_guesses_were_right(paths, capsys):
    arguments = ["run", str(paths[0]), "-p", TEXT, "-n", "40", "--temp", "0", "--backend", "cpu"]
    main(arguments)
    expected = capsys.readouterr()
    for more in (["--lookup"], ["--draft", str(paths[1])], ["--lookup", "--draft", str(paths[1])]):
        main([*arguments, *more])
        found = capsys.readouterr()
        assert found.out == expected.out
        assert "guesses right" in found.err


@given(st.lists(st.integers(0, 1), max_size=20), st.lists(st.integers(0, 1), max_size=20))
def test_common_prefix_is_as_long_as_both_are_alike(a, b):
    n = common_prefix(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


def test_draft_compares_the_text_with_its_cache_once_for_all_guesses(paths):
    with ggufkit.load(paths[0]) as model:
        cache = model.new_cache(100)
        compared, keep = [], cache.keep_prefix
        cache.keep_prefix = lambda tokens: compared.append(len(tokens)) or keep(tokens)
        text = model.tokenizer.encode(TEXT)
        guesses = Draft(model, cache).guess(text, 7)
        assert compared == [len(text)]
        assert cache.tokens == [*text, *guesses[:-1]]
        one_by_one = [
            Draft(model, model.new_cache(100)).guess([*text, *guesses[:n]], 1)[0] for n in range(len(guesses))
        ]
        assert guesses == one_by_one
