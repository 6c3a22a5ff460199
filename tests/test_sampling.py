"""The samplers leave the tokens that llama.cpp's leave, with its probabilities."""

from __future__ import annotations

import sys

import llama_sampler
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ggufkit
from ggufkit.errors import GgufkitError, UsageError
from ggufkit.runtime.filters import _matches, dry_penalties
from ggufkit.runtime.sampling import Sampler, Sampling, sampling_of

LOGITS = np.random.default_rng(3).normal(size=500).astype(np.float32) * 3
NONE = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def chain(s: Sampling) -> list[tuple]:
    """llama.cpp's default chain with these settings."""
    return [
        ("penalties", len(LOGITS), s.repeat_last_n, s.repeat_penalty, s.frequency_penalty, s.presence_penalty),
        ("top_k", s.top_k),
        ("top_p", s.top_p, 0),
        ("min_p", s.min_p, 0),
        ("temp", s.temperature),
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {**NONE},
        {**NONE, "top_k": 7},
        {**NONE, "top_k": 500},
        {**NONE, "top_k": 501},
        {**NONE, "top_p": 0.4},
        {**NONE, "top_p": 0.0},
        {**NONE, "min_p": 0.1},
        {**NONE, "min_p": 1.0},
        {**NONE, "temperature": 0.3},
        {**NONE, "temperature": 2.5, "repeat_penalty": 1.3, "repeat_last_n": 4},
        {**NONE, "frequency_penalty": 0.4, "presence_penalty": 0.2, "repeat_last_n": 64},
        {"repeat_penalty": 1.1, "top_k": 20, "top_p": 0.8, "min_p": 0.02, "temperature": 0.7},
        {"repeat_penalty": 0.8, "repeat_last_n": 3},
    ],
    ids=str,
)
def test_candidates_are_llama_cpps(settings):
    recent = [1, 5, 5, 9, 400, 5, 7, *np.argsort(-LOGITS)[:3].tolist()]
    sampler = Sampler(Sampling(**settings))
    sampler.accept(recent)
    ids, probabilities = sampler.probabilities(LOGITS)
    expected, _ = llama_sampler.candidates(LOGITS, recent, chain(sampler.settings))
    assert set(ids.tolist()) == set(expected)
    assert dict(zip(ids.tolist(), probabilities.tolist(), strict=True)) == pytest.approx(expected, rel=1e-4)


def test_temperature_0_takes_the_best_token():
    _, selected = llama_sampler.candidates(LOGITS, [], [("greedy",)])
    sampler = Sampler(Sampling(temperature=0))
    assert sampler.draw(LOGITS) == selected
    assert sampler.probabilities(LOGITS)[0].tolist() == [selected]


def test_of_equal_logits_the_first_is_the_best():
    assert Sampler(Sampling(temperature=0)).draw(np.array([1.0, 3.0, 3.0], np.float32)) == 1


def test_draws_follow_the_probabilities():
    sampler = Sampler(Sampling(seed=1, **NONE))
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    counts = np.bincount([sampler.draw(logits) for _ in range(4000)], minlength=3)
    assert counts / 4000 == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_seed_repeats_the_draws():
    def draws(seed):
        sampler = Sampler(Sampling(seed=seed))
        return [sampler.draw(LOGITS) for _ in range(20)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)


def test_drawn_tokens_are_penalized():
    sampler = Sampler(Sampling(temperature=0, presence_penalty=100, repeat_last_n=2))
    best = np.argsort(-LOGITS)[:3].tolist()
    assert [sampler.draw(LOGITS) for _ in range(4)] == [*best, best[0]]
    sampler.reset()
    assert sampler.draw(LOGITS) == best[0]


def test_logits_stay_as_they_were():
    logits = LOGITS.copy()
    logits.flags.writeable = False
    sampler = Sampler(Sampling(repeat_penalty=1.5), suppressed=[3])
    sampler.accept([1, 2])
    sampler.draw(logits)
    np.testing.assert_array_equal(logits, LOGITS)


