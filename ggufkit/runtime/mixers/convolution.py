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
    weights : an array of shape (channels,) for each tap, the oldest token's first.
    bias : the same shape, or None.
    """

    channels: int
    taps: int
    weights: tuple[Array, ...]
    bias: Array | None

    @property
    def shape(self) -> tuple[int, int]:
        """Of what it remembers: the inputs of the last tokens, in the first array of a `State`."""
        return self.taps - 1, self.channels

    def run(self, ops: Ops, x: Array, spans: Sequence[Span]) -> Array:
        """(n, channels) → (n, channels); remembers the last inputs of each conversation."""
        parts = []
        for span in spans:
            n, arrays = span.hi - span.lo, span.cache.arrays
            seen = ops.concatenate([arrays[0], x[span.lo : span.hi]])  # (taps − 1 + n, channels)
            y = seen[:n] * self.weights[0]
            for i, weight in enumerate(self.weights[1:], 1):
                y = y + seen[i : i + n] * weight
            parts.append(y if self.bias is None else y + self.bias)
            arrays[0] = ops.copy(seen[n:])
        return parts[0] if len(parts) == 1 else ops.concatenate(parts)


def load_convolution(load: Loader, name: str, channels: int, taps: int) -> Convolution:
    """The convolution of this name."""
    numbers = load.numbers(f"{name}.weight", channels, taps)
    bias = load.ops.vector(load.vector(f"{name}.bias", channels)) if load.has(f"{name}.bias") else None
    weights = tuple(load.ops.vector(np.ascontiguousarray(column)) for column in numbers.T)
    return Convolution(channels, taps, weights, bias)
