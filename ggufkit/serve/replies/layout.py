"""How a call is written, as a text with slots.

[TOOL_CALLS]{name}⟨[CALL_ID]{id}⟩[ARGS]{json}

{name} {id} {index}    the tool, the call's id, its number
{json}                 the arguments, as JSON
{call} {calls}         one JSON object, or several: {"name": …, "arguments": {…}}
{keyed}                several, with the name as key: {"look": {"at": "sky"}}
{parameters}           one after the other, each as a layout of its own says: {key}, {value}, {type}, {string}
{elements}             MiniMax M3's elements within elements (`elements`)
{braces}               Gemma's: {at:<escape>sky<escape>,far:3}
{python}               Python's: look(at='sky', far=3), …
⟨…⟩                    may be missing
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["Layout", "Literal", "Maybe", "Slot", "layout_of"]


@dataclass(frozen=True)
class Literal:
    """Text; white space around it may come or not."""

    text: str

    @property
    def mark(self) -> str:
        """Without the white space."""
        return self.text.strip()


@dataclass(frozen=True)
class Slot:
    """What differs from call to call."""

    name: str


@dataclass(frozen=True)
class Maybe:
    """What may be missing."""

    parts: Layout


Layout = tuple["Literal | Slot | Maybe", ...]

_PART = re.compile(
    r"\{(name|id|index|json|call|calls|keyed|parameters|braces|elements|python|key|value|type|string)\}|⟨(.*?)⟩",
    re.DOTALL,
)


@lru_cache(256)
def layout_of(text: str) -> Layout:
    """The parts of a layout."""
    parts: list[Literal | Slot | Maybe] = []
    at = 0
    for match in _PART.finditer(text):
        parts += _lines(text[at : match.start()])
        parts.append(Slot(match[1]) if match[1] else Maybe(layout_of(match[2])))
        at = match.end()
    return (*parts, *_lines(text[at:]))


def _lines(text: str) -> list[Literal]:
    """A literal a line: white space in between may be another."""
    return [Literal(line) for line in text.splitlines(keepends=True)]


def first_mark(layout: Layout) -> str:
    """The literal that a layout begins with, or ""."""
    return layout[0].mark if layout and isinstance(layout[0], Literal) else ""


def marks_of(layout: Layout) -> list[str]:
    """All literals of a layout."""
    found: list[str] = []
    for part in layout:
        if isinstance(part, Maybe):
            found += marks_of(part.parts)
        elif isinstance(part, Literal):
            found.append(part.mark)
    return [mark for mark in found if mark]


def ends_of(parts: Layout) -> list[str]:
    """The literals that may come first in what is left of a layout."""
    found: list[str] = []
    for part in parts:
        if isinstance(part, Maybe):
            found += ends_of(part.parts)[:1]
        elif isinstance(part, Slot):
            break
        elif part.mark:
            found.append(part.mark)
            break
    return found
