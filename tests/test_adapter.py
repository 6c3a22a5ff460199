"""LoRA adapters become what llama.cpp's convert_lora_to_gguf makes of them, and it loads them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_adapters import ADAPTERS, write_adapter
from tiny_checkpoints import write
from tiny_families import FAMILIES

from ggufkit.cli import main
from ggufkit.errors import CheckpointError, FileError, GgufkitError, UsageError
from ggufkit.gguf import reader
from ggufkit.jobs.adapter import adapter_conversion, is_adapter
from ggufkit.jobs.convert import convert

WEIGHTS = "adapter_model.safetensors"


def base_of(name: str, folder: Path) -> Path:
    return write(FAMILIES[ADAPTERS[name][0]](), folder / "base")


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_equals_the_reference(name: str, fixtures: Path, tmp_path: Path):
    expected = json.loads((fixtures / "adapters.json").read_text())[name]
    adapter, base = write_adapter(name, tmp_path / "adapter"), base_of(name, tmp_path)
    found = {}
    for type in expected:
        (path,) = adapter_conversion(adapter, tmp_path / "out.gguf", type, base=base).write(force=True)
        found[type] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found == expected


def test_adapter_loads_in_llama_cpp(tmp_path: Path):
    adapter, base = write_adapter("llama", tmp_path / "adapter"), base_of("llama", tmp_path)
    model = convert(base, tmp_path / "model.gguf", "F32")
    (path,) = adapter_conversion(adapter, tmp_path / "adapter.gguf", base=base).write()
    code = """
import sys, ctypes, llama
load = llama.library().llama_adapter_lora_init
load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]
with llama.Model(sys.argv[1]) as model:
    print(bool(load(model.model, sys.argv[2].encode())))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.check_output([sys.executable, "-c", code, model, path], text=True, env=environment)
    assert found == "True\n"


