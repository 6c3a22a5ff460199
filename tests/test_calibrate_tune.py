"""Tuned norms: gradients of their weights, the guard of what is held out, and whole files."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_models import write_tiny

import ggufkit
from ggufkit.calibrate import tune
from ggufkit.calibrate.fisher import collect
from ggufkit.calibrate.passes import hidden, scored
from ggufkit.calibrate.statistics import write_statistics
from ggufkit.calibrate.tape import Tape
from ggufkit.calibrate.tune import tuned
from ggufkit.cli import cli
from ggufkit.errors import UsageError
from ggufkit.runtime.model import Model

WINDOWS = np.random.default_rng(2).integers(3, 40, (4, 16)).astype(np.int32)


def write(path, name="llama", format="F32"):
    write_tiny(path, name, format=format)
    return ggufkit.open(path)


@pytest.mark.parametrize("name", ["llama", "qwen3", "stablelm"])
def test_gradients_of_norm_weights(tmp_path, name):
    """A small step of all weights changes a mix of the logits as the gradients say."""
    watch = tune._Norms()
    model = Model(write(tmp_path / "tiny.gguf", name), Tape(watch, 1))
    y = scored(model, hidden(model, WINDOWS))
    mix = np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
    y.grad = mix
    model.ops.back()
    expected, found = 0.0, []
    steps = {n: np.random.default_rng(i).standard_normal(g.shape) for i, (n, g) in enumerate(watch.gradients.items())}
    assert len(steps) > 4
    for n, step in steps.items():
        expected += float((watch.gradients[n] * step).sum())
    for size in (1e-3, -1e-3):
        for n, step in steps.items():
            weight = watch.norms[n].weight
            weight.flags.writeable = True
            weight += (size * step).astype(np.float32)
        found.append(float((scored(model, hidden(model, WINDOWS)).value.astype(np.float64) * mix).sum()))
        for n, step in steps.items():
            watch.norms[n].weight[...] -= (size * step).astype(np.float32)
    assert (found[0] - found[1]) / 2e-3 == pytest.approx(expected, rel=0.02, abs=0.02 * abs(found[0]))


def test_norms_make_good_what_went_wrong(tmp_path):
    """A model whose only fault is in its norms comes near to the original again; the original stays what it is."""
    original = write(tmp_path / "tiny.gguf")
    rng = np.random.default_rng(3)
    names = [name for name in original.tensors if name.endswith("norm.weight")]
    faults = {name: (1 + 0.1 * rng.standard_normal(original.tensors[name].cols)).astype(np.float32) for name in names}
    from ggufkit.calibrate.equivalent import scaled

    wrong = original.with_tensors({name: scaled(original.tensors[name], None, faults[name]) for name in names})
    seen: list[float] = []
    found = tuned(wrong, original, WINDOWS, steps=16, threads=1, report=lambda step, kld: seen.append(kld))
    assert set(found) == set(names)
    assert min(seen) < 0.8 * seen[0]
    assert tuned(original, original, WINDOWS, steps=2, threads=1) == {}  # nothing is better than no difference
    with pytest.raises(UsageError, match="two windows"):
        tuned(wrong, original, WINDOWS[:1])


def test_tuning_does_not_depend_on_threads(tmp_path):
    original, quantized = write(tmp_path / "a.gguf"), write(tmp_path / "b.gguf", format="Q4_0")
    one, three = (tuned(quantized, original, WINDOWS, steps=3, threads=threads) for threads in (1, 3))
    assert one.keys() == three.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, three[name])


def test_quantize_tunes_norms(tmp_path, monkeypatch):
    gguf = write(tmp_path / "tiny.gguf")
    write_statistics(tmp_path / "stats.gguf", collect(Model(gguf, Tape(threads=1)), WINDOWS, ("text",)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "_RATE", 0.004)
    options = ["quantize", "--imatrix", "stats.gguf", "--method", "plain", "tiny.gguf"]
    CliRunner().invoke(cli, [*options, "plain.gguf", "Q4_0"], catch_exceptions=False)
    result = CliRunner().invoke(cli, [*options, "tuned.gguf", "Q4_0", "--tune", "norms"], catch_exceptions=False)
    assert "norms: KL divergence" in result.stderr
    changed = {t.name for t in ggufkit.diff("plain.gguf", "tuned.gguf").tensors if t.status != "identical"}
    assert changed <= {name for name in gguf.tensors if name.endswith("norm.weight")}
    result = CliRunner().invoke(cli, ["quantize", "tiny.gguf", "x.gguf", "Q4_0", "--tune", "norms"])
    assert "needs the statistics" in str(result.exception)
