"""GGUF files on a server: `https://…`, `http://…` and `hf://owner/repo/file`, read by byte ranges.

    GET /file   Range: bytes=0-65535      →  206   Content-Range: bytes 0-65535/4683073952
    GET /file   Range: bytes=65536-98303  →  206   …                              and so on, on one connection

Only what is asked for crosses the network: for the header its bytes and at most half as many again. Redirects are
followed (a hub sends one on to its storage) and the storage's address is used from then on, until it expires.

`hf://owner/repo@revision/file` names a file of the Hugging Face hub (`HF_ENDPOINT`, if set). For private and gated
models the token in `HF_TOKEN` is sent, to the hub alone. Proxies are taken from the environment as curl does.

Source: RFC 9110, sections 14 (ranges) and 15 (status codes).
"""

from __future__ import annotations

import http.client
import io
import os
import re
import socket
import ssl
import threading
import time
import urllib.request
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from ggufkit import __version__
from ggufkit.errors import FileError, GGUFError, UsageError, printable

if TYPE_CHECKING:
    import numpy as np

__all__ = ["NoSuchFile", "RemoteSource", "hub_address"]

_TIMEOUT = 30.0  # seconds without a byte, and for the head of an answer
_GRACE, _FLOOR = 20.0, 8 << 10  # seconds, and then bytes a second, below which a server is given up
_PIECE = 1 << 20  # bytes over which that is measured
_TRIES = 4
_PAUSE = 0.5  # seconds before the second try; doubles
_MAX_REDIRECTS = 10
_MAX_REQUEST = 64 << 20  # bytes; so that a broken connection costs little
_REDIRECTS = {301, 302, 303, 307, 308}
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # may be gone at the next try
_EXPIRED = {400, 401, 403, 404, 410}  # what a storage says of an address that was signed for some minutes only
_HUB_PATH = re.compile(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


class NoSuchFile(FileError):
    """The server has no file of this address."""


class RemoteSource:
    """A file on a server that knows byte ranges. Reads may come from several threads.

    Parameters
    ----------
    address : ``https://…``, ``http://…`` or ``hf://owner/repo/file``.

    Raises
    ------
    FileError : the server does not answer, refuses, or does not serve ranges.
    UsageError : an ``hf://`` address without a file.
    """

    # Bytes of the first request, which also tells the file's size. Kept: the header starts here.
    FIRST = 64 << 10

    def __init__(self, address: str):
        self.name = address
        self._address = hub_address(address) if address.startswith("hf://") else address
        self._location = self._address  # where redirects led
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        self.size = -1
        self._version: str | None = None  # the server's mark for these contents
        self._head = b""
        try:
            self._head = self._fetch(0, self.FIRST)
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, n: int) -> bytes:
        parts = [self._head[offset : offset + n]]
        done = len(parts[0])
        while done < n:
            if offset + done >= self.size:
                raise GGUFError(f"the file ends {n - done} bytes early", self.name, offset + done)
            parts.append(self._fetch(offset + done, min(n - done, _MAX_REQUEST)))
            done += len(parts[-1])
        return b"".join(parts)

    def array(self, offset: int, n: int) -> np.ndarray:
        import numpy as np

        return np.frombuffer(self.read(offset, n), np.uint8)

    @property
    def version(self) -> str:
        """Changes when the file does: its size and the server's mark for its contents."""
        mark = (self._version or "").rpartition(" ")[2]
        return f"{self.size} {mark}"

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    # -- requests -----------------------------------------------------------------------------------------

    def _fail(self, reason: str) -> FileError:
        return FileError(f"cannot read {printable(self.name)}: {reason}")

    def _fetch(self, offset: int, n: int) -> bytes:
        """`n` bytes from `offset`, less at the end of the file; tries again what may pass."""
        pause = _PAUSE
        give_up = time.monotonic() + 2 * (_TIMEOUT + n / _FLOOR)  # of all tries
        for attempt in range(1, _TRIES + 1):
            try:
                return self._follow(offset, n)
            except ssl.SSLCertVerificationError as e:
                raise self._fail(f"the server's certificate is not valid: {printable(e.verify_message)}") from e
            except _PassingError as e:
                reason, wait = str(e), e.wait
            except http.client.InvalidURL as e:
                raise self._fail(printable(e)) from e
            except (socket.gaierror, ConnectionRefusedError) as e:
                host = printable(self._split(self._location).netloc)
                raise self._fail(f"{host}: {(e.strerror or str(e)).lower()}") from e
            except (OSError, http.client.HTTPException) as e:
                reason, wait = printable(e) or type(e).__name__, None
            self._drop()
            if attempt == _TRIES or time.monotonic() > give_up:
                break
            time.sleep(min(pause if wait is None else wait, _TIMEOUT))
            pause *= 2
        raise self._fail(f"{reason}, {attempt} times in a row")

    def _follow(self, offset: int, n: int) -> bytes:
        """One try, along redirects. An expired storage address is asked for again, once."""
        for _ in range(_MAX_REDIRECTS):
            url = self._split(self._location)
            response = self._get(url, offset, n)
            if response.status in _REDIRECTS:
                self._redirect(url, response)
            elif response.status in _EXPIRED and self._location != self._address and self.size >= 0:
                self._drop()
                self._location = self._address
            else:
                return self._accept(response, offset, n)
        raise self._fail(f"more than {_MAX_REDIRECTS} redirects")

    def _split(self, address: str) -> SplitResult:
        try:
            return urlsplit(address)
        except ValueError as e:
            raise self._fail(printable(e)) from e

    def _redirect(self, url: SplitResult, response: _TimedResponse) -> None:
        location = response.headers.get("Location")
        self._drop()
        if not location:
            raise self._fail(f"HTTP {response.status} without the address to go on to")
        try:
            target = urlsplit(urljoin(url.geturl(), location))
        except ValueError as e:
            raise self._fail(f"the server redirects to {printable(repr(location), 100)}: {printable(e)}") from e
        if target.scheme not in ("https", "http") or (url.scheme == "https" and target.scheme == "http"):
            raise self._fail(f"the server redirects from {url.scheme} to {printable(target.scheme)}, which is not safe")
        self._location = target.geturl()

    def _accept(self, response: _TimedResponse, offset: int, n: int) -> bytes:
        """The bytes of a final answer."""
        status = response.status
        if status == 416 and self.size < 0 and (response.headers.get("Content-Range") or "").endswith("*/0"):
            self._drop()
            self.size = 0
            return b""
        if status != 206:
            self._drop()
            raise self._refusal(response)
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range") or "")
        if match is None or int(match[1]) != offset or not offset <= int(match[2]) < int(match[3]):
            self._drop()
            raise self._fail("the server's answer does not say which bytes of how many it holds")
        self._check_unchanged(response, int(match[3]))
        length = min(n, int(match[2]) + 1 - offset)
        data = self._body(response, length)
        if not response.isclosed():
            self._drop()  # more bytes than asked for
        return data

    def _body(self, response: _TimedResponse, length: int) -> bytes:
        """`length` bytes of an answer, as fast as `_FLOOR` at least."""
        parts, left = [], length
        while left:
            piece = min(left, _PIECE)
            response.allow(_GRACE + piece / _FLOOR)
            try:
                parts.append(response.read(piece))
            except (ValueError, OverflowError) as e:  # a chunk's length is no length
                raise http.client.HTTPException(f"the server's answer is malformed: {printable(e)}") from e
            if len(parts[-1]) < piece:
                raise http.client.IncompleteRead(b"", left - len(parts[-1]))
            left -= piece
        return b"".join(parts)

    def _refusal(self, response: _TimedResponse) -> Exception:
        status = response.status
        detail = response.headers.get("X-Error-Message") or response.reason
        said = f"HTTP {status} {printable(detail)}".strip()
        if status in _PASSING:
            wait = response.headers.get("Retry-After") or ""
            return _PassingError(f"the server answers {said}", int(wait) if re.fullmatch("[0-9]{1,6}", wait) else None)
        if status == 200:
            return self._fail("the server does not serve parts of files (byte ranges); download it first")
        if status in (401, 403):
            return self._fail(f"access denied ({said}); for a private or gated model set HF_TOKEN")
        if status in (404, 410):
            return NoSuchFile(str(self._fail(f"does not exist ({said})")))
        return self._fail(f"the server answers {said}")

    def _check_unchanged(self, response: _TimedResponse, size: int) -> None:
        # A storage behind a hub has marks of its own: compare those of one address only.
        version = f"{self._location} {response.headers.get('ETag') or response.headers.get('Last-Modified')}"
        same_place = self._version is not None and self._version.split(" ")[0] == self._location
        if self.size >= 0 and (size != self.size or (same_place and version != self._version)):
            raise self._fail("the file changed on the server while it was being read; start again")
        self.size, self._version = size, version

    # -- connections --------------------------------------------------------------------------------------

    def _get(self, url: SplitResult, offset: int, n: int) -> _TimedResponse:
        headers = {
            "Range": f"bytes={offset}-{offset + n - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": f"ggufkit/{__version__}",
        }
        token = os.environ.get("HF_TOKEN", "").strip()
        if token and (url.scheme, url.netloc) == urlsplit(_hub())[:2]:
            headers["Authorization"] = f"Bearer {token}"
        path = quote(url.path or "/", safe="/%:@!$&'()*+,;=~") + (f"?{url.query}" if url.query else "")
        connection, through_proxy = self._connect(url)
        if through_proxy and url.scheme == "http":
            path = f"http://{url.netloc}{path}"
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            assert isinstance(response, _TimedResponse)
            return response
        except ssl.SSLError:  # which is a ValueError, too
            raise
        except ValueError as e:  # a header or an address with characters that are not allowed
            raise self._fail(printable(e)) from e

    def _connect(self, url: SplitResult) -> tuple[http.client.HTTPConnection, bool]:
        """This thread's connection to the host of `url`, and whether it leads through a proxy."""
        place = (url.scheme, url.netloc)
        if getattr(self._local, "place", None) == place:
            return self._local.connection, self._local.proxied
        self._drop()
        try:
            host, port = url.hostname, url.port
        except ValueError as e:
            raise self._fail(printable(e)) from e
        if not host:
            raise self._fail("the address has no host")
        proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(url.scheme)
        connection = _connection(url.scheme, host, port, proxy)
        self._local.connection, self._local.place, self._local.proxied = connection, place, proxy is not None
        self._connections.append(connection)
        return self._local.connection, self._local.proxied

    def _drop(self) -> None:
        """Close this thread's connection."""
        if getattr(self._local, "place", None) is not None:
            self._local.connection.close()
            with suppress(ValueError):  # another thread closed the source
                self._connections.remove(self._local.connection)
            self._local.place = None


