"""A token's pass that was written down and is played gives what the operations give one by one, bit for bit."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_models import RECIPES, write_tiny

import ggufkit
from ggufkit.jobs.convert import convert
from ggufkit.kernels.jit import kernel
from ggufkit.kernels.recording import COUNTER, Call, Chosen, Moving, Recording
from ggufkit.kernels.shares import take
from ggufkit.runtime import replay
from ggufkit.runtime.batch import Piece
from ggufkit.runtime.observe import observed

IDS = np.random.default_rng(1).integers(3, 96, 24).tolist()
# What indexes of keys remember grows, and is in another place then.
CHOOSING = {"dots3note", "hy_v4+index", "minimax-m3+all", "minimax-m3+few", "qwen4exp"}


@pytest.fixture(scope="module")
def model(fixtures, tmp_path_factory):
    path = convert(fixtures / "pylib-llama", tmp_path_factory.mktemp("replay") / "f32.gguf", "F32")
    with ggufkit.load(path, backend="cpu", threads=2) as model:
        yield model


def steps(model, caches, played, count=4):
    """Logits of some tokens of each conversation, played or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "MOST", replay.MOST if played else 0)
        return [
            np.stack(model.step([Piece(cache, [IDS[t + i]]) for i, cache in enumerate(caches)])) for t in range(count)
        ]


def begun(model, n, *types):
    """Caches of conversations of different lengths."""
    caches = [model.new_cache(64, *(types or ("F32", "F32"))) for _ in range(n)]
    model.step([Piece(cache, IDS[i : 4 + 2 * i]) for i, cache in enumerate(caches)])
    return caches


def assert_plays(model, n, *types):
    one_by_one, played = (steps(model, begun(model, n, *types), how) for how in (False, True))
    assert all(np.array_equal(a, b) for a, b in zip(one_by_one, played, strict=True))


@pytest.mark.parametrize("name", [name for name in RECIPES if "bert" not in name and "embed" not in name])
def test_every_architecture_plays_what_it_computes(tmp_path, name):
    write_tiny(tmp_path / "tiny.gguf", name)
    with ggufkit.load(tmp_path / "tiny.gguf", backend="cpu", threads=2) as model:
        for n in (1, 3):
            assert_plays(model, n)
        found = [replay is not None for _, replay in model.replays._found.values()]
        assert found == [name not in CHOOSING] * 2


@pytest.mark.parametrize("name", ["llama", "mistral4"])
def test_queries_that_are_scaled_by_their_position_are_played(tmp_path, name):
    more = {f"{name}.attention.temperature_scale": 0.3, f"{name}.rope.scaling.original_context_length": 3}
    write_tiny(tmp_path / "tiny.gguf", name, metadata=more)
    with ggufkit.load(tmp_path / "tiny.gguf", backend="cpu", threads=2) as model:
        assert model.weights.blocks[0].mixers[0].temperature is not None
        assert_plays(model, 3)
        assert [replay is not None for _, replay in model.replays._found.values()] == [True]


@pytest.mark.parametrize("name", ["llama", "mamba2", "qwen3moe"])
def test_many_conversations_are_played(tmp_path, name):
    write_tiny(tmp_path / "tiny.gguf", name)
    with ggufkit.load(tmp_path / "tiny.gguf", backend="cpu", threads=2) as model:
        assert_plays(model, 9)
        assert_plays(model, replay.MOST)
        assert [replay is not None for _, replay in model.replays._found.values()] == [True] * 2


@pytest.mark.parametrize("type", ["F16", "Q8_0", "IQ4_NL", "tq4"])
def test_caches_of_other_types_are_played(model, type):
    assert_plays(model, 2, type, type)


def test_conversations_come_and_go(model):
    """The same recording with other caches: a copy of a prefix, a cut one, in another order."""
    found = []
    for played in (False, True):
        a, b, c = begun(model, 3)
        results = steps(model, [a, b], played) + steps(model, [b, c], played)
        copied = b.copy(5)
        a.truncate(4)
        results += steps(model, [copied, a], played) + steps(model, [c, copied], played)
        found.append(results)
    assert all(np.array_equal(x, y) for x, y in zip(*found, strict=True))


def test_recordings_take_turns_in_one_memory(model):
    found = []
    for played in (False, True):
        caches = begun(model, 4)
        found.append([steps(model, caches[:n], played, 1)[0] for n in (4, 4, 1, 1, 2, 2, 4, 1, 2, 4, 1)])
    assert all(np.array_equal(x, y) for x, y in zip(*found, strict=True))
    recordings = [replay for _, replay in model.replays._found.values() if replay is not None]
    assert len({id(recording.recorder.memory) for recording in recordings}) == 1 < len(recordings)


def test_recordings_keep_no_conversation(model):
    caches = begun(model, 2)
    steps(model, caches, True, 1)
    memory = [weakref.ref(layer) for cache in caches for layer in cache.layers]
    del caches
    gc.collect()
    assert [layer() for layer in memory] == [None] * len(memory)


def test_threads_that_share_a_model_do_not_share_memory(model):
    def run(i):
        cache = model.new_cache(64)
        model.forward(IDS[: i + 2], cache)
        return [model.forward([token], cache) for token in IDS]

    expected = [run(i) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(expected, pool.map(run, range(4)), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_who_watches_sees_single_tokens(model):
    seen = []
    (cache,) = begun(model, 1)
    expected = model.forward([5], cache)
    cache.truncate(len(cache) - 1)
    with observed(model, lambda name, x, experts: seen.append((name, x.shape[0]))):
        assert np.array_equal(model.forward([5], cache), expected)
    assert ("blk.0.attn_q.weight", 1) in seen
    assert ("output.weight", 1) in seen or ("token_embd.weight", 1) in seen


@kernel
def squares(counter, x, out):
    i = take(counter, 1)
    while i < x.size:
        out[i] = x[i] * x[i]
        i = take(counter, 1)


@kernel
def add_number(x, number, out, lo, hi):
    for i in range(lo, hi):
        out[i] = x[i] + number


def test_arrays_are_chosen_when_calls_are_made():
    stack, numbers, out = np.arange(300.0).reshape(3, 100), np.zeros(2, np.int64), np.zeros((2, 100))
    stack.flags.writeable = False
    recording = Recording(2)
    recording.stage([Call(squares, (COUNTER, Chosen(stack, numbers, i), out[i])) for i in range(2)])
    recording.finish()
    for chosen in ((0, 1), (2, 2), (1, 0)):
        numbers[:] = chosen
        recording.play()
        assert np.array_equal(out, stack[list(chosen)] ** 2)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_recorded_calls_follow_one_another(threads):
    x, y, z, other = np.arange(100.0), np.zeros(100), np.zeros(100), np.zeros(100)
    recording = Recording(threads, {z.ctypes.data: 0})
    recording.stage([Call(squares, (COUNTER, x, y))])
    recording.stage([Call(add_number, (y, Moving(3, 0) + 1, z), 100), Call(add_number, (x, 1, x[:]), 100)])
    recording.finish()
    for turn in range(50):
        expected = np.arange(turn, turn + 100.0) ** 2
        recording.move(0, turn)
        recording.place(np.array([(z, other)[turn % 2].ctypes.data]))
        recording.play()
        assert np.array_equal((z, other)[turn % 2], expected + turn + 1)
