"""The only thread pool: independent row ranges, in any order, always the same bytes.

Kernels release the GIL, so plain Python threads run them side by side. GGUFKIT_THREADS, or `threads=` of the
functions that take it, sets how many; the default is every CPU this process may use.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

from ggufkit.errors import UsageError

__all__ = ["for_each", "for_ranges", "in_all_threads", "thread_count"]

T = TypeVar("T")


def thread_count(threads: int | None = None) -> int:
    """`threads`, or GGUFKIT_THREADS, or the number of CPUs that this process may use.

    Raises
    ------
    UsageError : a number below 1.
    """
    text = os.environ.get("GGUFKIT_THREADS") if threads is None else str(threads)
    if not text:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UsageError(f"the number of threads must be a whole number of at least 1, not {text!r}")
    return int(text)


@lru_cache(maxsize=4)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="ggufkit")


def for_ranges(function: Callable[[int, int], None], rows: int, grain: int, threads: int | None = None) -> None:
    """Call `function(lo, hi)` for consecutive ranges that cover `0 … rows`, at most `grain` rows each.

    The first exception (in row order) is raised again once the running calls have ended; calls that have
    not started by then are dropped. `function` must not call `for_ranges` itself.
    """
    grain = max(grain, 1)
    workers = min(thread_count(threads), -(-rows // grain))
    if workers <= 1:
        for lo in range(0, rows, grain):
            function(lo, min(lo + grain, rows))
        return
    pool = _pool(workers)
    futures = [pool.submit(function, lo, min(lo + grain, rows)) for lo in range(0, rows, grain)]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()
        for future in futures:
            if not future.cancelled():
                future.exception()


def in_all_threads(function: Callable[[], object], threads: int | None = None) -> None:
    """Call `function()` in each of `threads` threads at once, this one among them; return when all are done.

    For kernels that share their work among themselves.
    """
    others = [_pool(workers).submit(function) for _ in range(workers)] if (workers := thread_count(threads) - 1) else []
    function()
    for future in others:
        future.result()


def for_each(function: Callable[[T], None], items: Iterable[T], workers: int) -> None:
    """Call `function(item)` for every item, in `workers` threads that start the items in order.

    For items that read and write files, and for more items than a list should hold. The first exception (in the
    order of the items) is raised again once the running calls have ended; so is Ctrl-C. No further item is started.
    """
    numbered = enumerate(items)
    lock = threading.Lock()
    stop = threading.Event()
    failures: list[tuple[int, BaseException]] = []

    def work() -> None:
        while not stop.is_set():
            with lock:
                index, item = next(numbered, (-1, None))
            if index < 0:
                return
            try:
                function(item)  # type: ignore[arg-type]
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
