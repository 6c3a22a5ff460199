"""Chat templates: they must compile in the sandbox that will run them, and need no other file."""

from __future__ import annotations

from collections.abc import Iterator

from ggufkit.errors import printable
from ggufkit.gguf.checks.finding import Finding, warning
from ggufkit.gguf.header import Field, ValueType
from ggufkit.gguf.reader import GGUF
from ggufkit.sandbox.jinja import BrokenTemplate, check

__all__ = ["check_templates"]

KEY = "tokenizer.chat_template"


def check_templates(model: GGUF) -> Iterator[Finding]:
    for key, field in model.fields.items():
        if key == KEY or key.startswith(f"{KEY}."):
            yield from _check(field)


def _check(field: Field) -> Iterator[Finding]:
    shown = printable(field.key)
    if field.type is not ValueType.STRING:
        yield warning(f"{shown} should be of type str, but is {field.describe()}", field.offset)
        return
    try:
        loads = check(field.value)
    except BrokenTemplate as e:
        yield warning(f"{shown} does not compile{f', line {e.line}' if e.line else ''}: {printable(e)}", field.start)
    else:
        if loads:
            yield warning(f"{shown} loads another template, which is not there", field.start)
