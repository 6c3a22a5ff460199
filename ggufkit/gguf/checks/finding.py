"""What a check looks at and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ggufkit.gguf.header import Field, TensorInfo

__all__ = ["Checkable", "Finding", "warning"]


class Checkable(Protocol):
    """A header: that of an open file, or one that is about to be written."""

    @property
    def fields(self) -> Mapping[str, Field]: ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...

    @property
    def info(self) -> Mapping[str, TensorInfo]: ...


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes
    ----------
    level : ``"error"``: the file breaks the format; ``"warning"``: it is a valid file, but the model in it will not
        load or not work as it should.
    message : what, where, the value against the limit.
    offset : byte of the file, where one value is to blame.
    fatal : whether the model cannot load, or cannot work at all: a converter does not write such a header.
    """

    level: str
    message: str
    offset: int | None = None
    fatal: bool = False

    def __str__(self) -> str:
        return self.message if self.offset is None else f"{self.message} (byte {self.offset})"


def warning(message: str, offset: int | None = None, fatal: bool = False) -> Finding:
    return Finding("warning", message, offset, fatal)
