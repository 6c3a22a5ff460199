"""From a trained checkpoint to a GGUF that llama.cpp runs: its bytes, its text, and what happens when it cannot be."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import llama
import pytest
import sparse_checkpoint

import ggufkit
from ggufkit.cli import main
from ggufkit.jobs.convert import conversion, convert
from ggufkit.jobs.plan import PlannedFile
from ggufkit.jobs.resume import ResumeLog
from ggufkit.jobs.stream import contents_key

TYPES = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M"]


def run(*arguments: object) -> int:
    try:
        main([str(a) for a in arguments])
    except SystemExit as e:
        return int(e.code or 0)
    return 0


@pytest.fixture(scope="module")
def golden(fixtures) -> dict:
    return json.loads((fixtures / "pylib-llama.json").read_text())


@pytest.fixture(scope="module")
def converted(fixtures, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("converted")
    return {t: convert(fixtures / "pylib-llama", folder / f"{t}.gguf", t) for t in ["F32", *TYPES]}


# -- what llama.cpp makes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["F32", "F16", "BF16", "Q8_0"])
def test_metadata_is_the_converters(converted, golden, type_):
    expected = [list(pair) for pair in golden["metadata"]["F32"]]
    for pair in expected:
        pair[2] = golden["metadata"][type_].get(pair[0], pair[2]) if type_ != "F32" else pair[2]
    with ggufkit.open(converted[type_]) as model:
        found = []
        for field in model.fields.values():
            types = [field.type.name] + ([field.item_type.name] if field.item_type is not None else [])
            value = field.value
            if isinstance(value, list) and len(value) > 16:
                value = {"len": len(value), "sha256_json": hashlib.sha256(json.dumps(value).encode()).hexdigest()}
            found.append([field.key, types, value])
    assert found == expected
    assert hashlib.sha256(converted[type_].read_bytes()).hexdigest() == golden["converter_sha256"][type_]


@pytest.mark.parametrize("type_", TYPES)
def test_tensors_are_llama_cpps(converted, golden, type_):
    with ggufkit.open(converted[type_]) as model:
        found = {
            name: [t.format.name, hashlib.sha256(t.read(0, t.rows)).hexdigest()] for name, t in model.tensors.items()
        }
    assert found == golden["tensors"][type_]


@pytest.mark.parametrize("type_", ["F16", "Q8_0", "Q4_K_M"])
def test_llama_cpp_continues_text_as_with_its_own_file(converted, golden, type_):
    with llama.Model(str(converted[type_]), repack=False) as model:
        for prompt, expected in golden["greedy"][type_].items():
            tokens = model.tokenize(prompt).tolist()
            logits, text = model.logits(tokens, outputs="last"), b""
            for _ in range(32):
                tokens.append(int(logits.argmax()))
                text += model.piece(tokens[-1])
                logits = model.logits(tokens[-1:], start=len(tokens) - 1, outputs="last")
            assert text.decode().rstrip("\n") == expected.rstrip("\n")


# -- what cannot be ---------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(fixtures, tmp_path) -> Path:
    """A copy of the bundled model, to break."""
    return Path(shutil.copytree(fixtures / "pylib-llama", tmp_path / "model"))


def change_config(checkpoint: Path, **changes: object) -> None:
    config = {**json.loads((checkpoint / "config.json").read_text()), **changes}
    (checkpoint / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def put_infinity(checkpoint: Path) -> None:
    """Into the last weight of the file."""
    with open(checkpoint / "model.safetensors", "r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\x80\x7f")


BROKEN = {
    "no folder": (shutil.rmtree, "model: does not exist"),
    "no config": (lambda c: (c / "config.json").unlink(), "config.json"),
    "no JSON": (lambda c: (c / "config.json").write_text("{"), "config.json"),
    "no key": (lambda c: change_config(c, num_hidden_layers=None), "num_hidden_layers"),
    "no such architecture": (lambda c: change_config(c, architectures=["NixForCausalLM"]), "NixForCausalLM"),
    "no weights": (lambda c: (c / "model.safetensors").unlink(), "safetensors"),
    "no tokenizer": (lambda c: (c / "tokenizer.model").unlink(), "tokenizer"),
    "truncated": (lambda c: os.truncate(c / "model.safetensors", 5_000_000), "model.safetensors"),
    "truncated header": (lambda c: os.truncate(c / "model.safetensors", 100), "model.safetensors"),
    "infinity": (put_infinity, "not finite|is inf"),
}


@pytest.mark.parametrize("type_", ["F16", "BF16", "Q4_K_M"])
@pytest.mark.parametrize("what", BROKEN)
def test_broken_checkpoint_is_one_line_and_no_file(checkpoint, tmp_path, capsys, what, type_):
    destroy, message = BROKEN[what]
    destroy(checkpoint)
    assert run("convert", checkpoint, "-o", tmp_path / "out.gguf", "--type", type_) == 1
    err = capsys.readouterr().err
    assert err.startswith("ggufkit: ")
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert {p.name for p in tmp_path.iterdir()} <= {"model"}


def test_interrupted_conversion_into_the_checkpoints_folder_continues(checkpoint, tmp_path):
    """The default place of the output must not make the checkpoint look changed."""

    @contextmanager
    def stopping(planned, doing):
        def progress(p, rows):
            raise KeyboardInterrupt

        yield progress

    with pytest.raises(KeyboardInterrupt, match="do the same again"):
        convert(checkpoint, type="Q4_K_M", report=stopping, threads=1)
    (partial,) = checkpoint.glob("*.partial")
    done = Path(f"{partial}.resume").read_text()
    assert len(done.splitlines()) > 1
    job = conversion(checkpoint, type="Q4_K_M")
    (shard,) = job.plan.shards
    file = PlannedFile(job.paths[0], *shard)
    with ResumeLog(partial, file.layout, contents_key(file, job.resume_key)) as journal:
        assert journal.resumed
    written = job.write()[0].read_bytes()
    assert written == convert(checkpoint, tmp_path / "whole.gguf", "Q4_K_M").read_bytes()
    assert not partial.exists()


def test_existing_target_is_kept_without_force(checkpoint, tmp_path, capsys):
    (tmp_path / "out.gguf").write_bytes(b"mine")
    assert run("convert", checkpoint, "-o", tmp_path / "out.gguf") == 1
    assert "exists already; give --force" in capsys.readouterr().err
    assert (tmp_path / "out.gguf").read_bytes() == b"mine"
    assert run("convert", checkpoint, "-o", tmp_path / "out.gguf", "--force") == 0


@pytest.mark.parametrize("target", ["nix/out.gguf", "model", "model/config.json/out.gguf", "/proc/out.gguf"])
def test_unwritable_target_is_one_line(checkpoint, tmp_path, capsys, target):
    before = sorted(tmp_path.rglob("*"))
    assert run("convert", checkpoint, "-o", tmp_path / target, "--force") == 1
    err = capsys.readouterr().err
    assert err.startswith("ggufkit: cannot write ")
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_full_disk_is_one_line_and_no_file(checkpoint, small_disk, capsys):
    assert run("convert", checkpoint, "-o", small_disk / "out.gguf") == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "the disk has 2" in err
    assert list(small_disk.iterdir()) == []


# -- memory -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does, and needs sparse files")
def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    sparse_checkpoint.write(tmp_path / "model", gigabytes=1.5)
    command = [sys.executable, "-m", "ggufkit", "convert", tmp_path / "model", "-o", tmp_path / "out.gguf"]
    # A process begins with the peak of the one that starts it: a small one stands between it and the tests'.
    watch = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    run = subprocess.run(
        [sys.executable, "-c", watch, *command, "--type", "Q4_0"], stdout=subprocess.PIPE, text=True, check=True
    )
    assert int(run.stdout) < 600_000  # KB


def test_type_of_a_checkpoint_without_weights_of_16_bits_is_bf16(checkpoint, tmp_path):
    """The converter's "auto"."""
    data = (checkpoint / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    assert json.loads(data[8 : 8 + size])["lm_head.weight"]["dtype"] == "BF16"
    with ggufkit.open(convert(checkpoint, tmp_path / "out.gguf")) as model:
        assert model.metadata["general.file_type"] == 32
