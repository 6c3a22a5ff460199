"""Put an edited header on the disk: over the old one, or in a new file. See the package's drawing."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress

from ggufkit.errors import FileError, GgufkitError, os_errors, printable
from ggufkit.gguf.edit.access import alone, folder_lock, refuse_read_only, settle_edit
from ggufkit.gguf.edit.spare import Layout
from ggufkit.gguf.edit.undo import (
    Record,
    forget_history,
    journal_path,
    keep_history,
    read_record,
    refuse_stranger,
    remove_record,
    roll_back,
    step_back,
    undo_path,
    write_all,
    write_record,
)
from ggufkit.storage.files import AtomicFile, copy_range, sync_file, sync_folder
from ggufkit.storage.source import FileSource, is_address

__all__ = ["Advance", "Progress", "change_in_place", "open_for_change", "take_back", "write_new"]

# Called with the bytes of each step of a copy.
Advance = Callable[[int], object]
# Called with all the bytes of a copy, gives a context manager whose value is an `Advance`.
Progress = Callable[[int], AbstractContextManager[Advance]]


def change_in_place(source: FileSource, old: bytes, layout: Layout, force: bool) -> None:
    """Write a header over the old one of the same length, journaled.

    Raises
    ------
    FileError : the file is open elsewhere or was changed meanwhile; it cannot be written: then it is as before.
    """
    path, handle, new = source.name, source.fileno(), layout.header
    record = Record(
        size=source.size,
        old_size=source.size,
        header=len(new),
        before=zlib.crc32(old),
        after=zlib.crc32(new),
        ranges=[(lo, old[lo:hi]) for lo, hi in layout.ranges],
    )
    with os_errors(path, "change"), folder_lock(path), alone(path, handle, force):
        _refuse_changed(source, old)
        refuse_stranger(undo_path(path))
        write_record(journal_path(path), record, os.fstat(handle).st_mode)
        try:
            for lo, hi in layout.ranges:
                write_all(handle, new[lo:hi], lo)
            sync_file(handle)
            keep_history(path)
            os.replace(journal_path(path), undo_path(path))
        except BaseException as e:
            _restore(path, record, handle, e)
            raise
        with os_errors(path, "flush the folder of"):
            sync_folder(os.path.dirname(journal_path(path)))


def _restore(path: str, record: Record, handle: int, why: BaseException) -> None:
    """Take back what a failed edit has written."""
    if not os.path.exists(journal_path(path)):
        return  # the rename succeeded before the interrupt came: the edit is done
    try:
        roll_back(path, record, handle)
    except GgufkitError as e:
        raise FileError(
            f"{e.message}; the old bytes are in {printable(journal_path(path))}, and the next open puts them back"
        ) from why


def write_new(
    source: FileSource,
    old: bytes,
    layout: Layout,
    target: str | None,
    force: bool,
    advance: Advance | None,
    undoable: bool = True,
    back: bool = False,
) -> None:
    """Write the edited file anew: as `target`, or over the old one with an undo file where it is `undoable`.

    Raises
    ------
    FileError : there is no room, `target` exists without `force`, or the old file was changed meanwhile. The old
        file is as before.
    """
    assert layout.moves is not None
    path = source.name
    before = os.fstat(source.fileno())
    staying = all(lo == to == len(layout.header) for lo, to, _ in layout.moves)
    like = source.fileno() if staying else None
    output = AtomicFile(path if target is None else target, force or target is None, like=like)
    try:
        handle = output.file.fileno()
        with os_errors(output.path, "write"):
            os.ftruncate(handle, layout.size)  # what nobody writes are zeros
            write_all(handle, layout.header, 0)
            if not output.cloned:
                for lo, to, n in layout.moves:
                    copy_range(source.fileno(), lo, handle, to, n, sparse=True, advance=advance)
        if os.fstat(source.fileno()).st_mtime_ns != before.st_mtime_ns:
            raise FileError(f"cannot change {printable(path)}: another program wrote to it while it was copied")
        if target is not None:
            output.commit()
        else:
            _replace(source, old, layout, output, undoable and layout.whole, back)
    except BaseException:
        output.discard()
        raise


def _replace(
    source: FileSource, old: bytes, layout: Layout, output: AtomicFile, undoable: bool, back: bool = False
) -> None:
    """Give a new file the old one's name."""
    path, handle = source.name, output.file.fileno()
    found = os.fstat(source.fileno())
    _keep_owner(source.fileno(), handle)
    assert layout.moves is not None
    record = Record(
        size=layout.size,
        old_size=source.size,
        header=len(layout.header),
        before=zlib.crc32(old),
        after=zlib.crc32(layout.header),
        ranges=[(0, old)],
        moves=[(to, lo, n) for lo, to, n in layout.moves],
    )
    with os_errors(path, "change"):
        sync_file(handle)  # may take long: before the folder is locked
        with folder_lock(path):
            _refuse_changed(source, old)
            # First the undo file: by the header's sum it proves which file it is about, so that it does no harm beside
            # the old one when the process dies in between.
            if undoable:
                refuse_stranger(undo_path(path))
                keep_history(path)
                write_record(undo_path(path), record, found.st_mode)
            output.commit()
            if not undoable and not back:
                forget_history(path)


