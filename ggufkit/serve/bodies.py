"""Requests' bodies: JSON with limits, and its fields by their types. What is wrong is said with its place.

body.text("model")                     "model should be a text, not a number"
body.number("temperature", 0, 2)       "temperature is 3; it must be between 0 and 2"
body.at("response_format")             fields in fields: "response_format.type"
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from ggufkit.errors import printable
from ggufkit.runtime.constrain.grammar import deeper
from ggufkit.serve.problems import Problem, bad

__all__ = ["MAX_DEPTH", "Body", "parse_json"]

MAX_DEPTH = 128  # of lists and objects in a body
MAX_VALUES = 1 << 20  # in a body: an empty list takes three bytes there, and 64 in memory

_STRING = re.compile(rb'"[^"]*"?')

_NAMES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", list: "a list"}
_NAMES |= {dict: "an object", type(None): "null"}


def parse_json(data: bytes) -> Any:
    """A value of JSON, without NaN and infinities.

    Raises
    ------
    Problem : it is none, too deep, or has too many values.
    """

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is no number of JSON")

    if _values(data) > MAX_VALUES:
        raise bad(f"the body has more than {MAX_VALUES} values")
    try:
        value = json.loads(data, parse_constant=refuse)
    except RecursionError:
        raise bad(f"the body is nested more than {MAX_DEPTH} deep") from None
    except ValueError as e:
        raise bad(f"the body is not JSON: {printable(e)}") from None
    if deeper(value, MAX_DEPTH):
        raise bad(f"the body is nested more than {MAX_DEPTH} deep")
    return value


def _values(data: bytes) -> int:
    """How many values there are in a text of JSON, or more."""
    if _separators(data) > MAX_VALUES:  # most may stand within texts
        data = _STRING.sub(b"", data.replace(rb"\\", b"").replace(rb"\"", b""))
    return _separators(data)


def _separators(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


class Body:
    """An object of a request.

    Parameters
    ----------
    fields : name → value.
    where : its own place, "" at the top.
    """

    def __init__(self, fields: Mapping[str, Any], where: str = ""):
        self.fields, self._where = fields, where

    def __contains__(self, name: str) -> bool:
        return self.fields.get(name) is not None

    def path(self, name: str) -> str:
        """A field's place, for messages."""
        return f"{self._where}.{name}" if self._where else name

    def wrong(self, name: str, what: str) -> Problem:
        """What to raise about a field."""
        return bad(f"{printable(self.path(name))} {what}", self.path(name))

    def get(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A field of a type; `default` where it is missing or null."""
        value = self.fields.get(name)
        if value is None:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(_NAMES[kind] for kind in kinds)
            raise self.wrong(name, f"should be {wanted}, not {_NAMES.get(type(value), 'that')}")
        return value

    def text(self, name: str, default: Any = None) -> Any:
        """A text."""
        return self.get(name, str, default)

    def need_text(self, name: str) -> str:
        """A text that must be there."""
        value: str | None = self.get(name, str)
        if value is None:
            raise self.wrong(name, "is missing")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        return bool(self.get(name, bool, default))

    def whole(self, name: str, low: int, high: int, default: Any = None) -> Any:
        """A whole number between two; 3.0 is one."""
        value = self.get(name, (int, float), default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not default and not isinstance(value, int):
            raise self.wrong(name, f"is {value:g}; it should be a whole number")
        return self._between(name, value, low, high, default)

    def number(self, name: str, low: float, high: float, default: Any = None) -> Any:
        """A number between two."""
        value = self.get(name, (int, float), default)
        if isinstance(value, int) and abs(value) > 1 << 64:
            raise self.wrong(name, f"must be between {low:g} and {high:g}")
        return self._between(name, value, low, high, default)

    def _between(self, name: str, value: Any, low: float, high: float, default: Any) -> Any:
        if value is not default and not low <= value <= high:
            shown = printable(str(value) if abs(value) < 1e30 else "too large", 40)
            raise self.wrong(name, f"is {shown}; it must be between {low:g} and {high:g}")
        return value

    def choice(self, name: str, options: tuple[str, ...], default: Any = None) -> Any:
        """One of several words."""
        value = self.text(name, default)
        if value is not default and value not in options:
            raise self.wrong(name, f"is {printable(value, 40)!r}; it must be one of {', '.join(options)}")
        return value

    def at(self, name: str) -> Body | None:
        """The object in a field."""
        value = self.get(name, dict)
        return None if value is None else Body(value, self.path(name))

    def objects(self, name: str, limit: int) -> Iterator[Body]:
        """The objects in a list."""
        for i, value in enumerate(self.items(name, limit)):
            if not isinstance(value, dict):
                raise self.wrong(f"{name}[{i}]", "should be an object")
            yield Body(value, f"{self.path(name)}[{i}]")

    def items(self, name: str, limit: int) -> list[Any]:
        """A list of at most so many, empty where it is missing."""
        values: list[Any] = self.get(name, list, [])
        if len(values) > limit:
            raise self.wrong(name, f"has {len(values)} items; at most {limit} are taken")
        return values

    def texts(self, name: str, limit: int) -> list[str]:
        """A text, or a list of some."""
        value = self.get(name, (str, list), [])
        values = [value] if isinstance(value, str) else self.items(name, limit)
        if not all(isinstance(one, str) for one in values):
            raise self.wrong(name, "should be a text or a list of texts")
        return values
