"""`ggufkit get`: one metadata value."""

from __future__ import annotations

import sys
from typing import Any

import click

from ggufkit.cli.common import echo_json, model_options, open_model
from ggufkit.errors import GGUFError, printable
from ggufkit.gguf.header import Field, ValueType

__all__ = ["command"]


@click.command()
@click.argument("file")
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with the type.")
@model_options
def command(file: str, key: str, as_json: bool, how: dict[str, Any]) -> None:
    """Print the value of KEY in FILE.

    A text goes to a file or a pipe byte by byte as it is, an array as JSON: `set --from-file` takes both back.

    \b
    ggufkit get model.gguf tokenizer.chat_template > template.jinja
    ggufkit get model.gguf general.architecture
    """
    with open_model(file, how) as model:
        if key not in model.fields:
            from ggufkit.gguf.edit.draft import similar

            raise GGUFError(f"there is no key {printable(key)}{similar(key, model.fields)}", model.path)
        field = model.fields[key]
        if as_json:
            entry: dict[str, Any] = {"key": key, "type": field.type.name}
            if field.item_type is not None:
                entry["item_type"] = field.item_type.name
            echo_json({**entry, "value": field.value})
        elif field.item_type is not None:
            echo_array(field)
        elif field.type is ValueType.STRING:
            echo_text(field)
        else:
            value = field.value
            click.echo(str(value).lower() if isinstance(value, bool) else repr(value))


def echo_text(field: Field) -> None:
    """A string: to a terminal without control characters, elsewhere its bytes."""
    if sys.stdout.isatty():
        for line in field.value.split("\n"):
            click.echo(printable(line, sys.maxsize))
        return
    sys.stdout.buffer.write(next(field.strings()))


def echo_array(field: Field) -> None:
    """An array as JSON, on one line."""
    import json

    click.echo(json.dumps(field.value).replace("\x7f", "\\u007f"))
