"""Lazy tensors in, a GGUF file out: what `convert` and `quantize` have in common.

    planned = [PlannedTensor(tensor, FORMATS["Q4_K"], "default of Q4_K_M"), …]
    write_model("out.gguf", metadata, planned)

A tensor that has its format already is copied, every other one is decoded to float32 and encoded:

    worker 1   read ▒▒ encode ████████ write ▒ read ▒▒ encode ████████ write ▒
    worker 2      read ▒▒ encode ████████ write ▒ read ▒▒ encode ████████ write ▒
    worker 3         read ▒▒ ········· encode ████████ write ▒ …

A piece is about a million weights, whole rows of one tensor. As many workers as there are threads encode at a time;
one more waits for the disk meanwhile (or encodes, too, where all CPUs do). Inside a worker the float32 rows go through
a buffer that stays in its core's L2 cache. So memory does not depend on the size of a tensor, and the bytes do not
depend on the number of threads.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufkit.errors import FileError, GgufkitError, printable
from ggufkit.gguf.writer import Writer
from ggufkit.jobs.plan import PlannedFile, PlannedTensor
from ggufkit.jobs.resume import ResumeLog
from ggufkit.kernels.heap import keep_arrays
from ggufkit.kernels.threads import for_each_run, thread_count

__all__ = [
    "MEMORY",
    "Fill",
    "Interrupted",
    "Piece",
    "Progress",
    "Reporter",
    "pieces_of",
    "runs_of",
    "silent",
    "stream",
    "worker_count",
    "write_model",
    "write_models",
]

# Default limit of the buffers, bytes.
MEMORY = 512_000_000

# Weights a piece: enough that the cost of handing it out vanishes.
_PIECE = 1 << 20

# Bytes that one worker copies of a tensor before it takes another: it finds what the pieces share, such as the matrix
# that they are rows of once it is turned, and reads it while the others write.
_RUN = 40 << 20

# Workers that read or write while the others encode.
_WAITING = 1

Progress = Callable[["PlannedTensor", int], None]

# Writes all tensors of a file, as `stream` does: `fill(planned, writer, threads=…, memory=…, progress=…, log=…)`.
Fill = Callable[..., None]

# Shows the progress of streaming some tensors, given a word for what is done.
Reporter = Callable[[Sequence["PlannedTensor"], str], AbstractContextManager[Progress | None]]


def silent(planned: Sequence[PlannedTensor], doing: str) -> AbstractContextManager[None]:
    """The reporter that shows nothing."""
    return nullcontext()


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the message says how to continue."""


@dataclass(frozen=True)
class Piece:
    """Rows `lo … hi` of a tensor, which are read, encoded and written together."""

    planned: PlannedTensor
    lo: int
    hi: int


def pieces_of(planned: Sequence[PlannedTensor]) -> Iterator[Piece]:
    """All rows of the tensors, in their order."""
    for run in runs_of(planned):
        yield from run


