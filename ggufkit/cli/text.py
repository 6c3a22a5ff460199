"""What the verbs that read a long text share: its windows, and the types of the cache."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggufkit.errors import os_errors
from ggufkit.runtime.kv.types import TYPES

if TYPE_CHECKING:
    from ggufkit.evaluate.windows import Windows
    from ggufkit.runtime.model import Model

__all__ = ["cache_options", "file_windows"]

_TYPES = click.Choice([name.lower() for name in TYPES], case_sensitive=False)


def cache_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add -ctk and -ctv; the command gets both as `types`."""

    @click.option("-ctk", "--cache-type-k", "keys", type=_TYPES, default="f16", show_default=True, help="Type of keys.")
    @click.option("-ctv", "--cache-type-v", "values", type=_TYPES, default="f16", show_default=True, help="Of values.")
    @functools.wraps(command)
    def wrapped(keys: str, values: str, **arguments: Any) -> Any:
        return command(types=(keys.upper(), values.upper()), **arguments)

    return wrapped


def file_windows(model: Model, path: Path, context: int, chunks: int | None, parse_special: bool = False) -> Windows:
    """Windows of a text file; bytes that are no UTF-8 become what the tokenizer makes of them."""
    from ggufkit.evaluate.windows import text_windows

    with os_errors(path, "read"):
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    return text_windows(model.tokenizer, text, context, chunks, parse_special=parse_special)
