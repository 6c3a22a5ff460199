"""The hyperparameters that decide on precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ggufkit.policy.roles import ATTN_VALUES, Role, role_of
from ggufkit.policy.traits import PLAIN, Traits

__all__ = ["Hyperparameters", "hyperparameters_of"]


@dataclass(frozen=True)
class Hyperparameters:
    """The hyperparameters that decide on precision.

    Attributes
    ----------
    architecture : `general.architecture`.
    layers, heads, kv_heads, experts : their numbers; the heads of the first layer. 0 where the model has none.
    value_tensors : tensors that act as the value projection (one per layer, mostly).
    tied : the token embeddings are also the output.
    imatrix : an importance matrix is there.
    traits : what is special about its architecture.
    """

    architecture: str = ""
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    experts: int = 0
    value_tensors: int = 0
    tied: bool = False
    imatrix: bool = False
    traits: Traits = PLAIN

    @property
    def gqa(self) -> int:
        """Query heads that share a key-value head."""
        return self.heads // self.kv_heads if self.kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp calls it "70B"; only the number of layers tells."""
        older = self.traits.older_65b and self.heads == self.kv_heads
        return self.layers == self.traits.layers_of_70b and not older


def hyperparameters_of(
    metadata: Mapping[str, Any], names: Iterable[str], traits: Traits, imatrix: bool = False
) -> Hyperparameters:
    """Those of a model, from its metadata (plain Python values) and the names of its tensors."""
    architecture = metadata.get("general.architecture", "")

    def number(key: str, default: int = 0) -> int:
        value = metadata.get(f"{architecture}.{key}", default)
        if isinstance(value, (list, tuple)):  # one value a layer
            value = value[0] if value else default
        return int(value) if isinstance(value, (int, float)) else default

    roles = [role_of(name) for name in names]
    heads = number("attention.head_count")
    return Hyperparameters(
        architecture=architecture,
        layers=number("block_count"),
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        experts=number("expert_count"),
        value_tensors=sum(role in ATTN_VALUES for role in roles),
        tied=Role.OUTPUT not in roles,
        imatrix=imatrix,
        traits=traits,
    )
