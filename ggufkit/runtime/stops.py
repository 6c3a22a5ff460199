"""Stop strings in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING

from ggufkit.errors import UsageError

if TYPE_CHECKING:
    from ggufkit.tokenizer.run.tokenizer import Stream

__all__ = ["Stops", "check_stops", "written"]


def check_stops(stops: Sequence[str]) -> None:
    """See that each can be found.

    Raises
    ------
    UsageError : one is empty.
    """
    if any(not text for text in stops):
        raise UsageError("a stop string is empty; it would stop before the first character")


def written(blocks: Iterable[Sequence[int]], text: Stream, stops: Stops) -> Generator[str, None, bool]:
    """The text of tokens that come in blocks, as soon as it is certain. Returns whether a stop string ended it."""
    for block in blocks:
        piece = stops.feed(text.feed(block))
        if piece:
            yield piece
        if stops.found:
            return True
    rest = stops.feed(text.close()) + stops.close()
    if rest:
        yield rest
    return False


class Stops:
    """Finds stop strings in text that comes in pieces. What may become one is held back.

    stop "\\n\\n":   "a\\n" → "a"     "b" → "\\nb"     "\\n" → ""     "\\n" → found

    Attributes
    ----------
    found : the stop string that the text has come to, or None.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """The text that is certain to come before a stop string."""
        text = self._held + text
        places = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            at, self.found = min(places, key=lambda place: place[0])
            self._held = ""
            return text[:at]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def close(self) -> str:
        """What was held back for nothing."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` could begin `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
