"""Hunyuan: the dense models, those that see, and the mixtures of experts that come with a tokenizer.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ggufkit.arch.export import EXPERTS, Export, Setting, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, Row, base, integers, real, rope_parameters, string, uint
from ggufkit.arch.mlx import PLAIN_MLX
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import mlp_experts, untied
from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config, text_model
from ggufkit.errors import ArchitectureError
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.tiktoken import hunyuan_ranks
from ggufkit.tokenizer.from_checkpoint.tokens import first_of

_DEFAULTS = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "head_dim": lambda c: c.width // c.heads,
}

_LONG = 256 * 1024  # what dynamic scaling with their alpha is good for; configs have other numbers


def _kind(config: Config) -> str | None:
    result: str | None = rope_parameters(config)["rope_type"]
    return result


def _dynamic(config: Config) -> bool:
    """Whether rope is stretched by a larger base: base · alpha^(d / (d − 2))."""
    if _kind(config) != "dynamic":
        return _kind(config) == "xdrope"
    base, context = rope_parameters(config)["rope_theta"], config.get("max_position_embeddings")
    if base not in (None, 10000.0) or context not in (32 * 1024, _LONG):
        raise ArchitectureError(
            f"config.json: dynamic rope of base {base} and {context} positions is not that of a known Hunyuan"
        )
    return True


def _stretched(config: Config) -> float | None:
    if not _dynamic(config):
        return None
    settings = rope_parameters(config)
    alpha, base, head = settings.get("alpha", 50), settings["rope_theta"] or 10000.0, config.integer("head_dim")
    if not isinstance(alpha, (int, float)) or not 0 < alpha < 1e9 or head < 3:
        raise ArchitectureError(f"config.json: rope scaling by alpha {alpha} for heads of {head}")
    result: float | None = base * (alpha ** (head / (head - 2)))
    return result


def _if_dynamic(value: int) -> Callable[[Config], int | None]:
    return lambda config: value if _kind(config) == "dynamic" and _dynamic(config) else None


_SCALING: tuple[Row, ...] = (
    real("rope.freq_base", _stretched),
    string("rope.scaling.type", lambda config: "none" if _dynamic(config) else None),
    real("rope.scaling.factor", lambda config: 1 if _dynamic(config) else None),
    uint("rope.scaling.original_context_length", _if_dynamic(_LONG)),
    uint("context_length", _if_dynamic(_LONG)),
)


def _vocabulary(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """Byte-level BPE whose end is config.json's `eod_token_id`, and whose turns end with generation_config.json's."""
    settings = text_model(checkpoint.config)
    unpadded = type(pad := settings.get("pad_token_id")) is int and pad < 0
    for name, value in bpe(checkpoint, config):
        if not (unpadded and name == "tokenizer.ggml.padding_token_id"):
            yield name, value
    if type(end := settings.get("eod_token_id")) is int:
        yield "tokenizer.ggml.eos_token_id", Value(ValueType.UINT32, end)
    ends = (checkpoint.json("generation_config.json") or {}).get("eos_token_id")
    if isinstance(ends, list) and len(ends) >= 2:
        yield "tokenizer.ggml.eot_token_id", Value(ValueType.UINT32, ends[0])


# A dense model may say that it has one expert.
_NO_EXPERTS = uint("expert_count", lambda config: config.get("num_local_experts", "n_routed_experts"))


def _if_xdrope(find: Callable[[Config, dict[str, Any]], Any]) -> Callable[[Config], Any]:
    """Values of a model whose positions have three directions; transformers 5 calls that dynamic with sections."""

    def value(config: Config) -> Any:
        settings = rope_parameters(config)
        sections = settings.get("xdrope_section") or settings.get("mrope_section")
        if not (settings["rope_type"] == "xdrope" or (settings["rope_type"] == "dynamic" and sections)):
            return None
        return find(config, settings | {"xdrope_section": sections})

    return value


_XDROPE: tuple[Row, ...] = (
    real("rope.freq_base", _if_xdrope(lambda config, settings: settings["rope_theta"])),
    string("rope.scaling.type", _if_xdrope(lambda config, settings: "none")),
    real("rope.scaling.factor", _if_xdrope(lambda config, settings: settings.get("factor", 1))),
    real("rope.scaling.alpha", _if_xdrope(lambda config, settings: Config(settings).number("alpha"))),
    uint("rope.scaling.original_context_length", _if_xdrope(lambda c, settings: c.integer("max_position_embeddings"))),
    uint("context_length", _if_xdrope(lambda c, settings: c.integer("max_position_embeddings"))),
    integers("rope.dimension_sections", _if_xdrope(lambda config, settings: settings["xdrope_section"])),
)

_EXPORT = Export(
    "hunyuan_v1_dense",
    "HunYuanDenseV1ForCausalLM",
    config={"mlp_bias": None},
    names={
        "blk.{bid}.attn_q_norm": "model.layers.{bid}.self_attn.query_layernorm",
        "blk.{bid}.attn_k_norm": "model.layers.{bid}.self_attn.key_layernorm",
    },
    mlx=PLAIN_MLX,
)


_SHARED = {
    f"blk.{{bid}}.ffn_{part}_shexp": f"model.layers.{{bid}}.mlp.shared_mlp.{part}_proj"
    for part in ("gate", "up", "down")
}


def _for_each(name: str) -> Setting:
    """A number that config.json says for each layer."""
    return lambda s: [s.require(name)] * s.layers


_EXPORT_MOE = Export(
    "hunyuan_v1_moe",
    "HunYuanMoEV1ForCausalLM",
    config={
        "mlp_bias": None,
        "num_experts": key("expert_count"),
        "moe_topk": _for_each("expert_used_count"),
        "moe_intermediate_size": _for_each("expert_feed_forward_length"),
        "num_shared_expert": _for_each("expert_shared_count"),
        "use_qk_norm": lambda s: True,
    },
    names={
        **_EXPORT.names,
        **_SHARED,
        **EXPERTS,
        "blk.{bid}.ffn_gate_inp": "model.layers.{bid}.mlp.gate.wg",
    },
)


def _each(name: str) -> Callable[[Config], int]:
    """What config.json says for each layer, and must be the same for all."""

    def one(config: Config) -> int:
        values = config.list(name)
        if not values or any(value != values[0] for value in values):
            raise ArchitectureError(f"config.json: {name!r} differs from layer to layer")
        return values[0]  # type: ignore[no-any-return]

    return one


def _moe_stretched(config: Config) -> float | None:
    """As `_stretched`, of an architecture that always means the same base, alpha and heads."""
    if _kind(config) != "dynamic":
        return None
    settings, head = rope_parameters(config), config.width // config.heads
    alpha, base = settings.get("alpha", 1000), settings["rope_theta"] or 10000.0
    if (alpha, base, head) != (1000, 10000.0, 128) or config.get("max_position_embeddings") not in (32 * 1024, _LONG):
        raise ArchitectureError(
            f"config.json: dynamic rope by alpha {alpha} of base {base} is not that of a known Hunyuan"
        )
    result: float = base * (alpha ** (head / (head - 2)))
    return result


SPECS = (
    Architecture(
        name="hunyuan-moe",
        exports=(_EXPORT_MOE,),
        graph=Graph(rope="neox", late_norm=True),
        models={"HunYuanMoEV1ForCausalLM": {}},
        metadata=(
            *BASE,
            uint("expert_shared_feed_forward_length", "intermediate_size"),
            uint("expert_feed_forward_length", _each("moe_intermediate_size")),
            uint("expert_used_count", _each("moe_topk")),
            uint("expert_shared_count", _each("num_shared_expert")),
            real("rope.freq_base", _moe_stretched),
            string("rope.scaling.type", lambda config: "none" if _kind(config) == "dynamic" else None),
            real("rope.scaling.factor", lambda config: 1 if _kind(config) == "dynamic" else None),
            uint("rope.scaling.original_context_length", _if_dynamic(_LONG)),
            uint("context_length", _if_dynamic(_LONG)),
        ),
        vocabulary=first_of(hunyuan_ranks, bpe),
        transforms=(untied(r"^lm_head\.weight$"), *mlp_experts("num_local_experts", "num_experts")),
    ),
    Architecture(
        name="hunyuan-dense",
        exports=(_EXPORT,),
        graph=Graph(rope="neox", late_norm=True),
        models={"HunYuanDenseV1ForCausalLM": _DEFAULTS},
        metadata=(*base(_NO_EXPERTS), *_SCALING),
        vocabulary=_vocabulary,
        transforms=(untied(),),
    ),
    Architecture(
        name="hunyuan_vl",
        graph=Graph(rope="neox", late_norm=True),
        models={"HunYuanVLForConditionalGeneration": _DEFAULTS},
        metadata=(*base(_NO_EXPERTS), *_XDROPE),
        vocabulary=_vocabulary,
        transforms=(untied(),),
    ),
)
