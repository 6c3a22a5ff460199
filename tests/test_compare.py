"""Compare: several models and their source in one table and a curve; the numbers are those of perplexity."""

from __future__ import annotations

import json
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_models import write_tiny

import ggufkit
from ggufkit.cli import cli, main
from ggufkit.errors import UsageError
from ggufkit.evaluate.compare import compare
from ggufkit.evaluate.perplexity import BaseFile, BaseWriter, divergence, perplexity
from ggufkit.evaluate.plot import best
from ggufkit.evaluate.windows import Windows
from ggufkit.jobs.convert import convert

TEXT = "def add(a, b):\n    return a + b\n\n\n" * 12


@pytest.fixture(scope="module")
def files(fixtures, tmp_path_factory):
    """The source, a larger and a smaller file of it."""
    folder = tmp_path_factory.mktemp("compare")
    return [str(convert(fixtures / "pylib-llama", folder / f"{type}.gguf", type)) for type in ("F16", "Q8_0", "Q4_0")]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.py"
    path.write_text(TEXT)
    return str(path)


def test_numbers_are_those_of_a_base_file(files, tmp_path):
    windows = Windows(np.random.default_rng(0).integers(3, 4096, 100).astype(np.int32), 32, bos=1)
    source, *others = (ggufkit.load(path) for path in files)
    found = compare(source, others, windows)
    with open(tmp_path / "base", "wb") as file:
        expected = perplexity(source, windows, base=BaseWriter(file, windows, source.vocabulary))
    assert found.estimate == expected
    base = BaseFile(tmp_path / "base")
    for model, compared in zip(others, found.models, strict=True):
        alone = divergence(model, base, base.windows(bos=1))
        np.testing.assert_array_equal(compared.divergence.kld, alone.kld)
        np.testing.assert_array_equal(compared.divergence.nll, alone.nll)
    assert found.models[0].nbytes > found.models[1].nbytes
    assert found.models[0].divergence.kld.mean() < found.models[1].divergence.kld.mean()
    # The source reads window by window where there is no room for its predictions.
    order: list[str] = []
    again = compare(source, others, windows, memory=0, report=lambda tokens, path: order.append(path))
    assert order == files * 3
    np.testing.assert_array_equal(again.models[1].divergence.kld, found.models[1].divergence.kld)


def test_table_json_and_curve(files, text, tmp_path):
    source, larger, smaller = files
    window = ("--base", source, "-f", text, "-c", "32", "--chunks", "2")
    table = CliRunner().invoke(cli, ["compare", larger, smaller, *window], catch_exceptions=False).stdout.splitlines()
    assert [line.split()[0] for line in table] == ["model", "F16.gguf", "Q8_0.gguf", "Q4_0.gguf"]
    for name in ("curve.svg", "curve.html"):
        shown = CliRunner().invoke(
            cli, ["compare", larger, smaller, *window, "--json", "--plot", str(tmp_path / name)], catch_exceptions=False
        )
    found = json.loads(shown.stdout)
    assert (found["chunks"], found["tokens"], found["context"]) == (2, 30, 32)
    assert [model["path"] for model in found["models"]] == [larger, smaller]
    assert found["models"][1]["bytes"] < found["base"]["bytes"]
    assert f"{found['models'][1]['kld'][0]:.5f}" in table[3]
    same = ggufkit.compare([larger, smaller], source, TEXT, context=32, chunks=2).as_json()
    assert same["models"] == found["models"]
    image = ElementTree.fromstring((tmp_path / "curve.svg").read_text())
    circles = image.findall("{http://www.w3.org/2000/svg}circle")
    assert [circle[0].text.split(":")[0] for circle in circles] == ["Q4_0", "Q8_0"]  # by size
    across, up = ([float(circle.get(key)) for circle in circles] for key in ("cx", "cy"))
    assert across[0] < across[1]  # larger files to the right
    assert up[0] < up[1]  # worse ones above
    page = (tmp_path / "curve.html").read_text()
    assert page.count("<tr>") == 4
    assert (tmp_path / "curve.svg").read_text() in page


def test_names_from_files_are_text_in_the_curve(files, text, tmp_path):
    hostile = tmp_path / "<b>&\x1b[31m.gguf"
    shutil.copy(files[2], hostile)
    plot = tmp_path / "curve.html"
    window = ("--base", files[0], "-f", text, "-c", "32", "--chunks", "2", "--plot", str(plot))
    CliRunner().invoke(cli, ["compare", str(hostile), *window], catch_exceptions=False)
    assert "<b>" not in plot.read_text()
    assert "\x1b" not in plot.read_text()
    assert "&lt;b&gt;&amp;" in plot.read_text()


def test_best_are_those_that_none_beats():
    assert best([(30, 0.1), (10, 0.5), (20, 0.6), (20, 0.2), (40, 0.1)]) == [1, 3, 0]
    assert best([]) == []


def test_models_of_another_vocabulary_are_refused(files, tmp_path):
    write_tiny(tmp_path / "tiny.gguf", "llama", format="F32")
    windows = Windows(np.zeros(64, np.int32), 32)
    with pytest.raises(UsageError, match=r"only models of one vocabulary"):
        compare(ggufkit.load(files[0]), [ggufkit.load(tmp_path / "tiny.gguf")], windows)
    with pytest.raises(UsageError, match="no model"):
        compare(ggufkit.load(files[0]), [], windows)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--plot", "curve.png"), 2, "draws .svg or .html"),
        (("--plot", "EXISTS.svg"), 2, "exists already; give --force"),
        (("-c", "999"), 2, "windows of 999 need"),
    ],
)
def test_mistakes_get_one_clear_line(files, text, tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EXISTS.svg").touch()
    with pytest.raises(SystemExit) as stop:
        main(["compare", files[2], "--base", files[0], "-f", text, *arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if not re.search("compiling", line)]
    assert stop.value.code == code
    assert len(lines) == 1
    assert message in lines[0]
