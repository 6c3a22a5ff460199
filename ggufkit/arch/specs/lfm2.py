"""LFM2: layers of short convolutions, and a few of attention."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import VOCAB_SIZE, Row, base, flag, integers, pooling, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.moe import w123_experts
from ggufkit.arch.transforms import drop, rename, squeezed
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


SPECS = (
    Architecture(
        name="lfm2",
        graph=Graph(rope="neox", output_norm="token_embd_norm"),
        models={"LFM2ForCausalLM": _DEFAULTS, "Lfm2ForCausalLM": _DEFAULTS},
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
