"""The record that takes an edit back: the journal of one that is under way, and the undo file of the last one.

    "ggufkit undo 1\n"
    {"size": …, "old_size": …, "header": …, "before": …, "after": …, "ranges": [[offset, n], …], "moves": …}\n
    the old bytes of the ranges
    CRC-32 of all this, u32

`before` and `after` are CRC-32s of the header: bytes are put back only into a file that proves to be the right one.
A record of a rewrite holds the whole old header, and the moves that bring the data back to where it was.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass

from ggufkit.errors import FileError, os_errors, printable
from ggufkit.storage.files import AtomicFile, lock_file, sync_file, sync_folder
from ggufkit.storage.regular import kind_of_file, open_regular, read_small

__all__ = [
    "STEPS",
    "Move",
    "Record",
    "forget_history",
    "history_path",
    "journal_path",
    "keep_history",
    "read_record",
    "refuse_stranger",
    "remove_record",
    "roll_back",
    "settle",
    "step_back",
    "steps_left",
    "undo_path",
    "write_record",
]

_MAGIC = b"ggufkit undo 1\n"

# Bytes: a record holds the header of a model, for which readers have half of this as their limit.
MAX_RECORD = 256 << 20

# How many edits can be taken back, one after the other.
STEPS = 10

# (from, to, bytes): a piece of data that a new file takes over from the old one.
Move = tuple[int, int, int]


@dataclass(frozen=True)
class Record:
    """What is needed to take an edit back.

    Attributes
    ----------
    size, old_size : bytes of the file after and before the edit.
    header : bytes of the header after the edit, up to the data section.
    before, after : CRC-32 of the header before and after.
    ranges : (offset, old bytes) of the header.
    moves : None for an edit in place; else how the data moves back, file after the edit → file before.
    """

    size: int
    old_size: int
    header: int
    before: int
    after: int
    ranges: list[tuple[int, bytes]]
    moves: list[Move] | None = None


def journal_path(path: str | os.PathLike[str]) -> str:
    """The record of an edit that is under way, or was when its process died."""
    return os.path.realpath(path) + ".journal"


def undo_path(path: str | os.PathLike[str]) -> str:
    """The record of the last edit."""
    return os.path.realpath(path) + ".undo"


def history_path(path: str | os.PathLike[str], step: int) -> str:
    """The record of the edit so many steps ago: FILE.undo, FILE.undo.2, …"""
    return undo_path(path) if step == 1 else f"{undo_path(path)}.{step}"


def keep_history(path: str) -> None:
    """Make room for the record of the next edit: those that there are become a step older, the oldest goes."""
    for step in range(STEPS, 0, -1):
        if _is_record(history_path(path, step)):
            if step == STEPS:
                os.unlink(history_path(path, step))
            else:
                os.replace(history_path(path, step), history_path(path, step + 1))


def step_back(path: str) -> None:
    """After an edit was taken back: the one before is the last now."""
    older = [step for step in range(2, STEPS + 1) if _is_record(history_path(path, step))]
    for to, step in enumerate(older, 1):
        os.replace(history_path(path, step), history_path(path, to))


def forget_history(path: str) -> None:
    """Remove all records of a file, of which none can be taken back any more."""
    for step in range(1, STEPS + 1):
        remove_record(history_path(path, step))


def steps_left(path: str) -> int:
    """How many edits of a file can be taken back."""
    return next((step - 1 for step in range(1, STEPS + 1) if not _is_record(history_path(path, step))), STEPS)


def write_record(path: str, record: Record, mode: int) -> None:
    """Write a record that is at `path` whole and on the disk, or not at all; `mode` is the model's.

    Raises
    ------
    FileError : it cannot be written, or a file that is no record is in the way.
    """
    refuse_stranger(path)
    # JSON by hand: loading its module would take longer than an edit.
    moves = "null" if record.moves is None else [list(move) for move in record.moves]
    head = (
        f'{{"size": {record.size}, "old_size": {record.old_size}, "header": {record.header}, '
        f'"before": {record.before}, "after": {record.after}, '
        f'"ranges": {[[offset, len(old)] for offset, old in record.ranges]}, "moves": {moves}}}\n'
    )
    data = b"".join([_MAGIC, head.encode(), *(old for _, old in record.ranges)])
    data += struct.pack("<I", zlib.crc32(data))
    with AtomicFile(path, force=True, mode=mode & 0o666) as output:
        write_all(output.file.fileno(), data, 0)


def read_record(path: str) -> Record | None:
    """The record at `path`; None when there is none, or a file that is something else.

    Raises
    ------
    FileError : it cannot be read, or is damaged.
    """
    if not _is_record(path):
        return None
    data = read_small(path, MAX_RECORD)
    import json

    try:
        if struct.unpack("<I", data[-4:]) != (zlib.crc32(data[:-4]),):
            raise ValueError
        end = data.index(b"\n", len(_MAGIC))
        head = json.loads(data[len(_MAGIC) : end])
        at, ranges = end + 1, []
        for offset, n in head["ranges"]:
            ranges.append((offset, data[at : at + n]))
            at += n
    except (ValueError, KeyError, TypeError, RecursionError, struct.error):
        raise FileError(
            f"{printable(path)} is damaged: it cannot take back an edit; remove it if the model is as it should be"
        ) from None
    moves = None if head["moves"] is None else [(a, b, n) for a, b, n in head["moves"]]
    return Record(**{**head, "ranges": ranges, "moves": moves})


def refuse_stranger(path: str) -> None:
    """Refuse to put a record where a file lies that is none.

    Raises
    ------
    FileError : there is one.
    """
    if os.path.lexists(path) and not _is_record(path):
        raise FileError(f"{printable(path)} is in the way: the record of the edit goes there; move it")


def _is_record(path: str) -> bool:
    """Whether a file is there that begins like a record; a FIFO or a device does not."""
    with os_errors(path, "read"):
        try:
            if kind_of_file(os.stat(path).st_mode) is not None:
                return False
            with os.fdopen(open_regular(path), "rb") as file:
                return file.read(len(_MAGIC)) == _MAGIC
        except FileNotFoundError:
            return False


def remove_record(path: str) -> None:
    """Remove a record if there is one."""
    with suppress(OSError, FileError):
        if _is_record(path):
            os.unlink(path)


def settle(name: str, handle: int) -> list[tuple[int, bytes]] | None:
    """Take back an edit that died half-way. For readers, who hold the file's shared lock and saw a journal.

    Returns
    -------
    What to read over the file's bytes, as (offset, bytes): empty after the edit was taken back on the disk, the old
    bytes when this process may not write there. None when the shared lock was lost to somebody else: try again.

    Raises
    ------
    FileError : the journal cannot be read.
    """
    # A lock that cannot become exclusive is lost.
    alone = lock_file(handle)
    if not alone and not lock_file(handle, shared=True):
        return None
    overlay: list[tuple[int, bytes]] = []
    record = read_record(journal_path(name))
    # Without: somebody else took the edit back, or put another file here.
    if record is not None and _is_about(record, handle):
        overlay = record.ranges
        if alone:
            with suppress(FileError, OSError):
                _roll_back_by_name(name, record, handle)
                overlay = []
    if alone and not lock_file(handle, shared=True):
        return None
    return overlay


def _roll_back_by_name(name: str, record: Record, reading: int) -> None:
    handle = os.open(name, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    try:
        if os.path.samestat(os.fstat(handle), os.fstat(reading)):
            roll_back(name, record, handle)
    finally:
        os.close(handle)


def _is_about(record: Record, handle: int) -> bool:
    """Whether the file is the one of the record but for the bytes that the record holds."""
    if os.fstat(handle).st_size != record.size:
        return False
    return zlib.crc32(_old_header(record, os.pread(handle, record.header, 0))) == record.before


def _old_header(record: Record, header: bytes) -> bytes:
    old = bytearray(header)
    for offset, data in record.ranges:
        old[offset : offset + len(data)] = data
    return bytes(old)


def roll_back(name: str, record: Record, handle: int) -> None:
    """Put the old bytes of an edit in place back, then remove its journal. The caller holds the lock.

    A crash in between leaves the journal, and the next open does it again.

    Parameters
    ----------
    handle : the file, open for writing.

    Raises
    ------
    FileError : the file cannot be written; the journal stays.
    """
    with os_errors(name, "take back the edit of"):
        for offset, data in record.ranges:
            write_all(handle, data, offset)
        sync_file(handle)
        path = journal_path(name)
        os.unlink(path)
        sync_folder(os.path.dirname(path))


def write_all(handle: int, data: bytes | memoryview, offset: int) -> None:
    """`pwrite` until all is written."""
    view = memoryview(data)
    while view:
        if not (n := os.pwrite(handle, view[: 1 << 30], offset)):
            raise OSError(errno.EIO, "nothing was written")
        view, offset = view[n:], offset + n
