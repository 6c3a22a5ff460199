"""Recurrent states: their memory is the formula's, and guesses that were wrong leave no trace in them."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tiny_checkpoints import write
from tiny_families import FAMILIES
from tiny_models import RECIPES, write_tiny

import ggufkit
from ggufkit.jobs.convert import convert
from ggufkit.memory.model import model_of
from ggufkit.runtime import replay
from ggufkit.runtime.batch import Piece
from ggufkit.runtime.kv.state import State
from ggufkit.runtime.speculate import Ahead

RECURRENT = [
    "arwkv7", "bailingmoe3", "granitehybrid", "mamba", "mamba2", "minimax-01", "plamo2", "qwen4exp", "rwkv6", "rwkv7",
    "rwkv6qwen2",
]  # fmt: skip
CONVERTED = ["lfm2", "jamba", "kimi_linear"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    found = {}
    for name in RECURRENT:
        write_tiny(folder / f"{name}.gguf", name)
        found[name] = folder / f"{name}.gguf"
    for name in CONVERTED:
        found[name] = convert(write(FAMILIES[name](), folder / name), folder / f"{name}.gguf", "F32", pre="gpt-2")
    return found


@pytest.mark.parametrize("backend", ["cpu", "mlx"])
@pytest.mark.parametrize("name", [*RECURRENT, *CONVERTED])
def test_memory_is_exactly_the_formulas(paths, name, backend):
    """Four bytes for each number of a layer's convolution and state, whatever the context."""
    if backend == "mlx":
        pytest.importorskip("mlx.core")
    with ggufkit.load(paths[name], backend=backend) as model:
        expected = sum(4 * (layer.convolution + layer.state) for layer in model_of(model.gguf).layers)
        for length in (8, 64):
            cache = model.new_cache(length)
            model.forward([5, 6, 7], cache)
            states = [layer for layer in cache.layers if isinstance(layer, State)]
            assert sum(state.nbytes for state in states) == expected > 0
            assert sum(4 * int(np.prod(array.shape)) for state in states for array in state.arrays) == expected


def test_every_recurrent_recipe_is_here():
    states = ("ssm_", "shortconv", "time_mix")
    found = {name.split("+")[0] for name, recipe in RECIPES.items() if any(t.startswith(states) for t in recipe.block)}
    assert found | {"minimax-01"} == set(RECURRENT)


@pytest.mark.parametrize("name", ["mamba2", "granitehybrid", "rwkv7", "lfm2"])
def test_guesses_change_no_text(paths, name):
    with ggufkit.load(paths[name], backend="cpu") as model:
        prompt = np.random.default_rng(2).integers(5, 90, 12).tolist()

        def tokens(ahead=None):
            cache, rng = model.new_cache(48), np.random.default_rng(0)
            text, guesses, wanted = list(prompt), [], []
            rows = model.forward(text, cache)[None]
            while len(text) < 40:
                right = 0
                for logits, guess in zip(rows, [*guesses, None], strict=True):
                    text.append(int(np.argmax(logits)))
                    wanted.append(logits)
                    if text[-1] != guess:
                        break
                    right += 1
                if right < len(guesses):
                    cache.keep_prefix(text)
                guesses = [] if ahead is None else ahead(text, rng)
                rows = model.forward([*text[len(cache) :], *guesses], cache, len(guesses) + 1)
            return text[:40], wanted[:28]

        expected, logits = tokens()

        def some_right(text, rng):
            """Right for some, then wrong."""
            right = expected[len(text) : len(text) + int(rng.integers(0, 4))]
            return [*right, int(rng.integers(5, 90))]

        found, others = tokens(some_right)
        assert found == expected
        assert all(np.array_equal(a, b) for a, b in zip(logits, others, strict=True))


@pytest.mark.parametrize("name", CONVERTED)
def test_passes_are_played(paths, name, monkeypatch):
    """From prompts, their copies and states that were returned to, with the bits of operations one by one."""
    with ggufkit.load(paths[name], backend="cpu", threads=2) as model:
        found = []
        for most in (0, replay.MOST):
            monkeypatch.setattr(replay, "MOST", most)
            caches = [model.new_cache(48) for _ in range(2)]
            model.step([Piece(cache, range(5, 12 + 3 * i)) for i, cache in enumerate(caches)])
            caches.append(caches[1].copy())
            rows = [model.step([Piece(cache, [20 + t]) for cache in caches]) for t in range(4)]
            caches[0].keep_prefix([*range(5, 12), 1])
            caches[2].load(caches[1].save())
            found.append(rows + [model.step([Piece(cache, [30 + t]) for cache in caches]) for t in range(3)])
        assert np.array_equal(*found)
        assert [replay is not None for _, replay in model.replays._found.values()] == [True]


def test_generation_guesses_with_recurrent_layers(paths):
    class Half:
        def guess(self, tokens, most):
            chance = random.Random(len(tokens))
            return [chance.randrange(5, 90) for _ in range(most)]

    class Knows(Half):
        def __init__(self, text):
            self.text = text

        def guess(self, tokens, most):
            n = len(tokens)
            return [*self.text[n : n + most // 2], *super().guess(tokens, most)][:most]

    with ggufkit.load(paths["lfm2"], backend="cpu") as model:
        prompt = np.random.default_rng(2).integers(5, 90, 12).tolist()
        options = {"max_tokens": 24, "context": 64, "ignore_ends": True, "temperature": 0}
        expected = model.generate(prompt, **options)
        text = "".join(expected)
        knows = Knows([*prompt, *expected.tokens])
        found = model.generate(prompt, ahead=lambda n: Ahead(knows, 6), **options)
        assert "".join(found) == text
        assert found.tokens == expected.tokens
        assert 0 < found.ahead.right < found.ahead.guessed
