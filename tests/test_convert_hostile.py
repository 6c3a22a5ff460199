"""Broken and malicious checkpoints: one clear error each, nothing executed, nothing written."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoints import write
from tiny_families import FAMILIES

from ggufkit.cli import main

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny = FAMILIES["internlm3"]()
    tiny.dtype = "F32"
    return write(tiny, tmp_path / "hf")


def with_tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    """Break a checkpoint by changing its tensors."""

    def break_(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return break_


def with_config(**values: Any) -> Callable[[Path], None]:
    """Break a checkpoint by changing config.json; None takes a key away."""

    def break_(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | values
        kept = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return break_


def set_weight(value: float) -> Callable[[Path], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value

    return with_tensors(change)


def reshaped(name: str, shape: tuple[int, ...]) -> Callable[[Path], None]:
    return with_tensors(lambda tensors: tensors.update({name: np.zeros(shape, np.float32)}))


class Bomb:
    def __init__(self, code: tuple[Any, ...]):
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return self.code


def malicious_bin(code: tuple[Any, ...]) -> Callable[[Path], None]:
    def break_(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"weight": Bomb(code)}))
            archive.writestr("archive/version", "3")

    return break_


def escaping_index(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def missing_shard(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def huge_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 200 << 20))
    with open(folder / WEIGHTS, "r+b") as file:
        file.truncate(201 << 20)


def header(*entries: str) -> Callable[[Path], None]:
    """Break a checkpoint by a header of its own, over 32 bytes of data."""

    def break_(folder: Path) -> None:
        text = ("{" + ",".join(entries) + "}").encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + bytes(32))

    return break_


def entry(name: str, begin: int, end: int) -> str:
    return f'"{name}":{{"dtype":"F32","shape":[{(end - begin) // 4}],"data_offsets":[{begin},{end}]}}'


def packed(folder: Path) -> None:
    with_config(quantization_config={"quant_method": "gptq", "bits": 4})(folder)
    reshaped("model.layers.0.mlp.down_proj.qweight", (6, 32))(folder)


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle runs a shell": (malicious_bin((os.system, ("touch BOOM",))), "os.system|posix.system"),
    "pickle evaluates code": (malicious_bin((eval, ("open('BOOM', 'w')",))), "builtins.eval"),
    "pickle imports a module": (malicious_bin((__import__, ("antigravity",))), "builtins.__import__"),
    "index leaves the folder": (escaping_index, "not a file of this folder"),
    "index without its shard": (missing_shard, "lacks the shard model-00002-of-00002"),
    "header of 200 MB": (huge_header, "limit is 100000000"),
    "duplicate tensors": (header(entry("a", 0, 16), entry("a", 16, 32)), "occurs twice"),
    "overlapping tensors": (header(entry("a", 0, 16), entry("b", 8, 32)), "overlaps"),
    "NaN weight": (set_weight(float("nan")), r"blk\.1\.ffn_up\.weight.*row 3"),
    "infinite weight": (set_weight(float("inf")), r"blk\.1\.ffn_up\.weight.*row 3"),
    "matrix of another width": (reshaped("model.layers.0.mlp.down_proj.weight", (32, 40)), "32 × 40.*32 × 48"),
    "heads that do not divide": (reshaped("model.layers.0.self_attn.q_proj.weight", (30, 32)), "30 rows"),
    "embedding of another vocabulary": (reshaped("model.embed_tokens.weight", (100, 32)), "100 × 32.*276 × 32"),
    "tensor of another model": (reshaped("model.layers.0.mixer.weight", (4, 4)), r"model\.layers\.0\.mixer\.weight"),
    "layer without tensors": (with_config(num_hidden_layers=3), "layer 2 of 3 has no tensors"),
    "more layers than said": (with_config(num_hidden_layers=1), r"no llama model of 1 layers has .*layers\.1"),
    "no architecture": (with_config(architectures=None), "no 'architectures'"),
    "unknown architecture": (with_config(architectures=["\x1b[31mEvil"]), r"\\x1b\[31mEvil is not known"),
    "no number of heads": (with_config(num_attention_heads=None), "no 'num_attention_heads'"),
    "no number of layers": (with_config(num_hidden_layers=None), "no 'num_hidden_layers'"),
    "heads in words": (with_config(num_attention_heads="four"), "'num_attention_heads' must be a whole number"),
    "no heads at all": (with_config(num_attention_heads=0), "'num_attention_heads' must be a whole number"),
    "vocabulary without end": (with_config(vocab_size=1 << 31), "'vocab_size' must be a number of at most 16777216"),
    "weights packed by GPTQ": (packed, "down_proj.qweight is F32"),
    "layers without end": (with_config(num_hidden_layers=1 << 30), "1073741824 layers are beyond the limit"),
}


@pytest.mark.parametrize("name", CASES)
def test_convert_refuses(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    break_, message = CASES[name]
    break_(folder)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["convert", str(folder), "-o", str(out / "model.gguf"), "--type", "Q8_0"])
    stdout, stderr = capsys.readouterr()
    lines = [line for line in stderr.replace("\r", "\n").splitlines() if line.startswith("ggufkit: ")]
    assert (stop.value.code, stdout, len(lines)) == (1, "", 1)
    assert re.search(message, lines[0]), lines[0]
    assert "Traceback" not in stderr
    assert list(out.iterdir()) == []
    assert not (tmp_path / "BOOM").exists()
