"""Perplexity, divergence and importance: the numbers of llama.cpp's tools."""

from __future__ import annotations

import json
import struct

import llama
import numpy as np
import pytest
from verify_imatrix import apart, own_means, reference_means
from verify_runtime import log_softmax

import ggufkit
from ggufkit.calibrate.imatrix import collect
from ggufkit.cli.text import file_windows
from ggufkit.errors import FileError, GGUFError, UsageError
from ggufkit.evaluate import perplexity as evaluate
from ggufkit.evaluate.divergence import mean_and_error
from ggufkit.evaluate.perplexity import BaseFile, BaseWriter, divergence, perplexity, predictions
from ggufkit.evaluate.windows import Windows
from ggufkit.importance.imatrix_file import Sums, read_imatrix, write_imatrix
from ggufkit.jobs.convert import convert


@pytest.fixture(scope="module")
def path(fixtures, tmp_path_factory):
    return convert(fixtures / "pylib-llama", tmp_path_factory.mktemp("perplexity") / "q8_0.gguf", "Q8_0")


@pytest.fixture(scope="module")
def model(path):
    with ggufkit.load(path) as model:
        yield model


@pytest.fixture(scope="module")
def windows():
    tokens = np.random.default_rng(0).integers(3, 4096, 100).astype(np.int32)
    return Windows(tokens, 32, bos=1)


@pytest.fixture(scope="module")
def logits(model, windows):
    """(windows, 32, vocabulary)"""
    return np.stack([model.forward(seen, model.new_cache(32), "all") for seen, _ in windows])


def test_windows_are_full_and_begin_with_bos():
    windows = Windows(np.arange(100, 199), 20, bos=1)
    pairs = list(windows)
    assert len(windows) == 4
    assert pairs[1][0].tolist() == [1, *range(121, 140)]
    assert pairs[1][1].tolist() == [*range(120, 140)]


@pytest.mark.parametrize(
    ("n", "length", "count", "text"),
    [
        (39, 20, None, "39 tokens; windows of 20 need at least 40"),
        (40, 1, None, "at least 2"),
        (40, 20, 0, "at least 1"),
    ],
)
def test_windows_that_cannot_be_are_refused(n, length, count, text):
    with pytest.raises(UsageError, match=text):
        Windows(np.zeros(n, np.int32), length, count)


def test_estimates_on_the_way_are_those_of_all_so_far_and_look_at_each_window_once(monkeypatch):
    rng = np.random.default_rng(0)
    windows = Windows(np.arange(400, dtype=np.int32) % 9, 40)
    logits = [rng.normal(size=(19, 9)).astype(np.float32) for _ in range(len(windows))]
    targets = [rng.integers(0, 9, 19) for _ in logits]
    monkeypatch.setattr(evaluate, "predictions", lambda *_: zip(logits, targets, [40] * 10, strict=True))
    looked_at = []
    monkeypatch.setattr(evaluate, "mean_and_error", lambda nll: looked_at.append(len(nll)) or mean_and_error(nll))
    seen = []
    found = perplexity(None, windows, report=lambda tokens, estimate: seen.append(estimate))
    assert looked_at == [19 * len(windows)]
    assert seen[-1].perplexity == pytest.approx(found.perplexity)
    nll = np.concatenate([-log_softmax(x)[np.arange(19), t] for x, t in zip(logits, targets, strict=True)])
    for n, estimate in enumerate(seen, 1):
        mean, error = mean_and_error(nll[: 19 * n])
        assert estimate.perplexity == pytest.approx(np.exp(mean), rel=1e-5)
        assert estimate.error == pytest.approx(np.exp(mean) * error, rel=1e-4)
        assert estimate.tokens == 19 * n


def test_perplexity_is_of_the_second_half(model, windows, logits):
    logs = log_softmax(logits[:, 16:-1])  # the positions before each predicted token
    nll = -np.take_along_axis(logs, windows.tokens[:, 17:, None].astype(np.int64), -1).reshape(-1)
    found = perplexity(model, windows)
    assert found.tokens == nll.size == 45
    assert found.perplexity == pytest.approx(np.exp(nll.mean()), rel=1e-5)
    assert found.error == pytest.approx(found.perplexity * nll.std() / np.sqrt(nll.size - 1), rel=1e-5)


