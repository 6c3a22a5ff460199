"""PLaMo of three generations."""

from __future__ import annotations

from collections.abc import Callable

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    BASE,
    FILE_TYPE,
    LAYERS,
    OPTIONAL,
    VOCAB_SIZE,
    Row,
    integers,
    real,
    rope_parameters,
    uint,
)
from ggufkit.arch.spec import Architecture, Transform
from ggufkit.arch.transforms import decay, map_each, rename, squeezed
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import computed, take_columns, take_rows
from ggufkit.tokenizer.from_checkpoint.plamo import plamo2, plamo3
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece

# The one model of the first generation: 8 × 5 heads of 128, where llama.cpp wants 5 groups of 8.
_GROUPS, _QUERIES, _HEAD = 5, 8, 128


def _shuffled(take: Callable[..., Tensor]) -> Callable[[Tensor, Config], Tensor]:
    """Heads in groups that share keys next to each other."""

    def shuffle(tensor: Tensor, config: Config) -> Tensor:
        import numpy as np

        size = _GROUPS * _QUERIES * _HEAD
        if tensor.shape != (size, size):
            raise CheckpointError(
                f"{printable(tensor.name)} has the shape {list(tensor.shape)}; llama.cpp's PLaMo has {size} columns"
            )
        heads = np.arange(size).reshape(_QUERIES, _GROUPS, _HEAD)
        return take(tensor, heads.swapaxes(0, 1).ravel())

    return shuffle


def _plus(pattern: str, number: float) -> Transform:
    """Norms whose weights are stored less a number."""

    def added(tensor: Tensor, config: Config) -> Tensor:
        return computed(tensor, lambda weights: weights + weights.dtype.type(number))

    return map_each(pattern, added)


_NORMS = (
    _plus(r"\.pre_(mixer|mlp)_norm\.weight$", 1.0),
    _plus(r"\.post_mixer_norm\.weight$", 1.0 / 5),
    _plus(r"\.post_mlp_norm\.weight$", 1.0 / 5**1.5),
    _plus(r"\.norm\.weight$", 1.0),
)


def _per_layer(name: str, default: int) -> Callable[[Config], list[int] | None]:
    """Heads of each layer; a block without attention has none."""

    def heads(config: Config) -> list[int] | None:
        layers, step = config.layers, config.get("mamba_step", default=2)
        if not config.get("mamba_enabled", default=True):
            return None
        number = config.get(name, default=default)
        if layers <= step // 2:
            return [0] * (layers - 1) + [number]
        return [number if layer % step == step // 2 else 0 for layer in range(layers)]

    return heads


def _mamba_heads(config: Config) -> int:
    heads: int = config.get("mamba_num_heads", default=64)
    return heads


def _head(config: Config) -> int:
    head: int = config.get("hidden_size_per_head", default=128)
    return head


def _theta(config: Config) -> float:
    theta = rope_parameters(config)["rope_theta"]
    return 10000.0 if theta is None else theta


def _with_yarn(config: Config) -> Config:
    """PLaMo 3 says in keys of its own that its rope is yarn's."""
    factor = config.number("rope_scaling_factor", default=1)
    if factor == 1 or rope_parameters(config).get("rope_type"):
        return config
    given = config.get("rope_parameters", "rope_scaling", default={})
    original = config.integer("initial_context_length")
    yarn = {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}
    return config.with_values(rope_parameters={**given, **yarn, "beta_fast": 32.0, "beta_slow": 1.0})


def _of_yarn(row: Row) -> Row:
    return lambda architecture, config: row(architecture, _with_yarn(config))


SPECS = (
    Architecture(
        name="plamo",
        graph=Graph(rope="neox", parallel="shared"),
        models={"PlamoForCausalLM": {}},
        metadata=(
            uint("context_length", lambda config: 4096),
            uint("embedding_length", "hidden_size"),
            uint("feed_forward_length", "intermediate_size"),
            LAYERS,
            uint("attention.head_count", "num_attention_heads"),
            uint("attention.head_count_kv", lambda config: _GROUPS),  # config.json has another number
            real("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
            FILE_TYPE,
        ),
        vocabulary=sentencepiece,
        transforms=(
            map_each(r"\.q_proj\.weight$", _shuffled(take_rows)),
            map_each(r"\.o_proj\.weight$", _shuffled(take_columns)),
        ),
    ),
    Architecture(
        name="plamo2",
        graph=Graph(rope="neox", wide_heads=True),
        models={"PLaMo2ForCausalLM": {}, "Plamo2ForCausalLM": {}},
        metadata=(
            VOCAB_SIZE,
            integers("attention.head_count_kv", _per_layer("num_key_value_heads", 4)),
            integers("attention.head_count", _per_layer("num_attention_heads", 32)),
            uint("context_length", lambda config: config.get("max_position_embeddings", default=2048)),
            uint("embedding_length", lambda config: config.get("hidden_size", default=4096)),
            uint("attention.key_length", _head),
            uint("attention.value_length", _head),
            LAYERS,
            real("attention.layer_norm_rms_epsilon", lambda config: config.get("rms_norm_eps", default=1e-6)),
            real("rope.freq_base", _theta),
            uint("ssm.state_size", lambda config: config.get("mamba_d_state", default=64)),
            uint("ssm.conv_kernel", lambda config: config.get("mamba_d_conv", default=4)),
            uint("ssm.time_step_rank", _mamba_heads),
            uint("ssm.inner_size", lambda config: _mamba_heads(config) * _head(config)),
            uint("ssm.group_count", lambda config: 0),
            uint("feed_forward_length", lambda config: config.get("intermediate_size", default=13312)),
            FILE_TYPE,
        ),
        vocabulary=plamo2,
        transforms=(
            decay(),
            rename(
                (r"\.dt_bias$", ".dt_proj.bias"),
                (r"\.(dt|B|C)_norm_weight$", r".\1_norm.weight"),
                (r"\.([kq])_weight$", r".\1.weight"),
            ),
            squeezed(),
            *_NORMS,
        ),
    ),
    Architecture(
        name="plamo3",
        graph=Graph(rope="neox", window_period=8),
        models={"PLaMo3ForCausalLM": {}, "Plamo3ForCausalLM": {}},
        metadata=(
            *(_of_yarn(row) for row in BASE),
            VOCAB_SIZE,
            uint("attention.sliding_window", "window_size", "sliding_window", need=OPTIONAL),
            uint("attention.sliding_window_pattern", "sliding_window_pattern", need=OPTIONAL),
        ),
        vocabulary=plamo3,
        transforms=(*_NORMS, _plus(r"\.mixer\.[qk]_norm\.weight$", 1.0)),
    ),
)
