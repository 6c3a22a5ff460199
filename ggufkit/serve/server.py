"""The server itself: uvicorn with the limits that it does not have, and an end that lets answers finish."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import uvicorn

from ggufkit.errors import FileError, printable
from ggufkit.serve.app import make_app
from ggufkit.serve.connections import BACKLOG, IDLE_SECONDS, Connections, Protocol, room_for
from ggufkit.serve.models import Pool
from ggufkit.serve.security import require_safe
from ggufkit.serve.settings import Settings

__all__ = ["Server"]


_PREPARING = 32  # requests whose templates are rendered, grammars compiled and texts made tokens at the same time
_SWITCHING = 0.0005  # seconds that an engine's thread may hold up the one that talks to clients


class Server:
    """Serves a pool of models.

    Parameters
    ----------
    pool : gives the models. It is the caller's to close.
    settings : where to listen, and who may ask.

    Attributes
    ----------
    port : where it listens.
    connections : those there are.

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
        self.connections = Connections(room_for(settings.connections), settings.seconds)
        config = uvicorn.Config(
            make_app(pool, settings),
            http=Protocol.of(self.connections),
            ws="none",
            loop="asyncio",
            lifespan="off",
            access_log=False,
            log_level="critical",
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=IDLE_SECONDS,
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

        switching = sys.getswitchinterval()

        async def serve() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(_quiet)
            loop.set_default_executor(ThreadPoolExecutor(_PREPARING, "ggufkit-prepare"))
            watching = asyncio.ensure_future(self.connections.watch())
            serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
            while not self._server.started and not serving.done():
                await asyncio.sleep(0.01)
            if ready is not None and not serving.done():
                ready()
            try:
                await serving
            finally:
                watching.cancel()

        sys.setswitchinterval(_SWITCHING)
        try:
            asyncio.run(serve())
        finally:
            sys.setswitchinterval(switching)

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
