"""What mixes tokens in a block, a file a kind. The tensors of a block say which kinds it has.

    mixer = load(loader, layer, slots)      # checks and takes its tensors
    mixer.memory(ops, types, length)        # of most: what a conversation's cache keeps for it
    y = mixer.run(x, step)                  # (n, width) → (n, width)

A new kind is a file here and a row of `KINDS`.
"""

from __future__ import annotations

from typing import Any, Protocol

from ggufkit.runtime.loader import Loader
from ggufkit.runtime.mixers import (
    attention,
    block_attention,
    delta_attention,
    delta_net,
    expanded_attention,
    indexed_attention,
    latent_attention,
    lightning,
    projection,
    relative_attention,
    rwkv,
    short_convolution,
    state_space,
)
from ggufkit.runtime.ops import Array, CacheSpec, Ops
from ggufkit.runtime.step import Step

__all__ = ["KINDS", "Mixer", "Remembering", "load_mixers"]


class Mixer(Protocol):
    """One of a block's mixers."""

    def run(self, x: Array, step: Step) -> Array:
        """Mix the rows of a pass: (n, width) → (n, width)."""


class Remembering(Mixer, Protocol):
    """One that remembers something of earlier tokens.

    Attributes
    ----------
    slot : the place in `Cache.layers` of it.
    """

    @property
    def slot(self) -> int: ...

    def memory(self, ops: Ops, types: CacheSpec, length: int) -> Any:
        """Room for what it remembers of `length` tokens."""


# Modules with `found(load, at)`, whether the tensors called `at` + … are of this kind, and `load(load, layer, slots)`.
KINDS = (
    attention,
    block_attention,
    latent_attention,
    expanded_attention,
    indexed_attention,
    short_convolution,
    state_space,
    delta_net,
    delta_attention,
    relative_attention,
    rwkv,
    lightning,
    projection,
)


def load_mixers(load: Loader, layer: int, slots: list[Remembering]) -> tuple[Mixer, ...]:
    """The mixers of a block, whose results are added up. `slots` are those so far that remember something."""
    return tuple(kind.load(load, layer, slots) for kind in KINDS if kind.found(load, f"blk.{layer}."))