def _keep_owner(source: int, target: int) -> None:
    """Give a new file the owner, access lists and other extended attributes of the old one, as far as one may."""
    found = os.fstat(source)
    with suppress(OSError):
        os.fchown(target, found.st_uid, found.st_gid)
    with suppress(OSError, AttributeError):  # Linux only
        for name in os.listxattr(source):
            with suppress(OSError):
                os.setxattr(target, name, os.getxattr(source, name))


def open_for_change(path: str) -> FileSource:
    """Open a file that is to be changed.

    Raises
    ------
    FileError : it is missing or read-only, or an edit that died half-way cannot be taken back now.
    """
    if is_address(path):
        raise FileError(f"cannot change {printable(path)}: it is not on this machine; download it first")
    refuse_read_only(path)
    source = FileSource(path, writable=True, settle=settle_edit)
    if source.overlay:
        source.close()
        raise FileError(
            f"cannot change {printable(path)}: an edit of it died half-way and cannot be taken back while the file is "
            "open in another program; close it there and try again"
        )
    return source


def _refuse_changed(source: FileSource, old: bytes) -> None:
    """Refuse to go on when the file is not the one that was read at the start."""
    here, now = os.fstat(source.fileno()), os.stat(source.name)
    same = (here.st_dev, here.st_ino, here.st_size) == (now.st_dev, now.st_ino, source.size)
    step = 256 << 10  # pieces that stay in the CPU's cache
    pieces = (old[at : at + step] for at in range(0, len(old), step))
    if not same or any(source.read(i * step, len(piece)) != piece for i, piece in enumerate(pieces)):
        raise FileError(f"cannot change {printable(source.name)}: another program has changed it meanwhile; try again")


def take_back(path: str, force: bool, progress: Progress | None = None) -> None:
    """Take back the last edit of a file, or the one that died half-way.

    Raises
    ------
    FileError : there is nothing to take back, or the file has changed since.
    """
    died = os.path.exists(journal_path(path)) and read_record(journal_path(path)) is not None
    source = open_for_change(path)
    try:
        if died and not os.path.exists(journal_path(path)):
            return  # opening it took that edit back
        record = read_record(undo_path(path))
        if record is None:
            raise FileError(
                f"nothing to take back: {printable(path)} was not edited, or its last edit was taken back already or "
                "removed tensors"
            )
        header = source.read(0, min(record.header, source.size))
        if source.size != record.size or zlib.crc32(header) != record.after:
            raise FileError(f"cannot take back the last edit of {printable(path)}: the file is no longer as it left it")
        if record.moves is None:
            with os_errors(path, "change"), folder_lock(path), alone(path, source.fileno(), force):
                _refuse_changed(source, header)
                refuse_stranger(journal_path(path))
                # From here on it is an edit that died: whoever opens the file next would finish the work.
                os.replace(undo_path(path), journal_path(path))
                sync_folder(os.path.dirname(journal_path(path)))
                roll_back(path, record, source.fileno())
                step_back(path)
        else:
            ((_, old),) = record.ranges
            layout = Layout(old, record.old_size, record.moves)
            shown = progress(sum(n for _, _, n in record.moves)) if progress else nullcontext(None)
            with shown as advance:
                write_new(source, header, layout, None, force, advance, undoable=False, back=True)
            remove_record(undo_path(path))
            step_back(path)
    finally:
        source.close()
