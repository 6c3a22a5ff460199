"""What a text may be asked to obey, and what is wrong with it where that cannot be done.

    Grammar.json_schema({"type": "object", "properties": {"age": {"type": "integer"}}})
    Grammar.json_object()                        any object
    Grammar.regex("(yes|no)")
    Grammar.parse('root ::= "yes" | "no"')       GBNF; and Lark in llguidance's dialect: 'start: "yes" | "no"'

A grammar is compiled first in a child process with limits, since one of a few lines may take all the time and memory
that there is.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ggufkit.errors import MissingDependency, UsageError, printable
from ggufkit.runtime.constrain.gbnf import is_gbnf, lark_of
from ggufkit.runtime.constrain.rewrite import rewritten
from ggufkit.sandbox.grammars import compile_error

__all__ = ["MAX_CHARACTERS", "MAX_DEPTH", "Grammar", "deeper", "pointer", "with_white_space"]

MAX_CHARACTERS = 1 << 18  # of a grammar or schema
MAX_DEPTH = 64  # of brackets in a schema

# White space between the parts of a JSON text; without a bound a small model may write nothing else.
_WHITE_SPACE = r"( |\n{1,2}[ \t]{0,20})"
# Formats that llguidance writes by.
_FORMATS = {
    *("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"),
}
_TRIED, _TRYING = 200, 5.0  # subschemas that are compiled to find out which one it is, and seconds for it


@dataclass(frozen=True)
class Grammar:
    """Made by one of its functions.

    Attributes
    ----------
    kind : "schema", "grammar" (Lark) or "regular expression".
    text : a schema as JSON.
    """

    kind: str
    text: str

    @staticmethod
    def json_schema(schema: Mapping[str, Any] | bool | str) -> Grammar:
        """What a JSON schema describes.

        Parameters
        ----------
        schema : as Python has it, or its text.

        Raises
        ------
        UsageError : it is not JSON, or too large or too deep.
        """
        if isinstance(schema, str):
            _limit("schema", schema)
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as e:
                raise UsageError(f"the schema is not JSON: {printable(e)}") from None
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise UsageError("a JSON schema is an object; false, which nothing obeys, cannot be written by")
        if deeper(schema, MAX_DEPTH):
            raise UsageError(f"the schema is nested more than {MAX_DEPTH} deep")
        text = json.dumps(schema)
        _limit("schema", text)
        return Grammar("schema", json.dumps(_without_unknown_formats(json.loads(text))))

    @staticmethod
    def json_object() -> Grammar:
        """Any JSON object."""
        return Grammar.json_schema({"type": "object"})

    @staticmethod
    def regex(pattern: str) -> Grammar:
        """What a regular expression matches from its beginning to its end."""
        _limit("regular expression", pattern)
        return Grammar("regular expression", pattern)

    @staticmethod
    def parse(text: str) -> Grammar:
        """A grammar in GBNF, or in llguidance's dialect of Lark.

        Raises
        ------
        UsageError : it is GBNF that cannot be read.
        """
        _limit("grammar", text)
        return Grammar("grammar", lark_of(text) if is_gbnf(text) else text)

    def compiled(self) -> str:
        """The text that llguidance takes.

        Raises
        ------
        MissingDependency : llguidance is not installed.
        """
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise MissingDependency("grammars need the package llguidance: pip install 'ggufkit[grammar]'") from None
        if self.kind == "grammar":
            return LLMatcher.grammar_from_lark(self.text)
        if self.kind == "regular expression":
            return LLMatcher.grammar_from_regex(self.text)
        return LLMatcher.grammar_from_json_schema(with_white_space(self.text))

    def check(self) -> None:
        """Compile it.

        Raises
        ------
        UsageError : it cannot be compiled; the message says where.
        MissingDependency : llguidance is not installed.
        """
        error = compile_error(self.compiled())
        if not error:
            return
        if self.kind != "schema":
            raise UsageError(f"the {self.kind} cannot be compiled: {_one_line(error)}")
        path, reason = self._culprit(error)
        if unknown := re.match(r"Unimplemented keys: \[(.*)\]", reason):
            raise UsageError(
                f"the schema cannot be compiled at {pointer(path)}: nothing can be written by {unknown[1]}"
            )
        raise UsageError(f"the schema cannot be compiled at {pointer(path)}: {_one_line(reason)}")

    def _culprit(self, error: str) -> tuple[tuple[str, ...], str]:
        """The path of the smallest part of the schema that fails alike, and why."""
        root = json.loads(self.text)
        at: tuple[str, ...] = ()
        schema, left, until = root, _TRIED, time.monotonic() + _TRYING
        definitions = {k: root[k] for k in ("$defs", "definitions") if k in root}
        while True:
            for path, part in _parts(schema):
                left -= 1
                if left < 0 or time.monotonic() > until:
                    return at, error
                whole = {**definitions, **part} if at or path[0] not in definitions else part
                if compile_error(Grammar("schema", json.dumps(whole)).compiled()) == error:
                    at, schema = (*at, *path), part
                    break
            else:
                return at, error


def with_white_space(schema: str) -> str:
    """The text of a schema in words of llguidance, with the white space that may stand between the parts of a value."""
    return json.dumps({**rewritten(json.loads(schema)), "x-guidance": {"whitespace_pattern": _WHITE_SPACE}})


def pointer(path: tuple[str, ...]) -> str:
    """A path as a JSON pointer: ``#/properties/age``."""
    return printable("#" + "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in path))


def _parts(schema: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The schemas in a schema, with their paths in it."""
    for key, value in schema.items():
        found: Iterable[tuple[object, Any]]
        if key in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"):
            found = value.items() if isinstance(value, dict) else ()
        elif key in ("allOf", "anyOf", "oneOf", "prefixItems"):
            found = enumerate(value) if isinstance(value, list) else ()
        elif key in ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else"):
            if isinstance(value, dict):
                yield (key,), value
            continue
        else:
            continue
        for name, part in found:
            if isinstance(part, dict):
                yield (key, str(name)), part


def _without_unknown_formats(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without the formats that nobody checks: to JSON Schema they are mere remarks. Changes what it gets."""
    if schema.get("format") not in _FORMATS:
        schema.pop("format", None)
    for _, part in _parts(schema):
        _without_unknown_formats(part)
    return schema


def _limit(what: str, text: str) -> None:
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise UsageError(f"the {what} has half a character in it")
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"the {what} has {len(text)} characters; at most {MAX_CHARACTERS} are read")


def deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects in a value are nested more than `depth` deep; looks no deeper."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            item
            for one in level
            for item in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
            if isinstance(item, (dict, list))
        ]
        if not level:
            return False
    return True


def _one_line(message: str) -> str:
    """llguidance's message in a line, without the drawing below it."""
    lines = [line.strip() for line in message.strip().splitlines()]
    shown = [line for line in lines if line and line.strip("^ ") and " | " not in line]
    return printable("; ".join(shown) or message, 400)
