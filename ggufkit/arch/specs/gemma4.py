"""Gemma 3n and Gemma 4."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from statistics import NormalDist
from typing import Any

from ggufkit.arch.export import POST_NORMS, Export, Setting, Source, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import Row, flags, integers, reals, uint
from ggufkit.arch.mlx import PLAIN_MLX, Mlx
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.gemma3 import KEYS, first_tokens
from ggufkit.arch.transforms import rename, stack
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, printable
from ggufkit.gguf.header import Value
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import padded_rows, vector
from ggufkit.tokenizer.from_checkpoint.variants import GEMMA3, gemma4

_DEFAULTS = {"max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "num_attention_heads": 8, "head_dim": 256}


def _sliding(config: Config) -> list[bool]:
    return [kind == "sliding_attention" for kind in config.list("layer_types", config.layers)]


def _layer_types(s: Source) -> list[str]:
    pattern = s.require("attention.sliding_window_pattern")
    if not isinstance(pattern, list) or len(pattern) != s.layers:
        raise ArchitectureError(f"{s.architecture}.attention.sliding_window_pattern must name {s.layers} layers")
    return ["sliding_attention" if local else "full_attention" for local in pattern]


def _rope(s: Source, full: dict[str, Any]) -> dict[str, Any]:
    """Settings of layers that see everything, over those that all have, and of the others."""
    default = {"rope_type": "default"}
    return {
        "full_attention": {**default, "rope_theta": s.get("rope.freq_base", 1e6), **full},
        "sliding_attention": {**default, "rope_theta": s.get("rope.freq_base_swa", 10000.0)},
    }


def _rows(s: Source, name: str) -> int | None:
    return s.tensors[name].rows if name in s.tensors else None


# What config.json says of both, and what they have names of.
_EXPORTED: dict[str, Setting | None] = {
    "hidden_act": None,
    "hidden_activation": lambda s: "gelu_pytorch_tanh",
    "mlp_bias": None,
    "rope_theta": None,
    "rope_scaling": None,
    "layer_types": _layer_types,
    "sliding_window": key("attention.sliding_window"),
    "final_logit_softcapping": lambda s: s.get("final_logit_softcapping"),
    "num_kv_shared_layers": key("attention.shared_kv_layers", 0),
    "hidden_size_per_layer_input": key("embedding_length_per_layer_input", 0),
    "vocab_size_per_layer_input": lambda s: _rows(s, "per_layer_token_embd.weight"),
}
_EXPORTED_NAMES = {
    **POST_NORMS,
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
    "blk.{bid}.ffn_norm": "model.layers.{bid}.pre_feedforward_layernorm",
    "blk.{bid}.inp_gate": "model.layers.{bid}.per_layer_input_gate",
    "blk.{bid}.proj": "model.layers.{bid}.per_layer_projection",
    "blk.{bid}.post_norm": "model.layers.{bid}.post_per_layer_input_norm",
}


# ---- Gemma 3n ---------------------------------------------------------------------------------------------------


def _sparsity(config: Config) -> list[float]:
    """For each layer the number of standard deviations above which a gate passes; −∞ where all do."""
    import numpy as np

    scales = []
    for share in config.list("activation_sparsity_pattern", config.layers):
        if not isinstance(share, (int, float)) or not 0 <= share < 1:
            raise ArchitectureError(f"config.json: 'activation_sparsity_pattern' holds {printable(repr(share))}")
        scales.append(float(np.float32(NormalDist().inv_cdf(share))) if share else float("-inf"))
    return scales


def _four_streams(config: Config) -> int:
    if (number := config.integer("altup_num_inputs")) != 4:
        raise ArchitectureError(f"config.json: 'altup_num_inputs' is {number}; llama.cpp runs models of 4")
    return number


def _all_tokens(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Tables shorter than the vocabulary get rows of zeros: what the towers fill in has no embedding."""
    for tensor in tensors:
        table = tensor.name.endswith("embed_tokens.weight") or "embed_tokens_per_layer" in tensor.name
        yield padded_rows(tensor, config.integer("vocab_size")) if table else tensor


