"""What is the same for all layers of one pass: the rows, whose they are, where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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

    Attributes
    ----------
    tokens, positions : of all rows, (n,) int32.
    per_layer : of models that have them, the rows' vectors of each layer (see `runtime.per_layer`).
    """

    def __init__(self, ops: Ops, tables: RopeTables, runs: Sequence[tuple[Cache, np.ndarray]]):
        self.ops, self._tables, self._runs = ops, tables, runs
        self._starts = [len(cache) for cache, _ in runs]
        self._ends = np.cumsum([len(tokens) for _, tokens in runs]).tolist()
        self.tokens = _joined([tokens for _, tokens in runs])
        self.positions = _joined(
            [
                np.arange(start, start + len(tokens), dtype=np.int32)
                for start, (_, tokens) in zip(self._starts, runs, strict=True)
            ]
        )
        self.per_layer: Sequence[Array] = ()
        self._angles: dict[Rope, tuple[np.ndarray, np.ndarray]] = {}

    def spans(self, slot: int) -> list[Span]:
        """Whose the rows are, with what one layer remembers of each conversation."""
        return [
            Span(end - len(tokens), end, start, cache.layers[slot])
            for (cache, tokens), start, end in zip(self._runs, self._starts, self._ends, strict=True)
        ]

    def turned(self, x: Array, heads: int, rope: Rope) -> Array:
        """Heads of `x` (n, heads × size) turned by their positions. `x` itself may be used up."""
        if rope not in self._angles:
            parts = [
                self._tables.rows(rope, cache.length, start, start + len(tokens))
                for start, (cache, tokens) in zip(self._starts, self._runs, strict=True)
            ]
            cos, sin = (_joined(part) for part in zip(*parts, strict=True))
            self._angles[rope] = (cos, sin)
        return self.ops.rope(x, heads, rope.style, self._angles[rope])


def _joined(arrays: Sequence[Any]) -> Any:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
