"""Arguments as elements within elements, MiniMax M3's way. A mark that no text has stands before each tag, here §:

§<at>sky§</at>§<places>§<item>3§</item>§<item>4§</item>§</places>      {"at": "sky", "places": [3, 4]}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ggufkit.serve.replies.pieces import NoCall

__all__ = ["elements_of", "elements_to_json"]

_DEPTH = 50
_ITEM = "item"


def elements_to_json(text: str, mark: str, schema: Any, leaf: Callable[[str, Any], str]) -> str:
    """Elements as a JSON object.

    Parameters
    ----------
    mark : what stands before each tag.
    schema : of the object.
    leaf : gives a text without elements as JSON, by its schema.

    Raises
    ------
    NoCall : they are not written so.
    """
    return _Elements(text, mark, leaf).value({"type": "object", **(schema if isinstance(schema, dict) else {})}, 0)


class _Elements:
    def __init__(self, text: str, mark: str, leaf: Callable[[str, Any], str]):
        self.text, self.mark, self.leaf, self.at = text, mark, leaf, 0

    def value(self, schema: Any, depth: int) -> str:
        """What stands up to the end of its element, as JSON."""
        if depth > _DEPTH:
            raise NoCall
        schema = schema if isinstance(schema, dict) else {}
        opening, closing = f"{self.mark}<", f"{self.mark}</"
        found: list[tuple[str, str]] = []
        start = self.at
        while True:
            next_mark = self.text.find(self.mark, self.at)
            end = len(self.text) if next_mark < 0 else next_mark
            if next_mark < 0 or self.text.startswith(closing, next_mark):
                break
            tag_end = self.text.find(">", end + len(opening))
            if tag_end < 0 or not self.text.startswith(opening, end):
                raise NoCall
            tag = self.text[end + len(opening) : tag_end]
            self.at = tag_end + 1
            inner = self.value(_of(schema, tag), depth + 1)
            close = f"{closing}{tag}>"
            if not self.text.startswith(close, self.at):
                raise NoCall
            self.at += len(close)
            found.append((tag, inner))
        text, self.at = self.text[start:end], end
        kind = schema.get("type")
        if not found and not (kind in ("object", "array") and not text.strip()):
            return self.leaf(text, schema)
        if kind == "array" or (kind != "object" and all(tag == _ITEM for tag, _ in found)):
            return f"[{', '.join(value for _, value in found)}]"
        return f"{{{', '.join(f'{json.dumps(tag, ensure_ascii=False)}: {value}' for tag, value in found)}}}"


def _of(schema: Mapping[str, Any], tag: str) -> Any:
    """The schema of an element."""
    properties = schema.get("properties")
    if isinstance(properties, dict) and tag in properties:
        return properties[tag]
    return schema.get("items" if tag == _ITEM else "additionalProperties")


def elements_of(value: Any, mark: str) -> str:
    """A value as elements, or as their text."""
    if isinstance(value, Mapping):
        return "".join(f"{mark}<{key}>{elements_of(part, mark)}{mark}</{key}>" for key, part in value.items())
    if isinstance(value, list):
        return "".join(f"{mark}<{_ITEM}>{elements_of(part, mark)}{mark}</{_ITEM}>" for part in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
