"""Output files that appear whole or not at all.

The bytes go to a temporary file beside the target. When all is written it is flushed to the device (fsync),
renamed to the target, and the folder's entry is flushed too. A crash at any moment leaves the target as it was.
On Linux the temporary file has no name until then: a killed process leaves nothing behind.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import BinaryIO

from ggufkit.errors import FileError, UsageError, os_errors, printable

__all__ = [
    "AtomicFile",
    "clone_file",
    "copy_range",
    "default_mode",
    "lock_file",
    "refuse_same_file",
    "sync_file",
    "sync_folder",
]

# Bytes a step of a copy: inside the kernel a step costs no memory; through this process it does.
_KERNEL_STEP = 64 << 20
_BUFFER = 4 << 20
# Blocks of the file systems that can share them between files.
_BLOCK = 4096

# What copy_file_range says when it cannot do it between these two files, and reading and writing may.
_NOT_IN_KERNEL = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY}


class AtomicFile:
    """A file that replaces its target only when everything was written.

    Use as a context manager: a clean exit commits, an exception (Ctrl-C included) removes the temporary file.
    A target that is a symbolic link is written through: the link stays.

    Parameters
    ----------
    path : the target.
    force : replace an existing target.
    temp : path of the temporary file, on the same file system as the target; by default a fresh name beside
        it. A given file is opened without truncation and is kept after an exception, so that a caller can resume.
    mode : permissions; by default those of the target, of a new file what the umask leaves.
    like : descriptor of an open file: start with its bytes where the system can share them (`clone_file`), else empty.

    Attributes
    ----------
    path : the target, links resolved.
    file : the temporary file, binary, unbuffered, readable and seekable.
    cloned : whether it started with the bytes of `like`.

    Raises
    ------
    FileError : the target exists and `force` is not given, is not a regular file, or cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        force: bool = False,
        temp: str | os.PathLike[str] | None = None,
        mode: int | None = None,
        like: int | None = None,
    ):
        self.path = os.path.realpath(path)
        self.force = force
        self.cloned = False
        self._temp: str | None
        self._keep_temp = temp is not None
        self._mode = mode
        with os_errors(path, "write"):
            self._check_target()
            if temp is None and like is not None and clone_file(like, name := _fresh_name(self.path)):
                self._temp, self.cloned = name, True
                handle = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            elif temp is None:
                handle, self._temp = _create_temporary(self.path)
            else:
                self._temp = os.fspath(temp)
                handle = os.open(self._temp, os.O_RDWR | os.O_CREAT, 0o600)
            self.file: BinaryIO = os.fdopen(handle, "r+b", buffering=0)

    def _check_target(self) -> None:
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(found.st_mode):
            raise FileError(f"cannot write {printable(self.path)}: it exists and is not a regular file")
        if not self.force:
            raise FileError(f"{printable(self.path)} exists already", "give {force=True} to replace it")
        if not os.access(self.path, os.W_OK):
            raise FileError(f"cannot write {printable(self.path)}: the file is read-only")
        if self._mode is None:
            self._mode = stat.S_IMODE(found.st_mode)

    def commit(self) -> None:
        """Flush the file to the device and give it the target's name."""
        with os_errors(self.path, "write"):
            os.fchmod(self.file.fileno(), default_mode() if self._mode is None else self._mode)
            sync_file(self.file.fileno())
            if self._temp is None:
                self._temp = _temporary_name(self.path, f"{zlib.crc32(os.fsencode(self.path)):08x}")
                _name_handle(self.file.fileno(), self._temp)
            self.file.close()
            if self.force:
                os.replace(self._temp, self.path)
            else:
                _rename_new(self._temp, self.path)
        with os_errors(self.path, "flush the folder of"):
            sync_folder(os.path.dirname(self.path))

    def discard(self) -> None:
        """Remove the temporary file (keep one whose path the caller chose)."""
        self.file.close()
        if self._temp is not None and not self._keep_temp:
            with suppress(OSError):
                os.unlink(self._temp)

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
            if isinstance(value, OSError):
                with os_errors(self.path, "write"):
                    raise value
            return
        try:
            self.commit()
        except BaseException:
            self.discard()
            raise


def default_mode(wanted: int = 0o666) -> int:
    """The mode of a new file under the process's umask, of a folder with 0o777; a temporary one is its owner's."""
    mask = os.umask(0)
    os.umask(mask)
    return wanted & ~mask


def _temporary_name(path: str, tag: str) -> str:
    folder, name = os.path.split(path)
    # Names end at 255 bytes on most file systems: leave room for the tag.
    return os.path.join(folder, f".{name[:60]}.{tag}.tmp")


def _fresh_name(path: str) -> str:
    return _temporary_name(path, os.urandom(4).hex())


def _create_temporary(path: str) -> tuple[int, str | None]:
    """Open a temporary file beside `path` → (descriptor, its name; None when it has none yet)."""
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        try:
            return os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR, 0o600), None
        except OSError as e:
            # Not every file system has files without a name.
            if e.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
    name = _fresh_name(path)
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), name


