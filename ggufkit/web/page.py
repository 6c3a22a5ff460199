"""One HTML file out of parts: nothing is fetched, nothing is built, nothing of a model becomes markup.

    chat.html    what is in <body>: plain HTML without scripts, styles or event attributes
    page.css     the look that all pages share
    page.js      what all pages share: elements, data, tabs, themes
    chat.css     what a page has of its own
    chat.js

    assemble("Chat", "chat.html", styles=["page.css", "chat.css"], scripts=["page.js", "chat.js"], data={"model": …})

Scripts come after the body, in their order, each in an element of its own and all in one global scope. What `data` says
is there as `await readData("model")` of page.js. The page's policy (CSP) names the hash of each script and style: a
browser runs these and nothing else, whatever a file from a stranger smuggles in, and lets nothing out.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ggufkit.storage.files import AtomicFile

__all__ = ["Packed", "assemble", "json_text", "pack", "part", "policy", "write_page"]

_FOLDER = Path(__file__).parent
_LONG = 64 << 10  # JSON that is longer is compressed


def part(name: str) -> str:
    """The text of a part, a file of this folder."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def assemble(
    title: str,
    body: str,
    *,
    styles: Sequence[str] = ("page.css",),
    scripts: Sequence[str] = ("page.js",),
    data: Mapping[str, Any] | None = None,
    connect: bool = False,
) -> str:
    """Put a page together.

    Parameters
    ----------
    title : plain text, from anywhere.
    body : name of the part that is the body.
    styles, scripts : names of parts, in their order.
    data : name → anything that JSON has, from anywhere, or `pack` of it. NaN and infinities become null.
    connect : the page may talk to the server that it came from, and to no other.

    Returns
    -------
    the page, to be stored as UTF-8; the same parts and data give the same text
    """
    sheets = [_element("style", part(name)) for name in styles]
    programs = [_element("script", part(name)) for name in scripts]
    rules = policy([part(name) for name in styles], [part(name) for name in scripts], connect=connect)
    blocks = [_data(name, value) for name, value in (data or {}).items()]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{html.escape(rules)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{html.escape(_visible(title))}</title>",
            *sheets,
            "</head>",
            "<body>",
            part(body).strip(),
            *blocks,
            *programs,
            "</body>",
            "</html>",
            "",
        ]
    )


def policy(styles: Sequence[str], scripts: Sequence[str], *, connect: bool = False) -> str:
    """The Content-Security-Policy of a page with these inline texts; a server sends it as a header, too."""
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(map(_hash, scripts)) or "'none'",
        "style-src": " ".join(map(_hash, styles)) or "'none'",
        "img-src": "data:",
        "connect-src": "'self'" if connect else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


class Packed(NamedTuple):
    """A data block as it is stored: ``"json"`` or ``"gzip"``, and its text."""

    kind: str
    text: str


def pack(value: Any) -> Packed:
    """Data as JSON, or where that is long its gzip in base64: a large value that is packed early need not be kept."""
    text = json_text(value)
    if len(text) < _LONG:
        return Packed("json", text)
    return Packed("gzip", base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode())


def json_text(value: Any) -> str:
    """Compact JSON that is safe between the tags of a script element: ASCII, and neither <, > nor &."""
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def write_page(make: Callable[[], str], target: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write a page as a file that appears whole or not at all.

    Parameters
    ----------
    make : gives the page; called once it is known that it can be written.
    target : the file.
    force : replace an existing one.

    Returns
    -------
    `target`

    Raises
    ------
    FileError : the file exists and `force` is not given, or cannot be written.
    """
    with AtomicFile(target, force=force) as out:
        data = memoryview(make().encode())
        while data:
            data = data[out.file.write(data) :]
    return Path(target)


def _element(kind: str, text: str) -> str:
    if re.search(r"</(script|style)|<!--", text, re.IGNORECASE):
        raise ValueError("a part must not contain the end of its own element")
    return f"<{kind}>{text}</{kind}>"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(name: str, value: Any) -> str:
    """A data block. Browsers do not run what has such a type."""
    kind, text = value if isinstance(value, Packed) else pack(value)
    return f'<script type="application/{kind}" id="data-{name}">{text}</script>'


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, no infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _visible(text: str) -> str:
    """A title in which nothing turns the direction of what is beside it."""
    return "".join(c if c.isprintable() else "�" for c in text)[:200]
