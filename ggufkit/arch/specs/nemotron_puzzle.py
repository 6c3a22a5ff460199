"""Nemotron-H as NVIDIA's Puzzle cut it: each block says itself what it is and how many experts it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ggufkit.arch.metadata import Row, flag, integers, real, uint
from ggufkit.arch.spec import Architecture, Transform
from ggufkit.arch.specs.nemotron_h import NEMOTRON_EXPERTS, nemotron
from ggufkit.arch.transforms import drop, rename
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError
from ggufkit.tensors.tensor import Tensor


def _blocks(config: Config) -> list[dict[str, Any]]:
    blocks = config.list("block_configs")
    if not all(isinstance(block, dict) and isinstance(block.get("block_type"), str) for block in blocks):
        raise ArchitectureError("config.json: each of 'block_configs' needs a 'block_type'")
    return blocks


def _plain(config: Config) -> Config:
    """The settings of a Nemotron-H with these blocks; what predicts further tokens has no place in GGUF."""
    kinds = [block["block_type"] for block in _blocks(config)]
    gone = dict.fromkeys(("hybrid_override_pattern", "num_experts_per_tok"))
    return config.without_mtp().with_values(**gone, layers_block_type=kinds, num_hidden_layers=len(kinds))


def _row(row: Row) -> Row:
    return lambda architecture, config: row(architecture, _plain(config))


def _step(step: Transform) -> Transform:
    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        yield from step(tensors, _plain(config))

    return transform


def _each(name: str) -> Callable[[Config], list[int]]:
    return lambda config: [block.get(name) or 0 for block in _blocks(config)]


_KEYS: tuple[Row, ...] = (
    integers("feed_forward_length", _each("moe_intermediate_size")),
    integers("expert_feed_forward_length", _each("moe_intermediate_size")),
    integers("expert_used_count", _each("num_experts_per_tok")),
    uint("expert_shared_feed_forward_length", "moe_shared_expert_intermediate_size"),
    uint("expert_count", "n_routed_experts"),
    uint("expert_shared_count", "n_shared_experts"),
    flag("expert_weights_norm", "norm_topk_prob"),
    real("expert_weights_scale", "routed_scaling_factor"),
    uint("expert_group_count", "n_group"),
    uint("moe_latent_size", "moe_latent_size"),
)


def _puzzle() -> Architecture:
    spec = nemotron("nemotron_h_moe", True, _KEYS, NEMOTRON_EXPERTS)
    return replace(
        spec,
        graph=None,
        models={"NemotronHPuzzleForCausalLM": {"rms_norm_eps": None, "layer_norm_epsilon": 1e-5}},
        when=lambda config: True,
        metadata=tuple(map(_row, spec.metadata)),
        transforms=(drop(r"^mtp\."), rename((r"^model\.", "backbone.")), *map(_step, spec.transforms)),
        blocks=lambda config: len(_blocks(config)),
    )


SPECS = (_puzzle(),)