def _name_handle(handle: int, name: str) -> None:
    """Give a name to a file that was opened without one.

    A file of this name can only be left from a process that was killed between this and the renaming.
    """
    # A folder's descriptor makes Python call linkat, the call that follows the link in /proc.
    folder = os.open(os.path.dirname(name), os.O_RDONLY)
    try:
        with suppress(FileNotFoundError):
            os.unlink(name)
        os.link(f"/proc/self/fd/{handle}", name, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def _rename_new(temp: str, path: str) -> None:
    """Rename `temp` to `path` unless somebody created `path` in the meantime."""
    try:
        # A hard link fails when the name exists: no window between the check and the rename.
        os.link(temp, path)
    except FileExistsError:
        raise _appeared(path) from None
    except OSError:
        # No hard links on this file system.
        if os.path.lexists(path):
            raise _appeared(path) from None
        os.replace(temp, path)
    else:
        os.unlink(temp)


def _appeared(path: str) -> FileError:
    return FileError(f"{printable(path)} appeared while it was being written", "give {force=True} to replace it")


def lock_file(handle: int, *, shared: bool = False) -> bool:
    """Take the advisory lock (flock) of an open file, without waiting; closing the file gives it back.

    A lock that is held already changes between shared and exclusive. False when another opening of the file holds a
    lock that is in the way; True also where the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # pragma: no cover
        return True
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def sync_file(handle: int) -> None:
    """Flush a file's data to the device."""
    try:
        import fcntl

        # macOS: fsync stops at the drive's cache.
        fcntl.fcntl(handle, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined]
    except (ImportError, AttributeError, OSError):
        os.fsync(handle)


def sync_folder(folder: str) -> None:
    """Flush a folder's entries to the device, where the file system lets one open a folder for that."""
    try:
        handle = os.open(folder or ".", os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def clone_file(source: int, target: str) -> bool:
    """Make `target`, a new file, of the blocks of an open one, which both have until one of them is written to.

    That is APFS, on macOS; False where it cannot be, and then there is no file. (`copy_range` does it on Linux.)
    """
    if sys.platform != "darwin":
        return False
    import ctypes

    at_working_folder = -2
    clone = getattr(ctypes.CDLL(None), "fclonefileat", None)
    return clone is not None and clone(source, at_working_folder, os.fsencode(target), 0) == 0


def copy_range(
    source: int,
    source_offset: int,
    target: int,
    target_offset: int,
    n: int,
    *,
    sparse: bool = False,
    advance: Callable[[int], object] | None = None,
) -> None:
    """Copy `n` bytes from one open file to another, inside the kernel where the system can.

    Linux shares the blocks instead of copying them (reflink) where the file system can and the offsets allow it.
    The files' own positions are neither used nor moved.

    Parameters
    ----------
    source, target : file descriptors.
    source_offset, target_offset : bytes where the copy starts in each.
    sparse : the target is known to read as zeros there: what is a hole in the source stays one.
    advance : called with the number of bytes after each step.

    Raises
    ------
    OSError : reading or writing fails, the disk is full.
    FileError : the source ends early.
    """
    spans = list(_data_spans(source, source_offset, n)) if sparse else [(source_offset, n)]
    at = source_offset
    for start, length in spans:
        if advance and start > at:
            advance(start - at)
        _copy_span(source, start, target, target_offset + start - source_offset, length, advance)
        at = start + length
    if advance and at < source_offset + n:
        advance(source_offset + n - at)


def _copy_span(source: int, at: int, target: int, to: int, n: int, advance: Callable[[int], object] | None) -> None:
    in_kernel = hasattr(os, "copy_file_range")
    while n:
        done = 0
        if in_kernel:
            try:
                # Up to where a block starts in both, if there is such a place: from there blocks can be shared.
                head = -at % _BLOCK if (at - to) % _BLOCK == 0 else 0
                done = os.copy_file_range(source, target, min(n, head or _KERNEL_STEP), at, to)
            except OSError as e:
                if e.errno not in _NOT_IN_KERNEL:
                    raise
            # Some file systems answer 0 instead of an error: reading shows whether the source has ended.
            in_kernel = done > 0
        if not done:
            data = os.pread(source, min(n, _BUFFER), at)
            if not data:
                raise FileError(f"the file that is copied ends {n} bytes early; it was cut while being read")
            done = os.pwrite(target, data, to)
        at, to, n = at + done, to + done, n - done
        if advance:
            advance(done)


def _data_spans(handle: int, start: int, n: int) -> Iterator[tuple[int, int]]:
    """The parts of `start:start + n` that are no holes, as (offset, bytes)."""
    end = start + n
    if os.fstat(handle).st_size < end or not hasattr(os, "SEEK_DATA"):
        yield start, n  # a source that is too short is found while copying
        return
    position = os.lseek(handle, 0, os.SEEK_CUR)
    try:
        while start < end:
            try:
                first = os.lseek(handle, start, os.SEEK_DATA)
                stop = min(end, os.lseek(handle, first, os.SEEK_HOLE))
            except OSError as e:
                if e.errno != errno.ENXIO:  # ENXIO: only a hole is left
                    yield start, end - start
                return
            if first < end:
                yield first, stop - first
            start = max(stop, first)
    finally:
        os.lseek(handle, position, os.SEEK_SET)


def refuse_same_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Refuse an output that is one of the inputs, also through a link.

    Raises
    ------
    UsageError : both paths lead to the same file.
    """
    try:
        same = os.path.samefile(source, target)
    except OSError:
        return
    if same:
        raise UsageError(
            f"{printable(os.fspath(target))} is the input file {printable(os.fspath(source))} itself; "
            "choose another output"
        )
