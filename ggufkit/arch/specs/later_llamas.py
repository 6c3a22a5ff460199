"""Relatives of Llama whose code came with their checkpoints: CogVLM, Spark 2.5, Talkie, XVERSE."""

from __future__ import annotations

from collections.abc import Callable

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, ROPE_DIMENSIONS, VOCAB_SIZE, flags, real, string, uint
from ggufkit.arch.rope_tensors import rope_freqs
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.llama import BARE_LLAMA, PERMUTED
from ggufkit.arch.transforms import drop, map_each, rename, reshape
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import by_rows
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.llama import llama_vocabulary
from ggufkit.tokenizer.from_checkpoint.variants import xverse

# ---- Spark ------------------------------------------------------------------------------------------------------


_SPARK = {"gate_attn_act_mode": "sigmoid", "headwise_attn_output_gate": True, "hidden_act": "gelu"}


def _spark_windows(config: Config) -> list[bool]:
    kinds = config.list("layer_types", config.layers)
    if set(kinds) - {"sliding_attention", "full_attention"}:
        raise ArchitectureError("config.json: 'layer_types' must be sliding_attention or full_attention")
    for name, wanted in _SPARK.items():
        if config.get(name) != wanted:
            raise ArchitectureError(f"config.json: {name!r} must be {wanted}, not {printable(repr(config.get(name)))}")
    return [kind == "sliding_attention" for kind in kinds]


def _turning(kind: str) -> Callable[[Config], int]:
    return lambda config: int(
        config.integer("head_dim") * config.part("rope_parameters").part(kind).number("partial_rotary_factor")
    )


def _gate_per_head(tensor: Tensor, config: Config) -> Tensor:
    if tensor.rows != config.heads:
        raise CheckpointError(
            f"{printable(tensor.name)} has {tensor.rows} rows, not one for each of {config.heads} heads"
        )
    return tensor


# ---- Talkie -----------------------------------------------------------------------------------------------------


def _logit_scale(config: Config) -> float:
    for name, tensor in config.tensors.items():
        if name.endswith("lm_head_gain.w_g") and tensor.size == 1:
            return float(tensor.floats().flat[0])
    raise CheckpointError("the checkpoint has no single number lm_head_gain.w_g")


def _turned_back(tensor: Tensor, config: Config) -> Tensor:
    """Talkie turns the other way: the second half of each head changes its sign."""
    import numpy as np

    head = config.head_dim
    if tensor.rows % head or head % 2:
        raise CheckpointError(f"{printable(tensor.name)} has {tensor.rows} rows, which heads of {head} do not divide")

    def signed(weights: np.ndarray, lo: int) -> np.ndarray:
        second = np.arange(lo, lo + len(weights)) % head >= head // 2
        return np.where(second[:, None], -weights, weights)

    return by_rows(tensor, signed)


_TALKIE = r"^model\.blocks\.(\d+)\."

SPECS = (
    Architecture(
        name="cogvlm",
        graph=Graph(rope="neox", unread=("vis_",)),
        models={"CogVLMForCausalLM": {"rms_norm_eps": 1e-5}},
        metadata=(*BASE, VOCAB_SIZE, ROPE_DIMENSIONS),
        vocabulary=llama_vocabulary,
        transforms=(BARE_LLAMA, *PERMUTED, rope_freqs),
    ),
    Architecture(
        name="spark2_5",
        graph=Graph(rope="neox", activation="gelu", window_period=1),
        models={"Spark2_5ForCausalLM": {}},
        metadata=(
            *BASE,
            VOCAB_SIZE,
            uint("attention.sliding_window", "sliding_window"),
            flags("attention.sliding_window_pattern", _spark_windows),
            uint("rope.dimension_count", _turning("full_attention")),
            uint("rope.dimension_count_swa", _turning("sliding_attention")),
        ),
        vocabulary=bpe,
        transforms=(map_each(r"\.self_attn\.g_proj\.weight$", _gate_per_head),),
        names={"model.layers.{bid}.self_attn.q_k_v_proj.weight": "blk.{bid}.attn_qkv.weight"},
    ),
    Architecture(
        name="talkie",
        graph=Graph(
            rope="neox",
            bare_norms=True,
            embedding_norm=True,
            embedding_added=True,
            late_norm=True,
            plain_norm=True,
            logit_multiplied=True,
        ),
        models={"TalkieForCausalLM": {}},
        preamble=(real("logit_scale", _logit_scale),),
        metadata=(*BASE, real("attention.layer_norm_rms_epsilon", lambda config: 2.0**-23)),
        vocabulary=bpe,
        transforms=(
            drop(r"lm_head_gain\.w_g$"),
            map_each(r"attn\.attn_(query|key)\.weight$", _turned_back),
            reshape(r"attn\.head_gain\.head_g$", lambda tensor, config: (tensor.size, 1)),
            rename(
                (_TALKIE + r"attn_gain\.a_g$", r"blk.\1.attn_output.scale"),
                (_TALKIE + r"mlp_gain\.a_g$", r"blk.\1.ffn_down.scale"),
                (r"(?<!weight)(?<!scale)$", ".weight"),
            ),
        ),
        names={f"blk.{{bid}}.{part}.scale": f"blk.{{bid}}.{part}.scale" for part in ("attn_output", "ffn_down")},
    ),
    Architecture(
        name="xverse",
        graph=Graph(),
        models={"XverseForCausalLM": {}},
        metadata=(*BASE, string("tensor_data_layout", "Meta AI original pth"), ROPE_DIMENSIONS),
        vocabulary=xverse,
        transforms=PERMUTED,
    ),
)
