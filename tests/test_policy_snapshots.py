"""llama.cpp's own snapshots of which tensor gets which type, for real models and all presets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggufkit.arch.registry import traits_of
from ggufkit.formats.table import FORMATS, Format, format_by_name
from ggufkit.policy.decide import decide
from ggufkit.policy.hyperparameters import hyperparameters_of
from ggufkit.policy.presets import PRESETS
from ggufkit.policy.recipe import Recipe

F32 = FORMATS["F32"]
Tensors = list[tuple[str, tuple[int, ...], Format]]


def dense_layer(n_embd: int, n_ff: int, q: int, kv: int) -> dict[str, tuple[int, ...]]:
    return {
        "attn_k.weight": (kv, n_embd),
        "attn_norm.weight": (n_embd,),
        "attn_output.weight": (n_embd, q),
        "attn_q.weight": (q, n_embd),
        "attn_v.weight": (kv, n_embd),
        "ffn_down.weight": (n_embd, n_ff),
        "ffn_gate.weight": (n_ff, n_embd),
        "ffn_norm.weight": (n_embd,),
        "ffn_up.weight": (n_ff, n_embd),
    }


def expert_layer(n_embd: int, n_ff: int, q: int, kv: int, experts: int) -> dict[str, tuple[int, ...]]:
    return {
        "attn_k.weight": (kv, n_embd),
        "attn_output.weight": (n_embd, q),
        "attn_q.weight": (q, n_embd),
        "attn_v.weight": (kv, n_embd),
        "ffn_down_exps.weight": (experts, n_embd, n_ff),
        "ffn_gate_exps.weight": (experts, n_ff, n_embd),
        "ffn_gate_inp.weight": (experts, n_embd),
        "ffn_up_exps.weight": (experts, n_ff, n_embd),
    }


def model(architecture: str, layers: int, layer: dict[str, tuple[int, ...]], n_embd: int, **keys: int) -> tuple:
    tensors: Tensors = [("output.weight", (32000, n_embd), F32), ("token_embd.weight", (32000, n_embd), F32)]
    tensors += [(f"blk.{i}.{name}", shape, F32) for i in range(layers) for name, shape in layer.items()]
    metadata = {f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    metadata |= {"general.architecture": architecture, f"{architecture}.block_count": layers}
    names = [name for name, *_ in tensors]
    return hyperparameters_of(metadata, names, traits_of(architecture)), tensors


MODELS = {
    "qwen3-0.6b": model(
        "qwen3",
        28,
        dense_layer(1024, 3072, 2048, 1024),
        1024,
        attention__head_count=16,
        attention__head_count_kv=8,
    ),
    "meta-llama-3.1-70b-instruct": model(
        "llama",
        80,
        dense_layer(8192, 28672, 8192, 1024),
        8192,
        attention__head_count=64,
        attention__head_count_kv=8,
    ),
    "gpt-oss-120b": model(
        "gpt-oss",
        36,
        expert_layer(2880, 2880, 4096, 512, 128),
        2880,
        attention__head_count=64,
        attention__head_count_kv=8,
        expert_count=128,
    ),
}


def sections(path: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(preset, default type, name → type where it is another one) of a snapshot file."""
    for part in re.split(r"^\[", path.read_text(), flags=re.M)[1:]:
        head, *lines = part.strip().splitlines()
        preset, default = head.split("] ")
        yield preset, default, dict(line.split() for line in lines)


@pytest.mark.parametrize("name", MODELS)
def test_every_preset_chooses_as_llama_cpp(shared, name):
    facts, tensors = MODELS[name]
    seen = 0
    for preset, default, exceptions in sections(shared / "policies" / f"{name}.schema"):
        seen += 1
        assert format_by_name(default) == PRESETS[preset].format
        decided = decide(tensors, facts, Recipe(PRESETS[preset]))
        found = {n: d.format.name for n, d in decided.items() if not d.reason.startswith("kept")}
        expected = {n: format_by_name(exceptions.get(n, default)).name for n in found}
        assert expected == found, preset
        assert exceptions.keys() <= found.keys()
    assert seen == 33
