"""Granite and Granite MoE: Llama with scales at the embedding, the residuals, the attention and the logits."""

from __future__ import annotations

from ggufkit.arch.export import Export, Setting, Source, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, KEY_LENGTH, VALUE_LENGTH, VOCAB_SIZE, Row, flags, real, uint
from ggufkit.arch.mlx import PLAIN_MLX, Mlx
from ggufkit.arch.rope_tensors import rope_freqs
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.llama import PERMUTED
from ggufkit.arch.transforms import rename, split_rows
from ggufkit.checkpoint.config import Config
from ggufkit.tokenizer.from_checkpoint.llama import llama_vocabulary

_DEFAULTS = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_key_value_heads": lambda config: config.heads,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
}
_MOE = _DEFAULTS | {"num_local_experts": 8, "num_experts_per_tok": 2}


def _factor(key: str, name: str) -> Row:
    """A factor that is left out when it is 0."""
    return real(key, lambda config: config.get(name) or None)


# A head's width always follows from the model's; configs that name one are not heeded.
KEYS: tuple[Row, ...] = (
    *(row for row in BASE if row not in (KEY_LENGTH, VALUE_LENGTH)),
    VOCAB_SIZE,
    uint("rope.dimension_count", lambda config: config.width // config.heads),
    _factor("attention.scale", "attention_multiplier"),
    _factor("embedding_scale", "embedding_multiplier"),
    _factor("residual_scale", "residual_multiplier"),
    _factor("logit_scale", "logits_scaling"),
)

FACTORS: dict[str, Setting] = {
    "embedding_multiplier": key("embedding_scale", 1.0),
    "residual_multiplier": key("residual_scale", 1.0),
    "attention_multiplier": key("attention.scale", 1.0),
    "logits_scaling": key("logit_scale", 1.0),
}
_EXPORT = Export(
    "granite",
    "GraniteForCausalLM",
    config=FACTORS,
    rotated=True,
    mlx=PLAIN_MLX,
)


def _export_moe(shared: bool) -> Export:
    """Granite MoE, with an expert for all tokens or without."""
    moe = "model.layers.{bid}.block_sparse_moe"
    fused = {f"{moe}.input_linear": ("blk.{bid}.ffn_gate_exps", "blk.{bid}.ffn_up_exps")}
    names = {
        "blk.{bid}.ffn_gate_inp": f"{moe}.router.layer",
        "blk.{bid}.ffn_down_exps": f"{moe}.output_linear",
    }
    config: dict[str, Setting | None] = {
        **FACTORS,
        "mlp_bias": None,
        "head_dim": None,
        "num_local_experts": key("expert_count"),
        "num_experts_per_tok": key("expert_used_count"),
    }
    if not shared:
        own = {f"blk.{{bid}}.ffn_{part}_exps": f"{moe}.switch_mlp.{part}_proj" for part in ("gate", "up", "down")}
        return Export(
            "granitemoe", "GraniteMoeForCausalLM", config, names, fused=fused, rotated=True, mlx=Mlx(names=own)
        )
    mlp = "model.layers.{bid}.shared_mlp"
    return Export(
        "granitemoeshared",
        "GraniteMoeSharedForCausalLM",
        {**config, "shared_intermediate_size": key("expert_shared_feed_forward_length")},
        {**names, "blk.{bid}.ffn_down_shexp": f"{mlp}.output_linear"},
        fused={**fused, f"{mlp}.input_linear": ("blk.{bid}.ffn_gate_shexp", "blk.{bid}.ffn_up_shexp")},
        rotated=True,
        when=_has_shared,
    )


def _has_shared(s: Source) -> bool:
    return bool(s.get("expert_shared_feed_forward_length"))


MOE_NAMES = {
    f"model.layers.{{bid}}.{mlp}.{part}.weight": f"blk.{{bid}}.ffn_{part}_{end}.weight"
    for mlp, end in (("block_sparse_moe", "exps"), ("shared_mlp", "shexp"))
    for part in ("gate", "up")
}


def _sliding(config: Config) -> list[bool]:
    if "layer_types" in config:
        return [kind == "sliding_attention" for kind in config.list("layer_types", config.layers)]
    return [layer % 4 != 0 for layer in range(config.layers)]


def _turning(config: Config) -> list[bool] | None:
    return [bool(turns) for turns in config.list("no_rope_layers")] if config.get("no_rope_layers") else None


_SWA_KEYS: tuple[Row, ...] = (
    *KEYS,
    uint("attention.sliding_window", lambda config: config.get("sliding_window", default=128)),
    flags("attention.sliding_window_pattern", _sliding),
    flags("attention.rope_pattern", _turning),
)

# Dense models; those with experts have them and their gates in one, and are known from code of their own.
_EXPORT_SWA = Export(
    "granite_swa",
    "GraniteSWAForCausalLM",
    config={
        **FACTORS,
        "head_dim": None,
        "sliding_window": key("attention.sliding_window"),
        "layer_types": lambda s: [
            f"{'sliding' if sliding else 'full'}_attention" for sliding in s.require("attention.sliding_window_pattern")
        ],
        "layer_rope_theta": lambda s: [s.get("rope.freq_base", 10000.0)] * s.layers,
        "no_rope_layers": lambda s: [int(turns) for turns in s.get("attention.rope_pattern") or ()] or None,
    },
    names={"blk.{bid}.attn_sinks.weight": "model.layers.{bid}.self_attn.sinks"},
    rotated=True,
    when=lambda s: not s.get("expert_count"),
)

SPECS = (
    Architecture(
        name="granite",
        exports=(_EXPORT,),
        models={"GraniteForCausalLM": _DEFAULTS},
        metadata=KEYS,
        vocabulary=llama_vocabulary,
        graph=Graph(),
        transforms=(*PERMUTED, rope_freqs),
    ),
    Architecture(
        name="granitemoe",
        exports=(_export_moe(True), _export_moe(False)),
        models={
            "GraniteMoeForCausalLM": _MOE,
            "GraniteMoeSharedForCausalLM": _MOE | {"shared_intermediate_size": 0},
        },
        metadata=(
            *KEYS,
            uint("expert_shared_feed_forward_length", lambda config: config.get("shared_intermediate_size") or None),
        ),
        vocabulary=llama_vocabulary,
        graph=Graph(),
        transforms=(
            *PERMUTED,
            rope_freqs,
            split_rows(r"input_linear(?=\.weight$)", "gate", "up"),
        ),
        names=MOE_NAMES,
    ),
    Architecture(
        name="granite_swa",
        exports=(_EXPORT_SWA,),
        graph=Graph(window_period=2),
        models={"GraniteSWAForCausalLM": _DEFAULTS | {"max_position_embeddings": 8192, "rms_norm_eps": 1e-5}},
        metadata=_SWA_KEYS,
        vocabulary=llama_vocabulary,
        transforms=(*PERMUTED, rope_freqs, rename((r"sinks$", "sinks.weight"))),
    ),
    Architecture(
        name="granite_swa",
        graph=Graph(window_period=2),
        models={"GraniteMoeSWAForCausalLM": _DEFAULTS},
        metadata=(
            *_SWA_KEYS,
            uint("expert_shared_feed_forward_length", lambda config: config.get("shared_intermediate_size") or None),
        ),
        vocabulary=llama_vocabulary,
        # Experts and the shared one keep gate and up in one.
        transforms=(
            *PERMUTED,
            rope_freqs,
            rename(
                (r"sinks$", "sinks.weight"),
                (r"block_sparse_moe\.experts\.(gate_up|down)_proj$", r"block_sparse_moe.experts.\1_proj.weight"),
            ),
        ),
        names={
            f"model.layers.{{bid}}.{name}.weight": f"blk.{{bid}}.{target}.weight"
            for name, target in (
                ("block_sparse_moe.experts.gate_up_proj", "ffn_gate_up_exps"),
                ("block_sparse_moe.input_linear", "ffn_gate_up_exps"),
                ("block_sparse_moe.experts.down_proj", "ffn_down_exps"),
                ("shared_mlp.input_linear", "ffn_up_shexp"),
                ("shared_mlp.output_linear", "ffn_down_shexp"),
            )
        },
    ),
)
