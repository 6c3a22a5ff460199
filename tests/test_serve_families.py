"""Prefixes are used again with windows and recurrent states, on the CPU and on MLX, and the tokens stay the same."""

from __future__ import annotations

import random
from functools import partial

import pytest
from tiny_checkpoints import write
from tiny_families import FAMILIES

import ggufkit
from ggufkit.jobs.convert import convert
from ggufkit.runtime.sampling import Sampling
from ggufkit.serve.engine import Engine, Request

FAMILY = ["gemma3-linear", "lfm2", "mamba2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    found = {}
    for name in FAMILY:
        checkpoint = write(FAMILIES[name](), folder / name)
        found[name] = convert(checkpoint, folder / f"{name}.gguf", "F32", pre="gpt-2")
    return found


@pytest.mark.parametrize("backend", ["cpu", "mlx"])
@pytest.mark.parametrize("family", FAMILY)
def test_turns_of_a_conversation(models, family, backend):
    if backend == "mlx":
        pytest.importorskip("mlx.core")
    load = partial(ggufkit.load, models[family], backend=backend)
    engine = Engine(load, context=256, slots=3, prompt_piece=32, lookup=True)
    chance = random.Random(4)

    def said(n):
        return [chance.randrange(3, 250) for _ in range(n)]

    def ask(tokens, reuse=True):
        request = Request(tokens, max_tokens=12, sampling=Sampling(seed=2), ignore_ends=True, reuse=reuse)
        return engine.submit(request)

    def end(stream):
        tokens, _, finished = stream.result()
        return [token.id for token in tokens], finished.usage.cached_tokens

    talk, cached = said(70), 0
    for _ in range(3):
        fresh, others = ask(talk, reuse=False), [ask(said(9)) for _ in range(3)]
        expected = end(fresh)[0]
        for other in others:
            end(other)
        answer, found = end(ask(talk))
        assert answer == expected
        assert found >= cached
        cached = len(talk)
        talk += answer + said(20)
    assert found > 70
    # Somebody else's question after the same beginning: recurrent states go back to where a piece of it ended.
    answer, found = end(ask(talk[:100] + said(5)))
    assert found >= 96
    engine.close()
