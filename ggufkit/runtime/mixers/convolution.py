"""A causal convolution over the last few tokens, each channel by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ggufkit.runtime.loader import Loader
from ggufkit.runtime.ops import Array, Ops, Span

__all__ = ["Convolution", "load_convolution"]


@dataclass(frozen=True)
class Convolution:
    """y[t] = Σ weight[i] · x[t − taps + 1 + i] + bias.

    Attributes
    ----------
    channels, taps : its sizes.
    weights : array of shape (taps, channels), the oldest token's first.
    bias : array of shape (channels,), or None.
    """

    channels: int
    taps: int
    weights: Array
    bias: Array | None

    @property
    def shape(self) -> tuple[int, int]:
        """Of what it remembers: the inputs of the last tokens, in the first array of a `State`."""
        return self.taps - 1, self.channels

    def run(self, ops: Ops, x: Array, spans: Sequence[Span]) -> Array:
        """(n, channels) → (n, channels); remembers the last inputs of each conversation."""
        return ops.convolve(x, self.weights, self.bias, spans)


def load_convolution(load: Loader, name: str, channels: int, taps: int) -> Convolution:
    """The convolution of this name."""
    numbers = load.numbers(f"{name}.weight", channels, taps)
    bias = load.ops.vector(load.vector(f"{name}.bias", channels)) if load.has(f"{name}.bias") else None
    return Convolution(channels, taps, load.ops.vector(np.ascontiguousarray(numbers.T)), bias)
