"""What the verbs share: options to open a model, text that is safe on a terminal, tables, JSON."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import click

from ggufkit.errors import UsageError, printable
from ggufkit.gguf.header import Field, Limits, ValueType

if TYPE_CHECKING:
    from ggufkit.gguf.reader import GGUF
    from ggufkit.tensors.tensor import Tensor

__all__ = [
    "SIZE",
    "Size",
    "echo_json",
    "echo_table",
    "human_bytes",
    "human_count",
    "matrices",
    "model_options",
    "open_model",
    "show_shape",
    "show_value",
]


class Size(click.ParamType):
    """Bytes, at least `least`, in powers of 1000 as llama.cpp's tools count: ``512M``, ``4G``."""

    name = "size"
    units: ClassVar[dict[str, int]] = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}

    def __init__(self, least: int = 1):
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,18})(?:\.([0-9]{1,9}))?([KMGT]?)", value.upper())
        if match is None or (match[2] and not match[3]):
            self.fail(f"{value!r} is no size; give one like 500M or 3.2G", param, ctx)
        part = match[2] or ""
        size: int = int(match[1] + part) * self.units[match[3]] // 10 ** len(part)
        if size < self.least:
            self.fail(f"{value!r} is less than {self.least}", param, ctx)
        return size


SIZE = Size()


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how to open a model; the command gets them as one dict, `how`."""

    @click.option("--allow-v1", is_flag=True, help="Also read files of version 1 (2023), which llama.cpp refuses.")
    @click.option("--one-shard", is_flag=True, help="Look into this file alone where it is a part of a split model.")
    @click.option("--offset", type=click.IntRange(min=0), default=0, help="Byte where the GGUF starts in the file.")
    @click.option("--max-header", type=SIZE, help="Refuse a larger header; default 134M.")
    @functools.wraps(command)
    def wrapped(allow_v1: bool, one_shard: bool, offset: int, max_header: int | None, **arguments: Any) -> Any:
        how = {"allow_v1": allow_v1, "one_shard": one_shard, "offset": offset, "max_header": max_header}
        return command(how=how, **arguments)

    return wrapped


def open_model(path: str, how: dict[str, Any] | None = None) -> GGUF:
    """Open a model as the options of `model_options` say, to read its weights once."""
    from ggufkit.gguf.reader import open as open_gguf

    how = how or {}
    limits = Limits(
        versions=(1, 2, 3) if how.get("allow_v1") else Limits.versions,
        header=how.get("max_header") or Limits.header,
        complete=not how.get("partial"),
    )
    model = open_gguf(path, offset=how.get("offset", 0), shards=not how.get("one_shard"), limits=limits)
    model.read_once()
    return model


def show_value(field: Field, items: int = 6, limit: int = 100) -> str:
    """A value on one line; of an array the first `items`."""
    if field.item_type is None:
        return show_item(next(field.items()), limit)
    first: list[str] = []
    for item in field.items() if field.item_type is ValueType.STRING else _head(field, items):
        if len(first) == items:
            break
        first.append(show_item(item, 30))
    return "[" + ", ".join(first) + (", …]" if len(field) > items else "]")


def _head(field: Field, n: int) -> list[Any]:
    """The first `n` numbers of an array, without decoding the rest."""
    import dataclasses

    kind = field.item_type
    n = min(n, len(field))
    if kind is None or n == len(field):
        return list(field.items())
    return list(dataclasses.replace(field, count=n, end=field.start + n * kind.nbytes).items())


def show_item(item: Any, limit: int = 100) -> str:
    if isinstance(item, str):
        # Cut first: a chat template may be long, and printable looks at each character.
        return printable(item[: limit + 1], limit)
    if isinstance(item, bool):
        return "true" if item else "false"
    return f"{item:.7g}" if isinstance(item, float) else str(item)


def echo_table(rows: Iterable[Sequence[object]], head: Sequence[str], right: Iterable[int] = ()) -> None:
    """Print rows in columns.

    Parameters
    ----------
    right : the columns that are aligned to the right.
    """
    texts = [tuple(head), *(tuple(map(str, row)) for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(head))]
    right = set(right)
    for row in texts:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo(("  " + "  ".join(cells)).rstrip())


def human_bytes(n: int) -> str:
    """Bytes for people, in powers of 1000 as llama.cpp and disks count: 4.37 GB."""
    if n < 1000:
        return f"{n} B"
    power = min(5, int(math.log10(n)) // 3)
    return f"{n / 1000**power:.2f} {' kMGTP'[power]}B"


def human_count(n: int) -> str:
    """A count of weights for people: 7.24 B."""
    if n < 1000:
        return str(n)
    power = min(4, int(math.log10(n)) // 3)
    return f"{n / 1000**power:.2f} {' KMBT'[power]}"


_PARTS = 10_000  # pieces of JSON that are printed together: the whole may be long


def echo_json(value: Any) -> None:
    """Print a value as JSON in ASCII, without control characters; NaN and infinities become strings."""
    import json
    from itertools import islice

    parts = json.JSONEncoder(indent=2).iterencode(_finite(value))
    while text := "".join(islice(parts, _PARTS)):
        click.echo(text.replace("\x7f", "\\u007f"), nl=False)  # the only control character that json leaves
    click.echo()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def show_shape(shape: Sequence[int]) -> str:
    """A shape (NumPy order) as GGUF has it, row length first."""
    return " × ".join(map(str, reversed(shape))) or "scalar"


def matrices(model: GGUF, name: str | None) -> list[Tensor]:
    """The matrices of a model, or the tensor of this name."""
    if name is None:
        tensors = [tensor for tensor in model.tensors.values() if len(tensor.shape) > 1]
        if not tensors:
            raise UsageError(f"{printable(model.path)} has no matrices whose error could be measured")
        return tensors
    if name in model.tensors:
        return [model.tensors[name]]
    from difflib import get_close_matches

    near = get_close_matches(name, model.tensors, n=3)
    hint = f"; did you mean {', '.join(map(printable, near))}?" if near else ""
    raise UsageError(f"{printable(model.path)} has no tensor {printable(name)}{hint}")
