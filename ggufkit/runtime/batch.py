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
    for runs in _passes(pieces, checked):
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
    with _put_into(runs):
        if rows.size and (scores := model.replays.logits(model, runs, rows)) is not None:
            return scores
        x = hidden_states(model.hyper, model.weights, Step(model.ops, model.tables, runs))
        if not rows.size:
            return np.empty((0, model.vocabulary), np.float32)
        return model.ops.numpy(logits(model.ops, model.hyper, model.weights, model.ops.pick(x, rows)))


def _passes(pieces: Sequence[Piece], checked: Sequence[np.ndarray]) -> Iterator[list[_Run]]:
    """The pieces cut into passes of at most `LIMIT` tokens."""
    runs: list[_Run] = []
    room = LIMIT
    for number, (piece, tokens) in enumerate(zip(pieces, checked, strict=True)):
        wanted = {"last": 1, "all": len(tokens), None: 0}
        count = piece.logits if isinstance(piece.logits, int) else wanted[piece.logits]
        first, lo = max(0, len(tokens) - count), 0
        while lo < len(tokens):
            hi = min(len(tokens), lo + room)
            runs.append(_Run(number, piece.cache, tokens[lo:hi], hi - max(lo, min(first, hi))))
            room -= hi - lo
            if not room:
                yield runs
                runs, room = [], LIMIT
            lo = hi
    if runs:
        yield runs


def hidden(model: Model, runs: Sequence[tuple[Cache, np.ndarray]]) -> Any:
    """What the last block gives for the tokens of each cache, and the tokens put into it: (n, width)."""
    with _put_into(runs):
        return hidden_states(model.hyper, model.weights, Step(model.ops, model.tables, runs))


@contextmanager
def _put_into(runs: Sequence[tuple[Cache, np.ndarray]]) -> Iterator[None]:
    """Tokens are in their caches after a pass, or not, if it was interrupted."""
    for cache, tokens in runs:
        cache.begin(len(tokens))
    try:
        yield
    except BaseException:
        for cache, _ in runs:
            cache.roll_back()
        raise
    for cache, tokens in runs:
        cache.extend(tokens.tolist())
