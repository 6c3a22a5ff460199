"""Kimi Linear: layers of delta attention, and a few of latent attention, with experts."""

from __future__ import annotations

import re
from typing import Any

from ggufkit.arch.export import W123_EXPERTS, Export, Source, key, transposed_back
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    BASE,
    OPTIONAL,
    VOCAB_SIZE,
    integers,
    real,
    uint,
)
from ggufkit.arch.mlx import Mlx
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.deepseek2 import ABSORBED, absorbed, heads_together
from ggufkit.arch.specs.moe import w123_experts
from ggufkit.arch.transforms import decay, rename, reshape
from ggufkit.arch.undo import logarithms
from ggufkit.checkpoint.config import Config
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import reshaped
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.tiktoken import kimi_linear
from ggufkit.tokenizer.from_checkpoint.tokens import first_of

_EXPERT_LENGTH = uint("expert_feed_forward_length", "moe_intermediate_size")
_BIASED = rename((r"\.expert_bias$", ".expert_bias.bias"))


def _kda_kv_heads(config: Config) -> list[int]:
    """One where attention is; the config counts layers from 1."""
    full = config.part("linear_attn_config").list("full_attn_layers")
    return [1 if layer + 1 in full else 0 for layer in range(config.layers)]


# ---- the way back ----


def _channels(s: Source, tensor: Tensor) -> Tensor:
    """A convolution of four dimensions with the three that it had."""
    return reshaped(tensor, (tensor.shape[1], 1, tensor.shape[-1]))


def _attention_layers(s: Source) -> dict[str, Any]:
    """Layers are counted from 1."""
    kv_heads = s.require("attention.head_count_kv")
    return {
        "full_attn_layers": [i for i, heads in enumerate(kv_heads, 1) if heads],
        "kda_layers": [i for i, heads in enumerate(kv_heads, 1) if not heads],
        "head_dim": s.require("kda.head_dim"),
        "num_heads": s.heads,
        "short_conv_kernel_size": s.require("ssm.conv_kernel"),
    }


_KDA = {
    "ssm_a": "A_log",
    "ssm_dt.bias": "dt_bias",
    "ssm_beta": "b_proj",
    "ssm_f_a": "f_a_proj",
    "ssm_f_b": "f_b_proj",
    "ssm_g_a": "g_a_proj",
    "ssm_g_b": "g_b_proj",
    "ssm_norm": "o_norm",
    "ssm_conv1d_q": "q_conv1d",
    "ssm_conv1d_k": "k_conv1d",
    "ssm_conv1d_v": "v_conv1d",
    "attn_kv_a_mqa": "kv_a_proj_with_mqa",
    "attn_kv_a_norm": "kv_a_layernorm",
}
_SHARED_PARTS = {f"ffn_{part}_shexp": f"shared_experts.{part}_proj" for part in ("gate", "up", "down")}


def _kimi_names(moe: str, bias: str) -> dict[str, str]:
    """What a layer's experts have beside themselves."""
    own = {**_SHARED_PARTS, "ffn_gate_inp": "gate", "exp_probs_b.bias": bias}
    return {f"blk.{{bid}}.{gguf}": f"model.layers.{{bid}}.{moe}.{name}" for gguf, name in own.items()}


