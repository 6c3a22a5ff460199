"""Vectors of texts: short ones together in a pass over the weights, where each row stands for itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ggufkit.errors import UsageError, printable
from ggufkit.runtime.batch import hidden
from ggufkit.runtime.sizes import LIMIT

if TYPE_CHECKING:
    from ggufkit.runtime.model import Model

__all__ = ["Text", "embeddings", "together"]

Text = Sequence[int] | np.ndarray


def together(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """The texts in runs that a pass takes, in their order: as many as have `LIMIT` tokens, or one that has more."""
    run: list[Text] = []
    room = LIMIT
    for text in texts:
        if run and len(text) > room:
            yield run
            run, room = [], LIMIT
        run.append(text)
        room -= len(text)
    if run:
        yield run


def embeddings(model: Model, texts: Sequence[Text], pooling: str | None) -> list[np.ndarray]:
    """The vectors of texts that go into a pass together; see `Model.embed`."""
    kind, head, most = pooling or model.hyper.pooling, model.weights.head, model.hyper.context_length
    if kind not in ("none", "mean", "cls", "last", "rank"):
        raise UsageError(f"pooling is by mean, cls, last, rank or none, not by {printable(kind)}")
    if kind == "rank" and head is None:
        raise UsageError(f"{printable(model.gguf.path)} has no classification head, so it cannot rank")
    ids = [model.checked(tokens) for tokens in texts]
    if (longest := max(map(len, ids))) > most:
        raise UsageError(f"the text has {longest} tokens; the model reads {most} at most")
    vectors = np.split(_states(model, ids), np.cumsum([len(one) for one in ids])[:-1])  # (n, width) each
    if kind == "none":
        return vectors
    if kind == "rank" and head is not None:
        return [head.run(model.ops, one) for one in vectors]
    return [one.mean(axis=0) if kind == "mean" else one[0 if kind == "cls" else -1] for one in vectors]


def _states(model: Model, texts: Sequence[np.ndarray]) -> np.ndarray:
    """What the model gives for the tokens of all texts, one after the other: (n, width)."""
    runs = [(model.new_cache(len(ids), "F32", "F32"), ids) for ids in texts]
    passes = [runs]
    if len(runs) == 1 and model.hyper.causal:
        cache, ids = runs[0]
        passes = [[(cache, ids[lo : lo + LIMIT])] for lo in range(0, len(ids), LIMIT)]
    found = []
    for part in passes:
        x = hidden(model, part)
        if model.weights.output_norm is not None:
            x = model.ops.norm(x, model.weights.output_norm)
        if model.weights.projection is not None:
            (x,) = model.ops.linear(x, model.weights.projection)
        found.append(model.ops.numpy(x))
    return np.concatenate(found)
