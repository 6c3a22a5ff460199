"""Several conversations in one pass over the weights.

    caches = [model.new_cache(512) for _ in prompts]
    logits = model.step([Piece(cache, tokens) for cache, tokens in zip(caches, prompts)])      # of any length each
    logits = model.step([Piece(cache, [token]) for cache, token in zip(caches, drawn)])        # a token of each
    logits = model.step([Piece(caches[0], [token]), Piece(caches[1], more_of_its_prompt, None)])

The rows of a pass are the pieces' tokens one after the other:

    tokens      a a a a b c c c       matrices meet all rows at once
    positions   0 1 2 3 9 4 5 6       rope turns each by its own
    spans       └─────┘ ╵ └───┘       attention reads each one's own cache
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufkit.errors import UsageError
from ggufkit.runtime.forward import hidden_states, logits
from ggufkit.runtime.kv.cache import Cache
from ggufkit.runtime.seen import Shown
from ggufkit.runtime.sizes import LIMIT
from ggufkit.runtime.step import Step

if TYPE_CHECKING:
    from ggufkit.runtime.model import Model

__all__ = ["LIMIT", "Piece", "hidden", "step"]


@dataclass(frozen=True)
class Piece:
    """Tokens of one conversation.

    Attributes
    ----------
    cache : what they follow, and are put into.
    tokens : (n,) whole numbers, at least one.
    logits : of the ``"last"`` token, of ``"all"``, of the last so many, or of None.
    """

    cache: Cache
    tokens: Sequence[int] | np.ndarray
    logits: str | int | None = "last"


@dataclass(frozen=True)
class _Run:
    """A part of a piece in a pass: its tokens, and how many logits of the last of them are wanted."""

    piece: int
    cache: Cache
    tokens: np.ndarray
    wanted: int


def step(model: Model, pieces: Sequence[Piece]) -> list[np.ndarray]:
    """Run the pieces together, and put their tokens into their caches.

    Returns
    -------
    of each piece an array of shape (vocabulary,) for ``"last"``, else (n, vocabulary), float32

    Raises
    ------
    UsageError : there are no tokens, one is no token of this model, they do not fit into a cache, or two pieces share
        one. Nothing is computed then.
    """
    checked = [model.checked(piece.tokens) for piece in pieces]
    if len({id(piece.cache) for piece in pieces}) < len(pieces):
        raise UsageError("two pieces of a batch have the same cache")
    for piece, tokens in zip(pieces, checked, strict=True):
        piece.cache.require(len(tokens))
    found: list[list[np.ndarray]] = [[np.empty((0, model.vocabulary), np.float32)] for _ in pieces]
    for runs in _passes(pieces, checked, model.shown):
        ends = accumulate(len(run.tokens) for run in runs)
        rows = np.array([row for run, end in zip(runs, ends, strict=True) for row in range(end - run.wanted, end)])
        scores = _scores(model, [(run.cache, run.tokens) for run in runs], rows)
        for run in runs:
            found[run.piece].append(scores[: run.wanted])
            scores = scores[run.wanted :]
    results = [parts[1] if len(parts) == 2 else np.concatenate(parts) for parts in found]
    return [x[0] if piece.logits == "last" else x for x, piece in zip(results, pieces, strict=True)]


def _scores(model: Model, runs: Sequence[tuple[Cache, np.ndarray]], rows: np.ndarray) -> np.ndarray:
    """Do a pass, and put the tokens into the caches; the logits of some rows of it: (rows, vocabulary)."""
    with _put_into(runs) as shifts:
        if rows.size and (scores := model.replays.logits(model, runs, rows)) is not None:
            return scores
        step = Step(model.ops, model.tables, runs, shown=model.shown)
        shifts[:] = step.shifts
        x = hidden_states(model.hyper, model.weights, step)
        if not rows.size:
            return np.empty((0, model.vocabulary), np.float32)
        return model.ops.numpy(logits(model.ops, model.hyper, model.weights, model.ops.pick(x, rows)))


def _passes(pieces: Sequence[Piece], checked: Sequence[np.ndarray], shown: Shown) -> Iterator[list[_Run]]:
    """The pieces cut into passes of at most `LIMIT` tokens, or of all rows that see each other."""
    runs: list[_Run] = []
    room = LIMIT
    for number, (piece, tokens) in enumerate(zip(pieces, checked, strict=True)):
        wanted = {"last": 1, "all": len(tokens), None: 0}
        count = piece.logits if isinstance(piece.logits, int) else wanted[piece.logits]
        first, lo = max(0, len(tokens) - count), 0
        while lo < len(tokens):
            hi = _end(tokens, lo, room, shown)
            if hi - lo > room and runs:
                yield runs
                runs, room = [], LIMIT
            runs.append(_Run(number, piece.cache, tokens[lo:hi], hi - max(lo, min(first, hi))))
            room -= hi - lo
            if room <= 0 or hi < len(tokens):
                yield runs
                runs, room = [], LIMIT
            lo = hi
    if runs:
        yield runs


def _end(tokens: np.ndarray, lo: int, room: int, shown: Shown) -> int:
    """Where a run that begins at `lo` ends: rows that see each other make one of their own, however many."""
    hi = min(len(tokens), lo + room)
    if tokens[lo:hi].min() >= 0:
        return hi
    for start, end, seen, _ in shown.parts(tokens[lo:]):
        if seen is not None and seen.whole:
            return lo + end if start == 0 else min(hi, lo + start)
        if lo + end >= hi:
            break
    return hi


def hidden(model: Model, runs: Sequence[tuple[Cache, np.ndarray]]) -> Any:
    """What the last block gives for the tokens of each cache, and the tokens put into it: (n, width)."""
    with _put_into(runs) as shifts:
        step = Step(model.ops, model.tables, runs, shown=model.shown)
        shifts[:] = step.shifts
        return hidden_states(model.hyper, model.weights, step)


@contextmanager
def _put_into(runs: Sequence[tuple[Cache, np.ndarray]]) -> Iterator[list[list[tuple[int, int]]]]:
    """Tokens are in their caches after a pass, or not, if it was interrupted; so are the shifts that it writes down."""
    shifts: list[list[tuple[int, int]]] = [[] for _ in runs]
    for cache, tokens in runs:
        cache.begin(len(tokens))
    try:
        yield shifts
    except BaseException:
        for cache, _ in runs:
            cache.roll_back()
        raise
    for (cache, tokens), further in zip(runs, shifts, strict=True):
        cache.extend(tokens.tolist(), further)
