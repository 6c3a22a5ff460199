"""The parser of replies: one for all rows of `styles`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ggufkit.serve.replies.layout import first_mark, layout_of
from ggufkit.serve.replies.pieces import CallText, NoCall, Piece, Said, Thought
from ggufkit.serve.replies.reader import Reader, Waiting
from ggufkit.serve.replies.slots import CallReader
from ggufkit.serve.replies.styles import Style, Thoughts

__all__ = ["Incremental", "ReplyParser"]


class Output:
    """The pieces since they were last taken, neighbours of a kind joined."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []

    def put(self, piece: Piece) -> None:
        """Add a piece."""
        last = self._pieces[-1] if self._pieces else None
        for kind in (Said, Thought, CallText):
            if isinstance(piece, kind):
                if not piece.text:
                    return
                if isinstance(last, kind):
                    self._pieces[-1] = kind(last.text + piece.text)
                    return
        self._pieces.append(piece)

    def take(self) -> list[Piece]:
        """What has been added."""
        taken, self._pieces = self._pieces, []
        return taken


class Incremental(ABC):
    """What parsers of replies are: `_run` goes on when more text has come, and puts pieces into `_out`."""

    def __init__(self) -> None:
        self._out = Output()
        self._reader = Reader()

    def _begin(self) -> None:
        """Run to where the first text is needed."""
        self._running = self._run()
        next(self._running, None)

    @abstractmethod
    def _run(self) -> Waiting[None]:
        """Take the reply apart, as far as there is text."""

    def feed(self, text: str) -> list[Piece]:
        """What more text makes certain."""
        if text:
            self._reader.feed(text)
            next(self._running, None)
        return self._out.take()

    def close(self) -> list[Piece]:
        """What is left when no more text comes."""
        self._reader.end()
        for _ in self._running:
            pass
        return self._out.take()


class ReplyParser(Incremental):
    """Takes a reply apart while it comes.

    Parameters
    ----------
    style : how calls are written; None: there are none.
    thoughts : what stands around thoughts; None: nothing is told apart.
    tools : name → JSON schema of its arguments. Without tools there are no calls.
    thinking : the prompt ends within thoughts.
    """

    def __init__(
        self,
        style: Style | None = None,
        thoughts: Thoughts | None = None,
        tools: Mapping[str, Any] | None = None,
        thinking: bool = False,
    ):
        super().__init__()
        self._style = style if tools else None
        self._thoughts, self._thinking = thoughts, thinking
        self._calls = CallReader(
            self._reader,
            self._out.put,
            tools or {},
            known_only=style.bare if style else False,
            parameter=style.parameter if style else "",
            quote=style.quote if style else "",
        )
        self._said = False  # any text
        self._trims = False  # white space before the next text
        self._blank = ""  # white space that may come before a call
        self._begin()

    def _run(self) -> Waiting[None]:
        yield from self._think()
        if self._style is not None and self._style.bare:
            yield from self._bare(self._style)
        while (yield from self._speak()):
            yield from self._think()

    def _think(self) -> Waiting[None]:
        """Thoughts, if they come next."""
        marks = self._thoughts
        if marks is None:
            return
        if not self._thinking:
            start = self._reader.at
            yield from self._reader.skip()
            opening = marks.opening.rstrip()
            if not (yield from self._reader.passes(opening)):
                self._reader.at = start
                return
        self._thinking = False
        strip = _Stripped(lambda text: self._out.put(Thought(text)))
        yield from self._reader.flow(marks.closing, strip.put)
        self._trims = True

    def _say(self, text: str) -> None:
        if self._trims:
            text = text.lstrip()
            self._trims = not text
        if not text:
            return
        if self._style is not None:
            text = self._blank + text
            whole = text.rstrip()
            self._blank, text = text[len(whole) :], whole
        self._said = self._said or bool(text)
        self._out.put(Said(text))

    def _speak(self) -> Waiting[bool]:
        """Text up to and with the next calls. Whether there were any."""
        marks = [mark for mark in self._marks() if mark]
        if not marks:
            yield from self._reader.flow("\0" * 9, self._say)  # nothing ends it
            return False
        style = self._style
        while True:
            mark = yield from self._reader.first_of(marks, self._say)
            if mark is None:
                self._out.put(Said(self._blank))
                return False
            if style is None or mark != style.opening:
                self._reader.at += len(mark)  # it is not shown
                continue
            try:
                yield from self._read(style)
                return True
            except NoCall:
                self._reader.at = 0
                self._say(mark)
                self._reader.at = len(mark)
                self._reader.forget()

    def _marks(self) -> tuple[str, ...]:
        if self._style is None:
            return ()
        return ("" if self._style.bare else self._style.opening, *self._style.drops)

    def _read(self, style: Style) -> Waiting[None]:
        """Calls, from their first mark on."""
        opening, closing = map(str.strip, style.section)
        layout = layout_of(style.call)
        if opening:
            yield from self._reader.expect(opening)
        first = True
        while True:
            start = self._reader.at
            try:
                yield from self._calls.read(layout)
            except NoCall:
                if first:
                    raise
                self._reader.at = start
                break
            if first:
                self._blank, first, self._trims = "", False, True
            self._reader.forget()
            yield from self._reader.skip()
            if closing and (yield from self._reader.passes(closing)):
                break
            if not (yield from self._reader.begins(first_mark(layout))):
                break
        self._trims = True

    def _bare(self, style: Style) -> Waiting[None]:
        """Calls without a mark, where they begin the reply."""
        start = self._reader.at
        yield from self._reader.skip()
        if style.optional:
            yield from self._reader.passes(style.optional)
            yield from self._reader.skip()
        try:
            if not (yield from self._reader.begins("{")):
                raise NoCall
            yield from self._calls.read(layout_of(style.call))
            self._trims = True
        except NoCall:
            self._reader.at = start


class _Stripped:
    """Hands text on without the white space around it."""

    def __init__(self, put: Any):
        self._put = put
        self._held = ""
        self._begun = False

    def put(self, text: str) -> None:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        text = self._held + text
        whole = text.rstrip()
        self._held = text[len(whole) :]
        self._put(whole)
