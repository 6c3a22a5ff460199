"""`ggufkit formats`: the list, and measuring a model's weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ggufkit.cli import cli
from ggufkit.errors import UsageError
from ggufkit.evaluate.format_error import NORMAL_ERROR, Error, measure, measure_tensors, sample
from ggufkit.formats.codec import encode
from ggufkit.formats.table import FORMATS, formats
from ggufkit.gguf.writer import Writer
from ggufkit.tensors.tensor import Tensor

MEASURED = ["Q4_0", "Q8_0", "Q4_K", "MXFP4", "TQ2_0", "BF16"]


def tensor(x, name="w"):
    blocks = encode(x, "F32")
    return Tensor(name, x.shape, FORMATS["F32"], lambda lo, hi: blocks[lo:hi])


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.gguf"
    x = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    with Writer(
        path, {"general.architecture": "llama"}, [("w", x.shape, FORMATS["F32"]), ("v", (8,), FORMATS["F32"])]
    ) as out:
        out.write("w", 0, encode(x, "F32"))
        out.write("v", 0, encode(x[:1, :8], "F32"))
    return str(path)


def run(*arguments):
    result = CliRunner().invoke(cli, ["formats", *arguments], catch_exceptions=False, standalone_mode=False)
    return result.output


def test_list_shows_every_type():
    lines = run().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(FORMATS)
    assert "Q4_K" in run("--types", "q4_k")


def test_list_as_json_has_the_facts():
    (row,) = json.loads(run("--types", "IQ1_S", "--json"))
    assert row["bits_per_weight"] == 1.5625
    assert row["needs_imatrix"]
    assert 0.3 < row["normal_error"] < 0.7


def test_every_block_format_has_its_error_on_normal_weights():
    expected = {f.name for f in formats() if f.encodable and (f.is_quantized or f.name in ("F16", "BF16"))}
    assert set(NORMAL_ERROR) == expected


@pytest.mark.parametrize("name", MEASURED)
def test_the_listed_error_is_what_normal_weights_give(name):
    x = np.random.default_rng(1).standard_normal((64, 4096)).astype(np.float32)
    assert measure(x, FORMATS[name]).relative == pytest.approx(NORMAL_ERROR[name], rel=0.02)


def test_measure_finds_the_worst_block():
    x = np.full((4, 96), 0.25, np.float32)
    x[2, 64:] = np.linspace(-10, 10, 32)
    error = measure(x, FORMATS["Q4_0"], name="w", first_row=100)
    assert error.worst_at == ("w", 102, 64)
    assert error.rmse < error.worst < 1
    assert error.sqnr == pytest.approx(-20 * np.log10(error.relative))


def test_no_error_is_infinite_sqnr():
    assert measure(np.zeros((1, 32), np.float32), FORMATS["Q8_0"]).sqnr == np.inf
    assert Error().rmse == 0


def test_sample_spreads_over_the_rows_or_takes_all():
    x = np.arange(1000, dtype=np.float32)[:, None].repeat(32, 1)
    firsts = [lo for lo, _ in sample(tensor(x), 64)]
    assert firsts[0] == 0
    assert firsts[-1] == 996
    assert sum(len(rows) for _, rows in sample(tensor(x), 64)) == 64
    assert np.array_equal(np.concatenate([rows for _, rows in sample(tensor(x))]), x)


def test_types_that_cannot_hold_a_tensor_say_why():
    x = np.ones((2, 96), np.float32)
    errors, refused = measure_tensors([tensor(x, "odd")], [FORMATS["Q4_0"], FORMATS["Q4_K"]])
    assert list(errors) == ["Q4_0"]
    assert "multiple of 256" in refused["Q4_K"]


def test_tensor_without_a_model_is_wrong_usage():
    with pytest.raises(UsageError, match="--measure FILE"):
        run("blk.0.attn_q.weight")


def test_measure_a_model(model):
    facts = json.loads(run("--measure", model, "--types", "Q8_0,Q4_0,TQ2_0", "--json"))
    assert facts["tensors"] == ["w"]
    assert [row["name"] for row in facts["types"]] == ["TQ2_0", "Q4_0", "Q8_0"]
    assert facts["types"][1]["relative"] == pytest.approx(NORMAL_ERROR["Q4_0"], rel=0.1)
    assert facts["types"][1]["worst_block"]["tensor"] == "w"
    text = run("--measure", model, "w", "--types", "Q8_0,Q4_0")
    assert "2.05 K weights of w" in text
    assert "dB" in text


def test_measure_names_the_nearest_tensor(model):
    with pytest.raises(UsageError, match="no tensor ww; did you mean w"):
        run("--measure", model, "ww")


def test_measure_refuses_a_file_without_matrices(tmp_path):
    path = str(tmp_path / "vocabulary.gguf")
    with Writer(path, {}, []):
        pass
    with pytest.raises(UsageError, match="no matrices"):
        run("--measure", path)
