"""`ggufkit inspect`: the summary, the tables, JSON, and nothing that harms a terminal."""

import json
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

import ggufkit
from ggufkit.cli import common, main
from ggufkit.evaluate.histogram import histogram
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.writer import Writer

F32, Q4_K, Q6_K = FORMATS["F32"], FORMATS["Q4_K"], FORMATS["Q6_K"]


@pytest.fixture
def run(capsys):
    """Run the command line → (exit code, stdout, stderr)."""

    def run(*args) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(a) for a in args])
        except SystemExit as e:
            code = e.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def model(tmp_path):
    """Four layers whose attn_v is Q6_K in the first and the last."""
    path = tmp_path / "model.gguf"
    metadata = {
        "general.architecture": "llama",
        "general.file_type": 15,
        "llama.context_length": 4096,
        "llama.block_count": 4,
        "evil\x1b[2J": "\x1b]0;title\x07",
        "tokenizer.ggml.tokens": [f"token{i}" for i in range(100)],
        "nan": float("nan"),
        "big": Value(ValueType.UINT64, (1 << 63) + 1),
    }
    tensors = [("token_embd.weight", (100, 256), Q4_K)]
    for i in range(4):
        tensors += [
            (f"blk.{i}.attn_norm.weight", (256,), F32),
            (f"blk.{i}.attn_v.weight", (8, 256), Q6_K if i in (0, 3) else Q4_K),
        ]
    with Writer(path, metadata, tensors) as out:
        for name, info in out.layout.infos.items():
            out.write(name, 0, np.zeros((info.nbytes // info.format.row_bytes(256), info.format.row_bytes(256)), "u1"))
    return path


def test_summary_and_tables(run, model):
    code, out, err = run("inspect", model)
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "architecture llama" in lines
    assert "file type Q4_K_M" in lines
    assert "context length 4096" in lines
    assert "vocabulary 100" in lines
    assert "parameters 34.82 K (34816)" in lines
    assert "blk.*.attn_v.weight 256 × 8 Q6_K 0, 3; Q4_K 1–2" in lines
    assert "tokenizer.ggml.tokens arr[str, 100] [token0, token1, token2, token3, token4, token5, …]" in lines
    assert any(line.startswith("blk.3.attn_v.weight Q6_K 256 × 8 1.68 kB") for line in lines)
    assert all(c.isprintable() or c == "\n" for c in out)


def test_parts_can_be_chosen(run, model):
    _, out, _ = run("inspect", "--kv", "llama.*", model)
    assert "llama.block_count" in out
    assert "general" not in out
    assert "attn_v" not in out
    _, out, _ = run("inspect", "--kv", "general.architecture", model)
    assert out == "general.architecture  str\n  llama\n"
    _, out, _ = run("inspect", "--tensors", model)
    assert "architecture" not in out
    assert "blk.2.attn_v.weight" in out


def test_json_is_exact_and_ascii(run, model):
    _, out, _ = run("inspect", "--json", model)
    found = json.loads(out)
    assert out.isascii()
    assert found["metadata"]["big"]["value"] == (1 << 63) + 1
    assert found["metadata"]["nan"]["value"] == "nan"
    assert "value" not in found["metadata"]["tokenizer.ggml.tokens"]
    assert found["tensors"]["token_embd.weight"]["shape"] == [256, 100]
    assert found["summary"]["parameters"] == 34816
    _, out, _ = run("inspect", "--json-array", model)
    assert json.loads(out)["metadata"]["tokenizer.ggml.tokens"]["value"][-1] == "token99"


def test_errors_are_one_line(run, model, tmp_path):
    code, out, err = run("inspect", tmp_path / "none.gguf")
    assert (code, out) == (1, "")
    assert "does not exist" in err
    assert err.count("\n") == 1
    (tmp_path / "cut.gguf").write_bytes(model.read_bytes()[:-2000])
    code, out, err = run("inspect", tmp_path / "cut.gguf")
    assert (code, out) == (1, "")
    assert "cut short" in err
    assert err.count("\n") == 1


def test_numpy_is_not_imported(model):
    probe = (
        "import sys; from ggufkit.cli import main\n"
        f"main(['inspect', {str(model)!r}])\n"
        "assert not {'numpy', 'numba', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, stdout=subprocess.DEVNULL)


def test_shared_corpus_prints_no_control_character(run, shared):
    for path in sorted((shared / "malformed").glob("*.gguf")):
        _, out, err = run("inspect", path)
        assert all(c.isprintable() or c == "\n" for c in out + err), path.name


def test_header_limit_can_be_set(run, model):
    code, _, err = run("inspect", "--max-header", "1K", model)
    assert code == 1
    assert "larger than the limit of 1000 bytes" in err
    assert "--max-header" in err
    assert run("inspect", "--max-header", "100K", model)[0] == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("options", [["--summary"], ["--json"]])
def test_output_to_a_full_disk_is_one_line(model, options):
    command = [sys.executable, "-m", "ggufkit", "inspect", *options, str(model)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "ggufkit: cannot write the output: No space left on device\n")


def test_map_shows_bits_of_each_role_and_layer(run, model):
    code, out, _ = run("inspect", "--map", model)
    assert code == 0
    assert out.splitlines() == [
        "map",
        "  layer                  0",
        "  attn_v                 7447",
        "  bits per weight        4 Q4_K  7 Q6_K",
    ]


def test_a_terminal_gets_the_map_in_colours_without_being_asked(run, model, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, out, _ = run("inspect", model)
    assert "\x1b[" in out[out.index("\nmap") : out.index("bits per weight        4")]
    assert "metadata (" in out


def test_histogram_counts_every_weight(tmp_path, run):
    path, rng = tmp_path / "spread.gguf", np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=5000), [40.0, np.inf, np.nan], np.zeros(997)]).astype(np.float32)
    with Writer(path, {"general.architecture": "llama"}, [("w", (6, 1000), F32)]) as out:
        out.write("w", 0, x.reshape(6, 1000).view(np.uint8))
    with ggufkit.open(path) as gguf:
        found = histogram(gguf.tensors["w"])
    finite = x[np.isfinite(x)].astype(np.float64)
    assert (found.count, found.broken, found.zeros) == (6000, 2, 997)
    assert (found.least, found.largest) == (finite.min(), 40)
    assert (found.mean, found.rms) == pytest.approx((finite.mean(), np.sqrt(np.mean(finite**2))))
    expected = [int(((finite >= low) & (finite < high)).sum()) for low, high in found.bins]
    assert list(found.counts) == expected
    assert sum(expected) == len(finite)
    assert len(found.bins) <= 24
    code, shown, _ = run("inspect", "--histogram", "w", path)
    assert code == 0
    assert "w: 6000 weights, F32" in shown
    assert "not finite      2" in shown
    code, out, err = run("inspect", "--histogram", "v", path)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_long_json_is_printed_in_parts(monkeypatch):
    parts = []
    monkeypatch.setattr(click, "echo", lambda text="", nl=True: parts.append(text + "\n" * nl))
    value = {"tokens": [{"id": i, "text": "\x7fä"} for i in range(20_000)]}
    common.echo_json(value)
    text = "".join(parts)
    assert json.loads(text) == value
    assert text == json.dumps(value, indent=2).replace("\x7f", "\\u007f") + "\n"
    assert max(map(len, parts)) < len(text) / 5
