"""Mixtures of experts of one family each: MiniMax M2, Hy 3, EXAONE MoE, Mellum, OLMoE, dots.1, MiMo V2."""

from __future__ import annotations

from ggufkit.arch.export import EXPERTS, W123_EXPERTS, Export, Setting, Source, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    BASE,
    OPTIONAL,
    VOCAB_SIZE,
    base,
    blocks_with_mtp,
    flag,
    flags,
    integers,
    mtp_layers,
    real,
    string,
    uint,
)
from ggufkit.arch.mlx import PLAIN_MLX, Mlx
from ggufkit.arch.rope_tensors import rope_freqs
from ggufkit.arch.spec import Architecture, Transform
from ggufkit.arch.specs.exaone import sliding_of
from ggufkit.arch.transforms import mlp_experts, mtp_blocks, rename, trunk
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, printable
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

_DEFAULTS = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}

_EXAONE = _DEFAULTS | {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "n_group": 1, "topk_group": 1}

_EXPERT_LENGTH = uint("expert_feed_forward_length", "moe_intermediate_size")
_NEXTN = uint("nextn_predict_layers", lambda config: mtp_layers(config) or None)


def w123_experts(module: str, name: str = "layers.{layer}.feed_forward.experts.{part}.weight") -> tuple[Transform, ...]:
    """Experts whose gate, down and up are called w1, w2, w3."""
    pattern = rf"model\.layers\.(?P<layer>\d+)\.{module}\.experts\.(?P<expert>\d+)\.(?P<part>w[123])\.weight"
    return mlp_experts(parts=("w1", "w2", "w3"), pattern=pattern, name=name)


_EXPORT_MINIMAX = Export(
    "minimax_m2",
    "MiniMaxM2ForCausalLM",
    config={
        "attention_bias": None,
        "mlp_bias": None,
        "intermediate_size": key("expert_feed_forward_length"),
        "num_local_experts": key("expert_count"),
        "num_experts_per_tok": key("expert_used_count"),
        "rotary_dim": key("rope.dimension_count"),
        "scoring_func": lambda s: "sigmoid",
        "use_qk_norm": lambda s: True,
        "use_routing_bias": lambda s: True,
    },
    names={
        **W123_EXPERTS,
        "blk.{bid}.exp_probs_b.bias": "model.layers.{bid}.block_sparse_moe.e_score_correction_bias",
    },
    mlx=Mlx(config={"shared_intermediate_size": lambda s: 0}),
)


def _exaone_kinds(s: Source) -> list[str]:
    sliding = s.get("attention.sliding_window_pattern") or [False] * s.layers
    return ["sliding_attention" if of_layer else "full_attention" for of_layer in sliding]


_EXPORT_EXAONE = Export(
    "exaone_moe",
    "ExaoneMoeForCausalLM",
    config={
        **dict.fromkeys(("attention_bias", "mlp_bias")),
        "num_experts": key("expert_count"),
        "num_experts_per_tok": key("expert_used_count"),
        "moe_intermediate_size": key("expert_feed_forward_length"),
        "num_shared_experts": key("expert_shared_count"),
        "first_k_dense_replace": key("leading_dense_block_count"),
        "routed_scaling_factor": key("expert_weights_scale"),
        "norm_topk_prob": key("expert_weights_norm"),
        "scoring_func": lambda s: "sigmoid",
        "topk_method": lambda s: "noaux_tc",
        "n_group": key("expert_group_count", 1),
        "topk_group": key("expert_group_used_count", 1),
        "num_nextn_predict_layers": lambda s: 0,
        "sliding_window": lambda s: s.get("attention.sliding_window"),
        "layer_types": _exaone_kinds,
    },
    names={
        **EXPERTS,
        "blk.{bid}.exp_probs_b.bias": "model.layers.{bid}.mlp.e_score_correction_bias",
        **{
            f"blk.{{bid}}.ffn_{part}_shexp": f"model.layers.{{bid}}.mlp.shared_experts.{part}_proj"
            for part in ("gate", "up", "down")
        },
    },
    when=lambda s: not s.get("nextn_predict_layers"),
    mlx=Mlx(
        config={"is_moe_layer": lambda s: [i >= s.get("leading_dense_block_count", 0) for i in range(s.layers)]},
        names={"blk.{bid}.exp_probs_b.bias": "model.layers.{bid}.mlp.gate.e_score_correction_bias"},
    ),
)
_EXPORT_MELLUM = Export(
    "mellum",
    "MellumForCausalLM",
    config={
        "mlp_bias": None,
        "rope_theta": None,
        "rope_scaling": None,
        "num_experts": key("expert_count"),
        "num_experts_per_tok": key("expert_used_count"),
        "moe_intermediate_size": key("expert_feed_forward_length"),
        "norm_topk_prob": lambda s: True,
        "sliding_window": lambda s: s.get("attention.sliding_window"),
        "layer_types": lambda s: [
            f"{'sliding' if sliding else 'full'}_attention" for sliding in s.require("attention.sliding_window_pattern")
        ],
        "rope_parameters": lambda s: {
            "full_attention": {"rope_theta": s.require("rope.freq_base"), "rope_type": "default"},
            "sliding_attention": {
                "rope_theta": s.get("rope.freq_base_swa", s.require("rope.freq_base")),
                "rope_type": "default",
            },
        },
    },
    names=EXPERTS,
    mlx=PLAIN_MLX,
)
_EXPORT_OLMOE = Export(
    "olmoe",
    "OlmoeForCausalLM",
    config={
        "mlp_bias": None,
        "num_experts": key("expert_count"),
        "num_experts_per_tok": key("expert_used_count"),
        "norm_topk_prob": lambda s: False,
        "clip_qkv": lambda s: s.get("attention.clamp_kqv"),
    },
    names=EXPERTS,
    mlx=PLAIN_MLX,
)

