"""OLMo 2 and OLMo 3."""

from __future__ import annotations

from ggufkit.arch.export import POST_NORMS, Export, Source, key, rope_scaling
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, OPTIONAL, flags, uint
from ggufkit.arch.mlx import PLAIN_MLX
from ggufkit.arch.spec import Architecture
from ggufkit.checkpoint.config import Config
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

_OLMO2 = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "num_key_value_heads": lambda config: config.heads,
}
_OLMO3 = _OLMO2 | {"sliding_window": 4096}


def _sliding(config: Config) -> list[bool] | None:
    """Which layers have a sliding window: all but every fourth when the config does not say."""
    if "sliding_window" not in config:
        return None
    if (types := config.get("layer_types")) is not None:
        return [kind == "sliding_attention" for kind in types]
    return [(layer + 1) % 4 != 0 for layer in range(config.layers)]


def layer_types(s: Source) -> list[str]:
    """Which blocks have a sliding window, in the words of config.json."""
    pattern = s.require("attention.sliding_window_pattern")
    return ["sliding_attention" if sliding else "full_attention" for sliding in pattern]


def _ropes(s: Source) -> dict[str, object] | None:
    """Both ropes by name, where the base is not the class's own, which transformers takes for one of them then."""
    theta = s.get("rope.freq_base", 10000.0)
    if theta == 500000.0:
        return None
    plain = {"rope_type": "default", "rope_theta": theta}
    return {"full_attention": {**plain, **(rope_scaling(s) or {})}, "sliding_attention": plain}


_EXPORT_3 = Export(
    "olmo3",
    "Olmo3ForCausalLM",
    config={"sliding_window": key("attention.sliding_window"), "layer_types": layer_types, "rope_parameters": _ropes},
    names=POST_NORMS,
    mlx=PLAIN_MLX,
    when=lambda s: s.get("attention.sliding_window") is not None,
)

SPECS = (
    Architecture(
        name="olmo2",
        exports=(_EXPORT_3, Export("olmo2", "Olmo2ForCausalLM", names=POST_NORMS, mlx=PLAIN_MLX)),
        models={"Olmo2ForCausalLM": _OLMO2, "Olmo3ForCausalLM": _OLMO3},
        metadata=(
            *BASE,
            uint("attention.sliding_window", "sliding_window", need=OPTIONAL),
            flags("attention.sliding_window_pattern", _sliding),
        ),
        vocabulary=bpe,
        graph=Graph(rope="neox", window_period=4, local_rope_scaled=False),
    ),
)
