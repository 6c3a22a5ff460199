"""Tiny LoRA adapters for some of the checkpoints of `tiny_families`.

write_adapter("llama", folder)     # adapter_config.json and adapter_model.safetensors
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tiny_checkpoints import SPM_TOKENS, WIDTH, Shapes, Tiny, save
from tiny_families import FAMILIES

__all__ = ["ADAPTERS", "write_adapter"]

RANK, ALPHA = 4, 16


def halves(tiny: Tiny, wanted: Callable[[str], bool]) -> Shapes:
    """A and B for each weight whose name is wanted."""
    for name, shape in tiny.shapes:
        if wanted(name):
            at = f"base_model.model.{name.removesuffix('.weight')}"
            yield f"{at}.lora_A.weight", (RANK, shape[1])
            yield f"{at}.lora_B.weight", (shape[0], RANK)


def with_embedding(tiny: Tiny, tokens: int) -> Shapes:
    yield from halves(tiny, lambda name: ".q_proj." in name or ".down_proj." in name)
    yield "base_model.model.model.embed_tokens.lora_embedding_A", (RANK, tokens)
    yield "base_model.model.model.embed_tokens.lora_embedding_B", (WIDTH, RANK)
    yield "base_model.model.model.norm.weight", (WIDTH,)


# Name → (base model, tensors).
ADAPTERS: dict[str, tuple[str, Callable[[Tiny], Shapes]]] = {
    "llama": ("llama-linear", lambda tiny: halves(tiny, lambda name: "_proj." in name)),
    "llama-embedding": ("llama-linear", lambda tiny: with_embedding(tiny, SPM_TOKENS)),
    "internlm2": ("internlm2", lambda tiny: halves(tiny, lambda name: ".wqkv." in name or ".w2." in name)),
    "exaone": ("exaone", lambda tiny: halves(tiny, lambda name: "_proj." in name)),
    "qwen3moe": ("qwen3moe", lambda tiny: halves(tiny, lambda name: ".experts." in name or ".k_proj." in name)),
    "command-r": ("command-r", lambda tiny: halves(tiny, lambda name: ".o_proj." in name or "gate" in name)),
}


def write_adapter(name: str, folder: Path) -> Path:
    """Write an adapter to a folder."""
    base, tensors = ADAPTERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": f"somebody/{base}"}
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1))
    save(folder / "adapter_model.safetensors", dict(tensors(FAMILIES[base]())), "F32")
    return folder
