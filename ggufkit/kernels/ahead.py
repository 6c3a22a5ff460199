"""Compile what a job will need before it starts, in several processes at once.

    compile_ahead("a name of the job", dry_run, report)

`dry_run` does the job once with small arrays. It runs in a process of its own, where a kernel that is called notes
which types it was called with and returns at once. What is not in the cache is then compiled by as many processes as
there are CPUs; this process finds all of it on the disk, and has compiled nothing.

    this process       fork ────────────────────────────────── a bar ─────────────── the job, kernels loaded
    its child               dry run   fork ┬ kernels 0, 2, 5 … ┐ prunes, marks the job as ready
    workers                                └ kernels 1, 3, 4 … ┘

A job that is marked needs no dry run. This file is not a part of the kernels, so that an edit of it recompiles none.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import os
import shutil
import signal
import struct
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numba
from numba.core import dispatcher as numba_dispatcher
from numba.core import event

import ggufkit
from ggufkit.kernels import addresses, jit, threads

__all__ = ["Report", "compile_ahead", "compile_seconds", "is_kept", "prune", "recorded", "size_of"]

# Called with the number of kernels, gives a context manager whose value takes the name of each that is compiled.
Report = Callable[[int], AbstractContextManager[Callable[[str], object]]]

# Folders of the cache that this version does not use go when they are so old, or when all are so large.
_DAYS = 30
_BYTES = 1 << 30

_INDEX = struct.Struct("<H")


# -- how long compiling took ------------------------------------------------------------------------------


class _Clock(event.Listener):
    """Seconds in which this process compiled; events lie one within another."""

    depth, since, total = 0, 0.0, 0.0

    def on_start(self, event: event.Event) -> None:
        if self.depth == 0:
            self.since = time.monotonic()
        self.depth += 1

    def on_end(self, event: event.Event) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.total += time.monotonic() - self.since


_CLOCK = _Clock()
event.register("numba:compile", _CLOCK)


def compile_seconds() -> float:
    """Seconds that this process has spent compiling so far."""
    return _CLOCK.total


# -- the job's kernels ------------------------------------------------------------------------------------


def compile_ahead(job: str, dry_run: Callable[[], object], report: Report, workers: int | None = None) -> int:
    """Compile what `dry_run` would, and is not kept on the disk already.

    Parameters
    ----------
    job : names everything that decides which kernels `dry_run` calls.
    dry_run : calls the kernels; it may fail where it needs their results.
    workers : processes; default the CPUs that this process may use.

    Returns
    -------
    how many kernels were compiled
    """
    mark = _mark(job)
    if mark is None or mark.exists() or not hasattr(os, "fork"):
        return 0
    import ggufkit.kernels.shares  # noqa: F401 - imported once, not by each process

    results, said = os.pipe()
    with contextlib.suppress(BlockingIOError, MemoryError):  # without processes kernels compile when they are called
        if (child := os.fork()) == 0:
            os.close(results)
            _exit_after(lambda: _compile(dry_run, said, workers or threads.thread_count(), mark))
        os.close(said)
        with os.fdopen(results, "r", encoding="utf-8") as lines:
            try:
                total = int(lines.readline() or 0)
                if total:
                    with report(total) as advance:
                        for line in lines:
                            advance(line.rstrip("\n"))
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGTERM)
                raise
            finally:
                os.waitpid(child, 0)
        return total
    return 0


def _exit_after(work: Callable[[], object]) -> None:
    """Do the work of a forked process, and end it without what the parent would do at its end."""
    try:
        gc.disable()
        work()
    finally:
        os._exit(0)


def _compile(dry_run: Callable[[], object], said: int, workers: int, mark: Path) -> None:
    """What the child does: find the kernels, have them compiled, tell `said`."""
    os.setpgid(0, 0)  # so that the workers end with it
    _silence()
    needed = [found for found in recorded(dry_run) if not is_kept(*found)]
    needed.sort(key=size_of, reverse=True)  # large ones first: none is left to one worker at the end
    os.write(said, f"{len(needed)}\n".encode())
    queue, numbers = os.pipe()
    os.write(numbers, b"".join(map(_INDEX.pack, range(len(needed)))))
    os.close(numbers)
    children = []
    for _ in range(min(workers, len(needed))):
        if (child := os.fork()) == 0:
            _exit_after(lambda: _work(needed, queue, said))
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    mark.parent.mkdir(parents=True, exist_ok=True)
    if all(is_kept(*found) for found in needed):
        mark.touch()
    prune()


def _work(needed: list[tuple[Any, tuple[Any, ...]]], queue: int, said: int) -> None:
    while number := os.read(queue, _INDEX.size):
        dispatcher, signature = needed[_INDEX.unpack(number)[0]]
        with contextlib.suppress(Exception):  # what cannot be compiled says so when it is called
            dispatcher.compile(signature)
        os.write(said, f"{dispatcher.py_func.__name__}\n".encode())


def _silence() -> None:
    """No line on stderr from each process that compiles."""
    for listener in event._registered.get("numba:compile", []):
        if type(listener) is jit._SayOnce:
            event.unregister("numba:compile", listener)
            break


def recorded(dry_run: Callable[[], object]) -> list[tuple[Any, tuple[Any, ...]]]:
    """(kernel, types of its arguments) of all that are called, in this process only."""
    found: dict[tuple[int, Any], tuple[Any, tuple[Any, ...]]] = {}

    def record(kernel: Any, signature: tuple[Any, ...]) -> None:
        found[id(kernel), signature] = kernel, signature

    def called(self: Any, *arguments: Any, **_: Any) -> Callable[..., Any]:
        record(self, tuple(map(self.typeof_pyval, arguments)))
        return _all_done if self.py_func.__name__ == "take_share" else _nothing

    def address_for(kernel: Any, signature: tuple[Any, ...]) -> int:
        record(kernel, signature)
        return 1

    # What this process has compiled or loaded already would be called.
    for kernel in gc.get_objects():
        if issubclass(type(kernel), numba_dispatcher.Dispatcher):  # `isinstance` would ask what weak proxies stand for
            kernel._clear()
    compiled = numba_dispatcher._DispatcherBase._compile_for_args
    numba_dispatcher._DispatcherBase._compile_for_args = called
    addresses.address_for = address_for
    threads.thread_count = lambda number=None: 1
    try:
        with contextlib.suppress(Exception):
            _team()
            dry_run()
    finally:
        numba_dispatcher._DispatcherBase._compile_for_args = compiled
    return list(found.values())


def _nothing(*arguments: Any) -> int:
    return 0


def _all_done(*arguments: Any) -> int:
    """What a counter of shares says to one who comes last."""
    return 1 << 62


def _team() -> None:
    """What threads tell each other; see `threads`."""
    import numpy as np

    from ggufkit.kernels.shares import wait_for_end, wait_for_start

    state = np.zeros(8, np.int64)
    wait_for_start(state, 0, state[0], 1, 1)
    wait_for_start(state, 0, 0, 1, 1)
    wait_for_end(state, 0, 0, 1)


def size_of(found: tuple[Any, tuple[Any, ...]]) -> int:
    """About how long a kernel takes to compile: the length of its code and of the helpers that it names."""
    function = found[0].py_func
    names = function.__code__.co_names
    helpers = [getattr(function.__globals__.get(name), "py_func", None) for name in names]
    return len(function.__code__.co_code) + sum(len(h.__code__.co_code) for h in helpers if h is not None)


def is_kept(kernel: Any, signature: tuple[Any, ...]) -> bool:
    """Whether the cache on the disk has the kernel for these types."""
    try:
        index = kernel._cache._cache_file._load_index()
        return kernel._cache._index_key(signature, kernel.targetctx.codegen()) in index
    except (AttributeError, OSError):  # it is not cached, or cannot be
        return False


# -- the cache --------------------------------------------------------------------------------------------


def _folder() -> Path:
    """The folder of all kernels' folders."""
    return jit.cache_folder(__file__).parent