def _shares(s: Source) -> list[float]:
    """Which part of a gate's activations each layer leaves out: the shortest number that gives the GGUF's."""
    import numpy as np

    def share(scale: float) -> float:
        part = NormalDist().cdf(scale)
        near = (round(part, digits) for digits in range(1, 17))
        fits = (n for n in near if 0 < n < 1 and np.float32(NormalDist().inv_cdf(n)) == np.float32(scale))
        return 0.0 if scale == float("-inf") else next(fits, part)

    return [share(scale) for scale in s.require("activation_sparsity_scale")]


_ALTUP = {
    "altup_correct_coef": "altup.correction_coefs",
    "altup_correct_scale.weight": "altup.correct_output_scale",
    "altup_predict_coef": "altup.prediction_coefs",
    "altup_router": "altup.modality_router",
    "altup_router_norm": "altup.router_norm",
    "laurel_l": "laurel.linear_left",
    "laurel_r": "laurel.linear_right",
    "laurel_post_norm": "laurel.post_laurel_norm",
}

_EXPORT3N = Export(
    "gemma3n_text",
    "Gemma3nForCausalLM",
    config={
        **_EXPORTED,
        "rope_parameters": lambda s: _rope(s, {}),
        "altup_active_idx": key("altup.active_idx", 0),
        "altup_num_inputs": key("altup.num_inputs", 4),
        "laurel_rank": lambda s: (
            s.tensors["blk.0.laurel_l.weight"].rows if "blk.0.laurel_l.weight" in s.tensors else None
        ),
        "activation_sparsity_pattern": _shares,
    },
    names={
        **_EXPORTED_NAMES,
        "altup_proj": "model.altup_projections.{xid}",
        "altup_unembd_proj": "model.altup_unembed_projections.{xid}",
        **{f"blk.{{bid}}.{own}": f"model.layers.{{bid}}.{name}" for own, name in _ALTUP.items()},
    },
    wide=True,
    mlx=Mlx(
        "gemma3n",
        config={
            "rope_theta": key("rope.freq_base"),
            "rope_local_base_freq": key("rope.freq_base_swa", 10000.0),
            "altup_coef_clip": lambda s: 120.0,
            "altup_correct_scale": lambda s: True,
        },
        nested=True,
        called=lambda s, tensor: "model.language_model." + tensor.name.removeprefix("model."),
    ),
)

GEMMA3N = Architecture(
    name="gemma3n",
    exports=(_EXPORT3N,),
    graph=Graph(
        rope="neox",
        activation="gelu",
        scaled_embedding=True,
        value_norm=True,
        attention_scale=1.0,
        window_period=5,
        local_rope_base=10000.0,
        local_rope_scaled=False,
        logit_cap=30.0,
    ),
    models={
        name: {**_DEFAULTS, "max_position_embeddings": 32768}
        | {"altup_active_idx": 0, "altup_num_inputs": 4, "vocab_size": 262400, "num_kv_shared_layers": 15}
        for name in ("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration")
    },
    metadata=(
        *KEYS,
        uint("altup.active_idx", "altup_active_idx"),
        uint("altup.num_inputs", _four_streams),
        uint("embedding_length_per_layer_input", "hidden_size_per_layer_input"),
        uint("attention.shared_kv_layers", "num_kv_shared_layers"),
        reals("activation_sparsity_scale", _sparsity),
        flags("attention.sliding_window_pattern", _sliding),
    ),
    vocabulary=GEMMA3,
    transforms=(
        rename((r"_scale$", "_scale.weight")),
        _all_tokens,
        *(
            stack(rf"model\.(?P<layer>){name}\.(?P<expert>\d+)\.weight", f"model.{name}.weight", lambda config: 3)
            for name in ("altup_unembed_projections", "altup_projections")
        ),
    ),
)

# ---- Gemma 4 ----------------------------------------------------------------------------------------------------


def _of_full_layers(config: Config, name: str, key: str) -> int | None:
    """A setting of layers that see everything: of its own name, or in `per_layer_config`."""
    value: int | None = config.get(name)
    if value is not None:
        return value
    per_layer, kinds = config.get("per_layer_config"), config.list("layer_types")
    for layer, settings in per_layer.items() if isinstance(per_layer, dict) else ():
        index = int(layer) if str(layer).isdigit() else len(kinds)
        if index < len(kinds) and kinds[index] == "full_attention" and isinstance(settings, dict) and key in settings:
            result: int | None = settings[key]
            return result
    return None


