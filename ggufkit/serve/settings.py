"""What a server is told at its start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """How a server listens, and what it takes.

    Attributes
    ----------
    host, port : where it listens; port 0 for any that is free.
    keys : any of them opens the server; without one it listens on this machine alone.
    hosts : names in the Host header besides addresses, localhost and this machine's own.
    origins : pages of these origins may ask, ``"https://example.org"``; the server's own may always.
    slots : show what is worked on, at /slots.
    metrics : count, at /metrics.
    body : bytes of a request.
    seconds : that a client may take to send one.
    connections : requests at the same time; as many connections may wait beside them.
    bodies : bytes of all requests at the same time, small ones apart.
    choices : answers to one request (`n`) and texts of one (`prompt`, `input`).
    stops : stop strings of a request.
    ping : seconds without a sign after which a stream gives one.
    drain : seconds that running requests have at the end.
    template : the Jinja text of a chat template for all models, instead of their own.
    slot_folder : where caches are saved and restored at /slots, or None.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    slots: bool = False
    metrics: bool = False
    body: int = 10 << 20
    bodies: int = 64 << 20
    seconds: float = 30.0
    connections: int = 512
    choices: int = 16
    texts: int = 2048
    stops: int = 16
    ping: float = 15.0
    drain: float = 30.0
    template: str | None = None
    slot_folder: Path | None = None