def test_adapter_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    adapter, base = write_adapter("llama", tmp_path / "Tiny-Adapter"), base_of("llama", tmp_path)
    assert is_adapter(adapter)
    main(["convert", str(adapter), "--base", str(base), "--type", "f16"])
    assert capsys.readouterr().out == f"{adapter}/Tiny-Adapter-F16-LoRA.gguf\n"
    for arguments, message in (
        (["convert", str(adapter)], "--base, e.g. hf://somebody/llama-linear"),
        (["convert", str(adapter), "--base", str(base), "--type", "Q4_K_M"], "F32, F16, BF16 or Q8_0"),
        (["convert", str(adapter), "--base", str(base), "--pure"], "of an adapter only"),
        (["convert", str(base), "--base", str(base)], "a base is for adapters"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_adapter_scaled_by_the_root_of_its_rank(tmp_path: Path):
    adapter, base = write_adapter("llama", tmp_path / "adapter"), base_of("llama", tmp_path)
    set_config(adapter, use_rslora=True)
    (path,) = adapter_conversion(adapter, tmp_path / "out.gguf", base=base).write()
    with reader.open(path) as model:  # llama.cpp divides 32 by the rank 4, PEFT 16 by its root 2
        assert model.metadata["adapter.lora.alpha"] == 32.0


def set_config(adapter: Path, **values: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change(**tensors: Any) -> Callable[[Path], None]:
    """Add tensors, or with None take them away; their names without the prefix, "__" for "."."""

    def break_(adapter: Path) -> None:
        found = load_file(adapter / WEIGHTS)
        for name, value in tensors.items():
            full = f"base_model.model.{name.replace('__', '.')}"
            found.pop(full, None)
            if value is not None:
                found[full] = np.zeros(value, np.float32)
        save_file(found, adapter / WEIGHTS)

    return break_


AT = "model__layers__0__self_attn__q_proj"


def pair(at: str, rows: int, cols: int, name: str = "") -> dict[str, tuple[int, int]]:
    return {f"{at}__lora_A{name}__weight": (4, cols), f"{at}__lora_B{name}__weight": (rows, 4)}


@pytest.mark.parametrize(
    ("break_", "error", "message"),
    [
        (lambda adapter: (adapter / WEIGHTS).unlink(), FileError, "has neither adapter_model"),
        (lambda adapter: set_config(adapter, lora_alpha=None), GgufkitError, "'lora_alpha'"),
        (lambda adapter: set_config(adapter, use_dora=True), CheckpointError, "DoRA"),
        (lambda adapter: set_config(adapter, alpha_pattern={"q": 1}), CheckpointError, "alpha_pattern"),
        (change(**{f"{AT}__lora_A__weight": None}), CheckpointError, "only b of A and B"),
        (change(**{f"{AT}__lora_A__weight": (3, 32)}), CheckpointError, "different ranks"),
        (change(**{f"{AT}__lora_A__weight": (4, 32, 1)}), CheckpointError, "two dimensions"),
        (change(lm_head__weight=(276, 32)), CheckpointError, "modules_to_save"),
        (change(**pair(AT, 32, 32, "__second")), CheckpointError, "two halves A, of the adapters  and second"),
        (change(**pair("vision_tower__layers__0__q_proj", 32, 32)), CheckpointError, r"vision_tower.*would lose it"),
        (change(**pair("visual__blocks__0__mlp__fc1", 64, 32)), CheckpointError, r"visual\.blocks"),
        (change(**pair("model__vision_model__q_proj", 32, 32)), CheckpointError, "would lose it"),
        (change(**pair("multi_modal_projector__linear_1", 32, 32)), CheckpointError, "multi_modal_projector"),
        (change(audio_tower__norm__weight=(32,)), CheckpointError, r"audio_tower\.norm"),
        (change(mixer__lora_A__weight=(4, 8), mixer__lora_B__weight=(8, 4)), CheckpointError, r"mixer\.weight"),
    ],
)
def test_adapter_refuses(break_: Callable[[Path], None], error: type[Exception], message: str, tmp_path: Path):
    adapter, base = write_adapter("llama", tmp_path / "adapter"), base_of("llama", tmp_path)
    break_(adapter)
    with pytest.raises(error, match=message):
        adapter_conversion(adapter, tmp_path / "out.gguf", base=base)


def test_adapter_of_whole_weights_is_refused(tmp_path: Path):
    adapter, base = write_adapter("llama", tmp_path / "adapter"), tmp_path / "base"
    tiny = FAMILIES["llama-linear"]()
    tiny.config["architectures"] = ["BitnetForCausalLM"]
    write(tiny, base)
    with pytest.raises(CheckpointError, match="worked out from whole weights"):
        adapter_conversion(adapter, tmp_path / "out.gguf", base=base)
    with pytest.raises(UsageError, match="F32, F16, BF16 or Q8_0"):
        adapter_conversion(adapter, tmp_path / "out.gguf", "Q4_0", base=base)


@pytest.mark.parametrize("base", ["gemma", "gemma2", "cohere2", "command-r"])
def test_adapter_of_a_head_that_the_gguf_has_not(base: str, tmp_path: Path):
    """Their lm_head is the embedding, and llama.cpp's converter drops it."""
    if base not in FAMILIES:
        pytest.skip(f"there is no tiny {base}")
    tiny = FAMILIES[base]()
    width = tiny.config["hidden_size"]
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    names = {f"base_model.model.{n.replace('__', '.')}": s for n, s in pair("lm_head", 64, width).items()}
    save_file({name: np.zeros(shape, np.float32) for name, shape in names.items()}, adapter / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        adapter_conversion(adapter, tmp_path / "out.gguf", base=write(tiny, tmp_path / "base"))


@pytest.mark.parametrize("name", ["default", "default_0", "my adapter"])
def test_adapter_named_inside_its_keys(name: str, tmp_path: Path):
    """What `torch.save(model.state_dict())` has, instead of `save_pretrained`."""
    adapter, base = write_adapter("llama-embedding", tmp_path / "adapter"), base_of("llama-embedding", tmp_path)
    (wanted,) = adapter_conversion(adapter, tmp_path / "plain.gguf", base=base).write()
    found = {}
    for key, value in load_file(adapter / WEIGHTS).items():
        found[re.sub(r"(\.lora_(?:embedding_)?[AB])(?=\.|$)", rf"\1.{name}", key)] = value
    save_file(found, adapter / WEIGHTS)
    (path,) = adapter_conversion(adapter, tmp_path / "named.gguf", base=base).write()
    with reader.open(wanted) as one, reader.open(path) as other:
        assert {n: t.read(0, t.rows).tobytes() for n, t in one.tensors.items()} == {
            n: t.read(0, t.rows).tobytes() for n, t in other.tensors.items()
        }
