"""Server-sent events: frames, with a sign of life while nothing comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

__all__ = ["HEADERS", "PING", "frame", "json_bytes", "with_pings"]

PING = b": ping\n\n"
HEADERS = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}


def json_bytes(value: Any) -> bytes:
    """A value as UTF-8; halves of characters become U+FFFD."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")


def frame(value: Any, event: str | None = None) -> bytes:
    """A frame with a value in it."""
    head = b"" if event is None else f"event: {event}\n".encode()
    return head + b"data: " + json_bytes(value) + b"\n\n"


async def with_pings(frames: AsyncGenerator[bytes, None], seconds: float, ping: bytes) -> AsyncGenerator[bytes, None]:
    """The frames, and a ping whenever none has come for so long: clients give up on what is silent."""
    task: asyncio.Future[bytes] | None = None
    try:
        while True:
            if task is None:
                task = asyncio.ensure_future(anext(frames))
            done, _ = await asyncio.wait({task}, timeout=seconds)
            if not done:
                if ping:
                    yield ping
                continue
            finished, task = task, None
            try:
                yield finished.result()
            except StopAsyncIteration:
                return
    finally:
        # Whoever is cancelled here is cancelled again at each await, so the end is another's task.
        ending = asyncio.ensure_future(_end(frames, task))
        _endings.add(ending)
        ending.add_done_callback(_endings.discard)


_endings: set[asyncio.Future[None]] = set()


async def _end(frames: AsyncGenerator[bytes, None], task: asyncio.Future[bytes] | None) -> None:
    """Close the frames, of which one may be awaited."""
    if task is not None:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
    await frames.aclose()
