"""What is the same for all layers of one pass: the rows, whose they are, where they stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

from ggufkit.runtime.kv.cache import Cache
from ggufkit.runtime.ops import Array, NotRecorded, Ops, Span
from ggufkit.runtime.rope import Rope, RopeTables
from ggufkit.runtime.seen import Seen, Shown

__all__ = ["Step"]

Factors = Callable[[np.ndarray], np.ndarray]


class Step:
    """One pass over the weights.

    Parameters
    ----------
    ops : what computes.
    tables : of rope.
    runs : of each conversation its cache, and the tokens that follow those in it, (n,) int32.
    start : of a step that is written down, makes the number that spans have of a conversation's number and its first
        position (see `Recorder`).
    shown : what ids below 0 stand for.

    Attributes
    ----------
    tokens, positions : of all rows, (n,) int32; of what was seen the token is 0.
    seen : what was seen: rows lo to hi are those of it from `row` on: (lo, hi, seen, row) each.
    shifts : of each conversation, how much further positions go on behind so many of its tokens: see `Cache.extend`.
    chosen : of each conversation the keys that its rows see, as the last index chose (see `runtime.chosen`).
    per_layer : of models that have them, the rows' vectors of each layer (see `runtime.per_layer`).
    embedding : of models whose layers add it again, the rows' embedding.
    first_value : the rows' values of the first layer, where later ones take a part of them.
    """

    def __init__(
        self,
        ops: Ops,
        tables: RopeTables,
        runs: Sequence[tuple[Cache, np.ndarray]],
        start: Callable[[int, int], int] | None = None,
        shown: Shown | None = None,
    ):
        self.ops, self._tables, self._shown = ops, tables, shown
        self._start = start or (lambda run, start: start)
        self._recorded = start is not None
        n = sum(len(tokens) for _, tokens in runs)
        self.tokens, self.positions = np.empty(n, np.int32), np.empty(n, np.int32)
        self.per_layer: Sequence[Array] = ()
        self.embedding: Array = None
        self.first_value: Array = None
        self.chosen: dict[int, Array] = {}
        self.seen: list[tuple[int, int, Seen, int]] = []
        self.shifts: list[list[tuple[int, int]]] = [[] for _ in runs]
        self._axes: dict[int, np.ndarray] = {}  # run → positions (n, 4), where there is more than one axis
        self._angles: dict[Rope, tuple[np.ndarray, np.ndarray]] = {}
        self._factors: dict[Factors, np.ndarray] = {}
        self.move(runs)

    def move(self, runs: Sequence[tuple[Cache, np.ndarray]]) -> None:
        """Be the step of other runs with as many tokens each: arrays that were given have other numbers from now on."""
        self._runs = runs
        self._starts = [len(cache) for cache, _ in runs]
        self._ends = list(accumulate(len(tokens) for _, tokens in runs))
        for run, ((cache, tokens), start, end) in enumerate(zip(runs, self._starts, self._ends, strict=True)):
            n, place = len(tokens), cache.position(start)
            if self._shown is not None and tokens.min() < 0:
                self._place(run, cache, tokens, self._shown)
                continue
            self.tokens[end - n : end] = tokens
            self.positions[end - n : end] = range(place, place + n) if n == 1 else np.arange(place, place + n)
        for rope, angles in self._angles.items():
            self._turn(rope, angles)
        for function, factors in self._factors.items():
            factors[...] = function(self.positions)

    def _place(self, run: int, cache: Cache, tokens: np.ndarray, shown: Shown) -> None:
        """Tokens and positions of a conversation in which something was seen."""
        start, lo_run = self._starts[run], self._ends[run] - len(tokens)
        several = self._tables.several
        axes = self._axes[run] = np.empty((len(tokens), 4), int)
        place = cache.position(start)
        images = sum(seen is not None and not row for *_, seen, row in shown.parts(np.array(cache.tokens[:start])))
        for lo, hi, seen, row in shown.parts(tokens):
            if seen is None:
                axes[lo:hi] = np.arange(place, place + hi - lo)[:, None]
                place += hi - lo
                continue
            first = cache.position(start - row) if row else place
            grid = several and seen.grid is not None
            images += not row
            if grid:
                axes[lo:hi] = seen.axes(first, images - 1)[row : row + hi - lo]
            else:
                axes[lo:hi] = np.arange(hi - lo)[:, None] + first + row
            self.seen.append((lo_run + lo, lo_run + hi, seen, row))
            place = first + (seen.advance if grid else len(seen))
            if grid and row + hi - lo == len(seen):
                self.shifts[run].append((start + hi, seen.advance - len(seen)))
        self.tokens[lo_run : self._ends[run]] = np.maximum(tokens, 0)
        self.positions[lo_run : self._ends[run]] = axes[:, 0]

    def with_seen(self, x: Array) -> Array:
        """Rows of tokens (n, width), those of what was seen in their places."""
        return self._replaced(x, lambda own, seen, lo, hi: self.ops.vector(seen.rows[lo:hi]))

    def deepened(self, x: Array, layer: int) -> Array:
        """What a block gives, with what was seen for it added."""
        if not any(layer < len(seen.deep) for _, _, seen, _ in self.seen):
            return x

        def added(own: Array, seen: Seen, lo: int, hi: int) -> Array:
            if layer >= len(seen.deep):
                return own
            return self.ops.add(self.ops.copy(own), self.ops.vector(seen.deep[layer][lo:hi]))

        return self._replaced(x, added)

    def _replaced(self, x: Array, function: Callable[[Array, Seen, int, int], Array]) -> Array:
        """`x` with other rows where something was seen: what `function` makes of them, and of rows of it."""
        parts, at = [], 0
        for lo, hi, seen, row in self.seen:
            if lo > at:
                parts.append(x[at:lo])
            parts.append(function(x[lo:hi], seen, row, row + hi - lo))
            at = hi
        if at < len(x):
            parts.append(x[at:])
        return self.ops.concatenate(parts)

    def leave(self) -> None:
        """Let go of the conversations: whoever keeps a step for others should not keep their memory."""
        self._runs = ()

    def forget(self) -> None:
        """Let go of what layers left for each other: all layers have been written down."""
        self.per_layer, self.embedding, self.first_value, self.chosen = (), None, None, {}

    def rows(self) -> list[tuple[int, int, int]]:
        """Of each conversation its first row, the one behind its last, and the position of the first."""
        runs = zip(self._runs, self._starts, self._ends, strict=True)
        return [(end - len(tokens), end, start) for (_, tokens), start, end in runs]

    def spans(self, slot: int) -> list[Span]:
        """Whose the rows are, with what one layer remembers of each conversation."""
        return [
            Span(end - len(tokens), end, self._start(run, start), cache.layers[slot], self._is_whole(tokens))
            for run, ((cache, tokens), start, end) in enumerate(zip(self._runs, self._starts, self._ends, strict=True))
        ]

    def _is_whole(self, tokens: np.ndarray) -> bool:
        """Whether all rows of a run see each other; `batch` sees to it that there are no others in it."""
        if self._shown is None or tokens[0] >= 0:
            return False
        return self._shown.find(int(tokens[0]))[0].whole

    def histories(self, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each conversation the last `count` tokens before its rows, and those of its rows."""
        self._require_now()
        return [(np.array(cache.tokens[-count:], np.int64), tokens) for cache, tokens in self._runs]

    def places(self, run: int) -> np.ndarray:
        """Positions of a conversation's rows on each axis: (n, 4)."""
        self._require_now()
        if run in self._axes:
            return self._axes[run]
        end, n = self._ends[run], len(self._runs[run][1])
        return np.repeat(self.positions[end - n : end, None], 4, axis=1)

    def turned_at(self, x: Array, heads: int, rope: Rope, run: int, places: np.ndarray) -> Array:
        """Heads of `x` (m, heads × size) turned by other positions, (m, 4), of a conversation."""
        self._require_now()
        cos, sin = map(np.ascontiguousarray, self._tables.at(rope, self._runs[run][0].length, places))
        return self.ops.rope(x, heads, rope.style, (cos, sin))

    def _require_now(self) -> None:
        """What follows is of this pass only: other tokens, other numbers."""
        if self._recorded:
            raise NotRecorded("numbers that are known only now")

    def scaled(self, x: Array, factors: Factors) -> Array:
        """Rows of `x` times what a function gives of their positions: (n,) → (n, 1) float32."""
        if not self._recorded:
            return x * self.ops.vector(factors(self.positions))
        if factors not in self._factors:
            self._factors[factors] = factors(self.positions)
        return x * self._factors[factors]

    def turned(self, x: Array, heads: int, rope: Rope) -> Array:
        """Heads of `x` (n, heads × size) turned by their positions. `x` itself may be used up."""
        if rope not in self._angles:
            cos, sin = np.empty((2, len(self.tokens), rope.dimensions // 2), np.float32)
            self._turn(rope, (cos, sin))
            self._angles[rope] = (cos, sin)
        return self.ops.rope(x, heads, rope.style, self._angles[rope])

    def _turn(self, rope: Rope, angles: tuple[np.ndarray, np.ndarray]) -> None:
        """Write the cosines and sines of all rows."""
        for run, ((cache, tokens), start, end) in enumerate(zip(self._runs, self._starts, self._ends, strict=True)):
            n, place = len(tokens), cache.position(start)
            if run not in self._axes:
                found = self._tables.rows(rope, cache.length, place, place + n)
            else:
                found = self._tables.at(rope, cache.length, self._axes[run])
            for out, rows in zip(angles, found, strict=True):
                out[end - n : end] = rows
