"""LFM2: layers of short convolutions, and a few of attention."""

from __future__ import annotations

from ggufkit.arch.export import W123_EXPERTS, Export, Setting, Source, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import VOCAB_SIZE, Row, base, flag, integers, pooling, real, uint
from ggufkit.arch.mlx import PLAIN_MLX, Mlx
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.moe import w123_experts
from ggufkit.arch.transforms import drop, rename, squeezed
from ggufkit.arch.undo import one_channel
from ggufkit.checkpoint.config import Config
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.tokens import none


def _layer_types(config: Config) -> list[str]:
    types: list[str] | None = config.get("layer_types")
    if types is not None:
        return types
    attention = config.get("full_attn_idxs", default=list(range(config.layers)))
    return ["full_attention" if layer in attention else "conv" for layer in range(config.layers)]


def _kv_heads(config: Config) -> list[int]:
    """None in the layers of convolutions."""
    return [0 if kind == "conv" else config.kv_heads for kind in _layer_types(config)]


def _attention_only(config: Config) -> list[int]:
    return [config.kv_heads if kind == "full_attention" else 0 for kind in config.list("layer_types", config.layers)]


def _feed_forward(config: Config) -> int:
    """Two thirds of what the config says, times a factor, up to the next multiple."""
    length = config.integer("block_ff_dim", "intermediate_size")
    if config.get("block_auto_adjust_ff_dim"):
        length = int(2 * length / 3)
        if (factor := config.get("block_ffn_dim_multiplier")) is not None:
            length = int(factor * length)
        multiple = config.integer("block_multiple_of")
        length = -(length // -multiple) * multiple
    return length


_DEFAULTS = {
    "max_position_embeddings": 128000,
    "norm_eps": 1e-5,
    "rope_theta": 1e6,
    "num_key_value_heads": 8,
    "conv_L_cache": 3,
    "block_multiple_of": 256,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
}
_MOE = {
    "max_position_embeddings": 128000,
    "norm_eps": 1e-5,
    "rope_theta": 1e6,
    "num_key_value_heads": 8,
    "conv_L_cache": 3,
}

_SHARED: tuple[Row, ...] = (VOCAB_SIZE, uint("shortconv.l_cache", "conv_L_cache"))
_KEYS: tuple[Row, ...] = (
    *base(integers("attention.head_count_kv", _kv_heads), uint("feed_forward_length", _feed_forward)),
    *_SHARED,
    real("attention.layer_norm_rms_epsilon", "norm_eps"),
)
_CONV = squeezed(r"conv\.conv\.weight$")


def _causal(config: Config) -> bool | None:
    names = config.get("architectures", default=[])
    return False if {"Lfm2BidirectionalModel", "Lfm2BidirectionalForMaskedLM"}.intersection(names) else None


# ---- the way back ----


def _kinds(s: Source) -> list[str]:
    return ["full_attention" if heads else "conv" for heads in s.require("attention.head_count_kv")]


_LFM2_CONFIG: dict[str, Setting | None] = {
    **dict.fromkeys(("rms_norm_eps", "attention_bias", "mlp_bias", "hidden_act", "head_dim")),
    "norm_eps": key("attention.layer_norm_rms_epsilon"),
    "conv_L_cache": key("shortconv.l_cache"),
    "conv_bias": lambda s: False,
    "layer_types": _kinds,
}
_LFM2_NAMES = {
    "token_embd_norm": "model.embedding_norm",
    **{
        f"blk.{{bid}}.{own}": f"model.layers.{{bid}}.{name}"
        for own, name in {
            "attn_norm": "operator_norm",
            "attn_output": "self_attn.out_proj",
            "attn_q_norm": "self_attn.q_layernorm",
            "attn_k_norm": "self_attn.k_layernorm",
            "ffn_norm": "ffn_norm",
            "ffn_gate": "feed_forward.w1",
            "ffn_down": "feed_forward.w2",
            "ffn_up": "feed_forward.w3",
            "shortconv.conv": "conv.conv",
            "shortconv.in_proj": "conv.in_proj",
            "shortconv.out_proj": "conv.out_proj",
        }.items()
    },
}
_EXPORT = Export(
    "lfm2",
    "Lfm2ForCausalLM",
    config={
        **_LFM2_CONFIG,
        "full_attn_idxs": lambda s: [i for i, kind in enumerate(_kinds(s)) if kind == "full_attention"],
        "block_ff_dim": key("feed_forward_length"),
        "block_dim": lambda s: s.width,
        "block_multiple_of": lambda s: 256,
        "block_ffn_dim_multiplier": lambda s: 1.0,
        "block_auto_adjust_ff_dim": lambda s: False,
    },
    names=_LFM2_NAMES,
    undo={".shortconv.conv": one_channel},
    mlx=PLAIN_MLX,
)
_EXPORT_MOE = Export(
    "lfm2_moe",
    "Lfm2MoeForCausalLM",
    config={
        **_LFM2_CONFIG,
        "num_experts": key("expert_count"),
        "num_experts_per_tok": key("expert_used_count"),
        "moe_intermediate_size": key("expert_feed_forward_length"),
        "num_dense_layers": key("leading_dense_block_count"),
        "norm_topk_prob": lambda s: True,
        "use_expert_bias": lambda s: True,
        "routed_scaling_factor": lambda s: 1.0,
    },
    names={
        **_LFM2_NAMES,
        **{gguf: name.replace("block_sparse_moe", "feed_forward") for gguf, name in W123_EXPERTS.items()},
        "blk.{bid}.exp_probs_b.bias": "model.layers.{bid}.feed_forward.expert_bias",
    },
    undo={".shortconv.conv": one_channel},
    mlx=Mlx(
        names={
            f"blk.{{bid}}.ffn_{part}": f"model.layers.{{bid}}.feed_forward.{part}_proj"
            for part in ("gate", "down", "up")
        }
    ),
)

SPECS = (
    Architecture(
        name="lfm2",
        graph=Graph(rope="neox", output_norm="token_embd_norm"),
        models={"LFM2ForCausalLM": _DEFAULTS, "Lfm2ForCausalLM": _DEFAULTS},
        exports=(_EXPORT,),
        metadata=_KEYS,
        vocabulary=bpe,
        transforms=(rename((r"lfm\.", "model.")), _CONV),
    ),
    Architecture(
        name="lfm2",
        graph=Graph(rope="neox", output_norm="token_embd_norm"),
        models=dict.fromkeys(("Lfm2BidirectionalForMaskedLM", "Lfm2BidirectionalModel", "Lfm2Model"), _DEFAULTS),
        metadata=(*_KEYS, flag("attention.causal", _causal), pooling),
        vocabulary=bpe,
        transforms=(rename((r"^lfm2\.", ""), (r"^(?!dense_2\.)", "model.")), _CONV),
    ),
    Architecture(
        name="lfm2",
        models={"Lfm25AudioTokenizer": _DEFAULTS},
        metadata=(
            *_KEYS,
            uint("attention.sliding_window", "sliding_window"),
            uint("embedding_length_out", "output_size"),
        ),
        vocabulary=none,
        transforms=(
            drop(r"^(istft\.window$|emb\.emb)"),
            rename((r"^lin", "dense_2_out"), (r"lfm\.", "model.")),
            _CONV,
        ),
    ),
    Architecture(
        name="lfm2moe",
        graph=Graph(rope="neox", output_norm="token_embd_norm"),
        models={"Lfm2MoeForCausalLM": _MOE},
        exports=(_EXPORT_MOE,),
        metadata=(
            *base(integers("attention.head_count_kv", _attention_only)),
            uint("expert_feed_forward_length", "moe_intermediate_size"),
            uint("leading_dense_block_count", "num_dense_layers"),
            uint("expert_gating_func", lambda config: 2),
            *_SHARED,
        ),
        vocabulary=bpe,
        transforms=(
            rename((r"\.expert_bias$", ".expert_bias.bias")),
            _CONV,
            *w123_experts("feed_forward"),
        ),
    ),
)
