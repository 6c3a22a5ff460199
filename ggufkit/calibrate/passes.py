"""A model's forward pass over whole windows at once, with operations of one's own: the one place that knows how.

with opened("model.gguf", ops) as model:
    x = hidden(model, windows)          # (windows × tokens, width)
    scores = scored(model, x)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggufkit.errors import ArchitectureError
from ggufkit.runtime.forward import hidden_states, logits
from ggufkit.runtime.model import Model
from ggufkit.runtime.ops import CacheSpec
from ggufkit.runtime.step import Step

__all__ = ["hidden", "scored"]


class _Layers:
    """What the layers of a conversation remember, made when it is asked for; attention here remembers nothing."""

    def __init__(self, model: Model, length: int):
        self.model, self.length = model, length
        self.made: dict[int, Any] = {}

    def __getitem__(self, slot: int) -> Any:
        if slot not in self.made:
            self.made[slot] = self.model.weights.slots[slot].memory(self.model.ops, CacheSpec(), self.length)
        return self.made[slot]


class _Window:
    """In place of a cache: a conversation that begins here, of so many tokens."""

    def __init__(self, model: Model, length: int):
        self.length, self.layers = length, _Layers(model, length)

    def __len__(self) -> int:
        return 0

    def position(self, n: int) -> int:
        return n


def hidden(model: Model, windows: np.ndarray) -> Any:
    """What the last block gives, before the output norm.

    Parameters
    ----------
    model : loaded with operations whose attention does without caches.
    windows : (count, length) int32.

    Raises
    ------
    ArchitectureError : the model needs an operation that these lack.
    """
    if model.weights.streams is not None:
        raise ArchitectureError("a model of several streams cannot be calibrated")
    runs: Any = [(_Window(model, len(tokens)), tokens) for tokens in windows]
    return hidden_states(model.hyper, model.weights, Step(model.ops, model.tables, runs))


def scored(model: Model, x: Any) -> Any:
    """Logits (n, vocabulary) of hidden states."""
    return logits(model.ops, model.hyper, model.weights, x)