@pytest.fixture(scope="module")
def base(model, windows, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.kld"
    with open(path, "wb") as file:
        perplexity(model, windows, base=BaseWriter(file, windows, model.vocabulary))
    return path


def test_base_file_has_the_layout_of_llama_perplexity(base, windows, logits):
    data = base.read_bytes()
    assert data[:8] == b"_logits_"
    assert struct.unpack_from("<3i", data, 8) == (32, 4096, 3)
    assert np.array_equal(np.frombuffer(data, "<i4", 96, 20), windows.tokens.reshape(-1))
    row = 2 * (4096 + 4)
    assert len(data) == 20 + 4 * 96 + 45 * row
    first = data[20 + 4 * 96 :][:row]
    scale, least = struct.unpack_from("<2f", first)
    levels = np.frombuffer(first, "<u2", 4096, 8)
    expected = log_softmax(logits[0, 16])
    expected = np.maximum(expected, expected.max() - 16)
    np.testing.assert_allclose(levels * scale + least, expected, atol=scale)


def test_model_does_not_diverge_from_itself(model, base):
    file = BaseFile(base)
    found = divergence(model, file, file.windows(bos=1))
    assert len(found.kld) == 45
    assert np.abs(found.kld).max() < 1e-4  # half a level of each probability
    assert found.same_top.all()
    np.testing.assert_allclose(found.nll, found.base_nll, atol=1e-3)


def test_divergence_is_that_of_the_logits(model, base, windows, logits, fixtures, tmp_path):
    other = convert(fixtures / "pylib-llama", tmp_path / "q4.gguf", "Q4_0")
    with ggufkit.load(other) as worse:
        q = log_softmax(np.stack([worse.forward(seen, worse.new_cache(32), "all")[16:-1] for seen, _ in windows]))
        found = divergence(worse, BaseFile(base), BaseFile(base).windows(bos=1))
    p = log_softmax(logits[:, 16:-1])
    expected = (np.exp(p) * (p - q)).sum(-1).reshape(-1)
    np.testing.assert_allclose(found.kld, expected, rtol=0.02, atol=1e-4)
    assert found.same_top.tolist() == (p.argmax(-1) == q.argmax(-1)).reshape(-1).tolist()


@pytest.mark.parametrize(("cut", "text"), [(4, "does not begin with"), (25, "is cut"), (-1, "is cut")])
def test_base_files_that_are_none_are_refused(base, tmp_path, cut, text):
    (tmp_path / "cut").write_bytes(base.read_bytes()[:cut])
    with pytest.raises(GGUFError, match=text):
        BaseFile(tmp_path / "cut")


def test_few_values_have_no_error():
    assert mean_and_error(np.array([1.0, 3.0])) == (2.0, 0.0)
    assert mean_and_error(np.array([])) == (0.0, 0.0)


def test_imatrix_sums_what_meets_each_matrix(path, windows):
    with ggufkit.load(path, backend="cpu", as_ggml=True) as model:
        sums = collect(model, windows, output=True)
        names = {name for name in model.gguf.tensors if name.startswith("blk.") and "norm" not in name}
        # What meets the first matrices is the embedding, normalised.
        x = model.gguf.tensors["token_embd.weight"].floats()[np.concatenate([seen for seen, _ in windows])]
        weight = model.gguf.tensors["blk.0.attn_norm.weight"].floats()
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + model.hyper.epsilon) * weight
    assert set(sums) == names | ({"output.weight"} & set(model.gguf.tensors))
    assert all(found.counts.tolist() == [96] for found in sums.values())
    np.testing.assert_allclose(sums["blk.0.attn_k.weight"].squares[0], (x * x).sum(0), rtol=1e-5)
    assert np.array_equal(sums["blk.0.attn_k.weight"].squares, sums["blk.0.attn_q.weight"].squares)


def test_imatrix_sums_are_those_of_llama_cpp(fixtures, tmp_path, windows):
    path = convert(fixtures / "pylib-llama", tmp_path / "f32.gguf", "F32")
    own, reference = own_means(str(path), windows), reference_means(str(path), windows)
    assert reference.keys() == own.keys()
    # Few tokens: a key or value that rounds to the other float16 moves by 2⁻¹¹.
    assert apart(reference, own)[0] < 1e-3


