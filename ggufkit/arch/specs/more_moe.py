"""Further mixtures of experts: AFM, Ling, dots.1, SmallThinker, LLaDA-MoE, Maple, Grove, Kimi Linear and others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ggufkit.arch.export import EXPERTS, GROUPED_ROUTER, Export, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    BASE,
    OPTIONAL,
    ROPE_DIMENSIONS,
    VOCAB_SIZE,
    base,
    blocks_with_mtp,
    flag,
    flags,
    mtp_layers,
    partial_rotary,
    real,
    reals,
    string,
    uint,
)
from ggufkit.arch.mlx import Mlx
from ggufkit.arch.rope_tensors import rope_freqs
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.cohere import drop_zero_biases
from ggufkit.arch.specs.llama import PERMUTED
from ggufkit.arch.transforms import drop, map_each, mlp_experts, rename, stack_experts, trunk
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import computed, take_rows
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.llama import llama_vocabulary
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece
from ggufkit.tokenizer.from_checkpoint.tokens import first_of

_EXPERT_LENGTH = uint("expert_feed_forward_length", "moe_intermediate_size")
_BIASED = rename((r"\.expert_bias$", ".expert_bias.bias"))


def _sliding(config: Config) -> list[bool]:
    return [kind == "sliding_attention" for kind in config.list("layer_types", config.layers)]


# ---- Ling -------------------------------------------------------------------------------------------------------


def _split_ling(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Ling's fused projection: all queries, all keys, all values."""
    import numpy as np

    if config.get("norm_head"):
        raise ArchitectureError("config.json: a normalized output ('norm_head') is not converted")
    for tensor in tensors:
        if not tensor.name.endswith("query_key_value.weight"):
            yield tensor
            continue
        head = config.head_dim
        q, k = config.heads * head, config.kv_heads * head
        if tensor.rows != q + 2 * k:
            raise CheckpointError(f"{printable(tensor.name)} has {tensor.rows} rows, config.json calls for {q + 2 * k}")
        for name, lo, hi in (("q", 0, q), ("k", q, q + k), ("v", q + k, q + 2 * k)):
            part = tensor.name.replace("query_key_value", f"{name}_proj")
            yield take_rows(tensor, np.arange(lo, hi)).renamed(part)


_LING_NAMES = {
    f"model.layers.{{bid}}.attention.{name}.weight": f"blk.{{bid}}.{target}.weight"
    for name, target in (("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v"), ("dense", "attn_output"))
}


def _ling2_blocks(config: Config) -> int:
    return config.layers + mtp_layers(config.with_mtp())


def _ling2(models: tuple[str, ...], centred: bool) -> Architecture:
    """Sarvam's routers' biases lose their mean, and whole heads turn."""

    def without_mean(tensor: Tensor, config: Config) -> Tensor:
        return computed(tensor, lambda bias: bias - bias.mean())

    def shared_length(config: Config) -> int:
        product = config.integer("moe_intermediate_size") * config.integer("num_shared_experts")
        result: int = config.get("moe_shared_expert_intermediate_size", default=product)
        return result

    return Architecture(
        name="bailingmoe2",
        exports=(_EXPORT_BAILING,),
        graph=Graph(rope="neox", router_normalized=False),
        models={name: {} for name in models},
        metadata=(
            *base(uint("block_count", _ling2_blocks)),
            ROPE_DIMENSIONS
            if centred
            else uint("rope.dimension_count", lambda config: int(config.head_dim * partial_rotary(config, 0.5))),
            uint("leading_dense_block_count", "first_k_dense_replace"),
            VOCAB_SIZE,
            _EXPERT_LENGTH,
            uint("expert_shared_feed_forward_length", shared_length),
            real("expert_weights_scale", "routed_scaling_factor"),
            uint("expert_shared_count", "num_shared_experts"),
            flag("expert_weights_norm", "norm_topk_prob"),
            uint("nextn_predict_layers", "num_nextn_predict_layers", need=OPTIONAL),
        ),
        vocabulary=bpe,
        transforms=(
            *((map_each(r"\.expert_bias$", without_mean),) if centred else ()),
            _BIASED,
            *mlp_experts(),
        ),
        blocks=_ling2_blocks,
    )


# ---- Command A MoE, SmallThinker --------------------------------------------------------------------------------


def _dense_lead(config: Config) -> int:
    if "mlp_layer_types" not in config:
        result: int = config.get("first_k_dense_replace", default=0)
        return result
    kinds = config.list("mlp_layer_types")
    return next((layer for layer, kind in enumerate(kinds) if kind != "dense"), len(kinds))


