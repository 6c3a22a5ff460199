"""Who else has a file open: an edit in place must not be seen half done.

Readers of ggufkit hold a shared lock (flock). Other programs hold none; on Linux a lease tells whether there are any,
and makes those that open the file meanwhile wait in `open` until the edit is done.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ggufkit.errors import FileError, Hint, os_errors, printable
from ggufkit.storage.files import lock_file

__all__ = ["alone", "folder_lock", "refuse_read_only", "settle_edit"]

_WAIT = 0.5  # seconds: who only looks into the file is gone by then


def settle_edit(path: str, handle: int) -> list[tuple[int, bytes]] | None:
    """Take back an edit that died half-way: the `storage.source.Settle` of GGUF files."""
    if not os.path.exists(os.path.realpath(path) + ".journal"):
        return []
    from ggufkit.gguf.edit.undo import settle

    return settle(path, handle)


def refuse_read_only(path: str) -> None:
    """Refuse a file that nobody may write, not even root: somebody meant that.

    Raises
    ------
    FileError : it has no write permission at all, or is not a regular file.
    """
    with os_errors(path, "change"):
        mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise FileError(f"cannot change {printable(path)}: it is not a regular file")
    if not mode & 0o222:
        raise FileError(
            f"cannot change {printable(path)}: the file is read-only",
            Hint("chmod u+w it", "write another file with {output}"),
        )


@contextmanager
def folder_lock(path: str) -> Iterator[None]:
    """Hold the lock of a file's folder: one edit after the other puts its result there."""
    handle = os.open(os.path.dirname(os.path.realpath(path)), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def alone(path: str, handle: int, force: bool) -> Iterator[None]:
    """Be the only one who has a file open.

    Parameters
    ----------
    handle : the file, open for writing, with the shared lock; it has it again at the end.
    force : do not mind the others.

    Raises
    ------
    FileError : another program has it open, or the file has several names.
    """
    if os.fstat(handle).st_nlink > 1 and not force:
        raise FileError(
            f"cannot change {printable(path)} in place: it has other names (hard links), which would change too",
            Hint("write another file with {output}", "change them all with {force=True}"),
        )
    try:
        give_up = time.monotonic() + (0 if force else _WAIT)
        while not (free := lock_file(handle) and _lease(handle)) and time.monotonic() < give_up:
            time.sleep(0.005)
        if not free and not force:
            raise FileError(
                f"cannot change {printable(path)} in place: it is open in {_openers(handle)}, which could see one half "
                "old and the other new",
                Hint("close it there", "write another file with {output}", "go ahead with {force=True}"),
            )
        yield
    finally:
        _give_back(handle)
        lock_file(handle, shared=True)


def _lease(handle: int) -> bool:
    """Take a write lease. False when the file is open elsewhere; True also where there are no leases."""
    try:
        import fcntl
        import signal

        # Who opens the file breaks the lease, which sends a signal. The default, SIGIO, kills; SIGURG is ignored.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except (ImportError, AttributeError):
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True  # not our file, or a file system without leases
    return True


def _give_back(handle: int) -> None:
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _openers(handle: int) -> str:
    """The programs that have a file open or mapped into memory, as far as this user may see."""
    file = os.fstat(handle)
    found: list[str] = []
    with suppress(OSError):
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(OSError):
                if _has_open(pid, file, handle) or _has_mapped(pid, file):
                    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as name:
                        found.append(f"{printable(name.read().strip(), 40)} (process {pid})")
    return ", ".join(found[:3]) or "another program"


def _has_open(pid: str, file: os.stat_result, but: int) -> bool:
    for number in os.listdir(f"/proc/{pid}/fd"):
        if (int(pid), int(number)) == (os.getpid(), but):
            continue
        with suppress(OSError):  # closed since
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), file):
                return True
    return False


def _has_mapped(pid: str, file: os.stat_result) -> bool:
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
        # address, permissions, offset, device, inode, path
        return any(fields[4] == str(file.st_ino) for fields in map(str.split, maps) if len(fields) > 5)