def _mark(job: str) -> Path | None:
    """The empty file that says that a job's kernels were compiled; None where all kernels share one folder."""
    folder = _folder()
    if folder.name != "kernels":  # NUMBA_CACHE_DIR
        return None
    digest = hashlib.sha256(f"{_version()} {job}".encode()).hexdigest()
    return folder / "ready" / digest[:24]


@functools.cache
def _version() -> str:
    """All that decides on machine code: sources by size and time, the CPU, Numba's version."""
    digest = hashlib.sha256()
    for path in sorted(Path(ggufkit.__file__).parent.rglob("*.py")):
        status = path.stat()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    for part in (numba.__version__, jit.config.CPU_NAME or jit.llvm.get_host_cpu_name(), *sorted(jit.CPU_FEATURES)):
        digest.update(f"{part}\n".encode())
    return digest.hexdigest()


def prune(days: float = _DAYS, limit: int = _BYTES) -> int:
    """Remove folders of the cache that this version of the sources does not use, if they are old or all are large.

    Parameters
    ----------
    days : since they were last written to.
    limit : bytes of all folders together, above which the oldest go first.

    Returns
    -------
    how many were removed
    """
    folder = _folder()
    if folder.name != "kernels" or not folder.is_dir():
        return 0
    ours = _ours()
    found = sorted((path.stat().st_mtime, path) for path in folder.iterdir() if path.is_dir() and path.name not in ours)
    sizes = {path: _bytes(path) for path in folder.iterdir() if path.is_dir()}
    total, oldest, removed = sum(sizes.values()), time.time() - days * 86400, 0
    for changed, path in found:
        if changed < oldest or total > limit:
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes.get(path, 0)
            removed += 1
    return removed


def _ours() -> set[str]:
    """The names of the folders of these sources, and of that with the marks."""
    return {"ready"} | {jit.cache_folder(str(path)).name for path in Path(ggufkit.__file__).parent.rglob("*.py")}


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
