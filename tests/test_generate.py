"""The generation loop, on a model that writes what it is told to."""

from __future__ import annotations

import numpy as np
import pytest
import vocab_texts

import ggufkit
from ggufkit.errors import UsageError
from ggufkit.runtime.generate import Generation, prompt_tokens
from ggufkit.runtime.kv.cache import Cache
from ggufkit.runtime.sampling import Sampling
from ggufkit.tokenizer.run.tokenizer import load_tokenizer

GREEDY = Sampling(temperature=0)


class Parrot:
    """Writes `answer` after any prompt, token by token, then the end of the text; and counts what it computes."""

    def __init__(self, tokenizer, answer: str | list[int], context: int = 64):
        self.tokenizer, self.context = tokenizer, context
        ids = tokenizer.encode(answer, add_special=False) if isinstance(answer, str) else answer
        self.answer = [*ids, tokenizer.vocab.eos]
        self.computed: list[int] = []

    def new_cache(self, length=None):
        return Cache(lambda length: [], length or self.context)

    def forward(self, tokens, cache, logits="last"):
        cache.require(len(tokens))
        cache.tokens += [int(t) for t in tokens]
        self.computed.append(len(tokens))
        said = max(k for k in range(len(cache.tokens) + 1) if k == 0 or cache.tokens[-k:] == self.script(k))
        out = np.zeros(len(self.tokenizer), np.float32)
        out[self.script(said + 1)[-1]] = 1
        return out

    def script(self, n: int) -> list[int]:
        """The first `n` tokens; the end again and again when the answer is over."""
        return (self.answer + [self.answer[-1]] * n)[:n]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Letters, some words and byte tokens."""
    tokens = {"<unk>": 2, "<s>": 3, "</s>": 3, "\u2581": 1, **dict.fromkeys("abcdefghijklmnopqrstuvwxyz", 1)}
    tokens |= {f"<0x{byte:02X}>": 6 for byte in range(256)}
    path = vocab_texts.write_vocab(tmp_path_factory.mktemp("vocab") / "v.gguf", "llama", tokens, add_space_prefix=False)
    with ggufkit.open(path) as model:
        return load_tokenizer(model)


def generation(tokenizer, answer, prompt="go on", context=64, **options) -> Generation:
    model = Parrot(tokenizer, answer, context)
    options = {"sampling": GREEDY, **options}
    return Generation(model, tokenizer, prompt_tokens(tokenizer, prompt), **options)


def test_generation_gives_the_text_up_to_the_models_end(tokenizer):
    g = generation(tokenizer, "hello")
    pieces = list(g)
    assert pieces == ["h", "e", "l", "l", "o"]
    assert g.reason == "end"
    assert g.tokens[-1] == tokenizer.vocab.eos


def test_generation_goes_on_after_the_end_when_told(tokenizer):
    g = generation(tokenizer, "ab", max_tokens=6, ignore_ends=True)
    assert "".join(g) == "ab"
    assert len(g.tokens) == 6
    g = generation(tokenizer, "ab", max_tokens=4, ignore_ends=True, show_special=True)
    assert "".join(g) == "ab</s></s>"


def test_characters_are_never_split(tokenizer):
    pieces = list(generation(tokenizer, "aé世😀b"))
    assert pieces == ["a", "é", "世", "😀", "b"]


def test_text_that_ends_within_a_character_is_replaced(tokenizer):
    ids = tokenizer.encode("a😀", add_special=False)
    g = generation(tokenizer, "a😀", max_tokens=len(ids) - 1)
    assert "".join(g) == "a\ufffd"
    assert g.reason == "length"


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        (("lo",), "hel", "stop"),
        (("l",), "he", "stop"),
        (("h",), "", "stop"),
        (("hello world",), "hello there", "end"),
        (("ello t", "lo"), "hel", "stop"),
        (("re", "zzz"), "hello the", "stop"),
        ((), "hello there", "end"),
    ],
)
def test_stop_string_ends_the_text_before_it(tokenizer, stop, text, reason):
    g = generation(tokenizer, "hello there", stop=stop)
    assert "".join(g) == text
    assert g.reason == reason


def test_what_may_become_a_stop_string_is_held_back(tokenizer):
    assert list(generation(tokenizer, "aabac", stop=("ac",))) == ["a", "ab"]
    assert list(generation(tokenizer, "xaab", stop=("aac",))) == ["x", "aab"]


def test_max_tokens_is_the_limit(tokenizer):
    for n in (0, 1, 3):
        g = generation(tokenizer, "hello", max_tokens=n)
        assert "".join(g) == "hello"[:n]
        assert (g.reason, len(g.tokens)) == ("length", n)


def test_no_token_is_computed_that_nobody_asked_for(tokenizer):
    g = generation(tokenizer, "hello", max_tokens=3)
    list(g)
    assert g.model.computed == [len(g.prompt), 1, 1]


def test_full_context_ends_the_text(tokenizer):
    g = generation(tokenizer, "a" * 50, prompt="ab", context=8)
    text = "".join(g)
    assert g.reason == "context"
    assert len(g.cache.tokens) == 8
    assert text == "a" * (8 - len(g.prompt) + 1)


def test_prompt_that_fills_the_context_gives_one_token(tokenizer):
    prompt = tokenizer.encode("abcd")
    g = generation(tokenizer, "xyz", prompt=prompt, context=len(prompt))
    assert ("".join(g), g.reason) == ("x", "context")


def test_prompt_longer_than_the_context_is_refused(tokenizer):
    with pytest.raises(UsageError, match="the prompt has 11 tokens and the context room for 8; shorten it"):
        generation(tokenizer, "", prompt="abcdefghij", context=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": []}, "the prompt is empty"),
        ({"max_tokens": -3}, "cannot generate -3 tokens"),
        ({"stop": ("x", "")}, "a stop string is empty"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(tokenizer, options, message):
    with pytest.raises(UsageError, match=message):
        generation(tokenizer, "hello", **options)


def test_empty_prompt_starts_from_bos(tokenizer):
    assert prompt_tokens(tokenizer, "") == [tokenizer.vocab.bos]


def test_known_prefix_is_not_computed_again(tokenizer):
    model = Parrot(tokenizer, "yes")
    cache = model.new_cache()
    first = Generation(model, tokenizer, tokenizer.encode("is it so"), cache=cache, sampling=GREEDY)
    assert "".join(first) == "yes"
    prompt = [*tokenizer.encode("is it so"), *tokenizer.encode("yes or no", add_special=False)]
    model.computed.clear()
    second = Generation(model, tokenizer, prompt, cache=cache, sampling=GREEDY)
    list(second)
    assert second.reused == len(first.prompt) + 3
    assert model.computed[0] == len(prompt) - second.reused


def test_same_prompt_again_computes_one_token(tokenizer):
    model = Parrot(tokenizer, "yes")
    cache = model.new_cache()
    prompt = tokenizer.encode("again")
    list(Generation(model, tokenizer, prompt, cache=cache, sampling=GREEDY))
    model.computed.clear()
    list(Generation(model, tokenizer, prompt, cache=cache, sampling=GREEDY, max_tokens=1))
    assert model.computed == [1]


def test_interrupted_generation_can_be_followed_by_another(tokenizer):
    model = Parrot(tokenizer, "a long answer")
    cache = model.new_cache()
    pieces = iter(Generation(model, tokenizer, tokenizer.encode("ab"), cache=cache, sampling=GREEDY))
    assert [next(pieces), next(pieces)] == ["a", " "]
    pieces.close()
    assert (
        "".join(Generation(model, tokenizer, tokenizer.encode("ab"), cache=cache, sampling=GREEDY)) == "a long answer"
    )
