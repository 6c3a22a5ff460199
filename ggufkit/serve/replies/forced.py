"""Grammars that make a model write calls, from the rows of `styles`; and thoughts before what a grammar asks for.

<tool_call>\\n{call}\\n</tool_call>
start: call (/\\n/ call){0,7}          call: <[151657]> "\\n" (object_0 | …) "\\n" <[151658]>
                                      object_0: "{\\"name\\": \\"look\\", \\"arguments\\": " %json {…} "}"
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ggufkit.errors import UsageError, printable
from ggufkit.runtime.constrain.grammar import Grammar, with_white_space
from ggufkit.serve.replies.detect import Manner
from ggufkit.serve.replies.layout import Layout, Literal, Maybe, Slot, layout_of
from ggufkit.serve.replies.styles import HARMONY, Style

__all__ = ["after_thoughts", "forced_calls"]

_MOST = 8  # calls at once
_ITEMS, _DEPTH = 64, 8  # of an array of {elements}, and of elements in each other
Partition = Callable[[str], Sequence["str | int"]]


def forced_calls(manner: Manner, tools: Mapping[str, Any], partition: Partition, many: bool, thinking: bool) -> Grammar:
    """A grammar of calls of these tools, and of nothing else but thoughts before them.

    Parameters
    ----------
    tools : name → JSON schema of its arguments.
    partition : splits a text at the tokens that are looked for in one: pieces of text, ids between.
    many : several calls may come.
    thinking : the prompt ends within thoughts.
    """
    writer = _Writer(manner.style, tools, partition)
    return Grammar("grammar", writer.grammar(many) + _thoughts(manner, partition, thinking))


def after_thoughts(grammar: Grammar, manner: Manner, partition: Partition, thinking: bool) -> Grammar:
    """The grammar, with thoughts before it where the model has some."""
    rules = _thoughts(manner, partition, thinking)
    if rules.startswith('thoughts: ""'):
        return grammar
    if grammar.kind == "schema":
        body = f"start: thoughts reply\nreply: %json {with_white_space(grammar.text)}\n"
    elif grammar.kind == "regular expression":
        body = f"start: thoughts reply\nreply: {_regex(grammar.text)}\n"
    else:
        lines = grammar.text.splitlines()
        if not any(line.startswith("start:") for line in lines):
            return grammar
        body = "start: thoughts the_reply\n" + "\n".join(
            "the_reply:" + line[6:] if line.startswith("start:") else line for line in lines
        )
    return Grammar("grammar", f"{body}\n{rules}")


def _thoughts(manner: Manner, partition: Partition, thinking: bool) -> str:
    """The rule `thoughts`."""
    if manner.style.thinks[0]:
        before, after = (_marks(mark, partition) for mark in manner.style.thinks)
        return f"thoughts: ({before} /(?s:.*)/ {after})?\n"
    if manner.thoughts is None:
        return 'thoughts: ""\n'
    close = manner.thoughts.closing
    pieces = partition(close)
    if len(pieces) == 1 and isinstance(pieces[0], int):
        inner = f"/(?s:.*)/ <[{pieces[0]}]> /[ \\n]{{0,4}}/"
        rules = ""
    else:
        inner = "thought /[ \\n]{0,4}/"
        rules = f"thought[suffix={_text(close)}]: /(?s:.*)/\n"
    if thinking:
        return f"thoughts: {inner}\n{rules}"
    return f"thoughts: ({_marks(manner.thoughts.opening.rstrip(), partition)} {inner})?\n{rules}"


class _Writer:
    def __init__(self, style: Style, tools: Mapping[str, Any], partition: Partition):
        self.style, self.tools, self.partition = style, tools, partition
        self.rules: list[str] = []

    def grammar(self, many: bool) -> str:
        style = self.style
        layout = layout_of(style.call)
        together = any(isinstance(part, Slot) and part.name in ("calls", "keyed", "python") for part in layout)
        if together:
            options = [self.parts(layout, lambda slot: self.several(slot.name, many))]
        else:
            options = [self.call(layout, number, name) for number, name in enumerate(self.tools)]
        self.rules.append(f"call: {' | '.join(options)}")
        most = _MOST if many and not together and style is not HARMONY else 1
        between = self.marks(style.between)
        body = f"call ({between} call){{0,{most - 1}}}" if most > 1 else "call"
        before, after = (self.marks(mark) for mark in style.section)
        return f"start: thoughts {before} {body} {after}\n" + "".join(f"{rule}\n" for rule in self.rules)

    def call(self, layout: Layout, number: int, name: str) -> str:
        """The rule of one tool's call."""
        self.rules.append(f"call_{number}: {self.parts(layout, lambda slot: self.slot(slot.name, number, name))}")
        return f"call_{number}"

    def parts(self, layout: Layout, slot: Callable[[Slot], str]) -> str:
        found: list[str] = []
        for part in layout:
            if isinstance(part, Literal):
                found.append(self.marks(part.text))
            elif isinstance(part, Slot):
                found.append(slot(part))
            elif part.parts[0] in (Literal("["), Literal("]")):
                found.append(self.parts(part.parts, slot))
        return " ".join(found)

    def several(self, slot: str, many: bool) -> str:
        """One or more calls in one list."""
        name, arguments = map(json.dumps, self.style.keys)
        each: list[str] = []
        for number, (tool, schema) in enumerate(self.tools.items()):
            if slot == "calls":
                body = f"{_text(f'{{{name}: {json.dumps(tool)}, {arguments}: ')} {self.arguments(schema)} {_text('}')}"
            elif slot == "keyed":
                body = f"{_text(f'{{{json.dumps(tool)}: ')} {self.arguments(schema)} {_text('}')}"
            else:
                values = [f"{_text(key + '=')} {self.json(part)}" for key, part in _properties(schema)]
                body = f"{_text(tool + '(')} {_row(values, _required(schema), ', ')} {_text(')')}"
            self.rules.append(f"each_{number}: {body}")
            each.append(f"each_{number}")
        self.rules.append(f"each: {' | '.join(each)}")
        return f'each (", " each){{0,{_MOST - 1}}}' if many else "each"

    def slot(self, slot: str, number: int, name: str) -> str:
        schema = self.tools[name]
        if slot == "name":
            return self.marks(name)
        if slot == "id":
            return "/[A-Za-z0-9]{9}/"
        if slot == "index":
            return _text("0")
        if slot == "json":
            return self.arguments(schema)
        if slot == "call":
            key, arguments = map(json.dumps, self.style.keys)
            return f"{_text(f'{{{key}: {json.dumps(name)}, {arguments}: ')} {self.arguments(schema)} {_text('}')}"
        if slot == "parameters":
            written = [self.parameter(number, i, *pair) for i, pair in enumerate(_properties(schema))]
            return _row(written, _required(schema), "")
        if slot == "elements":
            return self.elements(schema, self.marks(self.style.quote), 0)
        if slot == "braces":
            quote = self.marks(self.style.quote)
            values = [f"{_text(key + ':')} {self.braces(part, quote)}" for key, part in _properties(schema)]
            return f"{_text('{')} {_row(values, _required(schema), ',')} {_text('}')}"
        raise UsageError(f"calls in the style {printable(self.style.name)} cannot be forced")

    def parameter(self, number: int, i: int, key: str, schema: Any) -> str:
        """One parameter, as the style lays it out."""
        layout = layout_of(self.style.parameter)
        text = isinstance(schema, dict) and schema.get("type") == "string"
        at = layout.index(Slot("value"))
        close = "".join(part.text for part in layout[at + 1 :] if isinstance(part, Literal))
        shown = {"key": key, "string": "true" if text else "false", "type": "string" if text else "number"}
        before = " ".join(
            self.marks(part.text if isinstance(part, Literal) else shown[part.name])
            for part in layout[:at]
            if not isinstance(part, Maybe)
        )
        if not text:
            return f"{before} {self.json(schema)} {self.marks(close)}"
        options = schema.get("enum")
        if isinstance(options, list) and all(isinstance(option, str) for option in options):
            return f"{before} ({' | '.join(map(_text, options))}) {self.marks(close)}"
        if any(isinstance(piece, int) for piece in self.partition(close.strip())):
            return f"{before} /(?s:.*)/ {self.marks(close.strip())} /\\n?/"
        self.rules.append(f"text_{number}_{i}[suffix={_text(close.rstrip())}]: /(?s:.*)/")
        return f"{before} text_{number}_{i} /\\n?/"

    def braces(self, schema: Any, quote: str) -> str:
        options = schema.get("enum") if isinstance(schema, dict) else None
        if isinstance(options, list) and options and all(isinstance(option, str) for option in options):
            return f"{quote} ({' | '.join(map(_text, options))}) {quote}"
        if isinstance(schema, dict) and schema.get("type") == "string":
            return f"{quote} /[^<>]*/ {quote}"
        if isinstance(schema, dict) and schema.get("type") in ("integer", "number", "boolean", "null"):
            return self.json(schema)
        if "any_braces" not in "\n".join(self.rules):
            self.rules.append(
                f"any_braces: {quote} /[^<>]*/ {quote} | /-?[0-9]{{1,15}}(\\.[0-9]{{1,15}})?|true|false|null/"
                ' | "[" (any_braces ("," any_braces)*)? "]"'
                ' | "{" (/[A-Za-z0-9_]+/ ":" any_braces ("," /[A-Za-z0-9_]+/ ":" any_braces)*)? "}"'
            )
        return "any_braces"

    def elements(self, schema: Any, mark: str, depth: int) -> str:
        """A value as elements: see `elements`."""
        kind = schema.get("type") if isinstance(schema, dict) else None
        written = [
            f"{mark} {_text(f'<{key}>')} {self.elements(part, mark, depth + 1)} {mark} {_text(f'</{key}>')}"
            for key, part in _properties(schema)
        ]
        if (kind == "object" or not depth) and depth < _DEPTH:
            return _row(written, _required(schema), "")
        if kind == "array" and depth < _DEPTH:
            item = self.elements(schema.get("items"), mark, depth + 1)
            return f'({mark} "<item>" {item} {mark} "</item>"){{0,{_ITEMS}}}'
        options = schema.get("enum") if isinstance(schema, dict) else None
        if isinstance(options, list) and options and all(isinstance(option, str) for option in options):
            return f"({' | '.join(map(_text, options))})"
        return "/[^\\]<>]*/" if kind == "string" else self.json(schema)

    def arguments(self, schema: Any) -> str:
        """All arguments of a call, an object; those that nobody has heard of are of no use."""
        schema = {"type": "object", **(schema if isinstance(schema, dict) else {})}
        return self.json(
            {**schema, "additionalProperties": schema.get("additionalProperties", "properties" not in schema)}
        )

    def json(self, schema: Any) -> str:
        return f"%json {with_white_space(json.dumps(schema if isinstance(schema, dict) else {}))}"

    def marks(self, text: str) -> str:
        return _marks(text, self.partition)


