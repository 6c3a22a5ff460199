"""LFM2: layers of short convolutions, and a few of attention."""

from __future__ import annotations

from ggufkit.arch.metadata import VOCAB_SIZE, base, integers, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import reshape
from ggufkit.checkpoint.config import Config
from ggufkit.tokenizer.from_checkpoint.bpe import bpe


def _layer_types(config: Config) -> list[str]:
    types: list[str] | None = config.get("layer_types")
    if types is not None:
        return types
    attention = config.get("full_attn_idxs", default=list(range(config.layers)))
    return ["full_attention" if layer in attention else "conv" for layer in range(config.layers)]


def _kv_heads(config: Config) -> list[int]:
    """None in the layers of convolutions."""
    return [0 if kind == "conv" else config.kv_heads for kind in _layer_types(config)]


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

SPECS = (
    Architecture(
        name="lfm2",
        models={"Lfm2ForCausalLM": _DEFAULTS, "LFM2ForCausalLM": _DEFAULTS},
        metadata=(
            *base(integers("attention.head_count_kv", _kv_heads), uint("feed_forward_length", _feed_forward)),
            VOCAB_SIZE,
            uint("shortconv.l_cache", "conv_L_cache"),
            real("attention.layer_norm_rms_epsilon", "norm_eps"),
        ),
        vocabulary=bpe,
        # (channels, 1, kernel) → (channels, kernel)
        transforms=(reshape(r"conv\.conv\.weight$", lambda tensor, config: (tensor.shape[0], tensor.shape[-1])),),
    ),
)
