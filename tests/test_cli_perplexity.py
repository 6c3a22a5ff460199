"""The verbs perplexity, imatrix and embed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ggufkit.cli import cli, main
from ggufkit.importance.imatrix_file import read_imatrix
from ggufkit.jobs.convert import convert


@pytest.fixture(scope="module")
def model(fixtures, tmp_path_factory):
    return str(convert(fixtures / "pylib-llama", tmp_path_factory.mktemp("cli") / "q8_0.gguf", "Q8_0"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.py"
    path.write_text("def add(a, b):\n    return a + b\n\n\n" * 12)
    return str(path)


def run(*arguments: str):
    return CliRunner().invoke(cli, list(arguments), catch_exceptions=False)


def test_perplexity_base_and_divergence(model, text, tmp_path):
    base = str(tmp_path / "base.kld")
    window = ("-f", text, "-c", "32", "--chunks", "2")
    first = run("perplexity", model, *window, "--kl-divergence-base", base)
    assert first.stdout.startswith("Final estimate: PPL = ")
    found = json.loads(run("perplexity", model, *window, "--json").stdout)
    assert (found["tokens"], found["chunks"]) == (30, 2)
    assert f"{found['perplexity']:.4f}" in first.stdout
    table = run("perplexity", model, "-f", text, "--kl-divergence-base", base, "--kl-divergence").stdout
    assert f"Mean PPL(Q)                   : {found['perplexity']:10.6f} ±" in table
    assert "Same top p: 100.000 ±" in table


def test_imatrix_is_read_back(model, text, tmp_path):
    for name in ("i.gguf", "i.dat"):
        assert run("imatrix", model, "-f", text, "-c", "32", "--chunks", "2", "-o", str(tmp_path / name)).exit_code == 0
    first, second = read_imatrix(tmp_path / "i.gguf"), read_imatrix(tmp_path / "i.dat")
    assert first.chunks == second.chunks == 2
    assert "output.weight" not in first.values
    for name, values in first.values.items():
        np.testing.assert_allclose(second.values[name], values, rtol=1e-6)


def test_embed_gives_a_vector_a_line(model):
    found = run("embed", model, "-p", r"one\ntwo", "--pooling", "mean").stdout.splitlines()
    vectors = np.array([line.split() for line in found], float)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1], rtol=1e-5)
    as_json = json.loads(run("embed", model, "-p", "one", "--pooling", "mean", "--json").stdout)["data"]
    np.testing.assert_allclose(as_json[0]["embedding"], vectors[0], atol=1e-5)
    per_token = json.loads(run("embed", model, "-p", "one", "--pooling", "none", "--json").stdout)["data"]
    assert len(per_token[0]["embedding"]) == per_token[0]["tokens"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("perplexity", "MODEL", "-f", "TEXT", "-c", "999"), 2, "windows of 999 need at least 1998"),
        (("perplexity", "MODEL", "-f", "TEXT", "--kl-divergence"), 2, "name it with --kl-divergence-base"),
        (("perplexity", "MODEL", "-f", "missing.txt"), 1, "missing.txt: does not exist"),
        (("perplexity", "TEXT", "-f", "TEXT"), 1, "this is not a GGUF file"),
        (("embed", "MODEL", "-p", ""), 2, "there is no text"),
        (("imatrix", "MODEL", "-f", "TEXT", "-o", "TEXT"), 2, "exists already; give --force"),
    ],
)
def test_mistakes_get_one_clear_line(model, text, capsys, arguments, code, message):
    given = [{"MODEL": model, "TEXT": text}.get(a, a) for a in arguments]
    with pytest.raises(SystemExit) as stop:
        main(given)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == code
    assert message in error
    assert len(error.splitlines()) == 1
