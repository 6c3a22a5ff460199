"""The events of a request, from the worker's thread to whoever reads them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from ggufkit.errors import GgufkitError
from ggufkit.serve.engine.request import Event, Finished, Request, Token, as_error

__all__ = ["Stream", "settle", "wake"]


class Stream:
    """What a request gives, event by event, the last a `Finished`. Made by `Engine.submit`.

    Read it from one thread, ``for event in stream``, or in one loop, ``async for event in stream``. Either may be left
    at any time; whoever leaves calls `cancel`.

    Attributes
    ----------
    request : as given.
    prompt : its tokens with the logarithms of their probabilities, where asked for; all are there before the first
        event.
    """

    def __init__(self, request: Request):
        self.request = request
        self.prompt: list[Token] = []
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._reader: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the rest."""
        return self._cancelled

    def cancel(self) -> None:
        """Want no more: the work on it ends with the pass that runs now. May be called at any time, from any thread."""
        self._cancelled = True

    def put(self, event: Event) -> None:
        """The worker's side: add an event. Whoever waits for it does so until `wake`."""
        self._events.append(event)

    def __iter__(self) -> Iterator[Event]:
        while True:
            with self._changed:
                while not self._events:
                    self._changed.wait()
                event = self._events.popleft()
            yield event
            if isinstance(event, Finished):
                return

    async def __aiter__(self) -> AsyncIterator[Event]:
        ready = asyncio.Event()
        self._reader = asyncio.get_running_loop(), ready
        while True:
            while self._events:
                event = self._events.popleft()
                yield event
                if isinstance(event, Finished):
                    return
            await ready.wait()
            ready.clear()

    def result(self) -> tuple[list[Token], str, Finished]:
        """All tokens, the whole text, and how it ended.

        Raises
        ------
        GgufkitError : it ended with an error.
        """
        tokens: list[Token] = []
        for event in self:
            if isinstance(event, Finished):
                if event.error is not None:
                    raise event.error
                return tokens, "".join(token.text for token in tokens) + event.text, event
            tokens.append(event)
        raise GgufkitError("the stream was read by somebody else")


def wake(streams: Iterable[Stream]) -> None:
    """Let those who read streams know that there are new events; each loop once: that is what costs the worker."""
    waiting: dict[asyncio.AbstractEventLoop, list[Stream]] = {}
    for stream in streams:
        with stream._changed:
            stream._changed.notify_all()
        if stream._reader is not None:
            waiting.setdefault(stream._reader[0], []).append(stream)
    for loop, some in waiting.items():
        try:
            loop.call_soon_threadsafe(_set, some)
        except RuntimeError:  # the loop is closed: nobody reads any more
            for stream in some:
                stream.cancel()


def _set(streams: Iterable[Stream]) -> None:
    for stream in streams:
        if stream._reader is not None:
            stream._reader[1].set()


def settle(future: Future[Any], function: Callable[[], object]) -> None:
    """Do it, and give the future what comes of it."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as e:
        future.set_exception(as_error(e))
