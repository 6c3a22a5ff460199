"""Qwen3-Next, Qwen 3.5 and what is built like them: layers of gated delta nets, and a few of gated attention."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ggufkit.arch.export import Export, Setting, Source, Undo, key, one_row, rope_scaling
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import Row, base, flags, integers, pooling, rope_parameters, uint
from ggufkit.arch.mlx import Mlx
from ggufkit.arch.spec import Architecture, Transform
from ggufkit.arch.specs.qwen2 import EXPERT_LENGTHS, EXPERTS, MOE_SETTINGS, SHARED_EXPERT
from ggufkit.arch.transforms import decay, drop, mtp_blocks, norm_plus_one, rename, squeezed
from ggufkit.arch.undo import as_it_is, columns_back, logarithms, one_channel, rows_back
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import take_columns, take_rows
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

if TYPE_CHECKING:
    import numpy as np

_DEFAULTS = {
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "head_dim": 256,
}


def _mtp(config: Config) -> int:
    """Blocks that predict further tokens; some configs say nothing of them, some checkpoints lack them."""
    if not config.mtp:
        return 0
    found = [re.match(r"(?:model\.)?mtp\.layers\.(\d+)\.", name) for name in config.tensors]
    present = max((int(match[1]) + 1 for match in found if match), default=0)
    named = config.get("mtp_num_hidden_layers", default=0)
    if type(named) is not int or not 0 <= named < 1000:
        raise ArchitectureError(f"config.json: 'mtp_num_hidden_layers' is {printable(repr(named))}, not a number")
    return named or present


def blocks(config: Config) -> int:
    return config.layers + _mtp(config)


def key_heads(config: Config) -> int:
    return config.integer("linear_num_key_heads")


def value_heads(config: Config) -> int:
    count = config.integer("linear_num_value_heads")
    if count % key_heads(config):
        raise ArchitectureError(
            f"config.json: 'linear_num_value_heads' is {count}, no multiple of the {key_heads(config)} key heads"
        )
    return count


def _recurrent(config: Config) -> list[bool] | None:
    if "layer_types" not in config:
        return None
    kinds = config.list("layer_types", config.layers)
    return [kind == "linear_attention" for kind in kinds] + [False] * _mtp(config)


def _rotated(config: Config) -> int:
    factor = rope_parameters(config)["partial_rotary_factor"]
    return int(config.head_dim * (0.25 if factor is None else factor))


# Behind the keys of the base.
DELTA: tuple[Row, ...] = (
    *EXPERT_LENGTHS,
    uint("nextn_predict_layers", lambda config: _mtp(config) or None),
    uint("ssm.conv_kernel", "linear_conv_kernel_dim"),
    uint("ssm.state_size", "linear_key_head_dim"),
    uint("ssm.group_count", key_heads),
    uint("ssm.time_step_rank", value_heads),
    uint("ssm.inner_size", lambda config: config.integer("linear_value_head_dim") * value_heads(config)),
    flags("attention.recurrent_layers", _recurrent),
    uint("full_attention_interval", lambda config: config.get("full_attention_interval", default=4)),
    uint("rope.dimension_count", _rotated),
)


def _sections(config: Config) -> list[int] | None:
    return None if rope_parameters(config).get("mrope_section") else [11, 11, 10, 0]


SECTIONS = integers("rope.dimension_sections", _sections)

# A norm's weights lack 1, but for that of the delta net's output.
DELTA_TENSORS: tuple[Transform, ...] = (
    rename((r"\.dt_bias$", ".dt_proj.bias")),
    decay(),
    squeezed(),
    norm_plus_one(r"(?<!linear_attn\.norm)(?<=norm)\.weight$"),
)


def _split_qkvz(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Qwen3-Next's projection goes key head by key head; all queries, all keys, all values become one, gates another.

    for each key head:   query | key | its heads of values | its heads of gates
    """
    import numpy as np

    for tensor in tensors:
        if "in_proj_qkvz.weight" not in tensor.name:
            yield tensor
            continue
        k, v = config.integer("linear_key_head_dim"), config.integer("linear_value_head_dim")
        heads, group = key_heads(config), value_heads(config) // key_heads(config)
        _check_rows(tensor, tensor.rows, heads * (2 * k + 2 * group * v))
        rows = np.arange(tensor.rows).reshape(heads, -1)
        ends = np.cumsum([k, k, group * v])
        q, key, value, gate = (part.reshape(-1) for part in np.split(rows, ends, axis=1))
        layer = tensor.name.split(".")[2]
        yield take_rows(tensor, np.concatenate([q, key, value])).renamed(f"blk.{layer}.attn_qkv.weight")
        yield take_rows(tensor, gate).renamed(f"blk.{layer}.attn_gate.weight")


