"""Falcon-H1: Mamba 2 and attention side by side, with factors that are folded into weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ggufkit.arch.export import Export, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    FILE_TYPE,
    LAYERS,
    VOCAB_SIZE,
    real,
    rope_parameters,
    uint,
)
from ggufkit.arch.mlx import PLAIN_MLX
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.granite_hybrid import (
    MIXER,
    MIXER_UNDO,
    grouped_norm,
    mixer_config,
    mixer_names,
)
from ggufkit.arch.transforms import map_each, multiply
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.tensors.scaled import scaled
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import by_rows, computed
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

if TYPE_CHECKING:
    pass

_FFN = ("gate", "up", "down")
# What multiplied weights of a Falcon-H1 is in them.
_MULTIPLIERS = (
    "attention_in_multiplier",
    "attention_out_multiplier",
    "embedding_multiplier",
    "key_multiplier",
    "lm_head_multiplier",
    "ssm_in_multiplier",
    "ssm_out_multiplier",
)
_EXPORT_FALCON = Export(
    "falcon_h1",
    "FalconH1ForCausalLM",
    config={
        **mixer_config("mamba_", {}),
        **dict.fromkeys(_MULTIPLIERS, lambda s: 1.0),
        "mlp_multipliers": lambda s: [1.0, 1.0],
        "ssm_multipliers": lambda s: [1.0] * 5,
        "mamba_d_ssm": key("ssm.inner_size"),
        "mamba_expand": lambda s: 2,
        "mamba_rms_norm": lambda s: "blk.0.ssm_norm.weight" in s.tensors,
        "mamba_norm_before_gate": lambda s: False,
        "mamba_conv_bias": lambda s: True,
        "mamba_proj_bias": lambda s: False,
        "attention_bias": lambda s: False,
        "mlp_bias": lambda s: False,
        "projectors_bias": lambda s: False,
    },
    names={
        **mixer_names("model.layers.{bid}", "mamba"),
        "output_norm": "model.final_layernorm",
        "blk.{bid}.ffn_norm": "model.layers.{bid}.pre_ff_layernorm.weight",
        **{f"blk.{{bid}}.ffn_{part}": f"model.layers.{{bid}}.feed_forward.{part}_proj" for part in _FFN},
    },
    undo=MIXER_UNDO,
    mlx=PLAIN_MLX,
)


def _multiplier(name: str, index: int | None = None) -> Callable[[Config], float]:
    def find(config: Config) -> float:
        value: Any = config.require(name)
        if index is not None:
            value = config.list(name)[index] if len(config.list(name)) > index else None
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ArchitectureError(f"config.json: {name!r} must be a number or a list of numbers")
        return float(value)

    return find


def _scaled_input(tensor: Tensor, config: Config) -> Tensor:
    """The mixer's projection: gates, inputs, B, C and time steps each have a factor.

    rows   z (inner) | x (inner) | B (groups · state) | C (groups · state) | dt (heads)
    """
    import numpy as np

    inner = config.integer("mamba_d_ssm")
    state = config.integer("mamba_n_groups") * config.integer("mamba_d_state")
    ends = np.cumsum([inner, inner, state, state])
    if tensor.rows < ends[-1]:
        raise CheckpointError(
            f"{printable(tensor.name)} has {tensor.rows} rows, the config calls for {ends[-1]} and more"
        )
    factors = np.array([_multiplier("ssm_multipliers", part)(config) for part in range(5)], np.float32)
    of_row = np.repeat(factors, np.diff([0, *ends, tensor.rows]))
    whole = np.float32(_multiplier("ssm_in_multiplier")(config))

    if (first := scaled(tensor, float(whole))) is not None and (both := scaled(first, of_row)) is not None:
        return both
    # One after the other: in between, a checkpoint in halves is rounded.
    halfway = computed(tensor, lambda weights: weights * whole)
    return by_rows(halfway, lambda weights, lo: weights * of_row[lo : lo + len(weights), None])


_IN = _multiplier("attention_in_multiplier")

_FALCON_H1 = Architecture(
    name="falcon-h1",
    exports=(_EXPORT_FALCON,),
    graph=Graph(rope="neox"),
    models={"FalconH1ForCausalLM": {"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 1e5}},
    metadata=(
        uint("context_length", lambda config: config.get("max_position_embeddings", default=0)),
        uint("embedding_length", lambda config: config.width),
        uint("feed_forward_length", "intermediate_size"),
        uint("attention.head_count", lambda config: config.heads),
        LAYERS,
        uint("ssm.conv_kernel", lambda config: config.get("mamba_d_conv", default=4)),
        uint("ssm.inner_size", "mamba_d_ssm"),
        uint("ssm.state_size", lambda config: config.get("mamba_d_state", default=128)),
        uint("ssm.time_step_rank", lambda config: config.integer("mamba_d_ssm") // config.integer("mamba_d_head")),
        uint("ssm.group_count", lambda config: config.integer("mamba_n_groups")),
        real("attention.layer_norm_rms_epsilon", lambda config: config.get("layer_norm_epsilon", "rms_norm_eps")),
        FILE_TYPE,
        VOCAB_SIZE,
        uint("attention.head_count_kv", "num_key_value_heads"),
        uint("attention.key_length", "head_dim"),
        uint("attention.value_length", "head_dim"),
        real("rope.freq_base", lambda config: rope_parameters(config)["rope_theta"]),
    ),
    vocabulary=bpe,
    transforms=(
        *MIXER,
        grouped_norm(r"\.mamba\.norm\.weight$"),
        multiply(r"down_proj", _multiplier("mlp_multipliers", 1)),
        multiply(r"gate_proj", _multiplier("mlp_multipliers", 0)),
        multiply(r"k_proj", _multiplier("key_multiplier")),
        multiply(r"[qkv]_proj", _IN),
        multiply(r"\bo_proj", _multiplier("attention_out_multiplier")),
        multiply(r"out_proj", _multiplier("ssm_out_multiplier")),
        map_each(r"in_proj\.weight$", _scaled_input),
        multiply(r"lm_head", _multiplier("lm_head_multiplier")),
        multiply(r"embed_tokens", _multiplier("embedding_multiplier")),
    ),
)

SPECS = (_FALCON_H1,)
