"""Statistics are files: what does not fit together, or not to the model, is one line before anything is written."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_models import write_tiny

import ggufkit
from ggufkit.calibrate.fisher import collect, tempered
from ggufkit.calibrate.statistics import Statistics, merged, read_statistics, write_statistics
from ggufkit.calibrate.tape import Tape
from ggufkit.cli import cli
from ggufkit.errors import GGUFError, GgufkitError, UsageError
from ggufkit.importance.imatrix_file import Sums
from ggufkit.runtime.model import Model

WINDOWS = np.random.default_rng(1).integers(3, 40, (2, 24)).astype(np.int32)
Q, EMBEDDINGS, OUTPUT = "blk.0.attn_q.weight", "token_embd.weight", "output.weight"


@pytest.fixture(scope="module", params=["llama", "llama+experts"])
def calibrated(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "tiny.gguf"
    write_tiny(path, request.param, format="F32")
    with ggufkit.open(path) as gguf:
        return path, collect(Model(gguf, Tape(threads=1)), WINDOWS, ("text",))


def _with(part: str, name: str, change):
    def changed(found: Statistics) -> None:
        values = getattr(found, part)
        values[name] = change(values[name])

    return changed


def _without(part: str, name: str):
    return lambda found: getattr(found, part).pop(name)


def _windows(change):
    return lambda found: setattr(found, "windows", change(found.windows))


APART = {
    "no sums of squares": _without("squares", Q),
    "no input": _without("inputs", OUTPUT),
    "no moment": _without("moments", Q),
    "input of another width": _with("inputs", OUTPUT, lambda key: "nobody"),
    "no squares of counts": _with("squares", Q, lambda sums: Sums(sums.squares[:, :8], sums.counts)),
    "smaller moment": _with("moments", Q, lambda blocks: [blocks[0][:32, :32]]),
    "moment not square": _with("moments", Q, lambda blocks: [blocks[0][:, :32]]),
    "negative moment": _with("moments", Q, lambda blocks: [-blocks[0]]),
    "negative Fisher information": _with("fisher", Q, lambda rows: -rows),
    "negative counts": _with("squares", Q, lambda sums: Sums(sums.squares, -sums.counts)),
    "no windows": _windows(lambda windows: windows[:0]),
}
OF_ANOTHER_MODEL = {
    "columns": _with("metrics", EMBEDDINGS, lambda metric: metric[:32, :32]),
    "rows": _with("fisher", Q, lambda rows: rows[:, :5]),
    "vocabulary": _with("frequencies", EMBEDDINGS, lambda counts: counts[:5]),
    "token": _windows(lambda windows: windows + 10**6),
    "negative token": _windows(lambda windows: windows - 100),
}


def _written(found: Statistics, change, folder):
    other = deepcopy(found)
    change(other)
    write_statistics(folder / "stats.gguf", other, force=True)
    return folder / "stats.gguf"


@pytest.mark.parametrize("what", APART)
def test_parts_that_do_not_fit_together(calibrated, tmp_path, what):
    with pytest.raises(GGUFError, match="statistics that do not fit together"):
        read_statistics(_written(calibrated[1], APART[what], tmp_path))


@pytest.mark.parametrize("what", OF_ANOTHER_MODEL)
@pytest.mark.parametrize("arguments", [
    ["plan", "--target-bpw", "5"],
    ["quantize", "Q4_0"],
    ["quantize", "Q4_0", "--one-stream"],
    ["quantize", "Q4_0", "--method", "plain", "--fold", "awq"],
    ["quantize", "Q4_0", "--method", "plain", "--rotate"],
    ["quantize", "Q4_0", "--method", "plain", "--tune", "norms"],
], ids=" ".join)  # fmt: skip
def test_statistics_of_another_model_are_refused(calibrated, tmp_path, what, arguments):
    model, found = calibrated
    stats = _written(found, OF_ANOTHER_MODEL[what], tmp_path)
    verb, *rest = arguments
    files = [str(model)] if verb == "plan" else [str(model), str(tmp_path / "out.gguf")]
    result = CliRunner().invoke(cli, [verb, "--imatrix", str(stats), *files, *rest])
    assert isinstance(result.exception, GgufkitError), result.exception
    assert "of another model" in str(result.exception)
    assert not (tmp_path / "out.gguf").exists()


def test_a_matrix_without_gradients_is_left_as_it_is(calibrated, tmp_path):
    """One whose outputs no prediction depends on."""
    model, found = calibrated
    stats = _written(found, _without("fisher", Q), tmp_path)
    for options in ([], ["--fold", "awq"], ["--one-stream"]):
        arguments = ["quantize", "--force", "--imatrix", str(stats), str(model), str(tmp_path / "out.gguf"), "Q4_0"]
        CliRunner().invoke(cli, [*arguments, *options], catch_exceptions=False)
        with ggufkit.open(tmp_path / "out.gguf") as gguf:
            assert gguf.tensors[Q].format.name == "Q4_0"


@pytest.mark.parametrize("name", ["cogvlm", "chameleon"])
def test_what_no_text_meets_keeps_many_bits(name, tmp_path):
    """Experts for images, and logits that are silenced."""
    write_tiny(tmp_path / "tiny.gguf", name, format="F32")
    with ggufkit.open(tmp_path / "tiny.gguf") as gguf:
        found = collect(Model(gguf, Tape(threads=1)), WINDOWS, ("text",))
    write_statistics(tmp_path / "stats.gguf", found)
    arguments = ["quantize", "--imatrix", str(tmp_path / "stats.gguf"), "--target-bpw", "7"]
    files = [str(tmp_path / "tiny.gguf"), str(tmp_path / "out.gguf")]
    CliRunner().invoke(cli, [*arguments, *files], catch_exceptions=False)
    with ggufkit.open(tmp_path / "out.gguf") as gguf:
        matrices = [tensor for tensor in gguf.tensors.values() if tensor.format.is_quantized]
        unmet = [tensor for tensor in matrices if not found.knows(tensor.name)]
    assert bool(unmet) == (name == "cogvlm")
    assert all(tensor.format.name == "Q8_0" for tensor in unmet)
    assert any(tensor.format.name != "Q8_0" for tensor in matrices)


@pytest.mark.parametrize("name", ["minimax-m3+few", "hy_v4", "rwkv7"])
def test_what_has_no_gradient_is_one_line(name, tmp_path):
    write_tiny(tmp_path / "tiny.gguf", name, format="F32")
    with ggufkit.open(tmp_path / "tiny.gguf") as gguf, pytest.raises(GgufkitError, match="cannot be calibrated"):
        collect(Model(gguf, Tape(threads=1)), WINDOWS, ("text",))


@pytest.mark.parametrize("change", [
    _with("moments", Q, lambda blocks: [blocks[0][:32, :32], blocks[0][32:, 32:]]),
    _with("frequencies", EMBEDDINGS, lambda counts: counts[:5]),
    _with("fisher", Q, lambda rows: rows[:, :5]),
    _with("inputs", OUTPUT, lambda key: Q),
    _windows(lambda windows: windows[:, :8]),
])  # fmt: skip
def test_what_cannot_be_added(calibrated, change):
    other = deepcopy(calibrated[1])
    change(other)
    for parts in ([calibrated[1], other], [other, calibrated[1]]):
        with pytest.raises(UsageError, match="cannot be added"):
            merged(parts)


def test_what_only_one_text_reached_is_added(calibrated):
    found = calibrated[1]
    fisher = {name: rows for name, rows in found.fisher.items() if name != Q}
    for parts in ([found, replace(found, fisher=fisher)], [replace(found, fisher=fisher), found]):
        np.testing.assert_array_equal(merged(parts).fisher[Q], found.fisher[Q])


def test_no_gradient_counts_for_more_than_all_smaller_ones():
    gradients = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    assert tempered(gradients) is gradients
    wild = gradients.copy()
    wild[[3, 40]] *= 1e4
    found = tempered(wild)
    calm = np.delete(np.arange(64), [3, 40])
    np.testing.assert_array_equal(found[calm], gradients[calm])
    total = (gradients[calm] ** 2).sum()
    assert sorted((found[[3, 40]] ** 2).sum(1)) == pytest.approx([total, 2 * total], rel=1e-4)
    np.testing.assert_allclose(found[3] / np.linalg.norm(found[3]), gradients[3] / np.linalg.norm(gradients[3]), 1e-5)
    for rows in (np.zeros((5, 3), np.float32), np.ones((1, 3), np.float32), np.ones((0, 3), np.float32)):
        np.testing.assert_array_equal(tempered(rows), rows)
