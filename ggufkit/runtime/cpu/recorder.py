"""A pass on the CPU written down as calls of kernels: see `kernels.recording`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufkit.kernels.recording import Moving, Recording
from ggufkit.runtime.cpu.calls import Later, Recorded
from ggufkit.runtime.ops import Ops

if TYPE_CHECKING:
    from ggufkit.runtime.cpu.ops import CpuOps

__all__ = ["CpuRecorder"]


class CpuRecorder:
    """Implements `Recorder`."""

    def __init__(self, ops: CpuOps, caches: Sequence[Sequence[Any]]):
        self._placed = _addresses(caches)
        numbers = {address: number for number, address in enumerate(self._placed.tolist())}
        self._recording = Recording(ops.threads, numbers)
        recorded = copy.copy(ops)
        recorded.calls = Recorded(self._recording, numbers)
        self.ops: Ops = recorded

    def start(self, run: int, start: int) -> int:
        return Moving(start, run)

    def finish(self) -> None:
        self._recording.finish()

    def play(self, starts: Sequence[int], caches: Sequence[Sequence[Any]]) -> None:
        for run, start in enumerate(starts):
            self._recording.move(run, start)
        self._recording.place(_addresses(caches))
        self._recording.play()

    def numpy(self, x: Later) -> np.ndarray:
        return x.array.copy()


def _addresses(caches: Sequence[Sequence[Any]]) -> np.ndarray:
    """Of all arrays of the layers of some caches, in order."""
    return np.array([address for layers in caches for layer in layers for address in layer.addresses], np.int64)