def _shared(config: Config) -> int | None:
    number: int = config.get("num_shared_experts", default=0)
    if not number:
        return None
    if config.get("shared_expert_combination_strategy", default="average") != "average":
        raise ArchitectureError("config.json: shared experts are averaged, not otherwise")
    return number


def _primary_window(config: Config) -> int | None:
    layout = config.get("sliding_window_layout", default=[])
    return config.get("sliding_window_size") or None if isinstance(layout, list) and any(layout) else None


_THINKER_EXPERT = r"model\.layers\.(?P<layer>\d+)\.block_sparse_moe\.experts\.(?P<expert>\d+)\.(?P<part>\w+)\.weight"


_EXPORT_DOTS = Export(
    "dots1",
    "Dots1ForCausalLM",
    config={
        "mlp_bias": None,
        **GROUPED_ROUTER,
        "scoring_func": lambda s: "sigmoid",
    },
    names={
        **EXPERTS,
        "blk.{bid}.exp_probs_b.bias": "model.layers.{bid}.mlp.gate.e_score_correction_bias",
        **{
            f"blk.{{bid}}.ffn_{part}_shexp": f"model.layers.{{bid}}.mlp.shared_experts.{part}_proj"
            for part in ("gate", "up", "down")
        },
    },
    mlx=Mlx(
        names={
            f"blk.{{bid}}.ffn_{part}_exps": f"model.layers.{{bid}}.mlp.experts.{part}_proj"
            for part in ("gate", "up", "down")
        },
    ),
    when=lambda s: s.get("expert_gating_func") == 2,  # transformers and mlx-lm know no other router of this class
)

_SHARED_PARTS = {
    f"blk.{{bid}}.ffn_{part}_shexp": f"model.layers.{{bid}}.mlp.shared_experts.{part}_proj"
    for part in ("gate", "up", "down")
}
_EXPORT_AFMOE = Export(
    "afmoe",
    "AfmoeForCausalLM",
    config={
        **dict.fromkeys(("attention_bias", "mlp_bias", "hidden_act")),
        "num_experts": key("expert_count"),
        "num_experts_per_tok": key("expert_used_count"),
        "moe_intermediate_size": key("expert_feed_forward_length"),
        "num_shared_experts": key("expert_shared_count"),
        "num_dense_layers": key("leading_dense_block_count"),
        "route_norm": key("expert_weights_norm"),
        "route_scale": key("expert_weights_scale"),
        "sliding_window": key("attention.sliding_window"),
        "mup_enabled": lambda s: True,
    },
    names={
        **EXPERTS,
        **_SHARED_PARTS,
        "blk.{bid}.attn_gate": "model.layers.{bid}.self_attn.gate_proj",
        "blk.{bid}.post_attention_norm": "model.layers.{bid}.post_attention_layernorm",
        "blk.{bid}.ffn_norm": "model.layers.{bid}.pre_mlp_layernorm",
        "blk.{bid}.post_ffw_norm": "model.layers.{bid}.post_mlp_layernorm",
        "blk.{bid}.ffn_gate_inp": "model.layers.{bid}.mlp.router.gate",
        "blk.{bid}.exp_probs_b.bias": "model.layers.{bid}.mlp.expert_bias",
    },
    mlx=Mlx(
        config={"layer_types": lambda s: [_afmoe_kind(i) for i in range(s.layers)]},
        names={
            f"blk.{{bid}}.ffn_{part}_exps": f"model.layers.{{bid}}.mlp.experts.{part}_proj"
            for part in ("gate", "up", "down")
        },
    ),
)
_EXPORT_BAILING = Export(
    "bailing_moe",
    "BailingMoeV2ForCausalLM",
    config={
        **dict.fromkeys(("attention_bias", "mlp_bias")),
        "use_bias": lambda s: False,
        "use_qkv_bias": lambda s: "blk.0.attn_qkv.bias" in s.tensors,
        "use_qk_norm": lambda s: "blk.0.attn_q_norm.weight" in s.tensors,
        "partial_rotary_factor": lambda s: s.require("rope.dimension_count") / s.head_dim,
        "num_experts": key("expert_count"),
        "num_experts_per_tok": key("expert_used_count"),
        "moe_intermediate_size": key("expert_feed_forward_length"),
        "moe_shared_expert_intermediate_size": key("expert_shared_feed_forward_length"),
        "num_shared_experts": key("expert_shared_count"),
        "first_k_dense_replace": key("leading_dense_block_count"),
        "routed_scaling_factor": key("expert_weights_scale"),
        "norm_topk_prob": key("expert_weights_norm"),
        "score_function": lambda s: "sigmoid",
        "moe_router_enable_expert_bias": lambda s: True,
        "n_group": key("expert_group_count", 1),
        "topk_group": key("expert_group_used_count", 1),
    },
    names={
        **EXPERTS,
        **_SHARED_PARTS,
        "token_embd": "model.word_embeddings",
        "blk.{bid}.attn_qkv": "model.layers.{bid}.attention.query_key_value",
        "blk.{bid}.attn_output": "model.layers.{bid}.attention.dense",
        "blk.{bid}.attn_q_norm": "model.layers.{bid}.attention.query_layernorm",
        "blk.{bid}.attn_k_norm": "model.layers.{bid}.attention.key_layernorm",
        "blk.{bid}.exp_probs_b.bias": "model.layers.{bid}.mlp.gate.expert_bias",
    },
    when=lambda s: s.get("expert_gating_func") == 2 and not s.get("nextn_predict_layers"),
    mlx=Mlx(names={"blk.{bid}.ffn_gate_inp": "model.layers.{bid}.mlp.gate.gate_proj"}),
)