# ---- MiMo V2 ----------------------------------------------------------------------------------------------------


# The configs do not say it: every release has as many.
_MIMO_MTP = 3


def _mimo_mtp(config: Config) -> int:
    return _MIMO_MTP if config.mtp else 0


def _mimo_blocks(config: Config) -> int:
    return config.layers + _mimo_mtp(config)


def _mimo_pattern(config: Config) -> list[int]:
    """1 for a layer with a sliding window."""
    for name in ("head_dim", "num_attention_heads", "v_head_dim"):
        if config.require(f"swa_{name}") != config.require(name):
            raise ArchitectureError(
                f"config.json: 'swa_{name}' differs from {name!r}, which GGUF's mimo2 has no key for"
            )
    if config.require("topk_method") != "noaux_tc":
        raise ArchitectureError(
            f"config.json: 'topk_method' must be noaux_tc, not {printable(config.get('topk_method'))}"
        )
    return [*config.list("hybrid_layer_pattern", config.layers), *[1] * _mimo_mtp(config)]


def _mimo_kv_heads(config: Config) -> list[int]:
    everything, window = config.integer("num_key_value_heads"), config.integer("swa_num_key_value_heads")
    return [window if local == 1 else everything for local in _mimo_pattern(config)]


def _mimo_layers(s: Source) -> int:
    return s.layers - int(s.get("nextn_predict_layers", 0))


def _local(s: Source) -> list[int]:
    pattern = s.require("attention.sliding_window_pattern")
    return [int(bool(local)) for local in pattern[: _mimo_layers(s)]]


def _kv_heads_of(local: int) -> Setting:
    def find(s: Source) -> int:
        counts = s.require("attention.head_count_kv")
        if not isinstance(counts, list):
            return int(counts)
        return int(next((n for n, own in zip(counts, _local(s), strict=False) if own == local), counts[0]))

    return find


