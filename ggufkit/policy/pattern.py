"""Regular expressions of users' rules, matched in bounded time.

Python's `re` tries one way after the other, and a pattern such as ``(a|aa)+$`` has more of them than there is time for.
Patterns with a few choices, none inside another, are left to it. For all others the pattern becomes a graph of
states, and all ways are followed at the same time: for each character of the name every state is looked at once.

    a(b|c)*d     0 a ► 1 ┬ b ► 1        states after "ab": {1}, after "abd": {match}
                         ├ c ► 1
                         └ d ► match

What cannot be followed so, back references above all, is refused.

Source: Thompson, "Regular expression search algorithm", 1968.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ggufkit.errors import PolicyError

# Python's own reader of patterns; it has no public name.
_PACKAGE = ("re._constants", "re._parser") if sys.version_info >= (3, 11) else ("sre_constants", "sre_parse")
sre, parser = (importlib.import_module(name) for name in _PACKAGE)

__all__ = ["Pattern"]

_FLAGS = re.IGNORECASE
_MAX_STATES = 2000
_MAX_CHOICES = 3  # that `re` may have: 64³ ways through a tensor's name

_CHOICES = (sre.MAX_REPEAT, sre.MIN_REPEAT)
_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    sre.CATEGORY_DIGIT: str.isdecimal,
    sre.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    sre.CATEGORY_SPACE: str.isspace,
    sre.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    sre.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    sre.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
}


class Pattern:
    """A regular expression, without regard to case.

    Raises
    ------
    re.error : it is none.
    PolicyError : it needs more than can be matched in bounded time.
    """

    def __init__(self, text: str):
        tree = parser.parse(text, _FLAGS)
        choices = list(_choices(tree))
        if len(choices) <= _MAX_CHOICES and not any(inside for inside in choices):
            self._search: Callable[[str], Any] = re.compile(text, _FLAGS).search
        else:
            self._search = _Graph(tree).search

    def search(self, name: str) -> bool:
        """Whether it matches somewhere in `name`."""
        return bool(self._search(name))


def _choices(tree: Iterable[Any], inside: bool = False) -> Iterator[bool]:
    """For each place where a match may go on in several ways: is it inside another that repeats?"""
    for kind, value in tree:
        if kind in _CHOICES:
            low, high, body = value
            if low != high:
                yield inside
            yield from _choices(body, inside or high > 1)
        elif kind is sre.BRANCH:
            yield inside
            for part in value[1]:
                yield from _choices(part, inside)
        elif kind is sre.SUBPATTERN:
            yield from _choices(value[-1], inside)
        elif kind in (sre.ASSERT, sre.ASSERT_NOT):
            yield from _choices(value[1], inside)
        elif kind not in (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN, sre.AT):
            yield True  # what the graph says something about


@dataclass
class _State:
    """`test` of a character, or of (name, place) where it takes none, and where to go then."""

    to: list[int] = field(default_factory=list)
    takes: Callable[[str], bool] | None = None
    holds: Callable[[str, int], bool] | None = None


class _Graph:
    """The states of a pattern; the last to be reached is number 0."""

    def __init__(self, tree: Iterable[Any]):
        self._states = [_State()]
        self._start = self._sequence(tree, 0)

    def search(self, name: str, start: int = 0, anchored: bool = False) -> bool:
        found: set[int] = set()
        for at in range(start, len(name) + 1):
            if at == start or not anchored:
                found.add(self._start)
            found = self._reached(found, name, at)
            if 0 in found:
                return True
            if at < len(name):
                states = (self._states[i] for i in found)
                found = {to for s in states if s.takes is not None and s.takes(name[at]) for to in s.to}
        return False

    def _reached(self, found: set[int], name: str, at: int) -> set[int]:
        """The states that can be reached without a character."""
        seen, left = set(found), list(found)
        while left:
            state = self._states[left.pop()]
            if state.takes is None and (state.holds is None or state.holds(name, at)):
                new = [to for to in state.to if to not in seen]
                seen.update(new)
                left += new
        return seen

    def _new(self, *to: int, **what: Any) -> int:
        if len(self._states) >= _MAX_STATES:
            raise PolicyError(f"the pattern is too large: it has more than {_MAX_STATES} states")
        self._states.append(_State(list(to), **what))
        return len(self._states) - 1

    def _sequence(self, tree: Iterable[Any], to: int) -> int:
        for item in reversed(list(tree)):
            to = self._item(item[0], item[1], to)
        return to

    def _item(self, kind: Any, value: Any, to: int) -> int:
        if kind in _CHOICES:
            low, high, body = value
            return self._repeat(low, high, body, to)
        if kind is sre.BRANCH:
            return self._new(*(self._sequence(part, to) for part in value[1]))
        if kind is sre.SUBPATTERN:
            return self._sequence(value[-1], to)
        if kind is sre.AT:
            return self._new(to, holds=_place(value))
        if kind in (sre.ASSERT, sre.ASSERT_NOT):
            return self._new(to, holds=_look(value[0], _Graph(value[1]), value[1].getwidth(), kind is sre.ASSERT))
        if kind in (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN):
            return self._new(to, takes=_folded(_test(kind, value)))
        raise PolicyError(f"the pattern has a {str(kind).lower()}, which cannot be matched in bounded time")

    def _repeat(self, low: int, high: Any, body: Any, to: int) -> int:
        if high is sre.MAXREPEAT:
            loop = self._new(to)
            self._states[loop].to.insert(0, self._sequence(body, loop))
            to = loop
        else:
            end = to
            for _ in range(high - low):
                to = self._new(self._sequence(body, to), end)
        for _ in range(low):
            to = self._sequence(body, to)
        return to


def _test(kind: Any, value: Any) -> Callable[[str], bool]:
    """Whether a pattern's item takes a character."""
    if kind is sre.LITERAL:
        return lambda c: c == chr(value)
    if kind is sre.NOT_LITERAL:
        return lambda c: c not in (chr(value), chr(value).lower(), chr(value).upper())
    if kind is sre.ANY:
        return lambda c: c != "\n"
    if kind is sre.RANGE:
        return lambda c: value[0] <= ord(c) <= value[1]
    if kind is sre.CATEGORY:
        return _CATEGORIES[value]
    negated = value[0][0] is sre.NEGATE
    tests = [_test(*item) for item in value[negated:]]
    if negated:
        return lambda c: not any(test(v) for test in tests for v in (c, c.lower(), c.upper()))
    return lambda c: any(test(c) for test in tests)


def _folded(test: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda c: test(c) or test(c.lower()) or test(c.upper())


def _place(kind: Any) -> Callable[[str, int], bool]:
    """`^`, `$`, `\\b`, `\\B`, …"""

    def boundary(name: str, at: int) -> bool:
        is_word = _CATEGORIES[sre.CATEGORY_WORD]
        return (at > 0 and is_word(name[at - 1])) != (at < len(name) and is_word(name[at]))

    if kind in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING):
        return lambda name, at: at == 0
    if kind is sre.AT_END:
        return lambda name, at: at == len(name) or name[at:] == "\n"
    if kind is sre.AT_END_STRING:
        return lambda name, at: at == len(name)
    return boundary if kind is sre.AT_BOUNDARY else lambda name, at: not boundary(name, at)


def _look(direction: int, graph: _Graph, width: tuple[int, int], wanted: bool) -> Callable[[str, int], bool]:
    """`(?=…)` and `(?<=…)`, `(?!…)` and `(?<!…)`; what is behind has one width."""

    def holds(name: str, at: int) -> bool:
        start = at if direction > 0 else at - width[0]
        found = start >= 0 and graph.search(name, start, anchored=True)
        return found == wanted

    return holds
