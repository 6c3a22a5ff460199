"""What the editing verbs share: their options, and values written as text.

KEY=VALUE             of the type that the key has
KEY=u32:5             typed: u8 … f64, bool, str
KEY=arr[str]:["a"]    an array as JSON; or its items from a file: arr[str]:@tokens.txt
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from ggufkit.cli.common import Size, human_bytes, show_item, show_value
from ggufkit.cli.progress import note
from ggufkit.errors import UsageError, os_errors, printable
from ggufkit.gguf.checks.hyperparameters import check_hyperparameters
from ggufkit.gguf.checks.tokenizer import check_tokenizer
from ggufkit.gguf.edit.draft import is_pad, similar
from ggufkit.gguf.edit.session import Edit, edit
from ggufkit.gguf.header import Field, TensorInfo, Value, ValueType
from ggufkit.gguf.reader import Metadata

__all__ = ["copy_progress", "edit_options", "editing", "parse_value", "read_text", "value_of_text"]

_TYPES = {t.short: t for t in ValueType} | {t.name.lower(): t for t in ValueType}
_LARGE = 256 << 20  # bytes of a copy that takes a while
_MUCH = 256 << 10  # bytes whose writing is said before
_ITEMS = 8  # of an array that a dry run shows
_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def edit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a verb that edits; the command gets them as one dict, `how`."""

    @click.option("-o", "--output", metavar="OUT", help="Write the edited model to OUT and leave FILE as it is.")
    @click.option(
        "--spare",
        type=Size(least=0),
        metavar="BYTES",
        help="Have this much room for later edits (4000, 64K, …), in a filler key; 0 removes it.",
    )
    @click.option("--dry-run", is_flag=True, help="Write nothing; say what would be done.")
    @click.option(
        "--force",
        is_flag=True,
        help="Also make changes that most likely break the model, change a FILE that is open elsewhere, replace OUT.",
    )
    @functools.wraps(command)
    def wrapped(output: str | None, spare: int | None, dry_run: bool, force: bool, **arguments: Any) -> Any:
        return command(how={"output": output, "spare": spare, "dry_run": dry_run, "force": force}, **arguments)

    return wrapped


@contextmanager
def editing(file: str, how: dict[str, Any]) -> Iterator[Edit]:
    """Edit a file as the options of `edit_options` say, and tell the result."""
    e = edit(file, how["output"], spare=how["spare"], force=how["force"], progress=copy_progress(file))
    try:
        yield e
        result = e.plan()
        if not how["dry_run"]:
            if not how["force"]:
                refuse_broken(e)
            if (much := result.written + result.copied) > _MUCH and how["output"] is None:
                why = "the header has no room for it" if result.how == "new file" else "what follows it moves"
                click.echo(f"{printable(file, 4096)}: {why}: {human_bytes(much)} will be written", err=True)
            result = e.commit()
        echo_changes(e)
    finally:
        e.close()
    target = printable(how["output"] or file, 4096)
    click.echo(f"{target}: {'would be ' if how['dry_run'] else ''}{result}")
    if result.copied > _LARGE and how["output"] is how["spare"] is None and not any(map(is_pad, e.fields)):
        note("with --spare 64K later edits need no copy")


@dataclass(frozen=True)
class _Header:
    fields: Mapping[str, Field]
    metadata: Mapping[str, Any]
    info: Mapping[str, TensorInfo]


def refuse_broken(e: Edit) -> None:
    """Refuse a change after which `validate` finds something that it did not find before.

    Raises
    ------
    UsageError : it would.
    """
    old, new = e.header.fields, e.fields
    changed = {key for key in {*old, *new} if old.get(key) is not new.get(key)}
    architecture = old.get("general.architecture")
    prefix = f"{architecture.value}." if architecture is not None else ""
    checks = [check_hyperparameters] if any(prefix and key.startswith(prefix) for key in changed) else []
    if any(key.startswith("tokenizer.ggml.") for key in changed):
        checks.append(check_tokenizer)
    for check in checks:
        before = {finding.message for finding in check(_Header(old, Metadata(old), e.header.tensors))}
        for finding in check(_Header(new, Metadata(new), e.tensors)):
            if finding.message not in before:
                raise UsageError(f"{finding.message}; the model would not run", "{force=True} writes it all the same")