def _afmoe_kind(layer: int) -> str:
    return "sliding_attention" if (layer + 1) % 4 else "full_attention"


SPECS = (
    Architecture(
        name="afmoe",
        exports=(_EXPORT_AFMOE,),
        graph=Graph(
            rope="neox",
            scaled_embedding=True,
            window_period=4,
            no_rope_period=4,
            router="sigmoid",
            router_normalized=False,
        ),
        models={"AfmoeForCausalLM": {}},
        metadata=(
            *BASE,
            VOCAB_SIZE,
            ROPE_DIMENSIONS,
            uint("expert_shared_count", "num_shared_experts", need=OPTIONAL),
            uint("expert_feed_forward_length", "moe_intermediate_size", need=OPTIONAL),
            uint("leading_dense_block_count", "num_dense_layers", need=OPTIONAL),
            flag("expert_weights_norm", "route_norm", need=OPTIONAL),
            real("expert_weights_scale", "route_scale", need=OPTIONAL),
            uint("attention.sliding_window", "sliding_window", need=OPTIONAL),
        ),
        vocabulary=llama_vocabulary,
        transforms=(rope_freqs, _BIASED, *mlp_experts(parts=("gate", "up", "down"))),
    ),
    Architecture(
        name="bailingmoe",
        graph=Graph(router_normalized=False),
        models={"BailingMoeForCausalLM": {}},
        metadata=(
            *BASE,
            ROPE_DIMENSIONS,
            uint("leading_dense_block_count", "first_k_dense_replace"),
            VOCAB_SIZE,
            _EXPERT_LENGTH,
            real("expert_weights_scale", lambda config: 1.0),
            uint("expert_shared_count", "num_shared_experts"),
            flag("expert_weights_norm", "norm_topk_prob"),
        ),
        vocabulary=bpe,
        transforms=(_split_ling, *PERMUTED, *mlp_experts()),
        names=_LING_NAMES,
    ),
    _ling2(("BailingMoeV2ForCausalLM",), centred=False),
    _ling2(("SarvamMoEForCausalLM", "modeling_sarvam_moe.SarvamMoEForCausalLM"), centred=True),
    Architecture(
        name="dots1",
        exports=(_EXPORT_DOTS,),
        graph=Graph(rope="neox", router_normalized=False),
        models={"Dots1ForCausalLM": {}},
        metadata=(
            *BASE,
            uint("expert_feed_forward_length", "moe_intermediate_size", need=OPTIONAL),
            uint("expert_shared_feed_forward_length", "shared_expert_intermediate_size", need=OPTIONAL),
            uint("leading_dense_block_count", "first_k_dense_replace"),
            uint("expert_shared_count", "n_shared_experts"),
            real("expert_weights_scale", "routed_scaling_factor"),
            flag("expert_weights_norm", "norm_topk_prob"),
        ),
        vocabulary=bpe,
        transforms=mlp_experts("n_routed_experts"),
    ),
    Architecture(
        name="smallthinker",
        graph=Graph(
            rope="neox",
            activation="relu",
            window_period=4,
            window_last=True,
            rope_layers="local",
            early_router=True,
        ),
        models={"SmallThinkerForCausalLM": {}},
        metadata=(
            *BASE,
            uint("expert_count", "moe_num_primary_experts", need=OPTIONAL),
            uint("expert_used_count", "moe_num_active_primary_experts", need=OPTIONAL),
            uint("expert_feed_forward_length", "moe_ffn_hidden_size", need=OPTIONAL),
            uint("feed_forward_length", "moe_ffn_hidden_size", need=OPTIONAL),
            uint("expert_gating_func", lambda config: 1 if config.get("moe_primary_router_apply_softmax") else 2),
            uint("attention.sliding_window", _primary_window),
        ),
        vocabulary=bpe,
        transforms=(
            stack_experts(
                _THINKER_EXPERT,
                ("down", "gate", "up"),
                "model.layers.{layer}.block_sparse_moe.experts.{part}.weight",
                lambda config: config.integer("moe_num_primary_experts", "num_local_experts", "num_experts"),
            ),
        ),
    ),
    Architecture(
        name="llada-moe",
        graph=Graph(rope="neox", router_normalized=False, diffusion=True),
        models={"LLaDAMoEModel": {}, "LLaDAMoEModelLM": {}},
        metadata=(
            *BASE,
            uint("expert_feed_forward_length", "expert_intermediate_size", need=OPTIONAL),
            uint("tokenizer.ggml.mask_token_id", lambda config: 156895),
            flag("attention.causal", False),
            flag("/diffusion.shift_logits", False),
        ),
        vocabulary=bpe,
        transforms=mlp_experts(),
    ),
    Architecture(
        name="maple",
        graph=Graph(rope="neox", window_period=1, rope_layers="local", clamp_first=True),
        models={"MapleForCausalLM": {}},
        metadata=(
            *BASE,
            VOCAB_SIZE,
            uint("rope.dimension_count", lambda config: int(config.head_dim * partial_rotary(config, 1.0))),
            uint("attention.sliding_window", "sliding_window"),
            flags("attention.sliding_window_pattern", _sliding),
            _EXPERT_LENGTH,
            reals("swiglu_clamp_exp", lambda config: [7.0] * config.layers),
        ),
        vocabulary=bpe,
        transforms=mlp_experts("num_experts"),
    ),
    Architecture(
        name="grovemoe",
        graph=Graph(rope="neox"),
        models={"GroveMoeForCausalLM": {}, "modeling_grove_moe.GroveMoeForCausalLM": {}},
        metadata=(
            *BASE,
            uint("expert_feed_forward_length", "moe_intermediate_size", need=OPTIONAL),
            uint("expert_chunk_feed_forward_length", lambda config: config.get("head_dim") or 128),
            uint("experts_per_group", lambda config: 2),
            real("expert_group_scale", lambda config: 0.05),
        ),
        vocabulary=bpe,
        transforms=(
            drop(r"\.expert_bias$"),
            stack_experts(
                r"model\.layers\.(?P<layer>\d+)\.mlp\.chunk_experts\.(?P<expert>\d+)\.(?P<part>\w+)_proj\.weight",
                ("down", "gate", "up"),
                "model.layers.{layer}.mlp.chunk_experts.{part}_proj.weight",
                lambda config: config.integer("num_local_experts", "num_experts") // 2,
            ),
            *mlp_experts(),
        ),
    ),
    Architecture(
        name="cohere2moe",
        graph=Graph(
            norm="layer",
            parallel="shared",
            logit_multiplied=True,
            window_period=4,
            window_last=True,
            rope_layers="local or dense",
            router="sigmoid",
            router_normalized=False,
            shared_scale=0.5,
        ),
        models={"Cohere2MoeForCausalLM": {"max_position_embeddings": 8192}},
        metadata=(
            *base(uint("block_count", blocks_with_mtp)),
            real("logit_scale", "logit_scale"),
            uint("attention.sliding_window", "sliding_window"),
            flags("attention.sliding_window_pattern", _sliding),
            VOCAB_SIZE,
            uint("expert_feed_forward_length", "intermediate_size"),
            uint("leading_dense_block_count", _dense_lead),
            flag("expert_weights_norm", lambda config: config.get("norm_topk_prob", default=False)),
            uint("expert_shared_count", _shared),
            uint(
                "expert_shared_feed_forward_length",
                lambda config: config.integer("intermediate_size") * (_shared(config) or 0) or None,
            ),
            uint("nextn_predict_layers", lambda config: mtp_layers(config) or None),
            uint("rope.dimension_count", "head_dim"),
            string("rope.scaling.type", "none"),
        ),
        vocabulary=bpe,
        transforms=(trunk(blocks_with_mtp), drop_zero_biases, *mlp_experts("num_experts")),
        blocks=blocks_with_mtp,
    ),
    Architecture(
        name="deepseek",
        graph=Graph(router_normalized=False),
        models={"DeepseekForCausalLM": {}},
        metadata=(
            *BASE,
            ROPE_DIMENSIONS,
            string("rope.scaling.type", "none"),
            uint("leading_dense_block_count", "first_k_dense_replace"),
            VOCAB_SIZE,
            _EXPERT_LENGTH,
            real("expert_weights_scale", lambda config: 1.0),
            uint("expert_count", "n_routed_experts"),
            uint("expert_shared_count", "n_shared_experts"),
        ),
        vocabulary=first_of(sentencepiece, bpe),
        transforms=(*PERMUTED, *mlp_experts("n_routed_experts")),
    ),
)
