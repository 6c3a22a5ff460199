"""Progress of long work on stderr: how much, how fast, how long still.

On a terminal a bar that moves; elsewhere (a log, a pipe) a line every ten seconds.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggufkit.jobs.plan import PlannedTensor

__all__ = ["byte_bar", "progress_bar", "token_bar"]

_LOG_EVERY = 10.0  # seconds


@contextmanager
def progress_bar(planned: Sequence[PlannedTensor], doing: str) -> Iterator[Callable[[PlannedTensor, int], None]]:
    """Show the progress of streaming `planned`; gives the callback that `pipeline.stream` takes."""
    total = sum(p.tensor.size for p in planned)
    with (_bar if sys.stderr.isatty() else _log)(doing, total, "M weights/s") as advance:
        yield lambda p, rows: advance(rows * p.tensor.cols, p.tensor.name)


@contextmanager
def byte_bar(total: int, doing: str) -> Iterator[Callable[[int, str], None]]:
    """Show the progress of work on `total` bytes; gives a function that takes bytes done and a tensor's name.

    It may be called by several threads.
    """
    lock = threading.Lock()
    with (_bar if sys.stderr.isatty() else _log)(doing, total, "MB/s") as advance:

        def locked(nbytes: int, name: str) -> None:
            with lock:
                advance(nbytes, name)

        yield locked


@contextmanager
def token_bar(total: int, doing: str) -> Iterator[Callable[[int, str], None]]:
    """Show the progress of running a model over `total` tokens; gives a function that takes tokens done and a note."""
    with (_bar if sys.stderr.isatty() else _log)(doing, total, "tokens/s") as advance:
        yield advance


@contextmanager
def _bar(doing: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ggufkit.errors import printable

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[name]}", markup=False),
    )
    start, done = time.monotonic(), 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total, rate="", name="")

        def advance(n: int, name: str) -> None:
            nonlocal done
            done += n
            rate = _rate(done, time.monotonic() - start, unit)
            bar.update(task, completed=done, rate=rate, name=printable(name, 40))

        yield advance


@contextmanager
def _log(doing: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
    start = shown = time.monotonic()
    done = 0

    def advance(n: int, name: str) -> None:
        nonlocal done, shown
        done += n
        now = time.monotonic()
        if now - shown >= _LOG_EVERY:
            shown = now
            left = (total - done) * (now - start) / done
            line = f"{doing}: {done / total:.0%}, {_rate(done, now - start, unit)}, {_clock(left)} left"
            print(line, file=sys.stderr, flush=True)

    yield advance


def _rate(done: int, seconds: float, unit: str) -> str:
    rate = done / max(seconds, 1e-3)
    return f"{rate / 1e6 if unit.startswith('M') else rate:.0f} {unit}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
