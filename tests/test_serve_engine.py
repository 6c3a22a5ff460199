"""The engine: many requests at once give what each gives alone; caches are found again; nothing is lost or mixed."""

from __future__ import annotations

import asyncio
import random
from functools import partial

import numpy as np
import pytest
import tiny_models
from drills.soak_serve import soak
from recipes_late import encoders

import ggufkit
from ggufkit.errors import GgufkitError, UsageError
from ggufkit.gguf.header import Value, ValueType
from ggufkit.jobs.convert import convert
from ggufkit.runtime.sampling import Sampling
from ggufkit.serve.engine import ContextTooLong, Engine, EngineClosed, Finished, QueueFull, Request
from ggufkit.serve.engine.schedule import Pace, shares

RECIPES = encoders()
GREEDY = Sampling(temperature=0)
RNG = np.random.default_rng(11)
PROMPT = RNG.integers(3, 4000, 60).tolist()


@pytest.fixture(scope="module")
def path(fixtures, tmp_path_factory):
    return convert(fixtures / "pylib-llama", tmp_path_factory.mktemp("serve") / "q8_0.gguf", "Q8_0")


def start(path, **how):
    return Engine(partial(ggufkit.load, path, backend="cpu"), **{"context": 256, **how})


@pytest.fixture(scope="module")
def engine(path):
    engine = start(path, slots=8)
    yield engine
    engine.close()


def ids(stream):
    tokens, _, finished = stream.result()
    return [token.id for token in tokens], finished


def test_a_request_gives_what_generate_gives(engine):
    prompt = engine.model.tokenizer.encode("import os\n")
    tokens, text, finished = engine.submit(Request(prompt, max_tokens=20, sampling=GREEDY)).result()
    with ggufkit.load(engine.model.gguf.path, backend="cpu") as model:
        generation = model.generate(prompt, max_tokens=20, temperature=0)
        assert text == "".join(generation)
    assert [token.id for token in tokens] == generation.tokens
    assert b"".join(token.data for token in tokens).decode() == text
    assert (finished.reason, finished.usage.completion_tokens) == ("length", 20)


def test_stops_at_strings_tokens_and_ends(engine):
    prompt = engine.model.tokenizer.encode("import os\nimport sys\n")
    tokens, text, _ = engine.submit(Request(prompt, max_tokens=30, sampling=GREEDY)).result()
    assert len(text) > 8
    _, short, finished = engine.submit(Request(prompt, max_tokens=30, sampling=GREEDY, stop=("?!", text[4:7]))).result()
    assert (short, finished.reason, finished.stop) == (text[: text.index(text[4:7])], "stop", text[4:7])
    last = tokens[5].id
    first = next(i for i, token in enumerate(tokens) if token.id == last)
    request = Request(prompt, max_tokens=30, sampling=GREEDY, stop_tokens=frozenset([last]))
    some, _, finished = engine.submit(request).result()
    assert (len(some), finished.stop, finished.usage.completion_tokens) == (first, last, first + 1)


def test_logprobs_are_the_models_own(engine):
    request = Request(PROMPT, max_tokens=3, sampling=Sampling(temperature=0, logit_bias={7: 100.0}), logprobs=2)
    tokens, _, _ = engine.submit(request).result()
    with ggufkit.load(engine.model.gguf.path, backend="cpu") as model:
        logits = model.forward(PROMPT, model.new_cache(128)).astype(np.float64)
    shares = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert tokens[0].id == 7
    assert tokens[0].logprob == pytest.approx(shares[7], abs=1e-4)
    assert [i for i, _ in tokens[0].top] == np.argsort(-shares)[:2].tolist()