def _check_rows(tensor: Tensor, rows: int, expected: int) -> None:
    if rows != expected:
        raise CheckpointError(
            f"{printable(tensor.name)} has {rows} rows, the config's linear attention calls for {expected}"
        )


def tiled_values(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Value heads in the order in which they take turns over the key heads, as GGML repeats these.

    grouped   k0v0 k0v1 | k1v0 k1v1        tiled   k0v0 k1v0 | k0v1 k1v1
    """
    import numpy as np

    heads, values = key_heads(config), value_heads(config)
    k, v = config.integer("linear_key_head_dim"), config.integer("linear_value_head_dim")

    def tiled(width: int) -> np.ndarray:
        return np.arange(values * width).reshape(heads, values // heads, width).swapaxes(0, 1).reshape(-1)

    behind_keys = np.concatenate([np.arange(2 * heads * k), 2 * heads * k + tiled(v)])
    for tensor in tensors:
        name = tensor.name
        if "linear_attn." not in name or heads == values:
            yield tensor
        elif ".in_proj_qkv." in name or ".conv1d" in name:
            _check_rows(tensor, tensor.shape[0], len(behind_keys))
            yield take_rows(tensor, behind_keys, tensor.shape)
        elif ".in_proj_z." in name or ".in_proj_a." in name or ".in_proj_b." in name:
            order = tiled(v if ".in_proj_z." in name else 1)
            _check_rows(tensor, tensor.rows, len(order))
            yield take_rows(tensor, order)
        elif name.endswith((".A_log", ".dt_bias")):
            _check_rows(tensor, tensor.cols, values)
            yield take_columns(tensor, tiled(1))
        elif ".out_proj." in name:
            _check_rows(tensor, tensor.cols, values * v)
            yield take_columns(tensor, tiled(v))
        else:
            yield tensor


# ---- the way back ----


def _tiled(s: Source, width: int) -> np.ndarray:
    """Where `tiled_values` took value heads of `width` from."""
    import numpy as np

    heads, values = s.natural("ssm.group_count"), s.natural("ssm.time_step_rank")
    if values % heads:
        raise ArchitectureError(f"{s.architecture}.ssm.time_step_rank is {values}, no multiple of {heads} key heads")
    return np.arange(values * width).reshape(heads, values // heads, width).swapaxes(0, 1).reshape(-1)


def _value_width(s: Source) -> int:
    return s.natural("ssm.inner_size") // s.natural("ssm.time_step_rank")


def _tiled_behind_keys(s: Source) -> np.ndarray:
    import numpy as np

    keys = 2 * s.natural("ssm.group_count") * s.natural("ssm.state_size")
    return np.concatenate([np.arange(keys), keys + _tiled(s, _value_width(s))])


def _by_key_heads(s: Source) -> np.ndarray:
    """Where `_split_qkvz` took the rows from, of what it made one below the other."""
    import numpy as np

    k, heads = s.natural("ssm.state_size"), s.natural("ssm.group_count")
    v = s.natural("ssm.inner_size") // heads
    rows = np.arange(heads * (2 * k + 2 * v)).reshape(heads, -1)
    return np.concatenate([part.reshape(-1) for part in np.split(rows, np.cumsum([k, k, v]), axis=1)])


def _trunk_layers(s: Source) -> int:
    return s.layers - int(s.get("nextn_predict_layers", 0))


def _kinds(s: Source) -> list[str]:
    interval, count = s.get("full_attention_interval", 4), _trunk_layers(s)
    flags = s.get("attention.recurrent_layers") or [bool((i + 1) % interval) for i in range(count)]
    return ["linear_attention" if recurrent else "full_attention" for recurrent in flags[:count]]


def _rope(s: Source) -> dict[str, Any]:
    sections = s.get("rope.dimension_sections")
    return {
        "rope_type": "default",
        **(rope_scaling(s) or {}),
        "rope_theta": s.get("rope.freq_base", 10000.0),
        "partial_rotary_factor": s.require("rope.dimension_count") / s.head_dim,
        **({"mrope_section": list(sections[:3]), "mrope_interleaved": True} if sections else {}),
    }


_MTP_ENDS = {
    "eh_proj": "fc",
    "enorm": "pre_fc_norm_embedding",
    "hnorm": "pre_fc_norm_hidden",
    "shared_head.norm": "norm",
}
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.*)\.(\w+)")


def _of_mtp(s: Source, tensor: Tensor) -> str:
    """Blocks that predict further tokens have names of their own."""
    name = tensor.name
    if (match := _BLOCK.fullmatch(name)) is None or int(match[1]) < (layers := _trunk_layers(s)):
        return name
    if (end := _MTP_ENDS.get(match[2])) is not None:
        return f"mtp.{end}.{match[3]}"
    return f"mtp.layers.{int(match[1]) - layers}.{match[2]}.{match[3]}"


# mlx-lm's norms have their 1, and its models no blocks that predict further tokens.
_MLX_SETTINGS: dict[str, Setting] = {
    "mtp_num_hidden_layers": lambda s: 0,
    "rope_theta": key("rope.freq_base", 10000.0),
    "partial_rotary_factor": lambda s: s.require("rope.dimension_count") / s.head_dim,
}
_MLX_NAMES = {
    "output_norm": "model.norm",
    **{
        f"blk.{{bid}}.{own}": f"model.layers.{{bid}}.{name}"
        for own, name in {
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
        }.items()
    },
}


def _mlx(model_type: str, prefix: str, **settings: Setting) -> Mlx:
    return Mlx(model_type, {**_MLX_SETTINGS, **settings}, _MLX_NAMES, prefix, skip=lambda s, name: "mtp." in name)


def _export(model_type: str, model_class: str, names: dict[str, str], undo: dict[str, Undo], **changes: Any) -> Export:
    return Export(
        model_type,
        model_class,
        config={
            "num_hidden_layers": _trunk_layers,
            "mtp_num_hidden_layers": lambda s: s.get("nextn_predict_layers"),
            "layer_types": _kinds,
            "full_attention_interval": key("full_attention_interval", 4),
            "attention_bias": lambda s: False,
            "mlp_bias": None,
            "rope_theta": None,
            "rope_scaling": None,
            "rope_parameters": _rope,
            "linear_conv_kernel_dim": key("ssm.conv_kernel"),
            "linear_key_head_dim": key("ssm.state_size"),
            "linear_value_head_dim": _value_width,
            "linear_num_key_heads": key("ssm.group_count"),
            "linear_num_value_heads": key("ssm.time_step_rank"),
            **changes,
        },
        names={
            "blk.{bid}.post_attention_norm": "model.layers.{bid}.post_attention_layernorm",
            "blk.{bid}.ssm_a": "model.layers.{bid}.linear_attn.A_log",
            "blk.{bid}.ssm_dt.bias": "model.layers.{bid}.linear_attn.dt_bias",
            "blk.{bid}.ssm_conv1d": "model.layers.{bid}.linear_attn.conv1d",
            "blk.{bid}.ssm_norm": "model.layers.{bid}.linear_attn.norm",
            "blk.{bid}.ssm_out": "model.layers.{bid}.linear_attn.out_proj",
            **{f"blk.{{bid}}.nextn.{end.replace('.', '_')}": f"model.layers.{{bid}}.{end}" for end in _MTP_ENDS},
            **names,
        },
        norm_offset=1.0,
        undo={".ssm_norm": as_it_is, ".ssm_a": logarithms, ".ssm_conv1d": one_channel, **undo},
        called=_of_mtp,
    )


def _untiled_decay(s: Source, tensor: Tensor) -> Tensor:
    return rows_back(lambda s: _tiled(s, 1))(s, logarithms(s, tensor))


def _untiled_convolution(s: Source, tensor: Tensor) -> Tensor:
    return one_channel(s, rows_back(_tiled_behind_keys)(s, tensor))


_PROJECTIONS = {"attn_qkv": "in_proj_qkv", "attn_gate": "in_proj_z", "ssm_alpha": "in_proj_a", "ssm_beta": "in_proj_b"}
_NAMES = {f"blk.{{bid}}.{own}": f"model.layers.{{bid}}.linear_attn.{name}" for own, name in _PROJECTIONS.items()}
_UNDO: dict[str, Undo] = {
    ".ssm_a": _untiled_decay,
    ".ssm_conv1d": _untiled_convolution,
    ".ssm_dt": rows_back(lambda s: _tiled(s, 1)),
    ".ssm_alpha": rows_back(lambda s: _tiled(s, 1)),
    ".ssm_beta": rows_back(lambda s: _tiled(s, 1)),
    ".attn_gate": rows_back(lambda s: _tiled(s, _value_width(s))),
    ".attn_qkv": rows_back(_tiled_behind_keys),
    ".ssm_out": columns_back(lambda s: _tiled(s, _value_width(s))),
}
_MOE: dict[str, Any] = {
    **MOE_SETTINGS,
    "decoder_sparse_step": None,
    "intermediate_size": None,
    "shared_expert_intermediate_size": key("expert_shared_feed_forward_length"),
}

_EXPORT = replace(_export("qwen3_5_text", "Qwen3_5ForCausalLM", _NAMES, _UNDO), mlx=_mlx("qwen3_5", "language_model."))
_EXPORT_MOE = replace(
    _export(
        "qwen3_5_moe_text",
        "Qwen3_5MoeForCausalLM",
        {**_NAMES, **SHARED_EXPERT},
        {**_UNDO, ".ffn_gate_inp_shexp": one_row},
        **_MOE,
    ),
    mlx=_mlx("qwen3_5_moe", "language_model."),
)
_EXPORT_NEXT = replace(
    _export(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        {**SHARED_EXPERT, "blk.{bid}.ssm_ba": "model.layers.{bid}.linear_attn.in_proj_ba"},
        {".ffn_gate_inp_shexp": one_row, ".in_proj_qkvz": rows_back(_by_key_heads)},
        **{**_MOE, "intermediate_size": key("feed_forward_length")},
        norm_topk_prob=lambda s: True,
    ),
    fused={"model.layers.{bid}.linear_attn.in_proj_qkvz": ("blk.{bid}.attn_qkv", "blk.{bid}.attn_gate")},
    mlx=_mlx("qwen3_next", "", decoder_sparse_step=lambda s: 1, mlp_only_layers=lambda s: []),
)


def _qwen35(
    name: str,
    models: tuple[str, ...],
    mtp: Transform,
    count: Callable[[Config], int] = blocks,
    exports: tuple[Export, ...] = (),
) -> Architecture:
    return Architecture(
        name=name,
        exports=exports,
        graph=Graph(rope="neox", ffn_norm="post_attention_norm", mixed_sections=True),
        models=dict.fromkeys(models, _DEFAULTS),
        metadata=(*base(uint("block_count", count)), *DELTA, SECTIONS),
        vocabulary=bpe,
        transforms=(mtp, tiled_values, *DELTA_TENSORS, *EXPERTS),
        blocks=count,
    )


def _of_trunk(row: Row) -> Row:
    return lambda architecture, config: row(architecture, config.without_mtp())


def _bare(model: str) -> Architecture:
    """The model without its head, which has no blocks that predict further tokens."""
    spec = _qwen35("qwen35", (model,), drop(r"^(model\.)?mtp\."), lambda config: config.layers)
    return replace(
        spec,
        metadata=(*map(_of_trunk, spec.metadata), pooling),
        transforms=(rename((r"^(?=(embed_tokens|layers|norm)\.)", "model.")), *spec.transforms),
    )


SPECS = (
    Architecture(
        name="qwen3next",
        exports=(_EXPORT_NEXT,),
        graph=Graph(rope="neox", ffn_norm="post_attention_norm", mixed_sections=True),
        models={"Qwen3NextForCausalLM": _DEFAULTS},
        metadata=(*base(uint("block_count", blocks)), *DELTA),
        vocabulary=bpe,
        transforms=(mtp_blocks(), *DELTA_TENSORS, _split_qkvz, *EXPERTS),
        blocks=blocks,
    ),
    _qwen35("qwen35", ("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"), mtp_blocks(), exports=(_EXPORT,)),
    _bare("Qwen3_5TextModel"),
    _qwen35("qwen35", ("MiniCPMV4_6ForConditionalGeneration",), drop(r"^(model\.)?(mtp|merger)\.")),
    _qwen35(
        "qwen35moe",
        ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
        mtp_blocks(),
        exports=(_EXPORT_MOE,),
    ),
)
