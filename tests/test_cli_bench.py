"""`ggufkit bench`, on the bundled model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ggufkit.cli import main
from ggufkit.evaluate.speed import bytes_a_token, measure_generation, measure_prompt, read_speed
from ggufkit.jobs.convert import convert
from ggufkit.runtime.model import load


@pytest.fixture(scope="module")
def model(fixtures, tmp_path_factory) -> Path:
    return convert(fixtures / "pylib-llama", tmp_path_factory.mktemp("bench") / "q8_0.gguf", "Q8_0")


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    code = 0
    try:
        main([str(a) for a in arguments])
    except SystemExit as e:
        code = int(e.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_bench_shows_a_line_for_each_test(model, capsys):
    code, out, _ = run(capsys, "bench", model, "-p", "4,6", "-n", "2", "-d", "0,3", "-r", "2", "-t", "2")
    assert code == 0
    lines = out.splitlines()
    assert [line.split("CPU")[1].split()[1] for line in lines[1:]] == ["pp4", "pp6", "pp4", "pp6", "tg2", "tg2"]
    assert "@ d3" in lines[-1]
    assert "GB/s" in lines[-1]
    assert "GB/s" not in lines[1]


def test_bench_as_json(model, capsys):
    code, out, _ = run(capsys, "bench", model, "-p", "4", "-n", "2", "-r", "3", "-t", "1", "--json")
    report = json.loads(out)
    assert code == 0
    assert [test["test"] for test in report["tests"]] == ["pp4", "tg2"]
    assert all(len(test["repetitions"]) == 3 for test in report["tests"])
    assert report["threads"] == 1
    tg = report["tests"][1]
    expected = tg["tokens_per_second"] * report["bytes_a_token"] / tg["memory_bytes_per_second"]
    assert tg["memory_share"] == pytest.approx(expected)


@pytest.mark.parametrize("flags", [["-p", "x"], ["-p", "-1"], ["-n", "1,,2"], ["-p", "0", "-n", "0"], ["-r", "0"]])
def test_bench_refuses_what_cannot_be_measured(model, capsys, flags):
    code, out, err = run(capsys, "bench", model, *flags)
    assert (code, out) == (2, "")
    assert "Traceback" not in err


def test_a_token_reads_all_matrices_but_not_tables(model):
    with load(model) as loaded:
        tensors = loaded.gguf.tensors
        matrices = {name: t.nbytes for name, t in tensors.items() if len(t.shape) > 1}
        assert bytes_a_token(loaded) == sum(matrices.values()) - matrices["token_embd.weight"]
        assert read_speed(loaded, 1) > 0


def test_speeds_are_of_the_repetitions(model):
    with load(model, threads=1) as loaded:
        calls: list[tuple[int, str]] = []
        prompt = measure_prompt(loaded, 5, 3, 2, advance=lambda n, name: calls.append((n, name)))
        generation = measure_generation(loaded, 2, repetitions=1)
    assert prompt.test == "pp5 @ d3"
    assert calls == [(5, "pp5 @ d3")] * 2
    assert len(prompt.rates) == 2
    assert generation.deviation == 0


def test_bench_compares_cache_types(model, capsys, tmp_path, fixtures):
    text = tmp_path / "text.py"
    text.write_text("import os\n\ndef main(path):\n    return os.path.join(path, 'name')\n" * 40)
    code, out, _ = run(
        capsys, "bench", model, "--kv", "f32,q8_0,tq4,tq2/tq3,small", "-f", text, "-c", "64", "--chunks", "2",
        "-n", "2", "-r", "1", "--json",
    )  # fmt: skip
    assert code == 0
    costs = {(cost["keys"], cost["values"]): cost for cost in json.loads(out)}
    assert list(costs) == [("F32", "F32"), ("Q8_0", "Q8_0"), ("tq4", "tq4"), ("tq2", "tq3"), ("tq6", "tq4")]
    distance = [cost["kld"] for cost in costs.values()]
    assert distance[0] == 0
    assert distance[1] < distance[4] < distance[2] < distance[3]
    assert all(cost["rate"] > 0 for cost in costs.values())
    # 4 layers, 2 heads of 64 numbers, 64 tokens, keys and values
    assert costs["tq4", "tq4"]["bytes"] == 4 * 2 * 64 * 2 * 34
    code, out, _ = run(capsys, "bench", model, "--kv", "q4_0,smallest", "-c", "32", "-n", "1", "-r", "1")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [["Q4_0", "Q4_0"], ["tq5", "tq3"]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--kv", "q9_9"], "a cache is a type"),
        (["--kv", "q8_0/q8_0/q8_0"], "a cache is a type"),
        (["-f", "text.txt"], "belong to --kv"),
        (["--cache", "small", "-ctk", "f16"], "--cache chooses both types"),
    ],
)
def test_bench_refuses_caches_that_are_none(model, capsys, flags, message):
    code, out, err = run(capsys, "bench", model, *flags)
    assert (code, out) == (2, "")
    assert message in err
