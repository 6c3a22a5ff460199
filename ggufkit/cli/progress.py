"""Progress of long work on stderr: how much, how fast, how long still; and the notes that verbs print there.

On a terminal a bar that moves; elsewhere (a log, a pipe) a line every ten seconds; with --quiet nothing. Speeds and
remaining times leave out what compiling kernels took.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ggufkit.jobs.plan import PlannedTensor

__all__ = ["byte_bar", "clock", "count_bar", "note", "progress_bar", "quiet", "token_bar"]

_LOG_EVERY = 10.0  # seconds


def quiet() -> bool:
    """Whether --quiet was given."""
    context = click.get_current_context(silent=True)
    return context is not None and context.find_root().meta.get("ggufkit.quiet", False)


def note(text: str) -> None:
    """A line on stderr for people, unless --quiet was given."""
    if not quiet():
        click.echo(f"ggufkit: {text}", err=True)


@contextmanager
def progress_bar(planned: Sequence[PlannedTensor], doing: str) -> Iterator[Callable[[PlannedTensor, int], None]]:
    """Show the progress of streaming `planned`; gives the callback that `jobs.stream` takes."""
    total = sum(p.tensor.size for p in planned)
    with _shown(doing, total, "M weights/s") as advance:
        yield lambda p, rows: advance(rows * p.tensor.cols, p.tensor.name)


@contextmanager
def byte_bar(total: int, doing: str) -> Iterator[Callable[[int, str], None]]:
    """Show the progress of work on `total` bytes; gives a function that takes bytes done and a tensor's name.

    It may be called by several threads.
    """
    lock = threading.Lock()
    with _shown(doing, total, "MB/s") as advance:

        def locked(nbytes: int, name: str) -> None:
            with lock:
                advance(nbytes, name)

        yield locked


@contextmanager
def token_bar(total: int, doing: str) -> Iterator[Callable[[int, str], None]]:
    """Show the progress of running a model over `total` tokens; gives a function that takes tokens done and a note."""
    with _shown(doing, total, "tokens/s") as advance:
        yield advance


@contextmanager
def count_bar(total: int, doing: str) -> Iterator[Callable[[int, str], None]]:
    """Show how many of `total` things are done; gives a function that takes how many more, and a name."""
    with _shown(doing, total, "") as advance:
        yield advance


@contextmanager
def _shown(doing: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
    if quiet():
        yield lambda n, name: None
        return
    with (_bar if sys.stderr.isatty() else _log)(doing, total, unit) as advance:
        yield advance


class _Pace:
    """How much of `total` is done, and how fast, without the time that compiling took."""

    def __init__(self, total: int, unit: str):
        self.total, self.unit, self.done = total, unit, 0
        self._start = self._now()

    def _now(self) -> float:
        ahead = sys.modules.get("ggufkit.kernels.ahead")
        return time.monotonic() - (ahead.compile_seconds() if ahead is not None else 0.0)

    def rate(self) -> str:
        if not self.unit:
            return f"{self.done}/{self.total}"
        rate = self.done / max(self._now() - self._start, 1e-3)
        return f"{rate / 1e6 if self.unit.startswith('M') else rate:.0f} {self.unit}"

    def left(self) -> str:
        if not self.done:
            return ""
        return clock((self.total - self.done) * (self._now() - self._start) / self.done)


@contextmanager
def _bar(doing: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    from ggufkit.errors import printable

    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f} %", table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[rate]}", table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[name]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    pace = _Pace(total, unit)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total, rate=pace.rate() if not unit else "", left="", name="")

        def advance(n: int, name: str) -> None:
            pace.done += n
            left = f"{pace.left()} left" if pace.done else ""
            bar.update(task, completed=pace.done, rate=pace.rate(), left=left, name=printable(name, 40))

        yield advance


@contextmanager
def _log(doing: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
    pace, shown = _Pace(total, unit), time.monotonic()

    def advance(n: int, name: str) -> None:
        nonlocal shown
        pace.done += n
        now = time.monotonic()
        if now - shown >= _LOG_EVERY and pace.done:
            shown = now
            line = f"{doing}: {pace.done / max(total, 1):.0%}, {pace.rate()}, {pace.left()} left"
            print(line, file=sys.stderr, flush=True)

    yield advance


def clock(seconds: float) -> str:
    """A time to come: 0:07, 12:30, 1:02:09, 3 d 04:00 h."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d}:{minutes:02d} h"
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
