"""EXAONE 3, 3.5 and 4."""

from __future__ import annotations

from ggufkit.arch.export import COMMON, NULL, POST_NORMS, Export, Source, key, rope_scaling
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, OPTIONAL, VOCAB_SIZE, base, flags, mtp_layers, real, rope_parameters, uint
from ggufkit.arch.mlx import Mlx
from ggufkit.arch.rope_tensors import rope_freqs
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import mtp_blocks
from ggufkit.checkpoint.config import Config
from ggufkit.tokenizer.from_checkpoint.bpe import bpe


def _rotated(config: Config) -> int:
    factor = rope_parameters(config)["partial_rotary_factor"]
    return int((1.0 if factor is None else factor) * (config.width // config.heads))


def sliding_of(config: Config) -> list[bool] | None:
    """Which layers have a sliding window: by name, or by a pattern, "LLLG" or 4 (all but every fourth)."""
    if "sliding_window" not in config:
        return None
    if (types := config.get("layer_types")) is not None:
        return [kind == "sliding_attention" for kind in types]
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, str) and pattern:
        return [pattern[layer % len(pattern)] == "L" for layer in range(config.layers)]
    if isinstance(pattern, int) and pattern:
        return [(layer + 1) % pattern != 0 for layer in range(config.layers)]
    return None


def _all_blocks(config: Config) -> int:
    return config.layers + mtp_layers(config.with_mtp())


def _types(s: Source) -> list[str] | None:
    if (pattern := s.get("attention.sliding_window_pattern")) is None:
        return None
    return ["sliding_attention" if sliding else "full_attention" for sliding in pattern]


_EXPORT_4 = Export(
    "exaone4",
    "Exaone4ForCausalLM",
    config={
        "attention_bias": None,
        "mlp_bias": None,
        "sliding_window": lambda s: s.get("attention.sliding_window"),
        "layer_types": _types,
    },
    names=POST_NORMS,
    mlx=Mlx(
        config={
            "rope_scaling": lambda s: rope_scaling(s) or NULL,
            "sliding_window": lambda s: s.get("attention.sliding_window") or NULL,
            "sliding_window_pattern": lambda s: "LLLG" if s.layers == 64 else NULL,
        }
    ),
)

_BLOCK = "transformer.h.{bid}"
_EXPORT_3 = Export(
    "exaone",
    "ExaoneForCausalLM",
    config={
        **dict.fromkeys(("num_hidden_layers", "hidden_act", "attention_bias", "mlp_bias")),
        "num_layers": COMMON["num_hidden_layers"],
        "activation_function": lambda s: "silu",
        **dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon"), key("attention.layer_norm_rms_epsilon")),
        "head_dim": lambda s: s.head_dim if s.get("attention.key_length") else None,
    },
    names={
        "token_embd": "transformer.wte",
        "output_norm": "transformer.ln_f",
        **{f"blk.{{bid}}.attn_{part}": f"{_BLOCK}.attn.attention.{part}_proj" for part in "qkv"},
        "blk.{bid}.attn_output": f"{_BLOCK}.attn.attention.out_proj",
        "blk.{bid}.attn_norm": f"{_BLOCK}.ln_1",
        "blk.{bid}.ffn_norm": f"{_BLOCK}.ln_2",
        "blk.{bid}.ffn_gate": f"{_BLOCK}.mlp.c_fc_0",
        "blk.{bid}.ffn_up": f"{_BLOCK}.mlp.c_fc_1",
        "blk.{bid}.ffn_down": f"{_BLOCK}.mlp.c_proj",
    },
)

SPECS = (
    Architecture(
        name="exaone",
        exports=(_EXPORT_3,),
        models={"ExaoneForCausalLM": {}},
        # The norms are RMS norms, though the config has their epsilon as layer_norm_epsilon.
        metadata=(
            *BASE,
            uint("rope.dimension_count", _rotated),
            real("attention.layer_norm_rms_epsilon", "rms_norm_eps", "layer_norm_epsilon"),
        ),
        vocabulary=bpe,
        graph=Graph(rope="neox"),
        transforms=(rope_freqs,),
    ),
    Architecture(
        name="exaone4",
        exports=(_EXPORT_4,),
        graph=Graph(rope="neox", rope_layers="local", window_period=4, window_layers=64),
        models={
            "Exaone4ForCausalLM": {
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0,
                "num_key_value_heads": 32,
                "sliding_window": 4096,
                "sliding_window_pattern": 4,
            }
        },
        metadata=(
            *BASE,
            VOCAB_SIZE,
            uint("attention.sliding_window", "sliding_window", need=OPTIONAL),
            flags("attention.sliding_window_pattern", sliding_of),
        ),
        vocabulary=bpe,
        transforms=(rope_freqs,),
    ),
    Architecture(
        name="exaone4",
        models={"Exaone4_5_ForConditionalGeneration": {}},
        metadata=(
            *base(uint("block_count", _all_blocks)),
            VOCAB_SIZE,
            uint("attention.sliding_window", "sliding_window", need=OPTIONAL),
            flags("attention.sliding_window_pattern", sliding_of),
            uint("nextn_predict_layers", lambda config: mtp_layers(config.with_mtp()) or None),
        ),
        vocabulary=bpe,
        transforms=(rope_freqs, mtp_blocks()),
        blocks=_all_blocks,
    ),
)
