"""What the verbs that read a long text share: its windows, and the types of the cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggufkit.errors import UsageError, os_errors, printable
from ggufkit.runtime.kv.types import PRESETS, TYPES, key_types

if TYPE_CHECKING:
    from ggufkit.evaluate.windows import Windows
    from ggufkit.runtime.kv.cache import Cache
    from ggufkit.runtime.model import Model

__all__ = ["cache_options", "file_tokens", "file_windows", "kept_cache", "prompt_cache_option"]

_KEYS = click.Choice([name.lower() for name in key_types()], case_sensitive=False)
_VALUES = click.Choice([name.lower() for name in TYPES], case_sensitive=False)


def cache_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add -ctk, -ctv and --cache; the command gets the types of keys and values as `types`."""

    @click.option(
        "-ctk", "--cache-type-k", "keys", type=_KEYS, metavar="TYPE", help="Type of keys in the cache; default f16."
    )
    @click.option("-ctv", "--cache-type-v", "values", type=_VALUES, help="Type of values in the cache; default f16.")
    @click.option(
        "--cache",
        "preset",
        type=click.Choice(list(PRESETS)),
        help="Both: exact (f32), small (tq6, tq4: a third of f16), smallest (tq5, tq3: a quarter).",
    )
    @functools.wraps(command)
    def wrapped(keys: str | None, values: str | None, preset: str | None, **arguments: Any) -> Any:
        if preset and (keys or values):
            raise UsageError("--cache chooses both types; leave out --cache-type-k and --cache-type-v")
        types = PRESETS[preset] if preset else ((keys or "f16").upper(), (values or "f16").upper())
        return command(types=types, **arguments)

    return wrapped


prompt_cache_option = click.option(
    "--prompt-cache",
    "saved",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Take from this file what was computed of the prompt before, and keep there what is computed now.",
)


@contextmanager
def kept_cache(cache: Cache, path: Path | None) -> Iterator[None]:
    """Fill `cache` from a file, if there is one, and write it there at the end, however that comes."""
    from ggufkit.runtime.kv.file import read_cache, write_cache

    if path is not None and path.exists():
        read_cache(cache, path)
    try:
        yield
    finally:
        if path is not None and len(cache):
            write_cache(cache, path)


def file_windows(
    model: Model, path: Path, context: int, chunks: int | None, parse_special: bool = False, chat: bool = False
) -> Windows:
    """Windows of a text file; bytes that are no UTF-8 become what the tokenizer makes of them."""
    import numpy as np

    from ggufkit.evaluate.windows import Windows, bos_of

    tokens = np.array(file_tokens(model, path, chat=chat, parse_special=parse_special), np.int32)
    return Windows(tokens, context, chunks, bos_of(model.tokenizer))


def file_tokens(model: Model, path: Path, *, chat: bool = False, parse_special: bool = False) -> list[int]:
    """The tokens of a text file, or of a file of chats put into the model's template.

    Raises
    ------
    UsageError : a line is no chat.
    """
    with os_errors(path, "read"):
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    if not chat:
        return model.tokenizer.encode(text, parse_special=parse_special)
    from ggufkit.runtime.chat import read_template

    template = read_template(model.gguf, model.tokenizer.vocab)
    tokens: list[int] = []
    for messages in _chats(path, text):
        tokens += model.chat_tokens(template.render(messages, add_generation_prompt=False))
    return tokens


def _chats(path: Path, text: str) -> list[list[dict[str, Any]]]:
    """The messages of each line: {"messages": [{"role": …, "content": …}, …]}, or the list alone."""
    import json

    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            messages = value["messages"] if isinstance(value, dict) else value
            if not all(isinstance(m["role"], str) and isinstance(m["content"], str) for m in messages):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            what = "not a chat: a list of messages with role and content"
            raise UsageError(f"{printable(path)}, line {number}: {what}") from None
        found.append(messages)
    return found
