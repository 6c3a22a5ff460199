"""Text that comes in pieces, read by generators: each `yield` waits for more of it.

    def pair(reader):                       for piece in pieces:
        key = yield from reader.upto("=")       reader.feed(piece); next(running, None)
        value = yield from reader.upto(";")  reader.end(); next(running, None)

What is read does not depend on where the text was cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from ggufkit.serve.replies.pieces import NoCall

__all__ = ["Reader", "Waiting", "overlap"]

T = TypeVar("T")
Waiting = Generator[None, None, T]

_SPACE = " \t\r\n"
_IN_STRING = re.compile(r'["\\]')
_IN_VALUE = re.compile(r'[{}\[\]"]')
_AFTER_WORD = re.compile(r"[\s,}\]]")


def overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` could begin `mark`, without being all of it."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)


class Reader:
    """The text so far, and where in it the reading is.

    Attributes
    ----------
    text : what is kept of it.
    at : what comes next.
    ended : whether no more comes.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False

    def feed(self, text: str) -> None:
        """Add text."""
        self.text += text

    def end(self) -> None:
        """No more text comes."""
        self.ended = True

    def forget(self) -> None:
        """Keep only what was not read."""
        self.text, self.at = self.text[self.at :], 0

    def has(self, n: int) -> Waiting[bool]:
        """Whether there are `n` more characters."""
        while len(self.text) - self.at < n and not self.ended:
            yield
        return len(self.text) - self.at >= n

    def skip(self) -> Waiting[None]:
        """Pass white space."""
        while (yield from self.has(1)) and self.text[self.at] in _SPACE:
            self.at += 1

    def begins(self, mark: str) -> Waiting[bool]:
        """Whether this comes next. Waits no longer than it takes to tell."""
        while not self.ended and len(self.text) - self.at < len(mark) and mark.startswith(self.text[self.at :]):
            yield
        return self.text.startswith(mark, self.at)

    def passes(self, mark: str) -> Waiting[bool]:
        """Go past this, if it comes next."""
        found = yield from self.begins(mark)
        self.at += len(mark) * found
        return found

    def expect(self, mark: str) -> Waiting[None]:
        """Go past this, and white space before it."""
        yield from self.skip()
        if not (yield from self.passes(mark)):
            raise NoCall

    def upto(self, *marks: str, limit: int = 1000) -> Waiting[str]:
        """The text before the first of these, which is not passed. None of them within the limit: it is no call."""
        longest = max(len(mark) for mark in marks)
        while True:
            # No further than is waited for: what is found must not depend on how much came at once.
            ends = ((mark, self.at + limit + len(mark)) for mark in marks)
            places = [place for mark, end in ends if (place := self.text.find(mark, self.at, end)) >= 0]
            # A mark may still begin before the one that is there.
            if places and (self.ended or len(self.text) - min(places) >= longest or len(marks) == 1):
                found, self.at = self.text[self.at : min(places)], min(places)
                return found
            if self.ended or len(self.text) - self.at >= limit + longest:
                raise NoCall
            yield

    def flow(self, mark: str, put: Callable[[str], None]) -> Waiting[bool]:
        """Hand on the text before a mark as it comes, and pass the mark. Whether it was there at all."""
        while True:
            place = self.text.find(mark, self.at)
            if place >= 0:
                put(self.text[self.at : place])
                self.at = place + len(mark)
                self.forget()
                return True
            held = 0 if self.ended else overlap(self.text[self.at :], mark)
            put(self.text[self.at : len(self.text) - held])
            self.at = len(self.text) - held
            self.forget()
            if self.ended:
                return False
            yield

    def json_string(self) -> Waiting[str]:
        """A JSON string."""
        text = yield from self.json_text()
        try:
            value = json.loads(text)
        except ValueError:
            raise NoCall from None
        if not isinstance(value, str):
            raise NoCall
        return value

    def json_text(self) -> Waiting[str]:
        """A JSON value as it is written."""
        parts: list[str] = []
        yield from self.json_flow(parts.append, forget=False)
        return "".join(parts)

    def json_flow(self, put: Callable[[str], None], forget: bool = True) -> Waiting[bool]:
        """Hand on a JSON value as it comes. Whether it came to its end.

        Only its brackets and strings are looked at.
        """
        if not (yield from self.has(1)):
            return False
        depth, in_string, bare = 0, False, self.text[self.at] not in '{["'
        while True:
            start, done = self.at, False
            while not done and self.at < len(self.text):
                if bare:
                    match = _AFTER_WORD.search(self.text, self.at)
                    self.at = match.start() if match else len(self.text)
                    done = match is not None
                    break
                match = (_IN_STRING if in_string else _IN_VALUE).search(self.text, self.at)
                if match is None:
                    self.at = len(self.text)
                    break
                self.at = match.end()
                sign = match[0]
                if sign == "\\":
                    if self.at == len(self.text):
                        self.at -= 1  # what it escapes is not there yet
                        break
                    self.at += 1
                elif sign == '"':
                    in_string = not in_string
                else:
                    depth += 1 if sign in "{[" else -1
                done = depth <= 0 and not in_string
            if self.at > start:
                put(self.text[start : self.at])
            if forget:
                self.forget()
            if done or (self.ended and bare):
                return True
            if self.ended:
                put(self.text[self.at :])
                self.at = len(self.text)
                return False
            yield

    def first_of(self, marks: Sequence[str], put: Callable[[str], None]) -> Waiting[str | None]:
        """Hand on the text before the first of these marks as it comes; which it was, None at the end of the text.

        The mark is not passed.
        """
        while True:
            places = [(place, -len(mark), mark) for mark in marks if (place := self.text.find(mark, self.at)) >= 0]
            held = 0 if self.ended else max((overlap(self.text[self.at :], mark) for mark in marks), default=0)
            if places and (min(places)[0] < len(self.text) - held or not held):
                place, _, mark = min(places)
                put(self.text[self.at : place])
                self.at = place
                self.forget()
                return mark
            put(self.text[self.at : len(self.text) - held])
            self.at = len(self.text) - held
            self.forget()
            if self.ended:
                return None
            yield