class Only:
    """Allows some tokens, so many times."""

    def __init__(self, allowed, times, vocabulary):
        self.words = np.zeros(-(-vocabulary // 32), np.uint32)
        for token in allowed:
            self.words[token // 32] |= np.uint32(1 << token % 32)
        self.left = times

    @property
    def done(self):
        return self.left == 0

    def mask(self):
        return self.words

    def accept(self, token):
        self.left -= 1


def test_a_constraint_allows_what_its_mask_has(engine):
    constraint = Only([5, 1000, 4001], 6, engine.model.vocabulary)
    found, finished = ids(engine.submit(Request(PROMPT, sampling=Sampling(seed=3), constraint=constraint)))
    assert len(found) == 6
    assert set(found) <= {5, 1000, 4001}
    assert finished.reason == "stop"
    nothing = Only([], 3, engine.model.vocabulary)
    assert ids(engine.submit(Request(PROMPT, constraint=nothing)))[0] == []


def test_what_cannot_be_done_is_refused(engine):
    with pytest.raises(ContextTooLong, match="256 tokens") as caught:
        engine.submit(Request([5] * 256))
    assert (caught.value.prompt, caught.value.limit) == (256, 256)
    for request in (Request([]), Request([10**6]), Request([5], max_tokens=-1), Request([5], stop=("",))):
        with pytest.raises(UsageError):
            engine.submit(request)
    found, finished = ids(engine.submit(Request([5] * 250, sampling=Sampling(temperature=0), ignore_ends=True)))
    assert (len(found), finished.reason) == (7, "length")  # the last one need not fit


def test_one_that_fails_leaves_the_others(engine):
    class Broken(Only):
        def accept(self, token):
            raise ZeroDivisionError("oh")

    others = [engine.submit(Request(PROMPT, max_tokens=12, sampling=GREEDY)) for _ in range(3)]
    broken = engine.submit(Request(PROMPT, constraint=Broken([5], 9, engine.model.vocabulary)))
    with pytest.raises(GgufkitError, match="ZeroDivisionError"):
        broken.result()
    assert {len(ids(other)[0]) for other in others} == {12}
    assert engine.metrics().failed >= 1


def test_one_that_cannot_begin_leaves_the_others(path, monkeypatch):
    engine = start(path, slots=3)
    long = engine.submit(Request(PROMPT, max_tokens=150, sampling=GREEDY, ignore_ends=True))
    next(iter(long))
    monkeypatch.setattr(engine.model, "new_cache", lambda *_: 1 / 0)
    bad = [engine.submit(Request([i, 9, 9], max_tokens=2)) for i in (5, 6)]
    for stream in bad:
        with pytest.raises(GgufkitError, match="ZeroDivisionError"):
            stream.result()
    monkeypatch.undo()
    assert ids(engine.submit(Request([7, 9, 9], max_tokens=2, ignore_ends=True)))[1].reason == "length"
    assert list(long)[-1].reason == "length"
    vectors = engine.embed([[5, 6]] * 5000)
    engine.close()
    with pytest.raises(EngineClosed):
        vectors.result()


def test_tokens_do_not_depend_on_what_else_runs(engine):
    chance = random.Random(5)
    requests = [
        Request(
            RNG.integers(3, 4000, chance.choice([3, 40, 130])).tolist(),
            max_tokens=chance.choice([5, 25]),
            sampling=Sampling(seed=i, temperature=1.0),
            ignore_ends=True,
        )
        for i in range(17)
    ]
    alone = [ids(engine.submit(request))[0] for request in requests]
    engine.drop_caches().result()
    streams = [engine.submit(request) for request in requests]
    gone = [engine.submit(Request(PROMPT)) for _ in range(5)]
    for stream in gone:
        stream.cancel()
    assert [ids(stream)[0] for stream in streams] == alone
    assert [list(stream)[-1].reason for stream in gone] == ["cancelled"] * 5


def test_a_second_turn_reads_only_what_is_new(engine):
    engine.drop_caches().result()
    tokens, first = ids(engine.submit(Request(PROMPT, max_tokens=10, sampling=GREEDY, ignore_ends=True)))
    assert first.usage.cached_tokens == 0
    more = [*PROMPT, *tokens, 9, 8, 7]
    again, second = ids(engine.submit(Request(more, max_tokens=5, sampling=GREEDY)))
    assert second.usage.cached_tokens == len(PROMPT) + 9  # the last token was never run
    fresh, third = ids(engine.submit(Request(more, max_tokens=5, sampling=GREEDY, reuse=False)))
    assert (fresh, third.usage.cached_tokens) == (again, 0)
    # Another end of a long beginning gets a copy, and the whole is still there.
    _, other = ids(engine.submit(Request([*PROMPT[:30], 5], max_tokens=1)))
    assert other.usage.cached_tokens == 30
    assert ids(engine.submit(Request([*more, 5], max_tokens=1)))[1].usage.cached_tokens >= len(more)


def test_requests_that_begin_alike_read_it_once(engine):
    engine.drop_caches().result()
    prompt = RNG.integers(3, 4000, 200).tolist()
    streams = [engine.submit(Request([*prompt, i], max_tokens=2, sampling=GREEDY)) for i in (5, 6, 7)]
    cached = sorted(ids(stream)[1].usage.cached_tokens for stream in streams)
    assert cached == [0, 200, 200]


def test_caches_are_saved_and_found_again(path, tmp_path):
    with_folder = {"cache_folder": tmp_path / "caches", "slots": 1}
    engine = start(path, **with_folder)
    expected, _ = ids(engine.submit(Request(PROMPT, max_tokens=4, sampling=GREEDY)))
    engine.close()
    (tmp_path / "caches" / "broken.cache").write_bytes(b"ggufkit cache 1\nxx")
    engine = start(path, **with_folder)
    found, finished = ids(engine.submit(Request(PROMPT, max_tokens=4, sampling=GREEDY)))
    engine.close()
    assert (found, finished.usage.cached_tokens) == (expected, len(PROMPT) - 1)


def test_the_queue_and_the_memory_have_bounds(path):
    engine = start(path, slots=1, queue=2, cache_ram=0)
    long = [engine.submit(Request(PROMPT, max_tokens=180, sampling=GREEDY, ignore_ends=True))]
    with pytest.raises(QueueFull) as caught:  # noqa: PT012
        for _ in range(4):
            long.append(engine.submit(Request(PROMPT, max_tokens=3, sampling=GREEDY)))
    assert caught.value.retry_after >= 1
    long[0].cancel()
    assert [list(stream)[-1].reason for stream in long] == ["cancelled", "length", "length"]
    assert engine.metrics().caches == 0
    engine.close()
    with pytest.raises(EngineClosed):
        engine.submit(Request(PROMPT))
    with pytest.raises(UsageError, match="bytes of cache"):
        start(path, cache_bytes=1000)


def test_closing_drains(path):
    engine = start(path, slots=2)
    streams = [engine.submit(Request(PROMPT, max_tokens=8, sampling=GREEDY, ignore_ends=True)) for _ in range(5)]
    engine.close(drain=None)
    assert [list(stream)[-1].reason for stream in streams] == ["length"] * 5


def test_speculation_gives_the_same_tokens(path):
    text = "def first(a):\n    return a\n\n\ndef first(a):\n"
    engine = start(path, slots=4, lookup=True)
    prompt = engine.model.tokenizer.encode(text)
    for how in (GREEDY, Sampling(seed=4), Sampling(seed=5, repeat_penalty=1.3, mirostat=2)):
        plain, _ = ids(engine.submit(Request(prompt, max_tokens=60, sampling=how, speculate=False)))
        found, _ = ids(engine.submit(Request(prompt, max_tokens=60, sampling=how)))
        assert found == plain
    assert engine.metrics().accepted_tokens > 0
    engine.close()


def test_streams_are_read_in_loops_and_vectors_come_along(engine):
    async def read(stream):
        return [event async for event in stream]

    async def all_of():
        streams = [engine.submit(Request(PROMPT, max_tokens=5, sampling=GREEDY, ignore_ends=True)) for _ in range(3)]
        vectors = asyncio.wrap_future(engine.embed([[5, 6, 7], [5]], "mean"))
        return await asyncio.gather(*map(read, streams), vectors)

    *events, vectors = asyncio.run(all_of())
    assert [len(some) for some in events] == [6, 6, 6]
    assert all(isinstance(some[-1], Finished) for some in events)
    assert [vector.shape for vector in vectors] == [(engine.model.hyper.width,)] * 2
    with pytest.raises(UsageError):
        engine.embed([[10**6]]).result()


class Prompt:
    def __init__(self, left, served=0.0):
        self.left, self.served = left, served


def test_short_prompts_come_first_and_long_ones_not_last_for_ever():
    long, short, other = Prompt(4000), Prompt(20), Prompt(30)
    assert shares([long], 64, 100, 1.0) == [(long, 64)]
    assert shares([long, other, short], 64, 100, 1.0) == [(short, 20), (other, 30)]
    long.served, short.served = -50.0, 1.0
    assert shares([long, short], 64, 100, 1.0) == [(long, 64)]
    pace = Pace()
    for _ in range(40):
        pace.learn(64, 0.064)
    assert 140 < pace.piece <= 150
    for _ in range(40):
        pace.learn(64, 64)
    assert pace.piece == 16
    assert Pace(7).piece == 7


def test_soak_for_a_moment(path):
    assert soak(path, requests=60, seconds=6, clients=8) == []


def write_t5(path):
    tokens = ["<unk>", "<s>", "</s>", "▁", *(chr(c) for c in range(33, 125))]
    kinds = Value(ValueType.ARRAY, [2, 3, 3, *[1] * (len(tokens) - 3)], ValueType.INT32)
    scores = Value(ValueType.ARRAY, [0.0] * len(tokens), ValueType.FLOAT32)
    vocabulary = {"model": "llama", "tokens": Value(ValueType.ARRAY, tokens, ValueType.STRING), "token_type": kinds}
    keys = {f"tokenizer.ggml.{key}": value for key, value in {**vocabulary, "scores": scores}.items()}
    tiny_models.write_tiny(path, "t5+gated", metadata={**keys, "tokenizer.ggml.eos_token_id": 2})


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A model whose encoder reads the prompt."""
    monkeypatch.setattr(tiny_models, "RECIPES", tiny_models.RECIPES | RECIPES)
    write_t5(tmp_path / "t5.gguf")
    engine = start(tmp_path / "t5.gguf", slots=4, context=48)
    yield engine
    engine.close()


def test_answers_to_what_an_encoder_read_are_those_of_each_alone(reader):
    """Together, and again: nothing of one's text is in another's answer, though all begin with the same token."""
    prompts = [RNG.integers(3, reader.model.vocabulary, n).tolist() for n in (5, 20, 48, 9)]
    with ggufkit.load(reader.model.gguf.path, backend="cpu") as model:
        expected = []
        for prompt in prompts:
            generation = model.generate(prompt, max_tokens=10, temperature=0, ignore_ends=True)
            list(generation)
            expected.append(generation.tokens)
    assert len({tuple(tokens) for tokens in expected}) == 4
    requests = [Request(prompt, max_tokens=10, sampling=GREEDY, ignore_ends=True) for prompt in prompts]
    for _ in range(2):
        streams = [reader.submit(request) for request in requests]
        for stream, prompt, tokens in zip(streams, prompts, expected, strict=True):
            found, finished = ids(stream)
            assert found == tokens
            usage = finished.usage
            assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (len(prompt), 0, 10)
    found, finished = ids(reader.submit(Request(prompts[0], sampling=GREEDY, ignore_ends=True)))
    assert (len(found), finished.reason) == (48, "length")  # prompt and answer have a context each
    with pytest.raises(ContextTooLong):
        reader.submit(Request([5] * 49))
    with pytest.raises(UsageError, match="have no probabilities"):
        reader.submit(Request([5], prompt_logprobs=1))


def test_nothing_guesses_for_an_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_models, "RECIPES", tiny_models.RECIPES | RECIPES)
    write_t5(tmp_path / "t5.gguf")
    with pytest.raises(UsageError, match="nothing guesses ahead"):
        start(tmp_path / "t5.gguf", lookup=True)
