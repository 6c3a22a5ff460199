"""The connections of a server: as many as there is room for, and none that is waited for too long.

What is waited for                     from                  at most
a request's head                       the connection on     15 s
the next request                       the last answer on    30 s, and 15 more for its head
a request's body                       its head on           `Settings.seconds` (`Admission` says so to the client)
a client that takes what it was sent   64 kB lie unsent      60 s

Where there is no room for a new connection, that one ends that has been waited for longest: a crowd that says nothing
keeps nobody out. Connections whose answers are being made are waited for by no one.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import sys
from contextlib import suppress
from itertools import islice
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["BACKLOG", "IDLE_SECONDS", "Connections", "Protocol", "room_for"]

IDLE_SECONDS = 30  # between requests of a connection
HEAD_SECONDS = 15.0
UNREAD_SECONDS = 60.0
FRESH_SECONDS = 0.5  # that a connection has to itself before another may take its place
BACKLOG = 512  # connections that the system may hold ready; as many are taken at once
_ASKED = 8  # of those that are waited for longest, whether they have to go
_TURNED, _TURNING = 256, 1.0  # connections that are turned away with an answer, and seconds to take it
_SPARE = 256 + BACKLOG + _TURNED  # descriptors beside: files, models, children, and those that are turned away

_AT_ONCE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
_FULL = b'{"error":{"code":503,"message":"there are too many connections","type":"unavailable_error"}}'
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_FULL), _FULL)
)


def room_for(connections: int) -> int:
    """How many connections there is room for: twice as many as may be worked for, if the system lets us.

    The limit of open files, which may be as low as 256, is raised as far as it goes.
    """
    wanted = 2 * connections
    try:
        import resource
    except ImportError:  # Windows
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    if soft != infinite and soft < wanted + _SPARE:
        soft = wanted + _SPARE if hard == infinite else min(hard, wanted + _SPARE)
        if sys.platform == "darwin":
            soft = min(soft, 10240)  # OPEN_MAX: more is refused
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if soft == infinite else max(8, min(wanted, soft - _SPARE))


class Connections:
    """All of a server. Belongs to its loop.

    Parameters
    ----------
    room : how many there may be.
    seconds : for a request's body.
    """

    def __init__(self, room: int, seconds: float):
        self.room = room
        self._limits = {
            "head": HEAD_SECONDS,
            "next": IDLE_SECONDS + HEAD_SECONDS,
            "body": seconds + 5,  # the client should have its answer first
            "unread": UNREAD_SECONDS,
        }
        self._all: set[Protocol] = set()
        self._turned: set[Protocol] = set()
        self._waited: dict[Protocol, tuple[str, float]] = {}  # for what, since when; the longest first

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, one: object) -> bool:
        return one in self._all

    def admit(self, new: Protocol) -> bool:
        """Make room for a new connection, if that can be."""
        if len(self._all) >= self.room:
            before = new.loop.time() - FRESH_SECONDS
            longest = [one for one, (_, since) in islice(self._waited.items(), _ASKED) if since < before]
            gone = next((one for one in longest if not _has_sent(one)), None)
            if gone is None:
                return False
            self.end(gone)
        self._all.add(new)
        return True

    def turn_away(self, new: Protocol) -> None:
        """Say that there is no room. Whoever sends a request first must not find the door shut before the answer."""
        if len(self._turned) >= _TURNED:
            new.transport.abort()
            return
        self._turned.add(new)
        new.transport.write(_REFUSAL)
        with suppress(OSError):  # it has left already
            new.transport.write_eof()
        new.loop.call_later(_TURNING, new.transport.abort)

    def waits(self, one: Protocol, what: str | None) -> None:
        """Say what a connection is waited for; None: it waits for us."""
        before = self._waited.get(one)
        if one not in self._all or what == (None if before is None else before[0]):
            return
        self._waited.pop(one, None)
        if what is not None:
            self._waited[one] = what, one.loop.time()

    def end(self, one: Protocol) -> None:
        """End a connection now; what it was sent and has not taken is dropped."""
        self.forget(one)
        with suppress(OSError):  # the system would keep it for a client that never reads
            one.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        one.transport.abort()

    def forget(self, one: Protocol) -> None:
        """It has ended."""
        self._all.discard(one)
        self._turned.discard(one)
        self._waited.pop(one, None)

    async def watch(self) -> None:
        """End those that are waited for too long, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, min(self._limits.values()) / 4))
            now = loop.time()
            for one, (what, since) in list(self._waited.items()):
                if now - since > self._limits[what]:
                    self.end(one)


def _has_sent(one: Protocol) -> bool:
    """Whether something has come that we have not read yet: then it is us who are slow."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(one.transport.get_extra_info("socket"), select.POLLIN)
    return bool(poll.poll(0))


class Protocol(H11Protocol):
    """A connection that tells what it waits for."""

    crowd: Connections  # of the server: set by `of`

    @classmethod
    def of(cls, crowd: Connections) -> type[Protocol]:
        """The protocol of the connections of one server."""
        return type("Protocol", (cls,), {"crowd": crowd})

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.crowd.admit(self):
            self._tell()
        else:
            self.crowd.turn_away(self)

    def data_received(self, data: bytes) -> None:
        if self in self.crowd:
            super().data_received(data)
            self._tell()

    def on_response_complete(self) -> None:
        self.crowd.waits(self, None)
        super().on_response_complete()
        self._tell()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._tell()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        self.crowd.forget(self)
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:  # it would keep all of this for as long
            self.timeout_keep_alive_task.cancel()

    def _tell(self) -> None:
        what: str | None = None
        if self.flow.write_paused:
            what = "unread"
        elif self.cycle is None:
            what = "head"
        elif self.cycle.response_complete:
            what = "next"
        elif self.cycle.more_body:
            what = "body"
        self.crowd.waits(self, what)
