"""The only thread pool: independent row ranges, in any order, always the same bytes.

Kernels release the GIL, so plain Python threads run them side by side. GGUFKIT_THREADS, or `threads=` of the
functions that take it, sets how many; the default is every CPU this process may use, of a Mac's the fast ones.

A token of a small model is a hundred products of a fraction of a millisecond, and waking a sleeping thread through
the interpreter takes a tenth of that. So a team of threads stays awake for a moment after each piece of work:

    caller    writes down the work, starts a round, takes its first share …  all done   waits until no one is busy
    helper    spins ………………………… sees the share taken, works along ……………………… nothing left   not busy, spins, later sleeps

A helper begins when the caller is inside its kernel, so neither waits for the interpreter. One that comes late finds
nothing left to do, and no one waits for it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from ggufkit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SHARES", "for_each", "for_each_run", "for_ranges", "in_all_threads", "thread_count", "unshared"]

T = TypeVar("T")

SHARES = 16  # counters of rows that one piece of work can have

_AWAKE = 4000  # pauses that a helper waits for more, about 0.2 ms
_CLOSE = 20000  # pauses that the caller waits for a helper before it lets others have the CPU


def thread_count(threads: int | None = None) -> int:
    """`threads`, or GGUFKIT_THREADS, or the number of CPUs that this process may use; of a Mac's the fast ones.

    Raises
    ------
    UsageError : a number below 1.
    """
    if threads is not None and threads >= 1:
        return threads
    text = os.environ.get("GGUFKIT_THREADS") if threads is None else str(threads)
    if not text:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return _fast_cpus() if sys.platform == "darwin" else os.cpu_count() or 1
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UsageError(f"the number of threads must be a whole number of at least 1, not {text!r}")
    return int(text)


@cache
def _fast_cpus() -> int:
    from ggufkit.kernels.cpu import performance_cores

    return performance_cores() or os.cpu_count() or 1


class _Team:
    """The helpers of one caller at a time.

    `state` is one array of numbers on lines of their own: SHARES counters of rows (and after each the number of
    threads), the round, a busy flag a helper.
    """

    def __init__(self, helpers: int):
        import numpy as np

        from ggufkit.kernels.shares import LINE

        self.free = threading.Lock()  # held by the caller that uses the team
        self._helpers, self._line = helpers, LINE
        self._round_at, self._busy_at = SHARES * LINE, (SHARES + 1) * LINE
        self._state = np.zeros(self._busy_at + helpers * LINE, np.int64)
        self.shares = [self._state[i * LINE : i * LINE + 2] for i in range(SHARES)]
        self._state[1 : self._round_at : LINE] = helpers + 1
        self._lock = threading.Lock()  # of what follows
        self._work: Callable[[], object] | None = None
        self._asleep: list[threading.Lock] = []
        self._failures: list[BaseException] = []
        for number in range(helpers):
            threading.Thread(target=self._help, args=(number,), name=f"ggufkit-{number}", daemon=True).start()

    def run(self, work: Callable[[], object], start: bool) -> None:
        """Call `work` in this thread and its helpers; with `start` they begin at once, else at the first share."""
        from ggufkit.kernels.shares import wait_for_end

        state = self._state
        if self._failures:  # left by one who was interrupted
            self._failures = []
        with self._lock:
            self._work = work
            state[: self._round_at : self._line] = 0
            state[self._round_at] += 1
            state[0] = int(start)
            while self._asleep:
                self._asleep.pop().release()
        try:
            work()
        finally:
            with self._lock:
                self._work = None
            while not wait_for_end(state, self._busy_at, self._helpers, _CLOSE):
                time.sleep(1e-4)
        if self._failures:
            failures, self._failures = self._failures, []
            raise failures[0]

    def _help(self, number: int) -> None:
        from ggufkit.kernels.shares import wait_for_start

        busy_at = self._busy_at + number * self._line
        bell = threading.Lock()
        seen = 0
        while True:
            current = wait_for_start(self._state, self._round_at, seen, busy_at, _AWAKE)
            if current == seen:
                self._sleep(bell, seen)
                continue
            seen = current
            with self._lock:
                if (work := self._work) is None:
                    continue  # too late
                self._state[busy_at] = 1
            try:
                work()
            except BaseException as e:
                self._failures.append(e)
            del work  # and the arrays that it holds, mapped files among them

    def _sleep(self, bell: threading.Lock, seen: int) -> None:
        """Until the next round begins."""
        with self._lock:
            if self._state[self._round_at] != seen:
                return
            bell.acquire()
            self._asleep.append(bell)
        with bell:  # which the caller releases
            pass


@cache
def _team(helpers: int) -> _Team:
    return _Team(helpers)


def in_all_threads(function: Callable[[Sequence[np.ndarray]], object], threads: int | None = None) -> None:
    """Call `function(shares)` in `threads` threads at once, this one among them; return when all are done.

    For kernels that share rows among themselves: each of the SHARES `shares` is an array of two int64, a counter, 0 at
    first, from which they `take`, and the number of threads. The first must be used by whatever takes first. If another
    thread is doing the same, `function` is called in this thread alone.
    """
    helpers = thread_count(threads) - 1
    if not helpers or not (team := _team(helpers)).free.acquire(blocking=False):
        function(unshared())
        return
    try:
        team.run(lambda: function(team.shares), start=False)
    finally:
        team.free.release()


def unshared() -> Sequence[np.ndarray]:
    """`shares` for this thread alone."""
    import numpy as np

    shares = np.zeros((SHARES, 2), np.int64)
    shares[:, 1] = 1
    return shares  # type: ignore[return-value]


def for_ranges(function: Callable[[int, int], None], rows: int, grain: int, threads: int | None = None) -> None:
    """Call `function(lo, hi)` for consecutive ranges that cover `0 … rows`, at most `grain` rows each.

    The first exception (in row order) is raised again once the running calls have ended; no other is started then.
    If another thread is doing the same, all are called in this thread alone.
    """
    grain = max(grain, 1)
    helpers = min(thread_count(threads), -(-rows // grain)) - 1
    if helpers < 1 or not (team := _team(helpers)).free.acquire(blocking=False):
        for lo in range(0, rows, grain):
            function(lo, min(lo + grain, rows))
        return
    starts = iter(range(0, rows, grain))
    failures: list[tuple[int, BaseException]] = []

    def work() -> None:
        while not failures and (lo := next(starts, None)) is not None:
            try:
                function(lo, min(lo + grain, rows))
            except BaseException as e:
                failures.append((lo, e))

    try:
        team.run(work, start=True)
    finally:
        team.free.release()
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]


def for_each(function: Callable[[T], None], items: Iterable[T], workers: int) -> None:
    """Call `function(item)` for every item, in `workers` threads that start the items in order.

    For items that read and write files, and for more items than a list should hold. The first exception (in the
    order of the items) is raised again once the running calls have ended; so is Ctrl-C. No further item is started.
    """
    for_each_run(function, ((item,) for item in items), workers)


def for_each_run(function: Callable[[T], None], runs: Iterable[Iterable[T]], workers: int) -> None:
    """As `for_each`, for items in runs: one thread takes those of a run, one after the other."""
    numbered = enumerate(runs)
    lock = threading.Lock()
    stop = threading.Event()
    failures: list[tuple[int, BaseException]] = []

    def work() -> None:
        while not stop.is_set():
            with lock:
                index, run = next(numbered, (-1, ()))
            if index < 0:
                return
            try:
                for item in run:
                    if stop.is_set():
                        return
                    function(item)
            except BaseException as e:
                failures.append((index, e))
                stop.set()

    threads = [threading.Thread(target=work, name=f"ggufkit-{i}") for i in range(workers)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]