def test_suppressed_tokens_are_never_drawn():
    best = int(LOGITS.argmax())
    assert Sampler(Sampling(temperature=0), suppressed=[best]).draw(LOGITS) != best


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature is -1; it must be between 0 and 1e+06"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 1.5}, "top p is 1.5; it must be between 0 and 1"),
        ({"min_p": -0.1}, "min p is -0.1"),
        ({"repeat_penalty": 0}, "repeat penalty is 0; it must be between 0.001 and 1000"),
        ({"repeat_last_n": -2}, "repeat last n is -2"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UsageError) as e:
        Sampling(**settings)
    assert message in str(e.value)


def test_file_recommends_settings(tmp_path):
    metadata = {"general.architecture": "llama", "general.sampling.temp": 0.5, "general.sampling.top_k": 20}
    with ggufkit.Writer(tmp_path / "m.gguf", metadata, []):
        pass
    with ggufkit.open(tmp_path / "m.gguf") as model:
        assert sampling_of(model) == Sampling(temperature=0.5, top_k=20)
        assert sampling_of(model, temperature=0.0, top_k=None, seed=3) == Sampling(temperature=0, top_k=20, seed=3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_refused(bad, temperature):
    logits = LOGITS.copy()
    logits[7] = bad
    with pytest.raises(GgufkitError, match=f"the best of the model's logits is {bad}, no number"):
        Sampler(Sampling(temperature=temperature)).draw(logits)
    with pytest.raises(GgufkitError, match="is -inf, no number"):
        Sampler().draw(np.full(5, -np.inf, np.float32))


def left(recent, steps):
    return llama_sampler.candidates(LOGITS, recent, steps)[0]


def shares(sampler):
    return dict(zip(*(found.tolist() for found in sampler.probabilities(LOGITS)), strict=True))


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"top_n_sigma": 1.0}, [("top_n_sigma", 1.0)]),
        ({"top_n_sigma": 0.3}, [("top_n_sigma", 0.3)]),
        ({"top_n_sigma": 3.0}, [("top_n_sigma", 3.0)]),
        ({"typical_p": 0.5}, [("typical", 0.5, 0)]),
        ({"typical_p": 0.9}, [("typical", 0.9, 0)]),
        ({"typical_p": 0.02}, [("typical", 0.02, 0)]),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.01}, [("xtc", 1.0, 0.01, 0, 1)]),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.05}, [("xtc", 1.0, 0.05, 0, 1)]),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.4}, [("xtc", 1.0, 0.4, 0, 1)]),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.6}, [("xtc", 1.0, 0.6, 0, 1)]),
        ({"temperature": 0.9, "dynatemp_range": 0.5}, [("temp_ext", 0.9, 0.5, 1.0)]),
        ({"temperature": 0.9, "dynatemp_range": 0.7, "dynatemp_exponent": 2.0}, [("temp_ext", 0.9, 0.7, 2.0)]),
        ({"temperature": 0.3, "dynatemp_range": 1.5}, [("temp_ext", 0.3, 1.5, 1.0)]),
        ({"top_k": 30, "typical_p": 0.7, "min_p": 0.01}, [("top_k", 30), ("typical", 0.7, 0), ("min_p", 0.01, 0)]),
        (
            {"top_n_sigma": 1.5, "top_k": 9, "xtc_probability": 1.0, "temperature": 0.7},
            [("top_n_sigma", 1.5), ("top_k", 9), ("xtc", 1.0, 0.1, 0, 1), ("temp", 0.7)],
        ),
        (
            {"top_k": 9, "top_p": 0.9, "temperature": 1.5, "samplers": ("temperature", "top_p", "top_k")},
            [("temp", 1.5), ("top_p", 0.9, 0), ("top_k", 9)],
        ),
        ({"mirostat": 2, "mirostat_tau": 2.0}, [("mirostat_v2", 1, 2.0, 0.1)]),
        ({"mirostat": 2, "mirostat_tau": 0.5}, [("mirostat_v2", 1, 0.5, 0.1)]),
        ({"mirostat": 1, "mirostat_tau": 3.0}, [("mirostat", len(LOGITS), 1, 3.0, 0.1, 100)]),
        ({"mirostat": 1, "mirostat_tau": 1.0}, [("mirostat", len(LOGITS), 1, 1.0, 0.1, 100)]),
    ],
    ids=str,
)
def test_further_samplers_are_llama_cpps(settings, steps):
    found = shares(Sampler(Sampling(**{**NONE, **settings})))
    assert found == pytest.approx(left([], steps), rel=2e-4)


