"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Finding", "warning"]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes
    ----------
    level : ``"error"``: the file breaks the format; ``"warning"``: it is a valid file, but the model in it will not
        load or not work as it should.
    message : what, where, the value against the limit.
    offset : byte of the file, where one value is to blame.
    """

    level: str
    message: str
    offset: int | None = None

    def __str__(self) -> str:
        return self.message if self.offset is None else f"{self.message} (byte {self.offset})"


def warning(message: str, offset: int | None = None) -> Finding:
    return Finding("warning", message, offset)
