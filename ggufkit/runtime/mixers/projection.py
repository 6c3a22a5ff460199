"""A matrix in the place of attention, which it was found to do without: each token by itself (DeciLM).

    y = W x

Source: src/models/deci.cpp of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ggufkit.runtime.loader import Loader
from ggufkit.runtime.ops import Array, Linear
from ggufkit.runtime.step import Step

__all__ = ["Projection", "found", "load"]


@dataclass(frozen=True)
class Projection:
    """One layer's. It remembers nothing."""

    out: Linear

    def run(self, x: Array, step: Step) -> Array:
        (y,) = step.ops.linear(x, self.out)
        return y


def found(load: Loader, at: str) -> bool:
    """Whether a block has one: what attention ends with and nothing before it."""
    others = "attn_q", "attn_k", "attn_qkv", "attn_kv_a_mqa"
    return load.has(f"{at}attn_output.weight") and not any(load.has(f"{at}{name}.weight") for name in others)


def load(load: Loader, layer: int, slots: list[Any]) -> Projection:
    """A layer's, its tensors checked and taken."""
    return Projection(load.linear(f"blk.{layer}.attn_output", load.hyper.width, load.hyper.width))
