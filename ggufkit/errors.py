"""The exceptions of ggufkit.

Everything that goes wrong for a reason outside the program is a `GgufkitError`. Its message is one line
that says what failed, where (file, tensor, byte offset), which value against which limit, and what to do.

    GgufkitError
    ├── FileError            a path: missing, unreadable, not writable, exists already, disk full
    ├── GGUFError            the contents of a GGUF file; has `.reason`, `.path` and `.offset`
    ├── CheckpointError      the contents of a source checkpoint
    │   └── ArchitectureError    a model this version does not know, or a hyperparameter it lacks
    ├── CodecError           weights that a format cannot hold: shape, non-finite values, importance
    ├── PolicyError          a preset, rule or policy file
    ├── UsageError           options that contradict each other (exit code 2 on the command line)
    └── MissingDependency    an optional package is not installed
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "ArchitectureError",
    "CheckpointError",
    "CodecError",
    "FileError",
    "GGUFError",
    "GgufkitError",
    "MissingDependency",
    "PolicyError",
    "UsageError",
    "os_errors",
    "printable",
]


class GgufkitError(Exception):
    """Base of all errors that ggufkit raises on purpose."""


class FileError(GgufkitError):
    """A file or folder is missing, unreadable, in the way, or the disk is full."""


class GGUFError(GgufkitError):
    """A GGUF file breaks the rules of the format.

    Parameters
    ----------
    message : what is wrong, the value against the limit.
    path : the file, or None for a stream.
    offset : byte offset in the file where the offending value starts.
    """

    def __init__(self, message: str, path: str | os.PathLike[str] | None = None, offset: int | None = None):
        self.reason = message
        self.path = None if path is None else os.fspath(path)
        self.offset = offset
        where = "" if self.path is None else f"{printable(self.path)}: "
        at = "" if offset is None else f" (byte {offset})"
        super().__init__(f"{where}{message}{at}")


class CheckpointError(GgufkitError):
    """A source checkpoint is incomplete or malformed."""


class ArchitectureError(CheckpointError):
    """The model's architecture is unknown, or a load-bearing hyperparameter is missing."""


class CodecError(GgufkitError):
    """Weights, importance or blocks do not fit the format they are encoded to or decoded from."""


class PolicyError(GgufkitError):
    """A preset, a rule or a policy file is wrong."""


class UsageError(GgufkitError):
    """Arguments that contradict each other or make no sense together."""


class MissingDependency(GgufkitError):
    """An optional package is needed; the message names the extra that installs it."""


def printable(text: object, limit: int = 200) -> str:
    """`text` with control characters escaped and cut to `limit`: safe to show on a terminal."""
    shown = str(text)
    if not shown.isprintable():
        shown = "".join(
            c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in shown
        )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


_OS_REASONS = {
    errno.ENOENT: "does not exist",
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
    errno.EISDIR: "is a directory",
    errno.ENOTDIR: "a part of the path is not a directory",
    errno.ENOSPC: "no space left on the device; free some room or choose another place with -o",
    errno.EDQUOT: "disk quota exceeded",
    errno.EFBIG: "the file system does not allow files of this size",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "input/output error of the device",
}


@contextmanager
def os_errors(path: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Turn an `OSError` raised inside into a `FileError`: "cannot DOING PATH: reason"."""
    try:
        yield
    except OSError as e:
        reason = _OS_REASONS.get(e.errno or 0) or e.strerror or str(e)
        raise FileError(f"cannot {doing} {printable(os.fspath(path))}: {reason}") from e
