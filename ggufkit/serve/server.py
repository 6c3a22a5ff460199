"""The server itself: uvicorn with the limits that it does not have, and an end that lets answers finish."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ggufkit.errors import FileError, printable
from ggufkit.serve.app import make_app
from ggufkit.serve.models import Pool
from ggufkit.serve.security import require_safe
from ggufkit.serve.settings import Settings

__all__ = ["Server"]

_HEAD_SECONDS = 15.0  # for a request's head
_IDLE_SECONDS = 30  # between requests of a connection


class Server:
    """Serves a pool of models.

    Parameters
    ----------
    pool : gives the models. It is the caller's to close.
    settings : where to listen, and who may ask.

    Attributes
    ----------
    port : where it listens.

    Raises
    ------
    UsageError : it would be open to other machines without a key.
    FileError : the address cannot be listened on.
    """

    def __init__(self, pool: Pool, settings: Settings | None = None):
        settings = settings or Settings()
        require_safe(settings)
        self.settings = settings
        self._socket = _listen(settings)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            make_app(pool, settings),
            http=_Protocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            access_log=False,
            log_level="critical",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.connections,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=max(1, round(settings.drain)),
            h11_max_incomplete_event_size=64 << 10,
        )
        self._server = _Uvicorn(config)

    @property
    def url(self) -> str:
        """Where it can be asked."""
        host = self.settings.host
        host = f"[{host}]" if ":" in host else "127.0.0.1" if host in ("0.0.0.0", "") else host
        return f"http://{host}:{self.port}"

    def run(self, ready: Callable[[], None] | None = None) -> None:
        """Serve until SIGINT, SIGTERM or `stop`.

        Parameters
        ----------
        ready : called when it listens.
        """

        async def serve() -> None:
            asyncio.get_running_loop().set_exception_handler(_quiet)
            serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
            while not self._server.started and not serving.done():
                await asyncio.sleep(0.01)
            if ready is not None and not serving.done():
                ready()
            await serving

        asyncio.run(serve())

    def stop(self) -> None:
        """Take no more requests, let answers finish. From any thread."""
        self._server.should_exit = True


class _Uvicorn(uvicorn.Server):
    """Ends at a signal without raising it again: there is more to be closed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def _listen(settings: Settings) -> socket.socket:
    where = f"{printable(settings.host)}:{settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise FileError(f"cannot listen on {where}: {reason}", "choose another {port}") from None
    return listener


def _quiet(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Clients that leave are nothing to write about."""
    if not isinstance(context.get("exception"), (ConnectionError, asyncio.CancelledError)):
        loop.default_exception_handler(context)


class _Protocol(H11Protocol):
    """Ends connections whose request does not come: a thousand of them would leave no room for others."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete and self._head is not None:
            self._head.cancel()
            self._head = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self._head is None and self.conn.our_state is not None:
            self._wait_for_head(_IDLE_SECONDS + _HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head is not None:
            self._head.cancel()
        super().connection_lost(exc)

    def _wait_for_head(self, seconds: float = _HEAD_SECONDS) -> None:
        self._head = self.loop.call_later(seconds, self._no_head)

    def _no_head(self) -> None:
        self._head = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