def echo_changes(e: Edit) -> None:
    """Print what an edit would change: keys before and after, tensors."""
    old, new = e.header.fields, e.fields
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if before is after or is_pad(key):
            continue
        if before is not None and after is not None and before.type is after.type and before.value == after.value:
            continue
        if before is None or after is None or before.describe() != after.describe() or after.item_type is None:
            shown = ["none" if field is None else show_value(field) for field in (before, after)]
            click.echo(f"{printable(key)}: {' -> '.join(shown)}")
            continue
        changed = [
            (i, pair) for i, pair in enumerate(zip(before.items(), after.items(), strict=True)) if len({*pair}) > 1
        ]
        for i, pair in changed[:_ITEMS]:
            click.echo(f"{printable(key)}[{i}]: {' -> '.join(map(show_item, pair))}")
        if len(changed) > _ITEMS:
            click.echo(f"{printable(key)}: {len(changed) - _ITEMS} other items")
    for name, info in e.tensors.items():
        if name != info.name:
            click.echo(f"{printable(info.name)} -> {printable(name)}")
    kept = {info.name for info in e.tensors.values()}
    for name in e.header.tensors:
        if name not in kept:
            click.echo(f"{printable(name)} -> none")


def copy_progress(file: str) -> Callable[[int], Any]:
    """The progress of a copy, as `edit` takes it."""

    @contextmanager
    def shown(total: int) -> Iterator[Callable[[int], object]]:
        if total < _LARGE:
            yield lambda n: None
            return
        from ggufkit.cli.progress import byte_bar

        with byte_bar(total, "copying") as advance:
            yield lambda n: advance(n, file)

    return shown


# -- values -----------------------------------------------------------------------------------------------


def parse_value(text: str, key: str, old: Field | None, known: Iterable[str] = ()) -> Value:
    """The value of ``KEY=…``: with a type in front, or of the type that the key has; `known` are the file's keys.

    Raises
    ------
    UsageError : the text is no value of the type, or a new key has no type.
    """
    typed = _type_of(text)
    if typed is not None:
        several, kind, text = typed
    elif old is not None:
        # UINT8 is 0, and false.
        several, kind = old.item_type is not None, old.type if old.item_type is None else old.item_type
    else:
        raise UsageError(
            f"{printable(key)} is a new key{similar(key, known)}: give its type, e.g. "
            f"{printable(key)}=str:{printable(text, 40)}"
        )
    if not several:
        return Value(kind, _single(text, kind, key))
    if text.startswith("@"):
        text = read_text(text[1:])
    return Value(ValueType.ARRAY, _items(text, kind, key), kind)


def _type_of(text: str) -> tuple[bool, ValueType, str] | None:
    """``arr[TYPE]:REST`` and ``TYPE:REST`` → (is it an array, the type, REST)."""
    name, colon, rest = text.partition(":")
    several = name.endswith("]") and name.startswith(("arr[", "array["))
    kind = _TYPES.get((name[name.index("[") + 1 : -1] if several else name).lower())
    return (several, kind, rest) if colon and kind not in (None, ValueType.ARRAY) else None


def value_of_text(text: str, key: str, old: Field | None) -> Value:
    """The value of a file's text: a string, or the items of the array that the key has."""
    if old is None or old.type is ValueType.STRING:
        return Value(ValueType.STRING, text)
    if old.item_type is None:
        return Value(old.type, _single(text.strip(), old.type, key))
    return Value(ValueType.ARRAY, _items(text, old.item_type, key), old.item_type)


def read_text(path: str) -> str:
    """The text of a file; ``-`` is stdin.

    Raises
    ------
    FileError : it cannot be read.
    UsageError : it is no UTF-8.
    """
    with os_errors(path, "read"), click.open_file(path, "rb") as file:
        data = file.read()
    try:
        result: str = data.decode()
        return result
    except UnicodeDecodeError as e:
        raise UsageError(f"{printable(path)} is not UTF-8: {e.reason} at byte {e.start}") from None


def _single(text: str, kind: ValueType, key: str) -> Any:
    try:
        if kind is ValueType.STRING:
            return text
        if kind is ValueType.BOOL:
            return _BOOLS[text.strip().lower()]
        return float(text) if kind in (ValueType.FLOAT32, ValueType.FLOAT64) else int(text, 0)
    except (ValueError, KeyError):
        raise UsageError(f"{printable(key)}: {printable(repr(text), 60)} is no {kind.short}") from None


def _items(text: str, kind: ValueType, key: str) -> list[Any]:
    """An array's items: JSON, or one per line, or numbers with commas."""
    if not text.lstrip().startswith("["):
        parts = text.splitlines() if kind is ValueType.STRING else text.replace(",", " ").split()
        return [_single(part, kind, key) for part in parts]
    import json

    try:
        items: list[Any] = json.loads(text)
    except ValueError as e:
        raise UsageError(f"{printable(key)}: the array is not JSON: {e}") from None
    floats = (ValueType.FLOAT32, ValueType.FLOAT64)
    good = (
        str if kind is ValueType.STRING else bool if kind is ValueType.BOOL else (int, float) if kind in floats else int
    )
    for i, item in enumerate(items):
        if not isinstance(item, good) or (isinstance(item, bool) and kind is not ValueType.BOOL):
            raise UsageError(
                f"{printable(key)}: item {i} of the array, {printable(repr(item), 60)}, is no {kind.short}"
            )
    return items