_EXPORT_KIMI = Export(
    "kimi_linear",
    "KimiLinearForCausalLM",
    config={
        **dict.fromkeys(("attention_bias", "mlp_bias", "rope_scaling")),
        "num_key_value_heads": lambda s: s.heads,
        "head_dim": key("kda.head_dim"),
        "linear_attn_config": _attention_layers,
        "model_max_length": key("context_length"),
        "num_experts": key("expert_count"),
        "num_experts_per_token": key("expert_used_count"),
        "moe_intermediate_size": key("expert_feed_forward_length"),
        "num_shared_experts": key("expert_shared_count"),
        "first_k_dense_replace": key("leading_dense_block_count"),
        "routed_scaling_factor": key("expert_weights_scale"),
        "moe_router_activation_func": lambda s: "sigmoid",
        "moe_renormalize": lambda s: True,
        "moe_layer_freq": lambda s: 1,
        "num_expert_group": lambda s: 1,
        "topk_group": lambda s: 1,
        "mla_use_nope": lambda s: True,
        "q_lora_rank": lambda s: s.get("attention.q_lora_rank"),
        "kv_lora_rank": key("attention.kv_lora_rank"),
        "qk_rope_head_dim": key("rope.dimension_count"),
        "qk_nope_head_dim": lambda s: s.require("attention.key_length_mla") - s.require("rope.dimension_count"),
        "v_head_dim": key("attention.value_length_mla"),
    },
    names={
        **{f"blk.{{bid}}.{gguf}": f"model.layers.{{bid}}.self_attn.{name}" for gguf, name in _KDA.items()},
        **W123_EXPERTS,
        **_kimi_names("block_sparse_moe", "gate.e_score_correction_bias"),
    },
    fused={"model.layers.{bid}.self_attn.kv_b_proj": ("blk.{bid}.attn_k_b", "blk.{bid}.attn_v_b")},
    undo={
        ".attn_k_b": transposed_back,
        ".kv_b_proj": heads_together,
        ".ssm_a": logarithms,
        **dict.fromkeys((".ssm_conv1d_q", ".ssm_conv1d_k", ".ssm_conv1d_v"), _channels),
    },
    mlx=Mlx(
        names={
            **ABSORBED,
            **_kimi_names("mlp", "e_score_correction_bias"),
            **{
                f"blk.{{bid}}.ffn_{part}_exps": f"model.layers.{{bid}}.mlp.switch_mlp.{part}_proj"
                for part in ("gate", "up", "down")
            },
        },
        called=lambda s, tensor: re.sub(r"\.([qkv]_conv)1d\.", r".\1.conv.", tensor.name),
    ),
)

SPECS = (
    Architecture(
        name="kimi-linear",
        exports=(_EXPORT_KIMI,),
        graph=Graph(rope=None),
        models={"KimiLinearForCausalLM": {}, "KimiLinearModel": {}},
        metadata=(
            *BASE,
            VOCAB_SIZE,
            integers("attention.head_count_kv", _kda_kv_heads),
            uint("ssm.conv_kernel", lambda config: config.part("linear_attn_config").get("short_conv_kernel_size")),
            uint("kda.head_dim", lambda config: config.part("linear_attn_config").get("head_dim")),
            uint("attention.q_lora_rank", "q_lora_rank", need=OPTIONAL),
            uint("attention.kv_lora_rank", "kv_lora_rank"),
            uint("rope.dimension_count", "qk_rope_head_dim"),
            uint(
                "attention.key_length",
                lambda config: config.integer("kv_lora_rank") + config.integer("qk_rope_head_dim"),
            ),
            uint(
                "attention.key_length_mla",
                lambda config: config.integer("qk_nope_head_dim") + config.integer("qk_rope_head_dim"),
            ),
            uint("attention.value_length_mla", "v_head_dim", need=OPTIONAL),
            uint("expert_feed_forward_length", "moe_intermediate_size"),
            uint("expert_shared_count", "num_shared_experts"),
            uint("leading_dense_block_count", "first_k_dense_replace"),
            real("expert_weights_scale", "routed_scaling_factor"),
        ),
        vocabulary=first_of(bpe, kimi_linear),
        transforms=(
            rename((r"\.dt_bias$", ".dt_proj.bias"), (r"(?<=\.[qkv]_conv)\.conv\.", "1d.")),
            reshape(r"\.[qkv]_conv1d\.weight$", lambda tensor, config: (1, tensor.shape[0], 1, tensor.shape[-1])),
            decay(),
            *w123_experts("block_sparse_moe"),
            absorbed,
        ),
    ),
)
