"""One request on its way: its body, the model that it is for, and how its answer goes out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ggufkit.serve import sse
from ggufkit.serve.answers import Started
from ggufkit.serve.asks import Ask
from ggufkit.serve.bodies import Body, parse_json
from ggufkit.serve.models import Models, Served
from ggufkit.serve.problems import Problem, bad, problem_of
from ggufkit.serve.security import Admission
from ggufkit.serve.settings import Settings

__all__ = ["Call", "Dialect", "Endpoint", "Gone", "json_response", "route"]

T = TypeVar("T")


class Gone(Exception):
    """The client has left."""


@dataclass(frozen=True)
class Dialect:
    """How a family of clients wants its errors.

    Attributes
    ----------
    shape : a problem as JSON.
    """

    name: str
    shape: Callable[[Problem], Any]

    def refuse(self, problem: Problem) -> Response:
        """An answer that is an error."""
        return json_response(self.shape(problem), problem.status, problem.headers)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(sse.json_bytes(value), status, headers, "application/json")


class Call:
    """A request on its way.

    Attributes
    ----------
    request : Starlette's.
    models, settings, admission : the server's.
    """

    def __init__(self, request: Request):
        self.request = request
        self.models: Models = request.app.state.models
        self.settings: Settings = request.app.state.settings
        self.admission: Admission = request.app.state.admission
        self.stack = AsyncExitStack()

    async def body(self) -> Body:
        """The body, an object."""
        value = parse_json(await self.stack.enter_async_context(self.admission.body(self.request)) or b"{}")
        if not isinstance(value, dict):
            raise bad("the body should be a JSON object")
        return Body(value)

    async def model(self, name: str | None) -> Served:
        """A model, kept until the answer has gone out."""
        return await self.stack.enter_async_context(self.models.lease(name))

    async def begin(self, served: Served, ask: Callable[[], Ask]) -> Started:
        """Prepare an ask, which may take a while, and submit it."""
        made = await asyncio.to_thread(ask)
        started = Started(served.engine, made)
        self.stack.callback(started.cancel)
        return started

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """What work gives, given up when the client leaves.

        Raises
        ------
        Gone : it has left.
        """
        working = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Gone
            return working.result()
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.wait({working, watching})

    async def _gone(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass

    def stream(
        self,
        frames: AsyncGenerator[bytes, None],
        failed: Callable[[Problem], bytes],
        media_type: str = "text/event-stream",
        ping: bytes = sse.PING,
    ) -> Response:
        """An answer that goes out as it comes.

        Parameters
        ----------
        failed : the frame of an error that happens on the way.
        """
        guarded = _guarded(frames, failed)
        return _Streamed(sse.with_pings(guarded, self.settings.ping, ping), self.stack.pop_all(), media_type)


async def _guarded(
    frames: AsyncGenerator[bytes, None], failed: Callable[[Problem], bytes]
) -> AsyncGenerator[bytes, None]:
    try:
        async for frame in frames:
            yield frame
    except Exception as e:
        yield failed(problem_of(e))
    finally:
        await frames.aclose()


class _Streamed(StreamingResponse):
    """Closes what the answer needed when it has gone out, or never will."""

    def __init__(self, frames: AsyncGenerator[bytes, None], stack: AsyncExitStack, media_type: str):
        super().__init__(frames, headers=sse.HEADERS, media_type=media_type)
        self._frames, self._stack = frames, stack

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._frames.aclose()
            await self._stack.aclose()


Endpoint = Callable[[Call], Awaitable[Response]]


def route(path: str, endpoint: Endpoint, dialect: Dialect, methods: tuple[str, ...] = ("POST",)) -> Route:
    """A path and what answers there; whatever goes wrong comes out in the dialect's shape."""

    async def answer(request: Request) -> Response:
        call = Call(request)
        try:
            async with call.stack:
                return await endpoint(call)
        except (Gone, ClientDisconnect):
            return Response(status_code=499)
        except Exception as e:
            return dialect.refuse(problem_of(e))

    return Route(path, answer, methods=list(methods))
