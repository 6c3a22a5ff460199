"""Mistral's own format: params.json, consolidated.safetensors and its own vocabulary.

Queries and keys come in the order that GGUF wants; Hugging Face's checkpoints of these models have another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ggufkit.arch.metadata import BASE, ROPE_DIMENSIONS, Row, real, string, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.deepseek2 import mla_keys, mla_tensors
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tokenizer.from_checkpoint.tekken import mistral


def _yarn(find: Callable[[Config], Any]) -> Callable[[Config], Any]:
    """A value of the part "yarn", of models that have one."""
    return lambda config: find(config.part("yarn")) if "yarn" in config else None


def _scaled(config: Config) -> bool:
    return "llama_4_scaling" in config


_YARN: tuple[Row, ...] = (
    string("rope.scaling.type", _yarn(lambda yarn: "yarn")),
    real("rope.scaling.factor", _yarn(lambda yarn: yarn.number("factor"))),
    real("rope.scaling.yarn_beta_fast", _yarn(lambda yarn: yarn.number("beta"))),
    real("rope.scaling.yarn_beta_slow", _yarn(lambda yarn: yarn.number("alpha"))),
    real("rope.scaling.yarn_log_multiplier", _yarn(lambda yarn: 0.0 if yarn.require("apply_scale") else 1.0)),
    uint("rope.scaling.original_context_length", _yarn(lambda yarn: yarn.integer("original_max_position_embeddings"))),
    real(
        "attention.temperature_scale",
        lambda config: config.part("llama_4_scaling").number("beta") if _scaled(config) else None,
    ),
)

_LLAMA: tuple[Row, ...] = (*BASE, ROPE_DIMENSIONS, *_YARN)

# Mixtures of experts are DeepSeek's by other names. (Name there, name here, or None for one of the part "moe".)
_DEEPSEEK = {
    "hidden_size": "dim",
    "rms_norm_eps": "norm_eps",
    "num_key_value_heads": "n_kv_heads",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "tie_word_embeddings": "tied_embeddings",
}
_DEEPSEEK_EXPERTS = {
    "first_k_dense_replace": "first_k_dense_replace",
    "num_experts_per_tok": "num_experts_per_tok",
    "n_routed_experts": "num_experts",
    "moe_intermediate_size": "expert_hidden_dim",
    "routed_scaling_factor": "routed_scale",
    "n_shared_experts": "num_shared_experts",
    "n_group": "num_expert_groups",
    "topk_group": "num_expert_groups_per_tok",
}


def _as_deepseek(config: Config) -> Config:
    """The settings of a mixture of experts in DeepSeek's words."""
    experts = config.part("moe")
    values = {name: config.get(own) for name, own in _DEEPSEEK.items()}
    values |= {name: experts.get(own) for name, own in _DEEPSEEK_EXPERTS.items()}
    fixed = {"norm_topk_prob": True, "scoring_func": "softmax"}
    context = config.get("max_position_embeddings", default=128_000)
    found = {name: value for name, value in values.items() if value is not None}
    return config.with_values(**found, **fixed, max_position_embeddings=context)


def _in_its_words(row: Row) -> Row:
    return lambda architecture, config: row(architecture, _as_deepseek(config))


_EXPERT = re.compile(r"layers\.(\d+)\.experts\.(\d+)\.w([123])\.(.+)")
_PARTS = {"1": "gate_proj", "2": "down_proj", "3": "up_proj"}


def _deepseek_tensors(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    def named(tensor: Tensor) -> Tensor:
        if (match := _EXPERT.fullmatch(tensor.name)) is not None:
            layer, expert, part, rest = match.groups()
            return tensor.renamed(f"model.layers.{layer}.mlp.experts.{expert}.{_PARTS[part]}.{rest}")
        return tensor.renamed(tensor.name.replace(".wkv_b.", ".kv_b_proj."))

    stream: Iterable[Tensor] = map(named, tensors)
    settings = _as_deepseek(config)
    for step in mla_tensors():
        stream = step(stream, settings)
    yield from stream


def _temperature_length(config: Config) -> int:
    if "yarn" not in config:
        raise ArchitectureError(
            f"params.json: a mixture of experts needs 'yarn', which is {printable(config.get('yarn'))}"
        )
    return config.part("yarn").integer("original_max_position_embeddings")


SPECS = (
    Architecture(
        name="deepseek2",
        models={"MistralFormat": {}},
        when=lambda config: "moe" in config,
        metadata=(
            *map(_in_its_words, mla_keys()),
            *_YARN,
            uint("attention.temperature_length", _temperature_length),
            real("rope.scaling.yarn_log_multiplier", lambda config: 0.1),
        ),
        vocabulary=mistral("deepseek2"),
        transforms=(_deepseek_tensors,),
    ),
    Architecture(
        name="mistral3",
        models={"MistralFormat": {}},
        when=_scaled,
        metadata=_LLAMA,
        vocabulary=mistral("mistral3"),
    ),
    Architecture(
        name="llama",
        models={"MistralFormat": {}},
        metadata=_LLAMA,
        vocabulary=mistral("llama"),
    ),
)
