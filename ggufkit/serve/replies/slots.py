"""Reads one call by its layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ggufkit.serve.replies.elements import elements_to_json
from ggufkit.serve.replies.foreign import braces_to_json, python_calls
from ggufkit.serve.replies.layout import Layout, Literal, Maybe, Slot, ends_of, first_mark, layout_of
from ggufkit.serve.replies.pieces import CallBegins, CallText, NoCall, Piece
from ggufkit.serve.replies.reader import Reader, Waiting

__all__ = ["CallReader"]

_NAMES = ("name", "tool_name", "function_name")
_ARGUMENTS = ("arguments", "parameters", "args", "input")
_IDS = ("id", "tool_call_id", "call_id")
_NAME_LENGTH = 256


class CallReader:
    """Reads calls.

    Parameters
    ----------
    reader : the text.
    put : gets the pieces.
    tools : name → JSON schema of its arguments.
    known_only : a name that is no tool's makes it no call.
    parameter : layout of one of {parameters}.
    quote : what stands around strings in {braces}, and before the tags of {elements}.
    """

    def __init__(
        self,
        reader: Reader,
        put: Callable[[Piece], None],
        tools: Mapping[str, Any],
        known_only: bool = False,
        parameter: str = "",
        quote: str = "",
    ):
        self.reader, self.put, self.tools = reader, put, tools
        self.known_only, self.quote = known_only, quote
        self.parameter = layout_of(parameter)
        self.begun = False
        self._name = ""
        self._id: str | None = None

    def read(self, layout: Layout) -> Waiting[None]:
        """Read a call, or what a layout has of several.

        Raises
        ------
        NoCall : it is none; then no piece was handed on.
        """
        self.begun = False
        self._name, self._id = "", None
        try:
            yield from self._parts(layout)
        except NoCall:
            if not self.begun:
                raise
            # Its name is told already: what came of it stands.

    def _parts(self, layout: Layout) -> Waiting[None]:
        for number, part in enumerate(layout):
            rest = layout[number + 1 :]
            if isinstance(part, Literal):
                if part.mark:
                    yield from self.reader.expect(part.mark)
            elif isinstance(part, Maybe):
                yield from self.reader.skip()
                if (yield from self.reader.begins(first_mark(part.parts))):
                    yield from self._parts((*part.parts, *rest))
                    return
            else:
                yield from self._slot(part, rest)

    def _slot(self, slot: Slot, rest: Layout) -> Waiting[None]:
        kind = slot.name
        if kind in ("name", "id", "index"):
            text = yield from self._word(rest)
            if kind == "name":
                self._name = text
            elif kind == "id":
                self._id = text
        elif kind == "json":
            yield from self.reader.skip()
            if not (yield from self.reader.begins("{")):
                raise NoCall
            self._begin(self._name, self._id)
            yield from self.reader.json_flow(self._argument)
        elif kind == "call":
            yield from self._object()
        elif kind in ("calls", "keyed"):
            while True:
                yield from self._object() if kind == "calls" else self._keyed()
                yield from self.reader.skip()
                if (yield from self.reader.passes(",")) or (yield from self.reader.passes(";")):
                    yield from self.reader.skip()
                if not (yield from self.reader.begins("{")):
                    break
        elif kind == "parameters":
            yield from self._parameters(rest)
        elif kind == "braces":
            yield from self._braces(rest)
        elif kind == "elements":
            yield from self._elements(rest)
        elif kind == "python":
            yield from self._python(rest)

    def _word(self, rest: Layout) -> Waiting[str]:
        """A name or id: the text up to the next literal, or to a parameter where that comes next."""
        yield from self.reader.skip()
        following = next(part for part in rest if not isinstance(part, Literal) or part.mark)
        ends = ends_of(rest)
        if following == Slot("parameters"):
            ends = ["\n", first_mark(self.parameter), *ends_of(rest[rest.index(following) + 1 :])]
        elif following == Slot("braces"):
            ends = ["{"]
        text = (yield from self.reader.upto(*ends, limit=_NAME_LENGTH)).strip()
        if not text or "\n" in text:
            raise NoCall
        return text

    def _begin(self, name: str, id: str | None) -> None:
        # Kimi writes functions.look:0, others functions.look
        plain = name if name in self.tools else name.removeprefix("functions.").rpartition(":")[0] or name
        name = plain if plain in self.tools else name.removeprefix("functions.")
        if not name or (self.known_only and name not in self.tools):
            raise NoCall
        self.begun = True
        self.put(CallBegins(name, id))

    def _argument(self, text: str) -> None:
        if text:
            self.put(CallText(text))

    def _object(self) -> Waiting[None]:
        """``{"name": …, "arguments": …}``, the keys in any order."""
        yield from self.reader.expect("{")
        name = arguments = id = None
        started = False
        while True:
            yield from self.reader.skip()
            if (yield from self.reader.passes("}")):
                break
            if (yield from self.reader.passes(",")):
                continue
            key = yield from self.reader.json_string()
            yield from self.reader.expect(":")
            yield from self.reader.skip()
            if key in _NAMES:
                name = yield from self.reader.json_string()
            elif key in _IDS:
                id = (yield from self.reader.json_text()).strip('"')
            elif key in _ARGUMENTS:
                if name is not None and (yield from self.reader.begins("{")):
                    self._begin(name, id)
                    started = True
                    yield from self.reader.json_flow(self._argument)
                else:
                    arguments = yield from self.reader.json_text()
            else:
                yield from self.reader.json_text()
        if not started:
            if name is None:
                raise NoCall
            self._begin(name, id)
            self._argument(_as_object(arguments))

    def _keyed(self) -> Waiting[None]:
        """``{"look": {"at": "sky"}}``"""
        yield from self.reader.expect("{")
        yield from self.reader.skip()
        name = yield from self.reader.json_string()
        yield from self.reader.expect(":")
        yield from self.reader.skip()
        if not (yield from self.reader.begins("{")):
            raise NoCall
        self._begin(name, None)
        yield from self.reader.json_flow(self._argument)
        yield from self.reader.expect("}")

    # -- parameters, one by one ---------------------------------------------------------------------------------

    def _parameters(self, rest: Layout) -> Waiting[None]:
        opening, ends = first_mark(self.parameter), ends_of(rest)
        yield from self.reader.skip()
        for mark in (opening, *ends):
            if (yield from self.reader.begins(mark)):
                break
        else:
            raise NoCall
        self._begin(self._name, self._id)
        schema = self.tools.get(self._name)
        schemas = schema.get("properties") if isinstance(schema, dict) else None
        signs, whole = "{", True
        while whole and (yield from self.reader.begins(opening)):
            whole = yield from self._parameter(signs, schemas if isinstance(schemas, dict) else {})
            signs = ", "
            yield from self.reader.skip()
        if whole:  # of what is cut off the JSON has no end, either
            self._argument("{}" if signs == "{" else "}")
        self.reader.forget()

    def _parameter(self, signs: str, schemas: Mapping[str, Any]) -> Waiting[bool]:
        """One of them, as JSON after the `signs`; whether it came to its end."""
        values = self.parameter.index(Slot("value"))
        said: dict[str, str] = {}
        for number, part in enumerate(self.parameter[:values]):
            if isinstance(part, Slot):
                said[part.name] = (yield from self.reader.upto(*ends_of(self.parameter[number + 1 :]))).strip()
            elif isinstance(part, Literal) and part.mark:
                yield from self.reader.expect(part.mark)
        key = said["key"]
        kinds = _kinds(schemas.get(key))
        close = ends_of(self.parameter[values + 1 :])[0]
        self._argument(f"{signs}{json.dumps(key, ensure_ascii=False)}: ")
        as_text = said.get("string") == "true" or said.get("type") == "string" or kinds == {"string"}
        if as_text:
            self._argument('"')
            if not (yield from self.reader.flow(close, _Trimmed(lambda text: self._argument(_inside(text))).put)):
                return False
            self._argument('"')
        else:
            parts: list[str] = []
            if not (yield from self.reader.flow(close, parts.append)):
                return False
            self._argument(_value("".join(parts), kinds))
        return True

    # -- what is no JSON ----------------------------------------------------------------------------------------

    def _braces(self, rest: Layout) -> Waiting[None]:
        ends = ends_of(rest)
        text = yield from self.reader.upto(*ends, limit=1 << 20)
        converted = braces_to_json(text.strip(), self.quote)
        self._begin(self._name, self._id)
        self._argument(converted)

    def _elements(self, rest: Layout) -> Waiting[None]:
        text = yield from self.reader.upto(*ends_of(rest), limit=1 << 20)
        converted = elements_to_json(
            text, self.quote, self.tools.get(self._name), lambda text, schema: _value(text, _kinds(schema))
        )
        self._begin(self._name, self._id)
        self._argument(converted)

    def _python(self, rest: Layout) -> Waiting[None]:
        [end] = ends_of(rest)[:1]
        text = yield from self.reader.upto(end, limit=1 << 20)
        calls = python_calls(text)
        for name, arguments in calls:
            self._begin(name, None)
            self._argument(arguments)


class _Trimmed:
    """Hands text on without the line end that a template puts before and after a value."""

    def __init__(self, put: Callable[[str], None]):
        self._put = put
        self._held: str | None = None  # None before the first text

    def put(self, text: str) -> None:
        if not text:
            return
        if self._held is None:
            text, self._held = text.removeprefix("\n"), ""
        text = self._held + text
        whole = text.removesuffix("\n")
        self._held = text[len(whole) :]
        self._put(whole)


def _inside(text: str) -> str:
    """The text as it stands within a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _kinds(schema: Any) -> set[str]:
    """The types that a schema allows, as far as it says so."""
    if not isinstance(schema, dict):
        return set()
    kinds = schema.get("type")
    if isinstance(kinds, str):
        return {kinds}
    if isinstance(kinds, list):
        return {kind for kind in kinds if isinstance(kind, str)}
    options = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(options, list):
        return set().union(*map(_kinds, options))
    values = schema.get("enum")
    if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
        return {"string"}
    return set()


def _value(text: str, kinds: set[str]) -> str:
    """What a template wrote for a value, as JSON: JSON where it is some, else a string."""
    text = text.removeprefix("\n").removesuffix("\n")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        lowered = text.strip().lower()
        if lowered in ("true", "false") and "string" not in kinds:  # Python's words
            return lowered
        if lowered in ("none", "null") and "string" not in kinds:
            return "null"
        return json.dumps(text, ensure_ascii=False)
    if isinstance(value, str) or ("string" in kinds and not _is_of(value, kinds)):
        return json.dumps(text if not text.strip().startswith('"') else value, ensure_ascii=False)
    return text.strip()


def _is_of(value: Any, kinds: set[str]) -> bool:
    """Whether a value is of one of these types other than string."""
    names = {bool: {"boolean"}, int: {"integer", "number"}, float: {"number"}, list: {"array"}, dict: {"object"}}
    return bool(kinds & names.get(type(value), {"null"}))


def _as_object(text: str | None) -> str:
    """Arguments that are no object as they are written: none, or JSON within a string."""
    if text is None or text.strip() == "null":
        return "{}"
    if text.startswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:
            return text
    return text
