"""ggufkit convert: its own options, and an architecture from outside the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_checkpoints import write
from tiny_families import FAMILIES

from ggufkit.arch import registry
from ggufkit.arch.metadata import BASE
from ggufkit.arch.spec import Architecture
from ggufkit.cli import main
from ggufkit.gguf import reader
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece


@dataclass
class Result:
    exit_code: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`ggufkit convert` with some arguments."""

    def convert(*arguments: object) -> Result:
        code = 0
        try:
            main(["convert", *map(str, arguments)])
        except SystemExit as e:
            code = int(e.code or 0)
        return Result(code, *capsys.readouterr())

    return convert


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(FAMILIES["gemma3"](), tmp_path / "Tiny-Gemma")


def test_convert_names_the_file_after_the_model(run: Run, checkpoint: Path):
    result = run(checkpoint)
    assert result.stdout == f"{checkpoint}/Tiny-Gemma-31K-BF16.gguf\n"


def test_convert_help_starts_fast():
    def cpu_seconds(*arguments: str) -> float:
        """Of a process; other work on the machine hardly adds to it, as it does to the time on the clock."""
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_utime + usage.ru_stime

    nothing = min(cpu_seconds("-c", "pass") for _ in range(3))
    help_ = min(cpu_seconds("-m", "ggufkit", "convert", "--help") for _ in range(3))
    assert help_ - nothing < 0.150


def test_convert_outfile_has_a_place_for_the_type(run: Run, checkpoint: Path, tmp_path: Path):
    result = run(checkpoint, "-o", tmp_path / "{ftype}-{FTYPE}.gguf", "--type", "q8_0")
    assert result.stdout == f"{tmp_path}/q8_0-Q8_0.gguf\n"


def test_convert_list_names_architectures_and_classes(run: Run):
    result = run("--list")
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines()[1:]}
    assert "NomicBertModel" in rows["nomic-bert-moe"]
    assert len(rows) > 40


def test_convert_vocab_only_needs_no_weights(run: Run, checkpoint: Path, tmp_path: Path):
    (checkpoint / "model.safetensors").unlink()
    out = tmp_path / "vocab.gguf"
    assert run(checkpoint, "--vocab-only", "-o", out).exit_code == 0
    with reader.open(out) as model:
        assert len(model.tensors) == 0
        assert len(model.metadata["tokenizer.ggml.tokens"]) == 276
        assert "general.size_label" not in model.metadata
    result = run(checkpoint, "--vocab-only")
    assert result.stdout == f"{checkpoint}/Tiny-Gemma-vocab.gguf\n"


def test_convert_metadata_and_model_name_win(run: Run, checkpoint: Path, tmp_path: Path):
    override = tmp_path / "metadata.json"
    override.write_text(json.dumps({"general.author": "Someone", "general.version": "v2"}))
    out = tmp_path / "out.gguf"
    assert run(checkpoint, "--metadata", override, "--model-name", "Other Name", "-o", out).exit_code == 0
    with reader.open(out) as model:
        found = {key: model.metadata[f"general.{key}"] for key in ("name", "author", "version")}
    assert found == {"name": "Other Name", "author": "Someone", "version": "v2"}


@pytest.mark.parametrize(
    ("text", "message"), [(None, "does not exist"), ("[1]", "must hold a JSON object"), ("{", "not valid JSON")]
)
def test_convert_metadata_file_is_checked(run: Run, checkpoint: Path, tmp_path: Path, text: str | None, message: str):
    override = tmp_path / "metadata.json"
    if text is not None:
        override.write_text(text)
    result = run(checkpoint, "--metadata", override)
    assert (result.exit_code, message in result.stderr) == (1, True)


def test_convert_unknown_pre_tokenizer_has_a_way_on(run: Run, tmp_path: Path):
    folder = write(FAMILIES["phi2"](), tmp_path / "hf")
    result = run(folder)
    assert result.exit_code == 1
    assert "--pre" in result.stderr
    assert run(folder, "--pre", "gpt-2").exit_code == 0
    assert "did you mean" not in run(folder, "--pre", "gpt2", "--force").stderr


def test_architecture_takes_one_spec_and_no_other_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny = FAMILIES["llama-linear"]()
    tiny.config["architectures"] = ["MadeUpForCausalLM"]
    folder = write(tiny, tmp_path / "hf")
    assert "MadeUpForCausalLM is not known" in run(folder).stderr

    monkeypatch.setattr(registry, "_registered", [])
    registry.register(
        Architecture(
            name="made-up",
            models={"MadeUpForCausalLM": {"max_position_embeddings": 99}},
            metadata=BASE,
            vocabulary=sentencepiece,
            names={
                "model.embed_tokens.weight": "token_embd.weight",
                "model.norm.weight": "output_norm.weight",
                "lm_head.weight": "output.weight",
                **{
                    f"model.layers.{{bid}}.{theirs}.weight": f"blk.{{bid}}.{ours}.weight"
                    for theirs, ours in (
                        ("input_layernorm", "attn_norm"),
                        ("post_attention_layernorm", "ffn_norm"),
                        *((f"self_attn.{part}_proj", f"attn_{part}") for part in "qkv"),
                        ("self_attn.o_proj", "attn_output"),
                        *((f"mlp.{part}_proj", f"ffn_{part}") for part in ("gate", "up", "down")),
                    )
                },
            },
        )
    )
    out = tmp_path / "out.gguf"
    assert run(folder, "-o", out, "--type", "Q4_0").exit_code == 0
    with reader.open(out) as model:
        assert model.metadata["made-up.context_length"] == 99
        assert "blk.1.ffn_down.weight" in model.tensors
    assert "made-up" in run("--list").stdout
