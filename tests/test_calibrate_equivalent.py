"""AWQ's folding and R1: the model computes the same, and statistics become those of the new weights."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_models import RECIPES, write_tiny

import ggufkit
from ggufkit.calibrate.equivalent import Equivalent
from ggufkit.calibrate.fisher import collect
from ggufkit.calibrate.fold import folded, places
from ggufkit.calibrate.passes import hidden, scored
from ggufkit.calibrate.rotate import rotated, rotation, untied
from ggufkit.calibrate.statistics import read_statistics, write_statistics
from ggufkit.calibrate.tape import Tape
from ggufkit.cli import cli
from ggufkit.errors import ArchitectureError, GgufkitError, UsageError
from ggufkit.importance.imatrix_file import write_imatrix
from ggufkit.runtime.model import Model

WINDOWS = np.random.default_rng(1).integers(3, 40, (2, 24)).astype(np.int32)


def logits_of(gguf) -> np.ndarray:
    model = Model(gguf, Tape(threads=1))
    return scored(model, hidden(model, WINDOWS)).value


def statistics_of(gguf):
    return collect(Model(gguf, Tape(threads=1)), WINDOWS, ("text",))


def same(found: Equivalent, gguf) -> None:
    expected = logits_of(gguf)
    np.testing.assert_allclose(logits_of(found.model), expected, atol=3e-4 * np.abs(expected).max())


# One of each kind of block; where folding would change what is computed there must be fewer places.
FOLDED = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "granite", "stablelm", "starcoder2", "phi3", "olmo2", "gpt2"]


@pytest.mark.parametrize("name", [name for name in FOLDED if name in RECIPES])
def test_folding_changes_nothing(name, tmp_path):
    write_tiny(tmp_path / "tiny.gguf", name, format="F32")
    with ggufkit.open(tmp_path / "tiny.gguf") as gguf:
        statistics = statistics_of(gguf)
        found = folded(gguf, statistics, dict.fromkeys(gguf.tensors, "Q4_0"))
        same(found, gguf)
        assert len(list(places(Model(gguf, Tape())))) == 0 or found.model.changed


def test_statistics_of_folded_weights(tmp_path):
    """What a pass over the text says of them, and what is worked out of the original's."""
    write_tiny(tmp_path / "tiny.gguf", "llama", format="F32")
    with ggufkit.open(tmp_path / "tiny.gguf") as gguf:
        found = folded(gguf, statistics_of(gguf), dict.fromkeys(gguf.tensors, "Q4_0"))
        again = statistics_of(found.model)
    moved = 0
    for name in again.fisher:
        np.testing.assert_allclose(found.statistics.fisher[name], again.fisher[name], rtol=0.02)
        mine, theirs = found.statistics.moment(name), again.moment(name)
        np.testing.assert_allclose(mine, theirs, atol=1e-3 * np.abs(theirs).max())
        moved += name in found.model.changed
    assert moved > 8


@pytest.mark.parametrize("name", ["llama", "llama+experts", "qwen3"])
def test_turning_changes_nothing_or_is_refused(name, tmp_path):
    write_tiny(tmp_path / "tiny.gguf", name, format="F32")
    with ggufkit.open(tmp_path / "tiny.gguf") as gguf:
        if name == "llama+experts":
            with pytest.raises(ArchitectureError, match="cannot be turned and stay what it is"):
                rotated(gguf)
            return
        statistics = statistics_of(gguf)
        found = rotated(gguf, statistics)
        same(found, gguf)
        again = statistics_of(found.model)
        for key in ("blk.0.attn_q.weight", "blk.1.ffn_up.weight", "output.weight"):
            theirs = again.moment(key)
            np.testing.assert_allclose(found.statistics.moment(key), theirs, atol=1e-3 * np.abs(theirs).max())
        metric = again.metric("token_embd.weight")
        np.testing.assert_allclose(
            found.statistics.metric("token_embd.weight"), metric, atol=0.02 * np.abs(metric).max()
        )
        # Folding and turning go together.
        both = folded(found.model, found.statistics, dict.fromkeys(gguf.tensors, "Q4_0"))
        same(both, gguf)


@pytest.fixture
def tied(tmp_path):
    """A Llama whose output matrix is that of the embeddings."""
    write_tiny(tmp_path / "whole.gguf", "llama", format="F32")
    with ggufkit.open(tmp_path / "whole.gguf") as gguf:
        kept = [tensor for tensor in gguf.tensors.values() if tensor.name != "output.weight"]
        infos = [(t.name, t.shape, t.format) for t in kept]
        with ggufkit.Writer(tmp_path / "tied.gguf", gguf.metadata, infos) as writer:
            for tensor in kept:
                writer.write(tensor.name, 0, tensor.read(0, tensor.rows))
    return tmp_path / "tied.gguf"


def test_tied_embeddings_are_turned_twice(tied):
    with ggufkit.open(tied) as gguf:
        statistics = statistics_of(gguf)
        both = untied(gguf, statistics)
        same(both, gguf)
        assert untied(both.model, both.statistics).model is both.model
        found = rotated(gguf, statistics)
        same(found, gguf)
        assert found.model.changed >= {"token_embd.weight", "output.weight"}
        for equivalent in (both, found):
            again, mine = statistics_of(equivalent.model), equivalent.statistics
            assert mine.inputs == again.inputs
            assert mine.fisher.keys() == again.fisher.keys()
            assert mine.metrics.keys() == again.metrics.keys()
            theirs = again.moment("output.weight")
            np.testing.assert_allclose(mine.moment("output.weight"), theirs, atol=1e-3 * np.abs(theirs).max())


