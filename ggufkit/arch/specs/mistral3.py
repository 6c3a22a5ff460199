"""Mistral Small 3.x and Ministral 3: Llama with yarn and queries that grow with the position.

Mistral 4 is built like DeepSeek V2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ggufkit.arch.export import Export, Source, rope_scaling
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, ROPE_DIMENSIONS, VOCAB_SIZE, real, rope_parameters
from ggufkit.arch.mlx import Mlx
from ggufkit.arch.rope_tensors import rope_freqs
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.llama import PERMUTED
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError
from ggufkit.tokenizer.from_checkpoint.llama import llama_vocabulary

_DEFAULTS = {
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "num_key_value_heads": 8,
    "head_dim": lambda config: config.width // config.heads,
}


def _of_ministral(name: str) -> Callable[[Config], float | None]:
    def find(config: Config) -> float | None:
        if config.get("model_type") != "ministral3":
            return None
        settings = rope_parameters(config)
        if settings["rope_type"] != "yarn" or not isinstance(settings.get(name), (int, float)):
            raise ArchitectureError(f"config.json: a ministral3 needs yarn rope with {name!r}")
        result: float | None = settings[name]
        return result

    return find


def _yarn(s: Source) -> dict[str, Any] | None:
    """The settings of yarn with those that Ministral has beside them."""
    scaling = rope_scaling(s)
    if scaling is None or s.get("attention.temperature_scale") is None:
        return scaling
    return {
        **scaling,
        "type": "yarn",
        "mscale": 1.0,
        "mscale_all_dim": s.require("rope.scaling.yarn_log_multiplier"),
        "llama_4_scaling_beta": s.require("attention.temperature_scale"),
    }


def _parameters(s: Source) -> dict[str, Any]:
    return {**(_yarn(s) or {}), "rope_theta": s.get("rope.freq_base", 10000.0)}


_EXPORT = Export(
    "ministral3",
    "Ministral3ForCausalLM",
    config={"attention_bias": None, "mlp_bias": None, "rope_scaling": _yarn},
    rotated=True,
    when=lambda s: s.get("attention.temperature_scale") is not None,
    mlx=Mlx(config={"rope_parameters": _parameters}),
)

# Mistral Small's text model. transformers takes it for Mistral's by its type, vLLM by either name.
_EXPORT_SMALL = Export(
    "mistral",
    "Ministral3ForCausalLM",
    config={"attention_bias": None, "mlp_bias": None},
    rotated=True,
    when=lambda s: s.get("attention.temperature_scale") is None,
)

SPECS = (
    Architecture(
        name="mistral3",
        exports=(_EXPORT, _EXPORT_SMALL),
        models={
            "Ministral3ForCausalLM": _DEFAULTS | {"max_position_embeddings": 262144},
            "Mistral3ForConditionalGeneration": _DEFAULTS,
        },
        metadata=(
            *BASE,
            VOCAB_SIZE,
            ROPE_DIMENSIONS,
            real("rope.scaling.yarn_log_multiplier", _of_ministral("mscale_all_dim")),
            real("attention.temperature_scale", _of_ministral("llama_4_scaling_beta")),
        ),
        vocabulary=llama_vocabulary,
        graph=Graph(),
        transforms=(*PERMUTED, rope_freqs),
        when=lambda config: config.get("model_type") != "mistral4",
    ),
)
