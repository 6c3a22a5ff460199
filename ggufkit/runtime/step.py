"""What is the same for all layers of one pass: the rows, whose they are, where they stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

from ggufkit.runtime.kv.cache import Cache
from ggufkit.runtime.ops import Array, Ops, Span
from ggufkit.runtime.rope import Rope, RopeTables

__all__ = ["Step"]


class Step:
    """One pass over the weights.

    Parameters
    ----------
    ops : what computes.
    tables : of rope.
    runs : of each conversation its cache, and the tokens that follow those in it, (n,) int32.
    start : makes the number that spans have of a conversation's number and its first position (see `Recorder`).

    Attributes
    ----------
    tokens, positions : of all rows, (n,) int32.
    chosen : of each conversation the keys that its rows see, as the last index chose (see `runtime.chosen`).
    per_layer : of models that have them, the rows' vectors of each layer (see `runtime.per_layer`).
    """

    def __init__(
        self,
        ops: Ops,
        tables: RopeTables,
        runs: Sequence[tuple[Cache, np.ndarray]],
        start: Callable[[int, int], int] = lambda run, start: start,
    ):
        self.ops, self._tables, self._start = ops, tables, start
        n = sum(len(tokens) for _, tokens in runs)
        self.tokens, self.positions = np.empty(n, np.int32), np.empty(n, np.int32)
        self.per_layer: Sequence[Array] = ()
        self.chosen: dict[int, Array] = {}
        self._angles: dict[Rope, tuple[np.ndarray, np.ndarray]] = {}
        self.move(runs)

    def move(self, runs: Sequence[tuple[Cache, np.ndarray]]) -> None:
        """Be the step of other runs with as many tokens each: arrays that were given have other numbers from now on."""
        self._runs = runs
        self._starts = [len(cache) for cache, _ in runs]
        self._ends = list(accumulate(len(tokens) for _, tokens in runs))
        for (_, tokens), start, end in zip(runs, self._starts, self._ends, strict=True):
            n = len(tokens)
            self.tokens[end - n : end] = tokens
            self.positions[end - n : end] = range(start, start + n) if n == 1 else np.arange(start, start + n)
        for rope, angles in self._angles.items():
            self._turn(rope, angles)

    def leave(self) -> None:
        """Let go of the conversations: whoever keeps a step for others should not keep their memory."""
        self._runs = ()

    def spans(self, slot: int) -> list[Span]:
        """Whose the rows are, with what one layer remembers of each conversation."""
        return [
            Span(end - len(tokens), end, self._start(run, start), cache.layers[slot])
            for run, ((cache, tokens), start, end) in enumerate(zip(self._runs, self._starts, self._ends, strict=True))
        ]

    def turned(self, x: Array, heads: int, rope: Rope) -> Array:
        """Heads of `x` (n, heads × size) turned by their positions. `x` itself may be used up."""
        if rope not in self._angles:
            cos, sin = np.empty((2, len(self.tokens), rope.dimensions // 2), np.float32)
            self._turn(rope, (cos, sin))
            self._angles[rope] = (cos, sin)
        return self.ops.rope(x, heads, rope.style, self._angles[rope])

    def _turn(self, rope: Rope, angles: tuple[np.ndarray, np.ndarray]) -> None:
        """Write the cosines and sines of all rows."""
        for (cache, tokens), start, end in zip(self._runs, self._starts, self._ends, strict=True):
            n = len(tokens)
            for out, rows in zip(angles, self._tables.rows(rope, cache.length, start, start + n), strict=True):
                out[end - n : end] = rows