_EXPORT_MIMO = Export(
    "mimo_v2_flash",
    "MiMoV2FlashForCausalLM",
    config={
        "mlp_bias": None,
        "num_hidden_layers": _mimo_layers,
        "num_key_value_heads": _kv_heads_of(0),
        "swa_num_key_value_heads": _kv_heads_of(1),
        **dict.fromkeys(("num_attention_heads", "swa_num_attention_heads"), lambda s: s.heads),
        **dict.fromkeys(("head_dim", "swa_head_dim"), lambda s: s.head_dim),
        **dict.fromkeys(("v_head_dim", "swa_v_head_dim"), key("attention.value_length")),
        "layernorm_epsilon": key("attention.layer_norm_rms_epsilon"),
        "swa_rope_theta": key("rope.freq_base_swa", 10000.0),
        "partial_rotary_factor": lambda s: s.require("rope.dimension_count") / s.head_dim,
        "attention_value_scale": lambda s: s.get("attention.value_scale"),
        "sliding_window": key("attention.sliding_window"),
        "hybrid_layer_pattern": _local,
        "layer_types": lambda s: ["sliding_attention" if local else "full_attention" for local in _local(s)],
        "rope_parameters": lambda s: {
            kind: {
                "rope_type": "default",
                "rope_theta": theta,
                "partial_rotary_factor": s.require("rope.dimension_count") / s.head_dim,
            }
            for kind, theta in (
                ("full_attention", s.require("rope.freq_base")),
                ("sliding_attention", s.get("rope.freq_base_swa", 10000.0)),
            )
        },
        "moe_layer_freq": lambda s: [
            int(f"blk.{block}.ffn_gate_inp.weight" in s.tensors) for block in range(_mimo_layers(s))
        ],
        "add_swa_attention_sink_bias": lambda s: any(name.endswith("attn_sinks.weight") for name in s.tensors),
        "n_routed_experts": key("expert_count"),
        "num_experts_per_tok": key("expert_used_count"),
        "moe_intermediate_size": key("expert_feed_forward_length"),
        "n_group": key("expert_group_count", 1),
        "topk_group": key("expert_group_used_count", 1),
        "norm_topk_prob": lambda s: True,
        "scoring_func": lambda s: "sigmoid",
        "topk_method": lambda s: "noaux_tc",
    },
    names={
        **EXPERTS,
        "blk.{bid}.exp_probs_b.bias": "model.layers.{bid}.mlp.gate.e_score_correction_bias",
        "blk.{bid}.attn_sinks.weight": "model.layers.{bid}.self_attn.attention_sink_bias",
    },
    # Blocks that predict further tokens have names of their own, which llama.cpp counts in every file.
    when=lambda s: not any(name.startswith(f"blk.{_mimo_layers(s)}.") for name in s.tensors),
)
_EXPORT_HY = Export(
    "hy_v3",
    "HYV3ForCausalLM",
    config={
        "mlp_bias": None,
        "num_hidden_layers": lambda s: s.layers - int(s.get("nextn_predict_layers", 0)),
        "num_nextn_predict_layers": key("nextn_predict_layers", 0),
        "num_experts": key("expert_count"),
        "num_experts_per_tok": key("expert_used_count"),
        "moe_intermediate_size": key("expert_feed_forward_length"),
        "num_shared_experts": lambda s: (
            s.require("expert_shared_feed_forward_length") // s.natural("expert_feed_forward_length")
        ),
        "router_scaling_factor": key("expert_weights_scale", 1.0),
        "route_norm": key("expert_weights_norm", True),
        "first_k_dense_replace": lambda s: next(
            (block for block in range(s.layers) if f"blk.{block}.ffn_gate_inp.weight" in s.tensors), s.layers
        ),
    },
    names={
        **EXPERTS,
        "blk.{bid}.ffn_gate_inp": "model.layers.{bid}.mlp.router.gate",
        "blk.{bid}.exp_probs_b": "model.layers.{bid}.mlp.expert_bias",
        **{
            f"blk.{{bid}}.ffn_{part}_shexp": f"model.layers.{{bid}}.mlp.shared_mlp.{part}_proj"
            for part in ("gate", "up", "down")
        },
        **{
            f"blk.{{bid}}.nextn.{own}": f"model.layers.{{bid}}.{name}"
            for own, name in (
                *((part, part) for part in ("eh_proj", "enorm", "hnorm")),
                ("shared_head_norm", "final_layernorm"),
            )
        },
    },
    packs=False,  # transformers names the modules anew
)

MIMO2 = Architecture(
    name="mimo2",
    exports=(_EXPORT_MIMO,),
    graph=Graph(rope="neox", window_period=2, local_rope_scaled=False),
    models={"MiMoV2FlashForCausalLM": {}, "MiMoV2ForCausalLM": {}},
    metadata=(
        *base(uint("block_count", _mimo_blocks)),
        integers("attention.head_count_kv", _mimo_kv_heads),
        uint("attention.sliding_window", "sliding_window"),
        integers("attention.sliding_window_pattern", _mimo_pattern),
        uint("attention.value_length", "v_head_dim"),
        uint("expert_count", "n_routed_experts"),
        _EXPERT_LENGTH,
        uint(
            "rope.dimension_count",
            lambda config: int(config.integer("head_dim") * config.number("partial_rotary_factor")),
        ),
        real("attention.layer_norm_rms_epsilon", lambda config: config.get("layernorm_epsilon", default=1e-5)),
        real("attention.value_scale", "attention_value_scale", need=OPTIONAL),
        uint("nextn_predict_layers", lambda config: _mimo_mtp(config) or None),
    ),
    vocabulary=bpe,
    transforms=(
        mtp_blocks(r"mtp\."),
        rename((r"(attention_sink\w*)$", r"\1.weight")),
        *mlp_experts("n_routed_experts", parts=("gate", "up", "down")),
    ),
    blocks=_mimo_blocks,
)


