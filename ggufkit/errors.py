"""The exceptions of ggufkit.

Everything that goes wrong for a reason outside the program is a `GgufkitError`. Its message is one line
that says what failed, where (file, tensor, byte offset), and which value against which limit. What to do about it is
a `Hint` beside the message, in Python's words; the command line puts it into its own.

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
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = [
    "ArchitectureError",
    "CheckpointError",
    "CodecError",
    "FileError",
    "GGUFError",
    "GgufkitError",
    "Hint",
    "MissingDependency",
    "PolicyError",
    "UsageError",
    "os_errors",
    "printable",
]


_OPTION = re.compile(r"\{(\w+)(=[^{}]*)?\}")


class Hint:
    """What to do about an error: one way, or several to choose from.

    Parameters
    ----------
    ways : a clause each, in which options stand in braces as Python has them: ``"give {force=True} to replace it"``,
        or ``"give a larger {context}"`` where there is no one value to give.

    Attributes
    ----------
    ways : as given.
    """

    def __init__(self, *ways: str):
        self.ways = ways

    def spelled(self, spell: Callable[[str, str], str | None]) -> str:
        """The ways in other words: ``"a"``, ``"a, or b"``, ``"a, b, or c"``; empty where none is left.

        Parameters
        ----------
        spell : what to write for an option, called with its name and its value ("" for none); None where whoever reads
            has no such option: then the ways that need it are left out.
        """
        ways = []
        for way in self.ways:
            words = [spell(name, value[1:]) for name, value in _OPTION.findall(way)]
            if None not in words:
                left = iter(words)
                ways.append(_OPTION.sub(lambda _, left=left: next(left), way))  # type: ignore[misc]
        return ", ".join([*ways[:-1], f"or {ways[-1]}"]) if len(ways) > 1 else "".join(ways)

    def __str__(self) -> str:
        return self.spelled(lambda name, value: f"{name}={value or '…'}")

    def __repr__(self) -> str:
        return f"Hint({', '.join(map(repr, self.ways))})"


class GgufkitError(Exception):
    """Base of all errors that ggufkit raises on purpose.

    Parameters
    ----------
    message : what failed, where, which value against which limit.
    hint : what to do about it.

    Attributes
    ----------
    message : without the hint.
    hint : a `Hint`, or None.
    """

    def __init__(self, message: str, hint: Hint | str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = Hint(hint) if isinstance(hint, str) else hint

    def __str__(self) -> str:
        return self.spelled(str)

    def spelled(self, spell: Callable[[Hint], str]) -> str:
        """The message and the hint, as `spell` writes it."""
        hint = "" if self.hint is None else spell(self.hint)
        return f"{self.message}; {hint}" if hint else self.message


class FileError(GgufkitError):
    """A file or folder is missing, unreadable, in the way, or the disk is full."""


class GGUFError(GgufkitError):
    """A GGUF file breaks the rules of the format.

    Parameters
    ----------
    message : what is wrong, the value against the limit.
    path : the file, or None for a stream.
    offset : byte offset in the file where the offending value starts.
    hint : what to do about it.
    """

    def __init__(
        self,
        message: str,
        path: str | os.PathLike[str] | None = None,
        offset: int | None = None,
        hint: Hint | str | None = None,
    ):
        self.reason = message
        self.path = None if path is None else os.fspath(path)
        self.offset = offset
        where = "" if self.path is None else f"{printable(self.path)}: "
        at = "" if offset is None else f" (byte {offset})"
        super().__init__(f"{where}{message}{at}", hint)


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
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "disk quota exceeded",
    errno.EFBIG: "the file system does not allow files of this size",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "input/output error of the device",
}


_OS_HINTS = {errno.ENOSPC: Hint("free some room", "choose another place with {output}")}


@contextmanager
def os_errors(path: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Turn an `OSError` raised inside into a `FileError`: "cannot DOING PATH: reason"."""
    try:
        yield
    except OSError as e:
        reason = _OS_REASONS.get(e.errno or 0) or e.strerror or str(e)
        hint = _OS_HINTS.get(e.errno or 0)
        raise FileError(f"cannot {doing} {printable(os.fspath(path))}: {reason}", hint) from e
