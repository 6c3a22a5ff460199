"""Passes that are written down once and done again for each token: the same calls, with other numbers.

A token of each of a few conversations is a thousand calls of kernels, and for small models what Python does between
them takes longer than they do. What is called, and with which memory, depends only on how many conversations there are
and on the sizes of their caches. So `forward` runs once with operations that write down instead of compute, a
`Recorder`'s; what changes from pass to pass is written to where the calls read it:

    tokens, positions, angles of rope     to the arrays of the `Step` that was written down
    where a conversation stands           to the calls themselves, as the places of its keys, values and states

What a backend cannot write down is done as any other pass.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufkit.runtime.forward import hidden_states, logits
from ggufkit.runtime.kv.cache import Cache
from ggufkit.runtime.ops import NotRecorded, Recorder
from ggufkit.runtime.step import Step

if TYPE_CHECKING:
    from ggufkit.runtime.model import Model

__all__ = ["MOST", "Replays"]

MOST = 16  # conversations of a pass that is written down
_KEPT = 16  # passes that are kept

Runs = Sequence[tuple[Cache, np.ndarray]]


class Replays:
    """The passes of a model that were written down, each when it came for the second time."""

    def __init__(self) -> None:
        # With the operations, so that no others come to be at their address.
        self._found: OrderedDict[Any, tuple[Any, _Replay | None]] = OrderedDict()
        self._once: OrderedDict[Any, None] = OrderedDict()  # what was done once
        self._beside: Recorder | None = None  # the last recorder
        self._lock = threading.Lock()  # passes have one memory

    def logits(self, model: Model, runs: Runs, rows: np.ndarray) -> np.ndarray | None:
        """Do a pass of a token of each conversation; None if it was not written down and must be done otherwise.

        Parameters
        ----------
        rows : whose logits are wanted, at least one.

        Returns
        -------
        array of shape (rows, vocabulary), float32
        """
        if len(runs) > MOST or any(len(tokens) > 1 or tokens[0] < 0 for _, tokens in runs):
            return None
        if not self._lock.acquire(blocking=False):
            return None
        try:
            key = id(model.ops), rows.tobytes(), *((cache.kind, cache.length) for cache, _ in runs)
            if key not in self._found:
                if key not in self._once:  # what is done once is not worth it
                    self._once[key] = None
                    if len(self._once) > _KEPT:
                        self._once.popitem(last=False)
                    return None
                found = _recorded(model, runs, rows, self._beside)
                self._found[key] = model.ops, found
                self._beside = found.recorder if found is not None else self._beside
                if len(self._found) > _KEPT:
                    self._found.popitem(last=False)
            self._found.move_to_end(key)
            _, replay = self._found[key]
            return None if replay is None else replay.logits(runs)
        finally:
            self._lock.release()


def _recorded(model: Model, runs: Runs, rows: np.ndarray, beside: Recorder | None) -> _Replay | None:
    """A pass, written down; None where it cannot be. See `Ops.recorder`."""
    try:
        if (recorder := model.ops.recorder([cache.layers for cache, _ in runs], beside)) is None:
            return None
        step = Step(recorder.ops, model.tables, runs, recorder.start)
        x = recorder.ops.pick(hidden_states(model.hyper, model.weights, step), rows)
        scores = logits(recorder.ops, model.hyper, model.weights, x)
    except NotRecorded:
        return None
    recorder.finish(scores)
    return _Replay(recorder, step)


class _Replay:
    """A pass that was written down."""

    def __init__(self, recorder: Recorder, step: Step):
        self.recorder, self._step = recorder, step
        step.forget()

    def logits(self, runs: Runs) -> np.ndarray:
        self._step.move(runs)
        self._step.leave()
        return self.recorder.play([len(cache) for cache, _ in runs], [cache.layers for cache, _ in runs])
