"""A pass on the CPU written down as calls of kernels: see `kernels.recording`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufkit.kernels.recording import Moving, Recording
from ggufkit.runtime.cpu.calls import Later, Memory, Recorded
from ggufkit.runtime.ops import Ops, Recorder

if TYPE_CHECKING:
    from ggufkit.runtime.cpu.ops import CpuOps

__all__ = ["CpuRecorder"]


class CpuRecorder:
    """Implements `Recorder`.

    Attributes
    ----------
    memory : of the arrays between the calls, which those beside it use, too.
    """

    def __init__(self, ops: CpuOps, caches: Sequence[Sequence[Any]], beside: Recorder | None = None):
        self.memory: Memory = beside.memory if isinstance(beside, CpuRecorder) else Memory()
        self._placed = _addresses(caches)
        numbers = {address: number for number, address in enumerate(self._placed.tolist())}
        self._recording = Recording(ops.threads, numbers)
        recorded = copy.copy(ops)
        recorded.calls = Recorded(self._recording, numbers, self.memory)
        self.ops: Ops = recorded

    def start(self, run: int, start: int) -> int:
        return Moving(start, run)

    def finish(self, result: Later) -> None:
        self._recording.finish()
        self._result = self.memory.shared(result.array)

    def play(self, starts: Sequence[int], caches: Sequence[Sequence[Any]]) -> np.ndarray:
        for run, start in enumerate(starts):
            self._recording.move(run, start)
        self._recording.place(_addresses(caches))
        self._recording.play()
        return self._result.copy()


def _addresses(caches: Sequence[Sequence[Any]]) -> np.ndarray:
    """Of all arrays of the layers of some caches, in order."""
    return np.array([address for layers in caches for layer in layers for address in layer.addresses], np.int64)