def _full_head(config: Config) -> int:
    head = _of_full_layers(config, "global_head_dim", "head_dim")
    if type(head) is not int or not 2 <= head <= 1 << 16:
        raise ArchitectureError(
            "config.json has no usable 'global_head_dim', nor one in 'per_layer_config'; it is not guessed"
        )
    return head


def _kv_heads(config: Config) -> list[int] | None:
    full = _of_full_layers(config, "num_global_key_value_heads", "num_key_value_heads")
    if full in (None, config.get("num_key_value_heads")):
        return None
    return [config.kv_heads if local else full for local in _sliding(config)]


def _shared_layers(config: Config) -> int:
    number = config.require("num_kv_shared_layers")
    if type(number) is not int or not 0 <= number <= config.layers:
        raise ArchitectureError(
            f"config.json: 'num_kv_shared_layers' must be at most the {config.layers} layers, not {number}"
        )
    return number


def _feed_forward(config: Config) -> list[int] | int:
    """Twice as wide in the layers that share keys and values, where the config says so."""
    width = config.integer("intermediate_size")
    if not config.get("use_double_wide_mlp"):
        return width
    own = config.layers - _shared_layers(config)
    return [width if layer < own else 2 * width for layer in range(config.layers)]


def feed_forward(architecture: str, config: Config) -> Iterator[tuple[str, Value]]:
    value = _feed_forward(config)
    name = "feed_forward_length"
    row = integers(name, lambda config: value) if isinstance(value, list) else uint(name, lambda config: value)
    yield from row(architecture, config)