def test_quantize_unties_what_it_turns(tied, monkeypatch):
    monkeypatch.chdir(tied.parent)
    with ggufkit.open(tied) as gguf:
        write_statistics("stats.gguf", statistics_of(gguf))
        expected = logits_of(gguf)
    for method in ("plain", "gptq"):
        base = ["quantize", "--imatrix", "stats.gguf", "--method", method, "--force", "tied.gguf", "a.gguf", "Q8_0"]
        result = CliRunner().invoke(cli, [*base, "--rotate"], catch_exceptions=False)
        assert "so the file also has output.weight" in result.output
        with ggufkit.open("a.gguf") as gguf:
            assert gguf.tensors["output.weight"].format.name == "Q8_0"
            assert np.abs(logits_of(gguf) - expected).mean() < 0.1 * np.abs(expected).mean()


@pytest.mark.parametrize("width", [64, 576, 640, 45, 1])
def test_rotations_are_orthogonal(width):
    R = rotation(width)
    np.testing.assert_allclose(R @ R.T, np.eye(width), atol=1e-12)
    assert width < 64 or np.abs(R).max() < 0.7


def test_every_place_that_is_folded_is_exact(tmp_path):
    """With scales far from one, over all architectures that calibration runs."""
    from ggufkit.calibrate.equivalent import scaled
    from ggufkit.calibrate.fold import _spread

    tried = 0
    for name in list(RECIPES)[::3]:
        write_tiny(tmp_path / "tiny.gguf", name, format="F32")
        with ggufkit.open(tmp_path / "tiny.gguf") as gguf:
            try:
                if Model(gguf, Tape()).weights.output is None:
                    continue
                expected = logits_of(gguf)
            except GgufkitError:
                continue
            rng = np.random.default_rng(tried)
            rows, cols = {}, {}
            for place in places(Model(gguf, Tape())):
                reader = gguf.tensors[place.readers[0]]
                s = np.exp(rng.normal(size=reader.cols // place.group)).astype(np.float32)
                cols |= dict.fromkeys(place.readers, _spread(s, place)) | dict.fromkeys(place.vectors, 1 / s)
                if place.giver:
                    rows[place.giver] = 1 / s
            changed = {n: scaled(gguf.tensors[n], rows.get(n), cols.get(n)) for n in rows.keys() | cols.keys()}
            found = logits_of(gguf.with_tensors(changed))
            np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max(), err_msg=name)
            tried += bool(changed)
    assert tried > 5


def test_quantize_writes_what_computes_the_same(tmp_path, monkeypatch):
    """Turned weights in F32, and folded ones by GPTQ, as files that any reader runs."""
    write_tiny(tmp_path / "tiny.gguf", "llama", format="F32")
    with ggufkit.open(tmp_path / "tiny.gguf") as gguf:
        write_statistics(tmp_path / "stats.gguf", statistics_of(gguf))
        expected = logits_of(gguf)
    monkeypatch.chdir(tmp_path)
    base = ["quantize", "--imatrix", "stats.gguf", "tiny.gguf"]

    def made(*arguments: str) -> np.ndarray:
        CliRunner().invoke(cli, [*base, *arguments], catch_exceptions=False)
        with ggufkit.open(tmp_path / arguments[0]) as gguf:
            return logits_of(gguf)

    turned = made("turned.gguf", "F32", "--rotate")
    np.testing.assert_allclose(turned, expected, atol=3e-4 * np.abs(expected).max())
    with ggufkit.open("turned.gguf") as gguf:
        assert (gguf.tensors["blk.0.attn_norm.weight"].floats() == 1).all()
    plain = np.abs(made("plain.gguf", "Q8_0") - expected).mean()
    for name, options in (("a.gguf", ["--fold", "awq"]), ("b.gguf", ["--fold", "awq", "--rotate"])):
        assert np.abs(made(name, "Q8_0", *options) - expected).mean() < 2 * plain
    sums = read_statistics("stats.gguf").squares
    write_imatrix("imatrix.gguf", sums, ["text"], 1, 16)
    base[2] = "imatrix.gguf"
    rounded = np.abs(made("c.gguf", "Q8_0") - expected).mean()
    assert np.abs(made("d.gguf", "Q8_0", "--fold", "awq") - expected).mean() < 2 * rounded
    assert (tmp_path / "c.gguf").read_bytes() != (tmp_path / "d.gguf").read_bytes()
    with pytest.raises(UsageError, match="--rotate needs the statistics"):
        made("e.gguf", "Q8_0", "--rotate")
    assert len({(tmp_path / name).read_bytes() for name in ("plain.gguf", "a.gguf", "b.gguf")}) == 3
    for option in ("--fold=awq", "--rotate"):
        result = CliRunner().invoke(cli, ["quantize", "tiny.gguf", "x.gguf", "Q8_0", option])
        assert "the statistics of `ggufkit calibrate`" in str(result.exception)
