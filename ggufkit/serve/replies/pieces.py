"""What comes out of a parser of replies."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CallBegins", "CallText", "NoCall", "Piece", "Said", "Thought"]


@dataclass(frozen=True)
class Said:
    """Text for the user."""

    text: str


@dataclass(frozen=True)
class Thought:
    """Text that the model thinks aloud."""

    text: str


@dataclass(frozen=True)
class CallBegins:
    """A call of a tool; its arguments follow as `CallText`.

    Attributes
    ----------
    name : of the tool.
    id : if the model gave one.
    """

    name: str
    id: str | None = None


@dataclass(frozen=True)
class CallText:
    """The next part of the arguments of the last call, a text in JSON."""

    text: str


Piece = Said | Thought | CallBegins | CallText


class NoCall(Exception):
    """What looked like a call is none: it is text for the user."""
