"""Who may ask what: the name that the server was called by, where a page came from, keys, and how much at once.

A page from anywhere may let a browser send requests to this machine. It gets nothing: its Origin is not listed, and
where it has renamed itself to this machine's address (DNS rebinding), the Host header has its name and no address.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ggufkit.errors import Hint, UsageError, printable
from ggufkit.serve.problems import Problem
from ggufkit.serve.settings import Settings

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["Admission", "Guard", "require_safe"]

_PUBLIC = {"/", "/health", "/v1/health", "/favicon.ico"}
_SMALL = 64 << 10  # bytes of a body that there is always room for
_HEADERS = "authorization, content-type, x-api-key, anthropic-version, anthropic-beta"

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def require_safe(settings: Settings) -> None:
    """Refuse to listen to other machines without a key.

    Raises
    ------
    UsageError : that would be so, or a key is too short to be one.
    """
    if any(len(key) < 8 for key in settings.keys):
        raise UsageError("a key has fewer than 8 characters; take a longer one")
    if not settings.keys and not _is_loopback(settings.host):
        raise UsageError(
            f"{printable(settings.host)} can be reached from other machines, and there is no key",
            Hint("give one with {api_key_file}", "listen on 127.0.0.1"),
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets through what may ask.

    Parameters
    ----------
    app : what answers.
    settings : who may.
    refuse : sends an answer that is an error, in the dialect of the path.
    """

    def __init__(
        self,
        app: Application,
        settings: Settings,
        refuse: Callable[[Problem, Scope, Receive, Send], Awaitable[None]],
    ):
        self._app, self._refuse = app, refuse
        own = socket.gethostname().lower()
        self._hosts = {"localhost", own, f"{own}.local", *(host.lower() for host in settings.hosts)}
        self._origins = set(settings.origins)
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get("origin")
        try:
            self._check_host(headers.get("host", ""))
            listed = origin is not None and origin in self._origins
            if origin is not None and not listed and origin.partition("://")[2] != headers.get("host"):
                raise Problem(403, f"pages of {printable(origin, 100)} may not ask this server")
            if scope["method"] == "OPTIONS" and listed:
                await _preflight(send, str(origin))
                return
            if scope["path"] not in _PUBLIC:
                self._check_key(headers)
        except Problem as problem:
            await self._refuse(problem, scope, receive, send)
            return

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_safe_headers(str(origin) if listed else None)]
            await send(message)

        await self._app(scope, receive, tell)

    def _check_host(self, header: str) -> None:
        name = header.rpartition(":")[0] if ":" in header.rpartition("]")[2] else header
        name = name.lower().rstrip(".")
        if name in self._hosts or name.endswith(".localhost"):
            return
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            raise Problem(
                403,
                f"this server is not called {printable(header, 100) or 'by no name'}; names are allowed at its start",
            ) from None

    def _check_key(self, headers: dict[str, str]) -> None:
        if not self._keys:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(given.encode("latin-1", "replace")).digest()
        if not any([hmac.compare_digest(digest, key) for key in self._keys]):  # noqa: C419 - as long for the last as for the first
            raise Problem(
                401, "the key is missing or wrong", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
            )


def _safe_headers(origin: str | None) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-resource-policy", b"same-origin" if origin is None else b"cross-origin"),
    ]
    if origin is not None:
        headers += [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]
    return headers


async def _preflight(send: Send, origin: str) -> None:
    headers = [
        *_safe_headers(origin),
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-allow-headers", _HEADERS.encode()),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


class Admission:
    """What all requests may take together: places, and memory for bodies.

    Parameters
    ----------
    settings : how many, and how much.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._places = settings.connections
        self._bodies: dict[_Body, None] = {}  # all in memory, the oldest first

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """A request's body, which counts as long as it is kept.

        Raises
        ------
        Problem : it is too large, takes too long, or there are too many.
        """
        size = request.headers.get("content-length", "0")
        if size.isdigit() and (len(size) > 15 or int(size) > self._settings.body):
            raise Problem(413, f"the body has {printable(size, 30)} bytes; at most {self._settings.body} are taken")
        body = _Body()
        self._bodies[body] = None
        try:
            body.reading = asyncio.ensure_future(self._read(body, request))
            done, _ = await asyncio.wait({body.reading}, timeout=self._settings.seconds)
            if body.given_up:
                raise _later("there is no room for so long a body among the others")
            if not done:
                raise Problem(
                    408,
                    f"the body did not come within {self._settings.seconds:g} s",
                    headers={"Connection": "close"},
                )
            data = body.reading.result()
            if self._places <= 0:
                raise _later(f"{self._settings.connections} requests are worked on already")
            self._places -= 1
            try:
                yield data
            finally:
                self._places += 1
        finally:
            if body.reading is not None:
                body.reading.cancel()
            del self._bodies[body]

    async def _read(self, body: _Body, request: Request) -> bytes:
        parts: list[bytes] = []
        async for part in request.stream():
            parts.append(part)
            body.size += len(part)
            if body.size > self._settings.body:
                raise Problem(413, f"the body has more than {self._settings.body} bytes")
            self._make_room(body)
        return b"".join(parts)

    def _make_room(self, new: _Body) -> None:
        """Small bodies always have room. For a long one, give up the one that has been coming for longest."""
        if new.size <= _SMALL:
            return
        while sum(body.size for body in self._bodies if not body.given_up) > self._settings.bodies:
            coming = (body for body in self._bodies if body.size > _SMALL and body.reading and not body.reading.done())
            oldest = next((body for body in coming if not body.given_up), new)
            oldest.given_up = True
            if oldest.reading is not None:
                oldest.reading.cancel()
            if oldest is new:
                return


class _Body:
    """A body in memory, or on its way there."""

    size = 0
    given_up = False
    reading: asyncio.Task[bytes] | None = None


def _later(message: str) -> Problem:
    return Problem(503, f"{message}; try again", headers={"Retry-After": "1"})
