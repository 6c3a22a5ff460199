"""Server-sent events: frames, with a sign of life while nothing comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
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
    async with aclosing(frames) as source:
        task: asyncio.Future[bytes] | None = None
        try:
            while True:
                if task is None:
                    task = asyncio.ensure_future(anext(source))
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
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
