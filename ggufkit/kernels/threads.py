"""The only thread pool: independent row ranges, in any order, always the same bytes.

Kernels release the GIL, so plain Python threads run them side by side. GGUFKIT_THREADS, or `threads=` of the
functions that take it, sets how many; the default is every CPU this process may use.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from ggufkit.errors import UsageError

__all__ = ["for_ranges", "thread_count"]


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
