"""A model's forward pass over whole windows at once, with operations of one's own: the one place that knows how.

with opened("model.gguf", ops) as model:
    x = hidden(model, windows)          # (windows × tokens, width)
    scores = scored(model, x)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggufkit.calibrate.opaque import no_gradient
from ggufkit.errors import ArchitectureError
from ggufkit.runtime.forward import hidden_states, logits
from ggufkit.runtime.model import Model
from ggufkit.runtime.step import Step

__all__ = ["hidden", "scored"]


class _Nothing:
    """The layers of a cache that remembers nothing: attention here reads none, and a state cannot be."""

    def __getitem__(self, slot: int) -> _Nothing:
        return self

    @property
    def arrays(self) -> Any:
        raise no_gradient("states that go from token to token")


class _Window:
    """In place of a cache: a conversation that begins here, of so many tokens."""

    layers = _Nothing()

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return 0


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
    runs: Any = [(_Window(len(tokens)), tokens) for tokens in windows]
    return hidden_states(model.hyper, model.weights, Step(model.ops, model.tables, runs))


def scored(model: Model, x: Any) -> Any:
    """Logits (n, vocabulary) of hidden states."""
    return logits(model.ops, model.hyper, model.weights, x)
