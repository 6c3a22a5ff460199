"""Chat templates: they must compile in the sandbox that will run them, and need no other file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggufkit.errors import printable
from ggufkit.gguf.checks.finding import Finding, warning
from ggufkit.gguf.header import Field, ValueType
from ggufkit.gguf.reader import GGUF

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
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block ``{% generation %}``, with which templates mark what the model says."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    try:
        tree = sandbox.parse(field.value)
        sandbox.compile(tree)
    except TemplateError as e:
        line = getattr(e, "lineno", None)
        yield warning(f"{shown} does not compile{f', line {line}' if line else ''}: {printable(e)}", field.start)
    except (RecursionError, MemoryError, SyntaxError, OverflowError, ValueError) as e:
        # Thousands of nested blocks: Python's own compiler gives up.
        yield warning(f"{shown} does not compile: {printable(e) or type(e).__name__}", field.start)
    else:
        loading = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
        if any(tree.find(kind) is not None for kind in loading):
            yield warning(f"{shown} loads another template, which is not there", field.start)
