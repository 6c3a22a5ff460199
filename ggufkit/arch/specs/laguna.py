"""Laguna: gated attention whose number of heads changes from layer to layer, and a mixture of experts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, VOCAB_SIZE, flag, integers, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import mlp_experts
from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tensors.tensor import Tensor
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

_CONTROL = 3  # `llama_token_type`


def _heads(config: Config) -> list[int]:
    if config.get("num_attention_heads_per_layer"):
        return config.list("num_attention_heads_per_layer", config.layers)
    return [config.heads] * config.layers


def _gates(config: Config) -> list[str]:
    """Of each layer's gate: per_head or per_element."""
    gating, types = config.get("gating"), config.get("gating_types")
    named = list(types) if types else [gating if isinstance(gating, str) else "per_head"] * config.layers
    kinds = [str(kind).replace("-", "_") for kind in named]
    if len(kinds) != config.layers or set(kinds) - {"per_head", "per_element"} or gating in (None, False):
        raise ArchitectureError("config.json: 'gating' (or 'gating_types') must say per-head or per-element")
    if "per_element" in kinds and str(gating).replace("-", "_") != "per_element":
        raise ArchitectureError(f"config.json: 'gating' is {printable(repr(gating))}, but a gate is per element")
    return kinds


def _checked_gates(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    kinds, heads = _gates(config), _heads(config)
    for tensor in tensors:
        parts = tensor.name.split(".")
        if tensor.name.endswith("self_attn.g_proj.weight") and (layer := int(parts[2])) < len(kinds):
            wanted = heads[layer] * (config.head_dim if kinds[layer] == "per_element" else 1)
            if tensor.rows != wanted:
                raise CheckpointError(
                    f"{printable(tensor.name)} has {tensor.rows} rows, a gate {kinds[layer]} has {wanted}"
                )
        yield tensor


def _rotated(config: Config, kind: str) -> int | None:
    rope = config.part("rope_parameters")
    if kind not in rope:
        return None
    return int(config.head_dim * rope.part(kind).number("partial_rotary_factor", default=1.0))


def _dense(config: Config) -> int:
    kinds = config.list("mlp_layer_types")
    return next((layer for layer, kind in enumerate(kinds) if kind != "dense"), len(kinds))


def _vocabulary(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """Byte-level BPE; </assistant> is a control token, and the second of several ends is that of a turn."""
    texts: list[str] = []
    for key, value in bpe(checkpoint, config):
        if key == "tokenizer.ggml.tokens":
            texts = value.value
        if key == "tokenizer.ggml.token_type" and "</assistant>" in texts:
            types = list(value.value)
            types[texts.index("</assistant>")] = _CONTROL
            yield key, Value(value.type, types, value.item_type)
        else:
            yield key, value
    ends = config.get("eos_token_id")
    others = [end for end in ends if end != config.get("bos_token_id")] if isinstance(ends, list) else []
    if others:
        yield "tokenizer.ggml.eot_token_id", Value(ValueType.UINT32, others[0])


SPECS = (
    Architecture(
        name="laguna",
        models={"LagunaForCausalLM": {}},
        metadata=(
            *BASE,
            VOCAB_SIZE,
            integers("attention.head_count", _heads),
            uint("attention.sliding_window", lambda config: config.get("sliding_window") or None),
            uint("expert_feed_forward_length", "moe_intermediate_size"),
            uint("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
            flag("expert_weights_norm", True),
            real("expert_weights_scale", "moe_routed_scaling_factor"),
            uint("expert_gating_func", lambda config: 2),
            uint("leading_dense_block_count", _dense),
            uint("rope.dimension_count", lambda config: _rotated(config, "full_attention")),
            uint("rope.dimension_count_swa", lambda config: _rotated(config, "sliding_attention")),
        ),
        vocabulary=_vocabulary,
        transforms=(_checked_gates, *mlp_experts(parts=("gate", "up", "down"))),
        graph=Graph(
            rope="neox",
            window_period=4,
            window_last=True,
            local_rope_scaled=False,
            router="sigmoid",
            gate="softplus",
        ),
    ),
)