class _TimedResponse(http.client.HTTPResponse):
    """An answer that must come in time, not just byte after byte: its head within `_TIMEOUT`."""

    def __init__(self, sock: socket.socket, *arguments: Any, **more: Any):
        super().__init__(sock, *arguments, **more)
        self._timed = _TimedReader(self.fp.detach(), sock)
        self.fp = io.BufferedReader(self._timed)
        self.allow(_TIMEOUT)

    def allow(self, seconds: float) -> None:
        """What is read next must be there so many seconds from now."""
        self._timed.deadline = time.monotonic() + seconds


class _TimedReader(io.RawIOBase):
    """A socket's file that stops at a deadline."""

    deadline = 0.0

    def __init__(self, raw: io.RawIOBase, sock: socket.socket):
        self._raw, self._socket = raw, sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the server is too slow")
        self._socket.settimeout(min(left, _TIMEOUT))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _PassingError(Exception):
    """The server asks to try again later."""

    def __init__(self, message: str, wait: int | None):
        super().__init__(message)
        self.wait = wait


def _hub() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def hub_address(address: str) -> str:
    """The https address of ``hf://owner/repo@revision/file``.

    Raises
    ------
    UsageError : a part is missing.
    """
    match = _HUB_PATH.fullmatch(address)
    if match is None:
        raise UsageError(
            f"{printable(address)} should be hf://owner/repo/file.gguf, or hf://owner/repo@revision/file.gguf"
        )
    repo, revision, file = match.groups()
    return f"{_hub()}/{quote(repo)}/resolve/{quote(revision or 'main', safe='')}/{quote(file)}"


def _connection(scheme: str, host: str, port: int | None, proxy: str | None) -> http.client.HTTPConnection:
    def connect(host: str, port: int | None) -> http.client.HTTPConnection:
        made = (
            http.client.HTTPSConnection(host, port, timeout=_TIMEOUT, context=_tls())
            if scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
        )
        made.response_class = _TimedResponse
        return made

    if proxy is None:
        return connect(host, port)
    via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    connection = connect(via.hostname or "", via.port)
    if scheme == "https":
        connection.set_tunnel(host, port)
    return connection


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
