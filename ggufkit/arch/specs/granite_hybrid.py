"""Hybrids of Mamba 2 and attention: Granite 4 H, Bamba, Nemotron-H, Falcon-H1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    FILE_TYPE,
    LAYERS,
    OPTIONAL,
    VOCAB_SIZE,
    Row,
    flag,
    integers,
    mtp_layers,
    real,
    rope_parameters,
    uint,
)
from ggufkit.arch.spec import Architecture, Transform
from ggufkit.arch.specs.granite import KEYS, MOE_NAMES
from ggufkit.arch.specs.llama import PERMUTED
from ggufkit.arch.transforms import (
    decay,
    map_each,
    multiply,
    rename,
    reshape,
    split_rows,
    squeezed,
    stack_experts,
)
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import by_rows
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece
from ggufkit.tokenizer.from_checkpoint.tokens import first_of
from ggufkit.tokenizer.from_checkpoint.variants import padded

if TYPE_CHECKING:
    import numpy as np

# Of these config.json is read as it is; without a base rope has llama.cpp's, which is theirs.
_DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}


# ---- the mixer --------------------------------------------------------------------------------------------------


def _groups(config: Config) -> int:
    return config.integer("n_groups", "num_groups", "mamba_n_groups", "mamba_num_groups")


def _heads(config: Config) -> int:
    return config.integer("n_heads", "mamba_n_heads", "mamba_num_heads", "num_heads")


def _inner(config: Config) -> int:
    """Granite's from the width, Nemotron's from the heads."""
    if (expand := config.get("mamba_expand", "expand")) is not None and "mamba_num_heads" not in config:
        return int(expand * config.width)
    return config.integer("mamba_num_heads") * config.integer("mamba_head_dim")


def _mixer_keys(inner: Callable[[Config], int]) -> tuple[Row, ...]:
    return (
        uint("ssm.conv_kernel", "conv_kernel", "d_conv", "mamba_conv_kernel", "mamba_d_conv"),
        uint(
            "ssm.state_size",
            "state_size",
            "d_state",
            "state_dim",
            "ssm_state_size",
            "mamba_state_size",
            "mamba_d_state",
        ),
        uint("ssm.group_count", _groups),
        uint("ssm.inner_size", inner),
        uint("ssm.time_step_rank", _heads),
    )


MIXER: tuple[Transform, ...] = (
    rename((r"\.dt_bias$", ".dt_proj.bias")),
    decay(),
    squeezed(),
    reshape(r"\.(A_log|D)$", lambda tensor, config: (tensor.size, 1)),
)


def _grouped_norm(pattern: str) -> Transform:
    return reshape(pattern, lambda tensor, config: (_groups(config), tensor.size // _groups(config)))


# ---- Granite 4 H, Bamba -----------------------------------------------------------------------------------------


def _attention_layers(config: Config) -> set[int]:
    if "layer_types" in config:
        return {i for i, kind in enumerate(config.list("layer_types", config.layers)) if kind == "attention"}
    if config.get("attn_layer_indices"):
        return set(config.list("attn_layer_indices"))
    period, offset = config.integer("attn_layer_period"), config.require("attn_layer_offset")
    return {layer for layer in range(config.layers) if layer % period == offset}


def _has_mixers(config: Config) -> bool:
    return len(_attention_layers(config)) < config.layers


def _kv_heads(config: Config) -> list[int]:
    attention = _attention_layers(config)
    return [config.kv_heads if layer in attention else 0 for layer in range(config.layers)]


def _is_bamba(config: Config) -> bool:
    return "BambaForCausalLM" in config.get("architectures", default=[])


def _turns(config: Config) -> bool:
    return _is_bamba(config) or not _has_mixers(config)


def _has_experts(config: Config) -> bool:
    return bool(config.get("num_local_experts"))


_SHARED_NAMES = {
    False: {
        f"shared_mlp.{part}": f"ffn_{end}" for part, end in (("gate", "gate"), ("up", "up"), ("output_linear", "down"))
    },
    True: {
        f"shared_mlp.{part}": f"ffn_{end}_shexp"
        for part, end in (("gate", "gate"), ("up", "up"), ("output_linear", "down"))
    },
}


def _shared_mlp(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """The MLP beside the experts is the only one where there are none."""
    names = _SHARED_NAMES[_has_experts(config)]
    for tensor in tensors:
        parts = tensor.name.split(".")
        name = names.get(".".join(parts[-3:-1]))
        yield tensor if name is None else tensor.renamed(f"blk.{parts[2]}.{name}.weight")


def _granite_hybrid(name: str, when: Callable[[Config], bool]) -> Architecture:
    return Architecture(
        name=name,
        graph=Graph(rope_layers="key"),
        models={"BambaForCausalLM": _DEFAULTS, "GraniteMoeHybridForCausalLM": _DEFAULTS},
        metadata=(
            *KEYS,
            uint("expert_shared_feed_forward_length", lambda config: config.get("shared_intermediate_size") or None),
            *_mixer_keys(_inner),
            uint("rope.dimension_count", lambda config: config.get("attn_rotary_emb") or None),
            integers("attention.head_count_kv", _kv_heads),
            flag("rope.scaling.finetuned", _turns),
            uint("context_length", lambda config: None if _turns(config) else 1 << 20),
        ),
        vocabulary=lambda checkpoint, config: padded(first_of(sentencepiece, bpe), 8 if _has_mixers(config) else 1)(
            checkpoint, config.with_values(pad_vocab_size_multiple=None)
        ),
        transforms=(
            *PERMUTED,
            split_rows(r"input_linear(?=\.weight$)", "gate", "up"),
            _shared_mlp,
            *MIXER,
            _grouped_norm(r"\.mamba\.norm\.weight$"),
        ),
        names=MOE_NAMES,
        when=when,
    )


# ---- Nemotron-H -------------------------------------------------------------------------------------------------

_LETTERS = {
    "M": "mamba",
    "*": "attention",
    "-": "mlp",
    "E": "moe",
    "linear_attention": "mamba",
    "full_attention": "attention",
}


def _kinds(config: Config) -> list[str]:
    """What each layer is: mamba, attention, mlp or moe; the block that predicts further tokens is "mtp"."""
    pattern = config.get("hybrid_override_pattern", "layers_block_type")
    if not isinstance(pattern, (str, list)) or not all(isinstance(kind, str) for kind in pattern):
        raise ArchitectureError(
            "config.json: 'hybrid_override_pattern' (or 'layers_block_type') must say what each layer is"
        )
    if len(pattern) != _nemotron_layers(config):
        raise ArchitectureError(
            f"config.json: the pattern has {len(pattern)} layers, the model {_nemotron_layers(config)}"
        )
    return [_LETTERS.get(kind, kind) for kind in pattern] + ["mtp"] * _nemotron_mtp(config)


def _nemotron_layers(config: Config) -> int:
    types = config.get("layers_block_type")
    return len(types) if isinstance(types, list) else config.layers


def _is_moe(config: Config) -> bool:
    return "num_experts_per_tok" in config


def _nemotron_mtp(config: Config) -> int:
    number = mtp_layers(config) if _is_moe(config) else 0
    if number > 1:
        raise ArchitectureError(f"config.json: {number} blocks predict further tokens; GGUF has a place for one")
    return number


def _nemotron_blocks(config: Config) -> int:
    return _nemotron_layers(config) + _nemotron_mtp(config)


def _by_kind(kinds: tuple[str, ...], value: Callable[[Config], int]) -> Callable[[Config], list[int]]:
    return lambda config: [value(config) if kind in kinds else 0 for kind in _kinds(config)]


def _nemotron_mtp_names(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """The block that predicts further tokens: attention in mtp.layers.0, experts in mtp.layers.1."""
    block = _nemotron_layers(config)
    special = {
        "mtp.layers.0.enorm.weight": "enorm",
        "mtp.layers.0.hnorm.weight": "hnorm",
        "mtp.layers.0.eh_proj.weight": "eh_proj",
        "mtp.layers.1.norm.weight": "post_attention_layernorm",
        "mtp.layers.1.final_layernorm.weight": "shared_head.norm",
    }
    for tensor in tensors:
        if not tensor.name.startswith("mtp."):
            yield tensor
        elif not _nemotron_mtp(config):
            continue
        elif (name := special.get(tensor.name)) is not None:
            yield tensor.renamed(f"model.layers.{block}.{name}.weight")
        else:
            yield tensor.renamed(f"backbone.layers.{block}.{tensor.name.split('.', 3)[-1]}")


def _head_dim(config: Config) -> int:
    return config.integer("head_dim", "attention_head_dim")


_NEMOTRON_KEYS: tuple[Row, ...] = (
    uint("block_count", _nemotron_blocks),
    *(row for row in KEYS if row is not LAYERS),
    uint("expert_shared_feed_forward_length", lambda config: config.get("shared_intermediate_size") or None),
    *_mixer_keys(lambda config: _heads(config) * config.integer("mamba_head_dim")),
    integers("attention.head_count_kv", _by_kind(("attention", "mtp"), lambda config: config.kv_heads)),
    flag("rope.scaling.finetuned", False),
    uint("context_length", lambda config: 1 << 20),
    uint("attention.key_length", _head_dim),
    uint("attention.value_length", _head_dim),
)


def nemotron(name: str, moe: bool, keys: tuple[Row, ...], transforms: tuple[Transform, ...]) -> Architecture:
    return Architecture(
        name=name,
        graph=Graph(rope=None, activation="relu_squared", router="sigmoid", router_normalized=False),
        models={"NemotronHForCausalLM": {"rms_norm_eps": None, "layer_norm_epsilon": 1e-5}},
        metadata=(*_NEMOTRON_KEYS, *keys),
        vocabulary=lambda checkpoint, config: padded(bpe, 8)(
            checkpoint, config.with_values(pad_vocab_size_multiple=None)
        ),
        transforms=(
            _nemotron_mtp_names,
            rename((r"^model\.layers\.(?=.*\.mixer\.)", "backbone.layers.")),
            *PERMUTED,  # as Granite's, though nothing turns
            *transforms,
            *MIXER,
            _grouped_norm(r"\.mixer\.norm\.weight$"),
        ),
        blocks=_nemotron_blocks,
        when=lambda config: _is_moe(config) is moe,
    )


NEMOTRON_EXPERTS: tuple[Transform, ...] = (
    stack_experts(
        r"backbone\.layers\.(?P<layer>\d+)\.mixer\.experts\.(?P<expert>\d+)\.(?P<part>\w+)_proj\.weight",
        parts=("down", "up"),
        name="model.layers.{layer}.mlp.experts.{part}_proj.weight",
        count=lambda config: config.integer("n_routed_experts"),
    ),
)


# ---- Falcon-H1 --------------------------------------------------------------------------------------------------


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

    def scale(weights: np.ndarray, lo: int) -> np.ndarray:
        return weights * whole * of_row[lo : lo + len(weights), None]

    return by_rows(tensor, scale)


_IN = _multiplier("attention_in_multiplier")

FALCON_H1 = Architecture(
    name="falcon-h1",
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
        _grouped_norm(r"\.mamba\.norm\.weight$"),
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

SPECS = (
    _granite_hybrid("granitehybrid", _has_mixers),
    _granite_hybrid("granitemoe", lambda config: not _has_mixers(config) and "num_experts_per_tok" in config),
    _granite_hybrid("granite", lambda config: not _has_mixers(config)),
    nemotron(
        "nemotron_h_moe",
        True,
        (
            integers(
                "feed_forward_length", _by_kind(("moe", "mtp"), lambda config: config.integer("moe_intermediate_size"))
            ),
            uint("expert_used_count", "num_experts_per_tok"),
            uint("expert_feed_forward_length", "moe_intermediate_size"),
            uint("expert_shared_feed_forward_length", "moe_shared_expert_intermediate_size"),
            uint("expert_count", "n_routed_experts"),
            uint("expert_shared_count", "n_shared_experts"),
            flag("expert_weights_norm", "norm_topk_prob"),
            real("expert_weights_scale", "routed_scaling_factor"),
            uint("expert_group_count", "n_group"),
            uint("moe_latent_size", "moe_latent_size", need=OPTIONAL),
            uint("nextn_predict_layers", lambda config: _nemotron_mtp(config) or None),
        ),
        NEMOTRON_EXPERTS,
    ),
    nemotron(
        "nemotron_h",
        False,
        (
            integers(
                "feed_forward_length",
                _by_kind(("mlp",), lambda config: config.integer("intermediate_size", "n_inner", "hidden_dim")),
            ),
        ),
        (),
    ),
    FALCON_H1,
)