def runs_of(planned: Sequence[PlannedTensor]) -> Iterator[Sequence[Piece]]:
    """The same, in runs that one worker should do: of one tensor, and of one piece where that has to be encoded."""
    for p in planned:
        step = max(1, _PIECE // max(p.tensor.cols, 1))
        run = step * max(1, _RUN // max(step * p.row_bytes, 1)) if p.copied else step
        for lo in range(0, p.tensor.rows, run):
            hi = min(lo + run, p.tensor.rows)
            yield [Piece(p, at, min(at + step, hi)) for at in range(lo, hi, step)]


def worker_count(planned: Sequence[PlannedTensor], threads: int, memory: int) -> int:
    """As many workers as keep the threads busy and the buffers below `memory` bytes, at least one."""
    from ggufkit.formats.codec import CHUNK

    piece = 1
    for p in planned:
        cols = max(p.tensor.cols, 1)
        rows = min(p.tensor.rows, max(1, _PIECE // cols))
        floats = 4 * max(cols, CHUNK)
        piece = max(piece, rows * (p.tensor.row_bytes + p.row_bytes) + floats)
    return max(1, min(threads + _WAITING, memory // piece))


def stream(
    planned: Sequence[PlannedTensor],
    writer: Writer,
    *,
    threads: int | None = None,
    memory: int = MEMORY,
    progress: Progress | None = None,
    log: ResumeLog | None = None,
) -> None:
    """Read, encode and write all tensors.

    Parameters
    ----------
    planned : the tensors, in any order; `writer` has planned the same names, shapes and formats.
    threads : how many encode; default GGUFKIT_THREADS or all CPUs, which one more worker shares.
    memory : bytes that the buffers may take (at least one row of one tensor is held).
    progress : called with a tensor and a number of its rows whenever these are done, never by two threads at once.
    log : records what is written, and knows what an earlier run wrote.

    Raises
    ------
    CodecError : a weight is not finite, or does not fit its format.
    FileError, GGUFError : see `Writer.write`.
    """
    keep_arrays()
    encode_at_once = thread_count(threads)
    # Where all CPUs may encode, nobody need count: to wake up a worker takes as long as to read a piece.
    counted = encode_at_once < (os.cpu_count() or 1)
    encoding = threading.BoundedSemaphore(encode_at_once) if counted else nullcontext()
    lock = threading.Lock()

    def done(piece: Piece) -> None:
        if progress is not None:
            with lock:
                progress(piece.planned, piece.hi - piece.lo)

    def work(piece: Piece) -> None:
        p, name = piece.planned, piece.planned.tensor.name
        nbytes = (piece.hi - piece.lo) * p.row_bytes
        if log is not None and log.has(name, piece.lo, nbytes):
            writer.wrote(name, nbytes)
            return done(piece)
        source = p.tensor.read(piece.lo, piece.hi)
        with encoding:
            blocks = p.encode_blocks(source, piece.lo)
        writer.write(name, piece.lo, blocks)
        if log is not None:
            log.record(name, piece.lo, nbytes)
        return done(piece)

    for_each_run(work, runs_of(planned), worker_count(planned, encode_at_once, memory))


def write_model(
    path: str | os.PathLike[str], metadata: Mapping[str, Any], planned: Sequence[PlannedTensor], **options: Any
) -> None:
    """Write one GGUF file; see `write_models`."""
    write_models([PlannedFile(path, metadata, planned)], **options)


def write_models(
    files: Sequence[PlannedFile],
    *,
    force: bool = False,
    threads: int | None = None,
    memory: int = MEMORY,
    progress: Progress | None = None,
    resume_key: bytes | None = None,
    fill: Fill | None = None,
) -> None:
    """Write GGUF files (one, or the shards of a model): they appear under their names when all are complete.

    Parameters
    ----------
    files : what to write.
    force : replace existing files.
    threads, memory, progress : see `stream`.
    resume_key : what the contents depend on, beyond headers and importance: the identity of the source. With it, a
        run that was killed or ran out of disk leaves ``PATH.partial`` and its log, and the next run with the
        same key continues there.
    fill : what writes the tensors of a file, called as `stream` is; default `stream`.

    Raises
    ------
    FileError : a file exists already, cannot be written, another process is writing it, or the disk is full.
    CodecError : see `stream`.
    """
    if not force:
        for file in files:
            if os.path.exists(file.path):
                raise FileError(f"{printable(os.fspath(file.path))} exists already", "give {force=True} to replace it")
    _check_space(files)
    fill = fill or stream
    options: dict[str, Any] = {"threads": threads, "memory": memory, "progress": progress}
    if resume_key is None:
        with ExitStack() as stack:
            for file in files:
                writer = Writer(file.path, file.metadata, file.tensors, force=force, reserved=True)
                fill(file.planned, stack.enter_context(writer), **options)
        return
    with ExitStack() as locks:
        logs = [
            locks.enter_context(ResumeLog(file.partial, file.layout, contents_key(file, resume_key))) for file in files
        ]
        with _explained(files, logs), ExitStack() as stack:
            for file, log in zip(files, logs, strict=True):
                writer = Writer(file.path, file.metadata, file.tensors, force=force, temp=file.partial, reserved=True)
                fill(file.planned, stack.enter_context(writer), log=log, **options)
                log.flush()
        for log in logs:
            log.remove()


def _check_space(files: Sequence[PlannedFile]) -> None:
    """Refuse now what would fail after hours. The disk may still fill up meanwhile."""
    folder = os.path.dirname(os.path.realpath(files[0].path))
    try:
        disk = shutil.disk_usage(folder)
    except OSError:
        return  # opening the file says better why
    needed = sum(file.layout.size - _allocated(file.partial) for file in files)
    # Some network file systems do not know: a disk of no size.
    if disk.total and needed > disk.free:
        raise FileError(
            f"cannot write {printable(os.fspath(files[0].path))}: it needs {needed} bytes and the disk has "
            f"{disk.free} left; free some room or choose another place"
        )


def _allocated(partial: Path) -> int:
    """Bytes of the disk that an earlier run's output takes already."""
    try:
        found = partial.stat()
    except OSError:
        return 0
    return min(found.st_size, 512 * getattr(found, "st_blocks", 0))


@contextmanager
def _explained(files: Sequence[PlannedFile], logs: Sequence[ResumeLog]) -> Iterator[None]:
    """Say how to continue after what can be continued; clean up after the rest."""
    kept = ", ".join(printable(file.partial.name) for file in files)
    again = f"what is done is kept in {kept}; do the same again to continue"
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(again) from None
    except FileError as e:
        if any(log.useful for log in logs):
            raise FileError(f"{e.message}; {again}", e.hint) from e
        _forget(files, logs)
        raise
    except GgufkitError:
        # Continuing would fail at the same place.
        _forget(files, logs)
        raise


def _forget(files: Sequence[PlannedFile], logs: Sequence[ResumeLog]) -> None:
    for file, log in zip(files, logs, strict=True):
        log.remove()
        file.partial.unlink(missing_ok=True)


def contents_key(file: PlannedFile, key: bytes) -> bytes:
    """Everything that the bytes of a file depend on and its header does not say."""
    digest = hashlib.sha256(key)
    for p in file.planned:
        digest.update(p.tensor.format.name.encode())
        if p.importance is not None:
            digest.update(p.importance.tobytes())
    return digest.digest()