@pytest.mark.parametrize("allowed", [0, 1, 2, 4])
@pytest.mark.parametrize(
    "recent",
    [
        [1, 2, 3, 1, 2, 3, 1, 2],
        [7] * 12,
        [1, 2, 3, 4, 5],
        [5, 6, 7, 8, 9, 5, 6, 7, 8],
        [1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1],
        [1],
    ],
    ids=str,
)
@pytest.mark.parametrize("last", [-1, 6])
def test_dry_is_llama_cpps(recent, allowed, last):
    settings = Sampling(**NONE, dry_multiplier=0.8, dry_allowed_length=allowed, dry_penalty_last_n=last)
    sampler = Sampler(settings)
    sampler.accept(recent)
    step = ("dry", None, 0.8, 1.75, allowed, 4096 if last < 0 else last, None, 0)
    assert shares(sampler) == pytest.approx(left(recent, [step]), rel=2e-4)


def test_dry_looks_over_no_breaker():
    found = []
    for breakers in ([3], []):
        sampler = Sampler(Sampling(**NONE, dry_multiplier=1.0), breakers=breakers)
        sampler.accept([1, 2, 3, 1, 2, 9, 1, 2, 3, 1, 2])
        found.append(shares(sampler)[9])
    assert found[0] > found[1]  # the longer repetition ends at the breaker


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_matches_are_what_begins_as_the_whole_does(tokens):
    found = [
        next((n for n, (a, b) in enumerate(zip(tokens[i:], tokens, strict=False)) if a != b), len(tokens) - i)
        for i in range(len(tokens))
    ]
    assert _matches(np.array(tokens)).tolist() == [0, *found[1:]]


def test_dry_looks_at_no_token_of_a_long_text_that_is_not_like_its_last():
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        lines += event == "line"
        return trace

    text = np.random.default_rng(0).integers(0, 1000, 30_000)
    text[-12:] = text[100:112]
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        found = dry_penalties(text, 1.0, 1.75, 5)
    finally:
        sys.settrace(before)
    assert found == {text[112]: pytest.approx(1.75**7)}
    assert lines < 1000


def test_mirostat_keeps_the_surprise():
    rng = np.random.default_rng(1)
    for version in (1, 2):
        sampler = Sampler(Sampling(seed=1, mirostat=version, mirostat_tau=3.0, temperature=1.0))
        surprises = []
        for _ in range(400):
            logits = rng.normal(size=1000).astype(np.float32) * 3
            parts = np.exp(logits - logits.max())
            surprises.append(-np.log2(parts[sampler.draw(logits)] / parts.sum()))
        assert np.mean(surprises[100:]) == pytest.approx(3.0, abs=0.8)


def test_logit_bias_is_added():
    logits = np.zeros(4, np.float32)
    assert Sampler(Sampling(temperature=0, logit_bias={2: 1.0, 9: 100.0})).draw(logits) == 2
    assert Sampler(Sampling(temperature=1, logit_bias={0: float("-inf")}, seed=1)).draw(logits) != 0


def test_unknown_samplers_are_refused():
    with pytest.raises(UsageError, match="there is no sampler tfs"):
        Sampling(samplers=("top_k", "tfs"))


@given(st.lists(st.floats(-10, 10, width=32) | st.sampled_from([0.0, -0.0, -np.inf, 1.5]), min_size=2, max_size=60))
def test_all_candidates_come_in_the_order_of_a_stable_sort(values):
    logits = np.array([*values, 11.0], np.float32)
    ids, _ = Sampler(Sampling(temperature=1, samplers=("temperature",))).probabilities(logits)
    assert ids.tolist() == np.argsort(-logits, kind="stable").tolist()
