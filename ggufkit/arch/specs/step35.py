"""Step 3.5 and 3.7: layers with a window have other heads and another rope; gates per head, experts, one shared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import base, blocks_with_mtp, flag, flags, integers, mtp_layers, real, reals, uint
from ggufkit.arch.rope import llama3_divisors
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import norm_plus_one, rename, trunk
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import vector
from ggufkit.tokenizer.from_checkpoint.bpe import bpe


def _padded(config: Config, name: str, default: Any) -> list[Any]:
    """A value of each layer, blocks that predict further tokens included; lists may end before."""
    found = list(config.get(name) or [])
    count = blocks_with_mtp(config)
    return (found + [default] * (count - len(found)))[:count]


def _local(config: Config) -> list[bool]:
    kinds = [kind == "sliding_attention" for kind in _padded(config, "layer_types", "full_attention")]
    if _padded(config, "partial_rotary_factors", 0.5) != [1.0 if local else 0.5 for local in kinds]:
        raise ArchitectureError("config.json: whole heads turn in layers with a window, half of each in the others")
    return kinds


def _of_layers(name: str) -> Callable[[Config], list[int]]:
    def find(config: Config) -> list[int]:
        everything = config.integer(name)
        window = config.part("attention_other_setting").get(name, default=everything)
        return [window if local else everything for local in _local(config)]

    return find


def _theta(config: Config, position: int) -> float | None:
    """The rope's base of layers that see everything, and of those with a window."""
    theta = config.get("rope_theta")
    if isinstance(theta, list):
        if len(theta) < 2:
            raise ArchitectureError(f"config.json: 'rope_theta' is {printable(repr(theta))}, not one of each kind")
        return float(theta[0 if position == 0 else 1])
    return theta if position == 0 else None


def _dense(config: Config) -> int:
    layers = config.get("moe_layers_enum")
    numbers = [int(layer) for layer in layers.split(",")] if isinstance(layers, str) and layers.strip() else []
    return max(0, min(numbers, default=0))


def _limits(name: str) -> Callable[[Config], list[float] | None]:
    def find(config: Config) -> list[float] | None:
        if config.get(name) is None:
            return None
        return [0.0 if limit is None else float(limit) for limit in _padded(config, name, 0.0)]

    return find


def _half_stretched(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """llama3's divisors for the half of a head that turns in layers which see everything."""
    scaling = config.get("rope_parameters", "rope_scaling", default={})
    if isinstance(scaling, dict) and str(scaling.get("rope_type") or scaling.get("type")).lower() == "llama3":
        import numpy as np

        turning = llama3_divisors({**scaling, "rope_theta": _theta(config, 0)}, config.head_dim // 2)
        yield vector("rope_freqs.weight", np.append(turning, np.ones(config.head_dim // 2 - len(turning), np.float32)))
    yield from tensors


SPECS = (
    Architecture(
        name="step35",
        graph=Graph(rope="neox", window_period=1, full_rope_share=0.5, full_rope_factors=True, router="sigmoid"),
        models={"Step3p5ForCausalLM": {}, "Step3p7ForConditionalGeneration": {}},
        metadata=(
            *base(
                uint("block_count", blocks_with_mtp),
                integers("attention.head_count", _of_layers("num_attention_heads")),
                real("rope.freq_base", lambda config: _theta(config, 0)),
                real("rope.freq_base_swa", lambda config: _theta(config, 1)),
            ),
            integers("attention.head_count_kv", _of_layers("num_attention_groups")),
            uint("attention.sliding_window", "sliding_window"),
            flags("attention.sliding_window_pattern", _local),
            uint("attention.value_length", "head_dim"),
            uint("expert_count", "moe_num_experts"),
            uint("expert_used_count", "moe_top_k"),
            uint("expert_feed_forward_length", "moe_intermediate_size"),
            uint("expert_shared_feed_forward_length", "share_expert_dim"),
            real("expert_weights_scale", lambda config: config.get("moe_router_scaling_factor")),
            flag("expert_weights_norm", lambda config: config.get("norm_expert_weight")),
            uint("leading_dense_block_count", _dense),
            uint("moe_every_n_layers", lambda config: config.get("moe_every_n_layer", default=1)),
            real("attention.layer_norm_rms_epsilon", lambda config: config.get("rms_norm_eps", default=1e-5)),
            reals("swiglu_clamp_exp", _limits("swiglu_limits")),
            reals("swiglu_clamp_shexp", _limits("swiglu_limits_shared")),
            uint("nextn_predict_layers", lambda config: mtp_layers(config) or None),
        ),
        vocabulary=bpe,
        transforms=(
            _half_stretched,
            trunk(blocks_with_mtp),
            rename(
                (r"\.moe\.router_bias$", ".moe.router_bias.bias"),
                (r"(\.layers\.\d+)\.transformer\.(shared_head)\.output\.", r"\1.\2.head."),
                (r"(\.layers\.\d+)\.transformer\.(shared_head)\.", r"\1.\2."),
            ),
            norm_plus_one(),
        ),
        blocks=blocks_with_mtp,
    ),
)
