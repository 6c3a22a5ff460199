"""Hybrids of Mamba 2 and attention: what they have in common; Granite 4 H and Bamba."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from ggufkit.arch.export import Export, Setting, Source, Undo, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    Row,
    flag,
    integers,
    uint,
)
from ggufkit.arch.mlx import Mlx
from ggufkit.arch.rope_tensors import rope_freqs
from ggufkit.arch.spec import Architecture, Transform
from ggufkit.arch.specs.granite import FACTORS, KEYS, MOE_NAMES
from ggufkit.arch.specs.llama import PERMUTED
from ggufkit.arch.transforms import (
    decay,
    rename,
    reshape,
    split_rows,
    squeezed,
)
from ggufkit.arch.undo import decays_of_heads, one_channel, one_dimension
from ggufkit.checkpoint.config import Config
from ggufkit.tensors.tensor import Tensor
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece
from ggufkit.tokenizer.from_checkpoint.tokens import first_of
from ggufkit.tokenizer.from_checkpoint.variants import padded

if TYPE_CHECKING:
    pass

# Of these config.json is read as it is; without a base rope has llama.cpp's, which is theirs.
_DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}


# ---- the mixer --------------------------------------------------------------------------------------------------


def groups(config: Config) -> int:
    return config.integer("n_groups", "num_groups", "mamba_n_groups", "mamba_num_groups")


def heads(config: Config) -> int:
    return config.integer("n_heads", "mamba_n_heads", "mamba_num_heads", "num_heads")


def _inner(config: Config) -> int:
    """Granite's from the width, Nemotron's from the heads."""
    if (expand := config.get("mamba_expand", "expand")) is not None and "mamba_num_heads" not in config:
        return int(expand * config.width)
    return config.integer("mamba_num_heads") * config.integer("mamba_head_dim")


def mixer_keys(inner: Callable[[Config], int]) -> tuple[Row, ...]:
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
        uint("ssm.group_count", groups),
        uint("ssm.inner_size", inner),
        uint("ssm.time_step_rank", heads),
    )


MIXER: tuple[Transform, ...] = (
    rename((r"\.dt_bias$", ".dt_proj.bias")),
    decay(),
    squeezed(),
    reshape(r"\.(A_log|D)$", lambda tensor, config: (tensor.size, 1)),
)


def grouped_norm(pattern: str) -> Transform:
    return reshape(pattern, lambda tensor, config: (groups(config), tensor.size // groups(config)))


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


# ---- the way back ----

_FFN = ("gate", "up", "down")
_NO_LIMIT = 1e38  # of time steps, which no file names


def mixer_names(layer: str, mixer: str) -> dict[str, str]:
    return {
        f"blk.{{bid}}.{own}": f"{layer}.{mixer}.{name}"
        for own, name in {
            "ssm_a": "A_log",
            "ssm_d": "D",
            "ssm_dt.bias": "dt_bias",
            "ssm_conv1d": "conv1d",
            "ssm_in": "in_proj",
            "ssm_norm": "norm",
            "ssm_out": "out_proj",
        }.items()
    }


MIXER_UNDO: dict[str, Undo] = {
    ".ssm_a": decays_of_heads,
    ".ssm_d": one_dimension,
    ".ssm_norm": one_dimension,
    ".ssm_conv1d": one_channel,
}


def mixer_config(prefix: str, names: Mapping[str, str]) -> dict[str, Setting]:
    return {
        f"{prefix}{names.get(name, name)}": setting
        for name, setting in {
            "d_conv": key("ssm.conv_kernel"),
            "d_state": key("ssm.state_size"),
            "n_groups": key("ssm.group_count"),
            "n_heads": key("ssm.time_step_rank"),
            "d_head": head_width,
        }.items()
    }


def head_width(s: Source) -> int:
    return s.natural("ssm.inner_size") // s.natural("ssm.time_step_rank")


def _attention_kinds(s: Source) -> list[str]:
    return ["attention" if heads else "mamba" for heads in s.require("attention.head_count_kv")]


def _export_granite(experts: bool) -> Export:
    layer = "model.layers.{bid}"
    end = "_shexp" if experts else ""
    fused = {f"{layer}.shared_mlp.input_linear": (f"blk.{{bid}}.ffn_gate{end}", f"blk.{{bid}}.ffn_up{end}")}
    names = {**mixer_names(layer, "mamba"), f"blk.{{bid}}.ffn_down{end}": f"{layer}.shared_mlp.output_linear"}
    own = {}
    if experts:
        moe = f"{layer}.block_sparse_moe"
        fused[f"{moe}.input_linear"] = ("blk.{bid}.ffn_gate_exps", "blk.{bid}.ffn_up_exps")
        names |= {"blk.{bid}.ffn_gate_inp": f"{moe}.router.layer", "blk.{bid}.ffn_down_exps": f"{moe}.output_linear"}
        own = {f"blk.{{bid}}.ffn_{part}_exps": f"{moe}.switch_mlp.{part}_proj" for part in ("gate", "up", "down")}
    else:
        own = {f"blk.{{bid}}.ffn_{part}": f"{layer}.mlp.{part}_proj" for part in ("gate", "up", "down")}
    return Export(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        config={
            **FACTORS,
            **mixer_config("mamba_", {}),
            "mamba_expand": lambda s: s.natural("ssm.inner_size") // s.width,
            "mamba_conv_bias": lambda s: True,
            "mamba_proj_bias": lambda s: False,
            "mlp_bias": None,
            "head_dim": None,
            "layer_types": _attention_kinds,
            "position_embedding_type": lambda s: "nope",
            "num_local_experts": lambda s: s.get("expert_count", 0),
            "num_experts_per_tok": lambda s: s.get("expert_used_count", 0),
            "shared_intermediate_size": lambda s: (
                s.get("expert_shared_feed_forward_length") or s.require("feed_forward_length")
            ),
        },
        names=names,
        fused=fused,
        undo=MIXER_UNDO,
        rotated=True,
        when=lambda s: bool(s.get("expert_count")) is experts,
        mlx=Mlx(config={"time_step_limit": lambda s: [0.0, _NO_LIMIT]}, names=own),
    )


def _granite_hybrid(name: str, when: Callable[[Config], bool]) -> Architecture:
    return Architecture(
        name=name,
        graph=Graph(rope_layers="key"),
        models={"BambaForCausalLM": _DEFAULTS, "GraniteMoeHybridForCausalLM": _DEFAULTS},
        metadata=(
            *KEYS,
            uint("expert_shared_feed_forward_length", lambda config: config.get("shared_intermediate_size") or None),
            *mixer_keys(_inner),
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
            rope_freqs,  # which llama.cpp has no place for: such a model is refused
            split_rows(r"input_linear(?=\.weight$)", "gate", "up"),
            _shared_mlp,
            *MIXER,
            grouped_norm(r"\.mamba\.norm\.weight$"),
        ),
        names=MOE_NAMES,
        when=when,
        exports=(_export_granite(True), _export_granite(False)) if name == "granitehybrid" else (),
    )


SPECS = (
    _granite_hybrid("granitehybrid", _has_mixers),
    _granite_hybrid("granitemoe", lambda config: not _has_mixers(config) and "num_experts_per_tok" in config),
    _granite_hybrid("granite", lambda config: not _has_mixers(config)),
)
