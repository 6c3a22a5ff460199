"""Nemotron-H: layers of one thing each, Mamba 2, attention, an FFN or experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from ggufkit.arch.export import NULL, Export, Setting, Source, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    LAYERS,
    OPTIONAL,
    Row,
    flag,
    integers,
    mtp_layers,
    real,
    uint,
)
from ggufkit.arch.mlx import PLAIN_MLX, Mlx
from ggufkit.arch.spec import Architecture, Transform
from ggufkit.arch.specs.granite import KEYS
from ggufkit.arch.specs.granite_hybrid import (
    MIXER,
    MIXER_UNDO,
    grouped_norm,
    heads,
    mixer_config,
    mixer_keys,
    mixer_names,
)
from ggufkit.arch.specs.llama import PERMUTED
from ggufkit.arch.transforms import rename, stack_experts
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError
from ggufkit.tensors.tensor import Tensor
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.variants import padded

if TYPE_CHECKING:
    pass

# ---- the way back ----


def _nemotron_kinds(s: Source) -> str:
    """A letter for each layer."""
    kv_heads, lengths = s.require("attention.head_count_kv"), s.require("feed_forward_length")
    other = "E" if s.get("expert_count") else "-"
    letters = ("*" if n else other if length else "M" for n, length in zip(kv_heads, lengths, strict=True))
    return "".join(letters)


_MIXER_KEYS = {
    "d_conv": "conv_kernel",
    "d_state": "ssm_state_size",
    "n_heads": "mamba_num_heads",
    "d_head": "mamba_head_dim",
}


def _ends(embeddings: str) -> dict[str, str]:
    return {
        "token_embd": f"backbone.{embeddings}",
        "output_norm": "backbone.norm_f",
        "output": "lm_head",
        "blk.{bid}.attn_norm": "backbone.layers.{bid}.norm",
    }


def _export_nemotron(experts: bool) -> Export:
    mixer = "backbone.layers.{bid}.mixer"
    attention = {f"blk.{{bid}}.attn_{p}": f"{mixer}.{p}_proj" for p in "qkv"}
    names = {**_ends("embeddings"), **mixer_names("backbone.layers.{bid}", "mixer"), **attention}
    names["blk.{bid}.attn_output"] = f"{mixer}.o_proj"
    config: dict[str, Setting | None] = {
        **mixer_config("", _MIXER_KEYS),
        "rms_norm_eps": None,
        "rope_theta": None,
        "hidden_act": None,
        "layer_norm_epsilon": key("attention.layer_norm_epsilon"),
        "intermediate_size": lambda s: max(s.require("feed_forward_length")),
        "hybrid_override_pattern": _nemotron_kinds,
        "mamba_proj_bias": lambda s: False,
        "use_bias": lambda s: False,
        "use_conv_bias": lambda s: True,
        "mlp_bias": lambda s: False,
        "attention_bias": lambda s: False,
        "mlp_hidden_act": lambda s: "relu2",
    }
    if not experts:
        names |= {f"blk.{{bid}}.ffn_{part}": f"{mixer}.{part}_proj" for part in ("up", "down")}
        return Export("nemotron_h", "NemotronHForCausalLM", config, names, rotated=True, undo=MIXER_UNDO, mlx=PLAIN_MLX)
    for part in ("up", "down"):
        names[f"blk.{{bid}}.ffn_{part}_exps"] = f"{mixer}.experts.{{xid}}.{part}_proj"
        names[f"blk.{{bid}}.ffn_{part}_shexp"] = f"{mixer}.shared_experts.{part}_proj"
        names[f"blk.{{bid}}.ffn_latent_{part}"] = f"{mixer}.fc{1 if part == 'down' else 2}_latent_proj"
    names |= {
        "blk.{bid}.ffn_gate_inp": f"{mixer}.gate",
        "blk.{bid}.exp_probs_b.bias": f"{mixer}.gate.e_score_correction_bias",
    }
    config |= {
        "moe_intermediate_size": key("expert_feed_forward_length"),
        "moe_shared_expert_intermediate_size": key("expert_shared_feed_forward_length"),
        "moe_latent_size": key("moe_latent_size", NULL),
        "n_routed_experts": key("expert_count"),
        "n_shared_experts": key("expert_shared_count"),
        "num_experts_per_tok": key("expert_used_count"),
        "norm_topk_prob": key("expert_weights_norm"),
        "routed_scaling_factor": key("expert_weights_scale"),
        "n_group": key("expert_group_count", 1),
        "topk_group": key("expert_group_used_count", 1),
    }
    stacks = {f"blk.{{bid}}.ffn_{part}_exps": f"{mixer}.switch_mlp.fc{n}" for part, n in (("up", 1), ("down", 2))}
    return Export(
        "nemotron_h",
        "NemotronHForCausalLM",
        config,
        names,
        rotated=True,
        undo=MIXER_UNDO,
        when=lambda s: not s.get("nextn_predict_layers"),
        mlx=Mlx(names=stacks),
    )


# ---- the spec ----

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
    *mixer_keys(lambda config: heads(config) * config.integer("mamba_head_dim")),
    integers("attention.head_count_kv", _by_kind(("attention", "mtp"), lambda config: config.kv_heads)),
    flag("rope.scaling.finetuned", False),
    uint("context_length", lambda config: 1 << 20),
    uint("attention.key_length", _head_dim),
    uint("attention.value_length", _head_dim),
)


def nemotron(name: str, moe: bool, keys: tuple[Row, ...], transforms: tuple[Transform, ...]) -> Architecture:
    return Architecture(
        name=name,
        exports=(_export_nemotron(moe),),
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
            grouped_norm(r"\.mixer\.norm\.weight$"),
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


SPECS = (
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
)