@pytest.mark.slow
def test_imatrix_is_that_of_llama_imatrix(fixtures, shared, tmp_path):
    path = convert(fixtures / "pylib-llama", tmp_path / "bf16.gguf", "BF16")
    with ggufkit.load(path) as model:
        windows = file_windows(model, shared / "text" / "calib.txt", 256, 64)
    assert apart(read_imatrix(shared / "golden" / "imatrix.gguf").values, own_means(str(path), windows))[0] < 1e-4


@pytest.mark.parametrize("legacy", [False, True])
def test_imatrix_survives_a_round_trip(tmp_path, legacy):
    rng = np.random.default_rng(0)
    sums = {
        "blk.1.b.weight": Sums(rng.random((1, 8)), np.array([64])),
        "blk.0.e.weight": Sums(rng.random((3, 4)), np.array([40, 0, 24])),
    }
    write_imatrix(tmp_path / "i", sums, ["a.txt"], 2, 32, legacy=legacy)
    found = read_imatrix(tmp_path / "i")
    assert (found.chunks, found.datasets) == (2, ("a.txt",))
    assert list(found.values) == ["blk.0.e.weight", "blk.1.b.weight"]
    np.testing.assert_allclose(found.values["blk.1.b.weight"], sums["blk.1.b.weight"].squares[0] / 64, rtol=1e-6)
    experts = found.values["blk.0.e.weight"].reshape(3, 4)
    np.testing.assert_allclose(experts[2], sums["blk.0.e.weight"].squares[2] / 24, rtol=1e-6)
    assert experts[1].tolist() == [1, 1, 1, 1]
    with pytest.raises(FileError, match="exists already"):
        write_imatrix(tmp_path / "i", sums, ["a.txt"], 2, 32, legacy=legacy)


def test_perplexity_is_that_of_llama_perplexity(shared, model):
    golden = json.loads((shared / "golden" / "perplexity.json").read_text())
    with llama.Model(model.gguf.path) as reference:
        tokens = reference.tokenize((shared / "text" / "eval.txt").read_bytes())
    found = perplexity(model, Windows(tokens, 256, 10, bos=1))
    assert golden["ctx"] == 256
    with llama.Model(model.gguf.path) as reference:
        nll = []
        for seen, text in Windows(tokens, 256, 10, bos=1):
            logs = log_softmax(reference.logits(seen)[128:-1])
            nll += (-logs[np.arange(127), text[129:]]).tolist()
    assert found.perplexity == pytest.approx(np.exp(np.mean(nll)), rel=1e-3)


@pytest.mark.parametrize("tied", [False, True])
def test_importance_of_the_output_takes_the_logits_of_one_pass_at_a_time(path, tied, monkeypatch):
    windows = Windows(np.random.default_rng(1).integers(3, 4096, 2400).astype(np.int32), 1200, count=1)
    with ggufkit.load(path) as model:
        if tied:
            monkeypatch.delitem(model.gguf.tensors, "output.weight")
        passes, forward = [], model.forward
        monkeypatch.setattr(
            model, "forward", lambda *given: passes.append((len(given[0]), given[2])) or forward(*given)
        )
        found = collect(model, windows, output=True)
    assert passes == [(n, None if tied else "all") for n in (512, 512, 176)]
    assert int(found["blk.0.attn_q.weight"].counts[0]) == 1200


@pytest.mark.parametrize("length", [32, 513, 1026, 1300])
def test_logits_of_long_windows_come_a_pass_at_a_time(model, length):
    windows = Windows(np.random.default_rng(1).integers(3, 4096, 2 * length).astype(np.int32), length, bos=1)
    parts = list(predictions(model, windows, ("F16", "F16")))
    assert max(len(logits) for logits, _, _ in parts) <= 512
    whole = [model.forward(seen, model.new_cache(length), length - length // 2)[:-1] for seen, _ in windows]
    np.testing.assert_array_equal(np.concatenate([logits for logits, _, _ in parts]), np.concatenate(whole))
    targets = np.concatenate([text[length // 2 + 1 :] for _, text in windows])
    np.testing.assert_array_equal(np.concatenate([tokens for _, tokens, _ in parts]), targets)
    assert sum(read for _, _, read in parts) in (2 * length, 2 * length - 1, 2 * length - 2)
