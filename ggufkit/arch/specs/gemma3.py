"""Gemma 3 and EmbeddingGemma: the text models."""

from __future__ import annotations

from dataclasses import replace

from ggufkit.arch.export import NAMES, Export, key, rope_scaling
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, Row, pooling, real, uint
from ggufkit.arch.mlx import PLAIN_MLX
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.gemma import EXPORTED, EXPORTED_NORMS, query_scale
from ggufkit.arch.specs.qwen2 import BARE
from ggufkit.arch.transforms import first_rows, norm_plus_one
from ggufkit.checkpoint.config import Config
from ggufkit.tokenizer.from_checkpoint.variants import GEMMA3

_DEFAULTS = {
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
    "head_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "vocab_size": 262208,
}


def _sliding_window(config: Config) -> int | None:
    return None if config.get("sliding_window_pattern") == 1 else config.integer("sliding_window")


KEYS: tuple[Row, ...] = (
    *BASE,
    real("final_logit_softcapping", lambda config: config.get("final_logit_softcapping") or None),
    uint("attention.sliding_window", _sliding_window),
)

# Embeddings without a token are left out.
first_tokens = first_rows(r"embed_tokens\.weight$", lambda config: range(config.integer("vocab_size")))
_TRANSFORMS = (BARE, first_tokens, norm_plus_one())

_EXPORT = Export(
    "gemma3_text",
    "Gemma3ForCausalLM",
    config={
        **EXPORTED,
        "rope_theta": key("rope.freq_base", 1e6),
        "rope_local_base_freq": key("rope.freq_base_swa", 10000.0),
        "sliding_window": key("attention.sliding_window", 1024),
        "sliding_window_pattern": lambda s: 6,
        "rope_scaling": rope_scaling,
        "query_pre_attn_scalar": query_scale(62),
    },
    names=EXPORTED_NORMS,
    norm_offset=1.0,
    wide=True,
    mlx=PLAIN_MLX,
)

SPECS = (
    Architecture(
        name="gemma3",
        exports=(_EXPORT,),
        models={"Gemma3ForCausalLM": _DEFAULTS, "Gemma3ForConditionalGeneration": _DEFAULTS},
        metadata=KEYS,
        vocabulary=GEMMA3,
        graph=Graph(
            rope="neox",
            activation="gelu",
            scaled_embedding=True,
            window_period=6,
            local_rope_base=10000.0,
            local_rope_scaled=False,
            scale_by_width=62,
        ),
        transforms=_TRANSFORMS,
    ),
    Architecture(
        name="gemma-embedding",
        exports=(
            replace(
                _EXPORT,
                model_class="Gemma3TextModel",
                config={**_EXPORT.config, "use_bidirectional_attention": lambda s: True},
                names={name: own.removeprefix("model.") for name, own in (NAMES | EXPORTED_NORMS).items()},
                mlx=None,
            ),
        ),
        graph=Graph(
            rope="neox",
            activation="gelu",
            scaled_embedding=True,
            window_period=6,
            local_rope_base=10000.0,
            local_rope_scaled=False,
            two_sided=True,
        ),
        models={"Gemma3TextModel": _DEFAULTS},
        metadata=(*KEYS, pooling),
        vocabulary=GEMMA3,
        transforms=_TRANSFORMS,
    ),
)
