"""Answers as they come: what the engine writes, taken apart by the parser of each, of several at once.

started = Started(engine, ask)
async for update in started.updates():
    update.index, update.pieces, update.tokens, update.end
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ggufkit.serve.asks import Ask, Parser
from ggufkit.serve.engine.request import Finished, Token, Usage
from ggufkit.serve.replies.pieces import CallBegins, Piece, Said, Thought

if TYPE_CHECKING:
    from ggufkit.serve.engine import Engine
    from ggufkit.serve.engine.stream import Stream

__all__ = ["Answer", "Call", "Started", "Update", "new_id", "total"]


@dataclass(frozen=True)
class Update:
    """What is new of one answer.

    Attributes
    ----------
    index : which.
    pieces : of its text.
    tokens : behind them, or before them where text is held back.
    end : how it ended, in the last.
    """

    index: int
    pieces: list[Piece]
    tokens: list[Token]
    end: Finished | None = None


@dataclass
class Call:
    """A call of a tool."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Answer:
    """A whole answer."""

    text: str = ""
    thoughts: str = ""
    calls: list[Call] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    end: Finished | None = None

    def add(self, update: Update) -> None:
        """Take what is new."""
        self.tokens += update.tokens
        self.end = update.end or self.end
        for piece in update.pieces:
            if isinstance(piece, Said):
                self.text += piece.text
            elif isinstance(piece, Thought):
                self.thoughts += piece.text
            elif isinstance(piece, CallBegins):
                self.calls.append(Call(piece.id or new_id(), piece.name))
            else:
                self.calls[-1].arguments += piece.text

    @property
    def usage(self) -> Usage:
        """What it took."""
        assert self.end is not None
        return self.end.usage

    @property
    def reason(self) -> str:
        """Why it ended, in OpenAI's words."""
        assert self.end is not None
        if self.end.reason == "length":
            return "length"
        return "tool_calls" if self.calls else "stop"


def new_id() -> str:
    """An id for a call, as long as the strictest templates want it."""
    return "".join(secrets.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") for _ in range(9))


class Started:
    """The requests of an ask, submitted.

    Raises
    ------
    GgufkitError : one is refused; then none is left.
    """

    def __init__(self, engine: Engine, ask: Ask):
        self._parsers = ask.parsers
        self._streams: list[Stream] = []
        try:
            for request in ask.requests:
                self._streams.append(engine.submit(request))
        except BaseException:
            self.cancel()
            raise

    @property
    def prompt_tokens(self) -> int:
        """Of the first prompt."""
        return len(self._streams[0].request.tokens)

    def prompt(self, index: int) -> list[Token]:
        """What is known of the tokens of an answer's prompt, where that was asked for; complete when it begins."""
        return self._streams[index].prompt

    def cancel(self) -> None:
        """Nobody wants the rest."""
        for stream in self._streams:
            stream.cancel()

    async def updates(self) -> AsyncGenerator[Update, None]:
        """What is new of the answers, as it comes.

        Raises
        ------
        GgufkitError : one ended with an error.
        """
        streams = self._streams
        source = _read(0, streams[0], self._parsers[0]) if len(streams) == 1 else _merged(streams, self._parsers)
        async with aclosing(source) as updates:
            async for update in updates:
                yield update

    async def whole(self) -> list[Answer]:
        """The answers when all have ended."""
        found = [Answer() for _ in self._streams]
        async with aclosing(self.updates()) as updates:
            async for update in updates:
                found[update.index].add(update)
        return found


async def _read(index: int, stream: Stream, parser: Parser) -> AsyncGenerator[Update, None]:
    async for event in stream:
        if isinstance(event, Finished):
            if event.error is not None:
                raise event.error
            yield Update(index, [*parser.feed(event.text), *parser.close()], [], event)
            return
        yield Update(index, parser.feed(event.text), [event])


async def _merged(streams: Sequence[Stream], parsers: Sequence[Parser]) -> AsyncGenerator[Update, None]:
    queue: asyncio.Queue[Update | BaseException] = asyncio.Queue()

    async def pass_on(index: int) -> None:
        try:
            async for update in _read(index, streams[index], parsers[index]):
                queue.put_nowait(update)
        except Exception as e:
            queue.put_nowait(e)

    tasks = [asyncio.ensure_future(pass_on(index)) for index in range(len(streams))]
    left = len(streams)
    try:
        while left:
            update = await queue.get()
            if isinstance(update, BaseException):
                raise update
            left -= update.end is not None
            yield update
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


def total(usages: Sequence[Usage]) -> Usage:
    """What several answers to one prompt took: the prompt once, the tokens of all."""
    return Usage(
        usages[0].prompt_tokens,
        usages[0].cached_tokens,
        sum(usage.completion_tokens for usage in usages),
        sum(usage.drafted_tokens for usage in usages),
        sum(usage.accepted_tokens for usage in usages),
        min(usage.queue_seconds for usage in usages),
        max(usage.prompt_seconds for usage in usages),
        max(usage.completion_seconds for usage in usages),
    )