def proportional(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Layers that see everything turn the first part of a head's pairs; divisors of 1e30 hold the others still."""
    settings = config.part("rope_parameters").part("full_attention")
    part, head = settings.number("partial_rotary_factor"), _full_head(config)
    if settings.get("rope_type") != "proportional" or not 0 <= part <= 1:
        raise ArchitectureError("config.json: a Gemma 4 needs rope of type 'proportional' in its full layers")
    turning = int(head * part / 2)
    yield vector("rope_freqs.weight", [1.0] * turning + [1e30] * (head // 2 - turning))
    yield from tensors


def _local_rotated(config: Config) -> int:
    factor = config.part("rope_parameters").number("partial_rotary_factor", default=1.0)
    return int(config.integer("head_dim") * factor)


_GEMMA4_KEYS: tuple[Row, ...] = (
    *KEYS,
    uint("attention.shared_kv_layers", _shared_layers),
    uint("embedding_length_per_layer_input", lambda config: config.get("hidden_size_per_layer_input") or 0),
    flags("attention.sliding_window_pattern", _sliding),
    uint("attention.key_length", _full_head),
    uint("attention.value_length", _full_head),
    uint("attention.key_length_swa", "head_dim"),
    uint("attention.value_length_swa", "head_dim"),
    uint("expert_feed_forward_length", lambda config: config.get("expert_intermediate_size", "moe_intermediate_size")),
    feed_forward,
    integers("attention.head_count_kv", _kv_heads),
    uint("rope.dimension_count", _full_head),
    uint("rope.dimension_count_swa", _local_rotated),
)


def _of_layers(s: Source, name: str, local: bool) -> int:
    """A setting of the layers that see a window, or of those that see everything, where a list holds that of all."""
    value = s.require(name)
    if not isinstance(value, list):
        return int(value)
    kind = "sliding_attention" if local else "full_attention"
    return int(next((n for n, own in zip(value, _layer_types(s), strict=False) if own == kind), value[0]))


def _keys_are_values(s: Source) -> bool:
    """Whether layers that see everything have no values of their own."""
    full = [i for i, kind in enumerate(_layer_types(s)) if kind == "full_attention"]
    return any(f"blk.{i}.attn_k.weight" in s.tensors and f"blk.{i}.attn_v.weight" not in s.tensors for i in full)


def _proportional(s: Source) -> dict[str, Any]:
    divisors = s.tensors.get("rope_freqs.weight")
    if divisors is None:
        raise ArchitectureError("rope_freqs.weight is missing, which says how many pairs of a head turn")
    turning = int((divisors.floats() == 1).sum())
    factor = 2 * turning / s.natural("attention.key_length")
    return _rope(s, {"rope_type": "proportional", "partial_rotary_factor": factor})


_EXPORT4 = Export(
    "gemma4_text",
    "Gemma4ForCausalLM",
    config={
        **_EXPORTED,
        "rope_parameters": _proportional,
        "head_dim": key("attention.key_length_swa"),
        "global_head_dim": key("attention.key_length"),
        "num_key_value_heads": lambda s: _of_layers(s, "attention.head_count_kv", local=True),
        "num_global_key_value_heads": lambda s: (
            _of_layers(s, "attention.head_count_kv", local=False)
            if isinstance(s.get("attention.head_count_kv"), list)
            else None
        ),
        "attention_k_eq_v": _keys_are_values,
        "intermediate_size": lambda s: (
            s.require("feed_forward_length")[0]
            if isinstance(s.get("feed_forward_length"), list)
            else s.require("feed_forward_length")
        ),
        "use_double_wide_mlp": lambda s: isinstance(s.get("feed_forward_length"), list),
        "moe_intermediate_size": lambda s: s.get("expert_feed_forward_length"),
        "enable_moe_block": lambda s: False,
    },
    names={**_EXPORTED_NAMES, "blk.{bid}.layer_output_scale.weight": "model.layers.{bid}.layer_scalar"},
    when=lambda s: s.get("expert_count") is None,
    wide=True,
    mlx=PLAIN_MLX,
)

_EXPORT4_MOE = replace(
    _EXPORT4,
    config={
        **_EXPORT4.config,
        "enable_moe_block": lambda s: True,
        "num_experts": key("expert_count"),
        "top_k_experts": key("expert_used_count"),
        "moe_intermediate_size": key("expert_feed_forward_length"),
    },
    names={
        **_EXPORT4.names,
        "blk.{bid}.pre_ffw_norm_2": "model.layers.{bid}.pre_feedforward_layernorm_2",
        "blk.{bid}.post_ffw_norm_1": "model.layers.{bid}.post_feedforward_layernorm_1",
        "blk.{bid}.post_ffw_norm_2": "model.layers.{bid}.post_feedforward_layernorm_2",
        "blk.{bid}.ffn_gate_inp": "model.layers.{bid}.router.proj",
        "blk.{bid}.ffn_gate_inp.scale": "model.layers.{bid}.router.scale",
        "blk.{bid}.ffn_down_exps.scale": "model.layers.{bid}.router.per_expert_scale",
        "blk.{bid}.ffn_gate_up_exps.weight": "model.layers.{bid}.experts.gate_up_proj",
        "blk.{bid}.ffn_down_exps.weight": "model.layers.{bid}.experts.down_proj",
    },
    when=lambda s: s.get("expert_count") is not None,
    mlx=None,
)

GEMMA4 = Architecture(
    name="gemma4",
    exports=(_EXPORT4, _EXPORT4_MOE),
    graph=Graph(
        rope="neox",
        activation="gelu",
        scaled_embedding=True,
        value_norm=True,
        attention_scale=1.0,
        full_rope_factors=True,
        window_period=6,
        local_rope_scaled=False,
        logit_cap=30.0,
    ),
    models=dict.fromkeys(
        ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration"), _DEFAULTS
    ),
    metadata=_GEMMA4_KEYS,
    vocabulary=gemma4,
    names={
        "model.layers.{bid}.router.scale": "blk.{bid}.ffn_gate_inp.scale",
        "model.layers.{bid}.router.per_expert_scale": "blk.{bid}.ffn_down_exps.scale",
    },
    transforms=(
        rename(
            (r"(per_dim_scale|layer_scalar)$", r"\1.weight"),
            (r"(\.experts\.(?:\w+\.)*\w+)(?<!weight)$", r"\1.weight"),
        ),
        first_tokens,
        proportional,
    ),
)

SPECS = (GEMMA3N, GEMMA4)
