"""Ling 3.0: layers of Kimi's delta attention, every few of them latent attention, and experts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    OPTIONAL,
    VOCAB_SIZE,
    Row,
    base,
    blocks_with_mtp,
    flag,
    integers,
    mtp_layers,
    real,
    reals,
    uint,
)
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.deepseek2 import absorbed
from ggufkit.arch.transforms import drop, map_each, mlp_experts, rename, reshape, trunk
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.policy.traits import Traits
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import computed, reshaped
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

# What GGUF has no other values of.
_FIXED = {"no_kda_lora": True, "kda_safe_gate": True, "gated_attention_proj_granularity_type": "head_wise"}


def _known(architecture: str, config: Config) -> tuple[()]:
    for name, wanted in _FIXED.items():
        if config.get(name) != wanted:
            raise ArchitectureError(f"config.json: {name!r} must be {wanted}, not {printable(repr(config.get(name)))}")
    return ()


def _full(config: Config, layer: int) -> bool:
    """Whether a layer has latent attention: the last of each group, and those that make no whole group."""
    layers, group = config.layers, config.integer("layer_group_size")
    return layer >= layers or (layer + 1) % group == 0 or layer >= layers // group * group


def _sum(*names: str) -> Callable[[Config], int]:
    return lambda config: sum(config.integer(name) for name in names)


def _limits(name: str) -> Callable[[Config], list[float] | None]:
    """Limits of each block; 0 for none."""

    def limits(config: Config) -> list[float] | None:
        if name not in config:
            return None
        blocks, values = blocks_with_mtp(config), config.list(name)
        found = [Config({name: value}).number(name, default=0.0) for value in values[:blocks]]
        return found + [0.0] * (blocks - len(found))

    return limits


def _sections(config: Config) -> list[int]:
    sections = config.list("mrope_section")[:3]
    if 2 * sum(sections) != config.integer("qk_rope_head_dim"):
        raise ArchitectureError(f"config.json: 'mrope_section' is {sections}, which are not half of 'qk_rope_head_dim'")
    return [*sections, 0]


def _projections(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """f_proj and g_proj, which are something else in a layer of each kind."""
    for tensor in tensors:
        match = re.search(r"layers\.(\d+)\.attention\.([fg])_proj\.weight$", tensor.name)
        if match is None:
            yield tensor
            continue
        layer, part = int(match[1]), match[2]
        full = _full(config, layer)
        if full and part == "f":
            raise CheckpointError(f"{printable(tensor.name)} is in a layer of latent attention")
        name = "attn_gate" if full else f"ssm_{part}_a"
        yield tensor.renamed(f"blk.{layer}.{name}.weight")


def _rates(tensor: Tensor, config: Config) -> Tensor:
    """A state's rate of decay, eᵃ, one each head."""
    import numpy as np

    rates = computed(tensor, lambda values: np.exp(values.astype(np.float64)).astype(np.float32))
    return reshaped(rates, (rates.cols if len(rates.shape) == 1 else rates.rows * rates.cols, 1))


def _ling(name: str, *more: Row, drops: str) -> Architecture:
    return Architecture(
        name="bailingmoe3",
        graph=Graph(router_normalized=False),
        models={name: {}},
        traits=Traits(stacks_are_experts=False),  # its MLA projections are stacks, too
        metadata=(
            _known,
            *base(uint("attention.head_count_kv", lambda config: 1), uint("block_count", blocks_with_mtp)),
            integers(
                "attention.head_count_kv",
                lambda config: [int(_full(config, layer)) for layer in range(blocks_with_mtp(config))],
            ),
            VOCAB_SIZE,
            uint("ssm.conv_kernel", "short_conv_kernel_size"),
            uint("kda.head_dim", "head_dim"),
            flag("kda.safe_gate", "kda_safe_gate"),
            real("kda.gate_lower_bound", "kda_lower_bound"),
            uint("attention.q_lora_rank", "q_lora_rank", need=OPTIONAL),
            uint("attention.kv_lora_rank", "kv_lora_rank"),
            uint("rope.dimension_count", "qk_rope_head_dim"),
            uint("attention.key_length", _sum("kv_lora_rank", "qk_rope_head_dim")),
            uint("attention.key_length_mla", _sum("qk_nope_head_dim", "qk_rope_head_dim")),
            uint("attention.value_length_mla", "v_head_dim"),
            uint("expert_feed_forward_length", "moe_intermediate_size"),
            uint("expert_shared_feed_forward_length", "moe_shared_expert_intermediate_size"),
            uint("expert_shared_count", lambda config: config.get("num_shared_experts", default=1)),
            uint("leading_dense_block_count", "first_k_dense_replace"),
            real("expert_weights_scale", "routed_scaling_factor"),
            flag("expert_weights_norm", "norm_topk_prob"),
            reals("swiglu_clamp_exp", _limits("expert_swiglu_limit_list")),
            reals("swiglu_clamp_shexp", _limits("share_expert_swiglu_limit_list")),
            uint("nextn_predict_layers", lambda config: mtp_layers(config) or None),
            *more,
        ),
        vocabulary=bpe,
        transforms=(
            drop(drops),
            trunk(blocks_with_mtp),
            rename((r"\.expert_bias$", ".expert_bias.bias"), (r"\.dt_bias$", ".dt_proj.bias")),
            reshape(r"\.[qkv]_conv1d\.weight$", lambda tensor, config: (1, tensor.shape[0], 1, tensor.shape[-1])),
            map_each(r"\.A_log$", _rates),
            _projections,
            *mlp_experts("num_experts"),
            _absorbed,
        ),
        blocks=blocks_with_mtp,
    )


def _absorbed(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """`absorbed` with all heads, whose keys and values differ."""
    return absorbed(tensors, config.with_values(num_key_value_heads=config.heads))


SPECS = (
    _ling("BailingMoeV3ForCausalLM", drops=r"^$"),
    _ling(
        "BailingMoeV3VLForConditionalGeneration",
        integers("rope.dimension_sections", _sections),
        drops=r"^linear_proj",
    ),
)