def _exaone_blocks(config: Config) -> int:
    return config.layers + mtp_layers(config.with_mtp())


SPECS = (
    Architecture(
        name="minimax-m2",
        exports=(_EXPORT_MINIMAX,),
        graph=Graph(rope="neox"),
        models={"MiniMaxM2ForCausalLM": _DEFAULTS | {"max_position_embeddings": 196608, "rope_theta": 5e6}},
        metadata=(
            *BASE,
            uint("expert_feed_forward_length", "intermediate_size"),
            uint("rope.dimension_count", "rotary_dim"),
        ),
        vocabulary=bpe,
        transforms=w123_experts("block_sparse_moe", "model.layers.{layer}.block_sparse_moe.experts.{part}.weight"),
    ),
    Architecture(
        name="hy_v3",
        exports=(_EXPORT_HY,),
        graph=Graph(rope="neox", router_normalized=False),
        models={"HYV3ForCausalLM": {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 11158840.0}},
        metadata=(
            *base(uint("block_count", blocks_with_mtp)),
            _EXPERT_LENGTH,
            uint(
                "expert_shared_feed_forward_length",
                lambda config: config.integer("moe_intermediate_size") * config.get("num_shared_experts", default=1),
            ),
            flag("expert_weights_norm", lambda config: config.get("route_norm", default=True)),
            real("expert_weights_scale", lambda config: config.get("router_scaling_factor", default=1.0)),
            uint("expert_gating_func", lambda config: 2),
            _NEXTN,
        ),
        vocabulary=bpe,
        transforms=(trunk(blocks_with_mtp), rename((r"\.final_layernorm\.", ".shared_head.norm.")), *mlp_experts()),
        blocks=blocks_with_mtp,
    ),
    Architecture(
        name="exaone-moe",
        exports=(_EXPORT_EXAONE,),
        graph=Graph(rope="neox", rope_layers="local", window_period=4, router_normalized=False),
        models={"ExaoneMoEForCausalLM": _EXAONE, "ExaoneMoeForCausalLM": _EXAONE},
        metadata=(
            *base(uint("block_count", _exaone_blocks)),
            VOCAB_SIZE,
            uint("attention.sliding_window", "sliding_window", need=OPTIONAL),
            flags("attention.sliding_window_pattern", sliding_of),
            _EXPERT_LENGTH,
            uint("expert_shared_count", "num_shared_experts"),
            uint(
                "expert_shared_feed_forward_length",
                lambda config: config.integer("moe_intermediate_size") * config.integer("num_shared_experts"),
            ),
            real("expert_weights_scale", "routed_scaling_factor"),
            flag("expert_weights_norm", "norm_topk_prob"),
            uint(
                "leading_dense_block_count",
                lambda config: config.get("first_k_dense_replace", "first_last_k_dense_replace", default=0),
            ),
            uint("nextn_predict_layers", lambda config: config.get("num_nextn_predict_layers", default=0)),
            string("rope.scaling.type", "none"),
        ),
        vocabulary=bpe,
        transforms=(rope_freqs, mtp_blocks(), *mlp_experts()),
        blocks=_exaone_blocks,
    ),
    Architecture(
        name="mellum",
        exports=(_EXPORT_MELLUM,),
        graph=Graph(rope="neox", window_period=4, local_rope_scaled=False),
        models={"MellumForCausalLM": _DEFAULTS | {"max_position_embeddings": 131072}},
        metadata=(
            *BASE,
            uint("expert_feed_forward_length", "moe_intermediate_size", need=OPTIONAL),
            uint("attention.sliding_window", lambda config: config.get("sliding_window") if _windows(config) else None),
            flags(
                "attention.sliding_window_pattern",
                lambda config: (
                    [kind == "sliding_attention" for kind in config.list("layer_types")] if _windows(config) else None
                ),
            ),
        ),
        vocabulary=bpe,
        transforms=mlp_experts(),
    ),
    Architecture(
        name="olmoe",
        exports=(_EXPORT_OLMOE,),
        models={"OlmoeForCausalLM": _DEFAULTS | {"rms_norm_eps": 1e-5, "num_experts": 64, "num_experts_per_tok": 8}},
        metadata=(*BASE, real("attention.layer_norm_rms_epsilon", lambda config: 1e-5)),
        vocabulary=bpe,
        graph=Graph(rope="neox", router_normalized=False),
        transforms=mlp_experts(),
    ),
    MIMO2,
)


def _windows(config: Config) -> bool:
    return config.get("use_sliding_window", default=True) is True and "sliding_window" in config
