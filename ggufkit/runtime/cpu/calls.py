"""How the operations of `ops` call kernels: at once, or written down to be called many times (`kernels.recording`).

    calls.empty(n, width)                 an array to write to
    calls.zeros(n, width)                 one that is 0 where nothing is ever written
    calls.call(rms_norm, x, weight, …)    one kernel
    calls.shared(jobs)                    kernels whose rows threads share
    calls.ranged(parts, work)             kernels whose items threads share
    calls.combine("multiply", x, y, out)  arithmetic, by NumPy's name
    calls.between(function, out)          what is done in Python

Operations that do all their work so can be recorded. Instead of arrays a recording hands out `Later`, which have a
shape and can be cut, added, multiplied …, but no numbers yet: what computes with them otherwise cannot be recorded.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ggufkit.formats.codec import frozen
from ggufkit.kernels.recording import COUNTER, Call, Chosen, Recording
from ggufkit.kernels.threads import SHARES, for_ranges, in_all_threads
from ggufkit.runtime.cpu.arithmetic import KERNELS, lay_out
from ggufkit.runtime.ops import NotRecorded

__all__ = ["NOW", "Calls", "Job", "Later", "Memory", "Now", "Recorded"]

# Multiplications below which a second thread costs more than it saves.
_WORTH_A_THREAD = 1 << 18

_WORTH_A_STAGE = 1 << 16  # the same where threads are awake already

_ALIGNED = 64


class Job(NamedTuple):
    """A kernel whose rows threads share: its first argument is a counter of them (see `kernels.threads`).

    Attributes
    ----------
    work : about how many multiplications.
    """

    kernel: Callable[..., object]
    arguments: tuple[Any, ...]
    work: int


class Now:
    """Kernels are called at once, arrays are NumPy's."""

    def empty(self, *shape: int, dtype: Any = np.float32) -> Any:
        return np.empty(shape, dtype)

    def zeros(self, *shape: int, dtype: Any = np.float32, written: Any = None) -> Any:
        """`written` names which parts of it will be, all that is written to others of this name, too."""
        return np.zeros(shape, dtype)

    def frozen(self, x: Any) -> Any:
        """Read-only and contiguous."""
        return frozen(np.asarray(x, np.float32))

    def call(self, kernel: Callable[..., object], *arguments: Any) -> None:
        kernel(*arguments)

    def shared(self, jobs: Sequence[Job], threads: int | None) -> None:
        """All threads at the first job, then, each when it finds nothing left there, at the next."""
        for first in range(0, len(jobs), SHARES):
            some = jobs[first : first + SHARES]

            def work(shares: Sequence[np.ndarray], some: Sequence[Job] = some) -> None:
                for job, turn in zip(some, shares, strict=False):
                    job.kernel(turn, *job.arguments)

            in_all_threads(work, threads)

    def ranged(self, parts: Sequence[tuple[Any, tuple[Any, ...], int]], work: int, threads: int) -> None:
        """Kernels that take a range of items, after these arguments: (kernel, arguments, items) each."""
        ends = np.cumsum([0, *(items for _, _, items in parts)]).tolist()

        def function(lo: int, hi: int) -> None:
            for first, last, (kernel, arguments, _) in zip(ends, ends[1:], parts, strict=False):
                if lo < last and first < hi:
                    kernel(*arguments, max(lo, first) - first, min(hi, last) - first)

        self.ranges(function, ends[-1], work, threads)

    def ranges(self, function: Callable[[int, int], None], items: int, work: int, threads: int) -> None:
        """`function` over items, in as many threads as the work is worth."""
        threads = min(threads, max(1, work // _WORTH_A_THREAD))
        if threads == 1:
            function(0, items)
        else:
            # Several ranges a thread: later rows of a prompt see more tokens than earlier ones.
            for_ranges(function, items, -(-items // (4 * threads)), threads)

    def combine(self, how: str, x: Any, y: Any, out: Any) -> None:
        """add, subtract, multiply or divide; `out` may be `x` if it has the shape of both."""
        getattr(np, how)(x, y, out=out)

    def between(self, function: Callable[..., object], *arrays: Any) -> None:
        function(*arrays)


NOW = Now()


class Recorded:
    """Kernels are written down, arrays are `Later`.

    Parameters
    ----------
    recording : what is written to.
    caches : addresses of the conversations' memory, which comes and goes.
    memory : of arrays; recordings that are never played at the same time may share it.
    """

    def __init__(self, recording: Recording, caches: Collection[int], memory: Memory | None = None):
        self.recording, self._caches = recording, caches
        self._memory = memory or Memory()
        self._kept: list[Any] = []  # what the calls read that is no `Later`

    def empty(self, *shape: int, dtype: Any = np.float32) -> Later:
        return Later(self._memory.array(shape, np.dtype(dtype)), self)

    def zeros(self, *shape: int, dtype: Any = np.float32, written: Any = None) -> Later:
        if written is not None:
            return Later(self._memory.array(shape, np.dtype(dtype), written), self)
        array = np.zeros(shape, dtype)
        self._kept.append(array)
        return Later(array, self)

    def frozen(self, x: Later) -> Later:
        array = x.array[:]
        array.flags.writeable = False
        return Later(array, self)

    def call(self, kernel: Callable[..., object], *arguments: Any) -> None:
        self._stage([Call(kernel, arguments)], shared=False)

    def shared(self, jobs: Sequence[Job], threads: int | None) -> None:
        work = sum(job.work for job in jobs)
        self._stage([Call(job.kernel, (COUNTER, *job.arguments)) for job in jobs], shared=work >= _WORTH_A_STAGE)

    def ranged(self, parts: Sequence[tuple[Any, tuple[Any, ...], int]], work: int, threads: int) -> None:
        self._stage([Call(*part) for part in parts], shared=sum(items for _, _, items in parts) > 1)

    def _stage(self, calls: Sequence[Call], shared: bool = True) -> None:
        if any(not hasattr(call.kernel, "py_func") for call in calls):
            raise NotRecorded("a function of Python's")
        calls = [call._replace(arguments=self._arrays(call.arguments)) for call in calls]
        if any(isinstance(x, np.ndarray) and not x.flags.c_contiguous for call in calls for x in call.arguments):
            raise NotRecorded("a part of an array whose numbers do not lie side by side")
        self.recording.stage(calls, shared)

    def ranges(self, function: Callable[[int, int], None], items: int, work: int, threads: int) -> None:
        function(0, items)

    def combine(self, how: str, x: Any, y: Any, out: Later) -> None:
        numbers = [self._operand(part) for part in (x, y)]
        if (layout := lay_out(*numbers)) is None:
            raise NotRecorded("arithmetic of arrays that lie unevenly")
        self._kept += [part for part, given in zip(numbers, (x, y), strict=True) if not isinstance(given, Later)]
        first, steps, second, others, shape = layout
        arguments = Later(first, self), steps, Later(second, self), others, shape, out.reshape(-1)
        self.call(KERNELS[how], *arguments)

    def combined(self, how: str, x: Any, y: Any) -> Later:
        """What arithmetic gives, an array of its own."""
        out = self.empty(*np.broadcast_shapes(*(np.shape(self._operand(part)) for part in (x, y))))
        self.combine(how, x, y, out)
        return out

    def _operand(self, x: Any) -> np.ndarray:
        """An array that takes part in arithmetic, or a number of Python's."""
        array = x.array if isinstance(x, Later) else np.float32(x) if isinstance(x, (int, float)) else x
        if getattr(array, "dtype", None) != np.float32:
            raise NotRecorded("arithmetic with other numbers than float32")
        return np.asarray(array)

    def between(self, function: Callable[..., object], *arrays: Any) -> None:
        if any(self._in_cache(array) for array in arrays):
            raise NotRecorded("a conversation's memory, read by a function of Python's")
        self.recording.between(partial(function, *self._arrays(arrays)))

    def _arrays(self, arguments: Sequence[Any]) -> tuple[Any, ...]:
        self._kept += [
            argument for argument in arguments if not isinstance(argument, Later) and not self._in_cache(argument)
        ]
        return tuple(map(_array, arguments))

    def _in_cache(self, argument: Any) -> bool:
        return isinstance(argument, np.ndarray) and argument.ctypes.data in self._caches


def _array(argument: Any) -> Any:
    if isinstance(argument, Chosen):
        return argument._replace(numbers=_array(argument.numbers))
    return argument.array if isinstance(argument, Later) else argument


Calls = Now | Recorded


class Later:
    """An array that has no numbers before the recording is played. Arithmetic with it is recorded.

    Attributes
    ----------
    array : its memory.
    """

    def __init__(self, array: np.ndarray, calls: Recorded):
        self.array, self._calls = array, calls

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def size(self) -> int:
        return self.array.size

    def __len__(self) -> int:
        return len(self.array)

    def reshape(self, *shape: Any) -> Later:
        array = self.array.reshape(*shape)
        return self if array is self.array else self._part(array)

    def __getitem__(self, where: Any) -> Later:
        return self._part(self.array[where])

    def _part(self, array: np.ndarray) -> Later:
        if not np.may_share_memory(array, self.array) and array.size:
            raise NotRecorded("a part of an array that would be a copy")
        return Later(array, self._calls)

    def __add__(self, other: Any) -> Later:
        return self._calls.combined("add", self, other)

    def __sub__(self, other: Any) -> Later:
        return self._calls.combined("subtract", self, other)

    def __mul__(self, other: Any) -> Later:
        return self._calls.combined("multiply", self, other)

    def __truediv__(self, other: Any) -> Later:
        return self._calls.combined("divide", self, other)

    def __radd__(self, other: Any) -> Later:
        return self._calls.combined("add", other, self)

    def __rsub__(self, other: Any) -> Later:
        return self._calls.combined("subtract", other, self)

    def __rmul__(self, other: Any) -> Later:
        return self._calls.combined("multiply", other, self)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **more: Any) -> Later:
        """Arithmetic whose first operand is NumPy's."""
        if method != "__call__" or more or ufunc.__name__ not in KERNELS:
            raise NotRecorded("a function of NumPy's")
        return self._calls.combined(ufunc.__name__, *inputs)

    def _unknown(self, *arguments: Any, **more: Any) -> NoReturn:
        raise NotRecorded("arithmetic outside of kernels")

    __array__ = __array_function__ = __setitem__ = __getattr__ = __rtruediv__ = __pow__ = __neg__ = _unknown
    __iadd__ = __isub__ = __imul__ = __itruediv__ = __bool__ = __iter__ = _unknown


class Memory:
    """Arrays of recordings. The memory of those that nothing refers to any more is used again: a later call cannot
    mean them, and calls are made in the order in which they were written down.
    """

    def __init__(self) -> None:
        self._free: dict[Any, list[int]] = {}  # bytes, or what is alike → addresses
        self._blocks: list[np.ndarray] = []

    def array(self, shape: Sequence[int], dtype: np.dtype, written: Any = None) -> np.ndarray:
        """With `written` it is 0 elsewhere; then it uses only memory of arrays alike."""
        size = int(np.prod(shape)) * dtype.itemsize
        room = 1 << max(size - 1, _ALIGNED - 1).bit_length()
        free = self._free.setdefault(room if written is None else (*shape, dtype, written), [])
        if not free:
            block = np.zeros(room + _ALIGNED, np.uint8)
            self._blocks.append(block)
            free.append(block.ctypes.data + -block.ctypes.data % _ALIGNED)
        address = free.pop()
        held = (ctypes.c_char * max(size, 1)).from_address(address)
        weakref.finalize(held, free.append, address)
        return np.frombuffer(memoryview(held), np.uint8, size).view(dtype).reshape(shape)

    def shared(self, array: np.ndarray) -> np.ndarray:
        """The same array, whose memory others may use when no one else refers to it: for what is read at once."""
        memory = (ctypes.c_char * max(array.nbytes, 1)).from_address(array.ctypes.data)
        return np.frombuffer(memoryview(memory), array.dtype, array.size).reshape(array.shape)