def _row(written: list[str], required: list[bool], separator: str) -> str:
    """Values in their order, those that are not required may be missing."""
    if not written:
        return '""'
    if not separator:
        return " ".join(f"({one})" if must else f"({one})?" for one, must in zip(written, required, strict=True))
    # With separators between: what may come first, and each with its separator before it after that.
    comma = _text(separator)
    if all(required):
        return f" {comma} ".join(f"({one})" for one in written)
    options: list[str] = []
    for first, one in enumerate(written):
        rest = "".join(
            f" ({comma} {other})" + ("" if must else "?")
            for other, must in zip(written[first + 1 :], required[first + 1 :], strict=True)
        )
        options.append(f"({one}){rest}")
        if required[first]:
            break
    else:
        options.append('""')
    return f"({' | '.join(options)})"


def _properties(schema: Any) -> list[tuple[str, Any]]:
    found = schema.get("properties") if isinstance(schema, dict) else None
    return list(found.items()) if isinstance(found, dict) else []


def _required(schema: Any) -> list[bool]:
    names = schema.get("required") if isinstance(schema, dict) else None
    return [isinstance(names, list) and name in names for name, _ in _properties(schema)]


def _marks(text: str, partition: Partition) -> str:
    """A text as Lark has it, tokens by their numbers."""
    pieces = partition(text) if text else []
    return " ".join(f"<[{piece}]>" if isinstance(piece, int) else _text(piece) for piece in pieces) or '""'


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=True)


def _regex(pattern: str) -> str:
    from llguidance import regex_to_lark

    return f"/{regex_to_lark(pattern)}/"
