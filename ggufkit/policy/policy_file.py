"""Policy files: rules in TOML, on top of a preset.

    base = "Q4_K_M"            # the preset that decides where no rule does

    [[rule]]                   # tried in order, the first that matches decides
    type = "Q8_0"              # or "keep", to leave tensors as they are
    role = ["attn_v", "attn_k"]
    layers = [0, 3]            # first and last; negative numbers count from the end, as in [-4, -1]
    why = "the first layers are touchy"

    [[rule]]
    type = "Q6_K"
    name = "ffn_(up|down)"     # a regular expression
    rows = ">= 14336"          # also cols, weights, dims (3: a stack of experts)

All conditions of a rule must hold. Errors name the line.
"""

from __future__ import annotations

import operator
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod
from typing import Any

from ggufkit.errors import PolicyError, printable
from ggufkit.policy.custom import name_condition, target_format, text_of
from ggufkit.policy.hyperparameters import Hyperparameters
from ggufkit.policy.presets import Preset, preset_by_name
from ggufkit.policy.recipe import UserRule
from ggufkit.policy.roles import Role, TensorRole
from ggufkit.policy.rules import Condition, Rule

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

__all__ = ["PolicyFile", "parse_policy", "read_policy"]


@dataclass(frozen=True)
class PolicyFile:
    """What a policy file says.

    Attributes
    ----------
    base : its preset, or None.
    rules : in order.
    """

    base: Preset | None
    rules: tuple[UserRule, ...]


def read_policy(path: str | os.PathLike[str]) -> PolicyFile:
    """Read and check a policy file.

    Raises
    ------
    FileError : it cannot be read.
    PolicyError : it is malformed; the message starts with ``file:line:``.
    """
    return parse_policy(text_of(path), printable(os.fspath(path)))


def parse_policy(text: str, file: str) -> PolicyFile:
    """The policy in `text`; `file` is what errors call it."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        line = re.search(r"\(at line (\d+), column \d+\)", str(e))
        number = line[1] if line else text.count("\n") + 1
        raise PolicyError(f"{file}:{number}: no TOML: {re.sub(r' [(]at .*[)]', '', str(e))}") from None
    except (RecursionError, ValueError) as e:  # a number of thousands of digits
        what = "too deeply nested" if isinstance(e, RecursionError) else f"no TOML: {e}"
        raise PolicyError(f"{file}: {printable(what)}") from None
    return _Reader(text, file, table).policy()


class _WrongError(Exception):
    """A value that cannot be; the message says what could."""


class _Reader:
    """A parsed file and the text that it came from.

    A part is the lines from one header to the next, a TOML text of its own:

        base = "Q4_K_M"       part 0
        [[rule]]              part 1
        type = "Q8_0"
        [[rule]]              part 2
        …
    """

    def __init__(self, text: str, file: str, table: dict[str, Any]):
        self.file, self.table = file, table
        self.parts = list(_parts(text.split("\n")))

    def policy(self) -> PolicyFile:
        self._check_keys(self.table, ("base", "rule"))
        base = None
        if "base" in self.table:
            try:
                base = preset_by_name(_text(self.table["base"]))
            except (PolicyError, _WrongError) as e:
                raise PolicyError(f"{self._where('base')}: base: {e}") from None
        rules = self.table.get("rule", [])
        if not (isinstance(rules, list) and all(isinstance(rule, dict) for rule in rules)):
            raise PolicyError(f"{self._where('rule')}: rules are tables, each below a line [[rule]]")
        return PolicyFile(base, tuple(self._rule(i, rule) for i, rule in enumerate(rules)))

    def _rule(self, i: int, table: dict[str, Any]) -> UserRule:
        source = self._where("rule", i)
        self._check_keys(table, ("type", *_CONDITIONS, "why"), "rule", i)
        if "type" not in table:
            raise PolicyError(f'{source}: the rule has no type, such as type = "Q8_0"')
        format, why, when = "", "", []
        for key, value in table.items():
            try:
                if key == "type":
                    format = "" if _text(value).lower() == "keep" else target_format(value, key).name
                elif key == "why":
                    why = _text(value)
                else:
                    when.append(_CONDITIONS[key](value))
            except _WrongError as e:
                raise PolicyError(f"{self._where('rule', i, key)}: {key}: {e}") from None
            except PolicyError as e:
                raise PolicyError(f"{self._where('rule', i, key)}: {e}") from None
        said = ", ".join(f"{key} {_shown(table[key])}" for key in table if key in _CONDITIONS)
        why = f"{os.path.basename(source)}: {printable(why or said or 'all others')}"
        return UserRule(Rule(format, when=tuple(when), why=why), f"{source}: the rule")

    def _check_keys(self, table: dict[str, Any], known: tuple[str, ...], *path: str | int) -> None:
        for key in table:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                raise PolicyError(f"{self._where(*path, key)}: unknown key {printable(repr(key))}; {hint}")

    def _where(self, *path: str | int) -> str:
        """``file:line`` of a value: the line on which the part that holds it has it first."""
        start, lines = self.parts[0]
        rules = [part for part in self.parts if part[1][0].split("#")[0].replace(" ", "").strip() == "[[rule]]"]
        if path[0] == "rule" and len(path) > 1 and len(rules) == len(self.table["rule"]):
            start, lines = rules[path[1]]  # type: ignore[index]
            path = ("rule", 0, *path[2:])
        elif path[0] not in tomllib.loads("\n".join(lines)):
            start, lines = next(part for part in self.parts if path[0] in tomllib.loads("\n".join(part[1])))
        for number in range(1, len(lines) + 1):
            try:
                found: Any = tomllib.loads("\n".join(lines[:number]))
                for step in path:
                    found = found[step]
            except (tomllib.TOMLDecodeError, KeyError, IndexError):
                continue
            return f"{self.file}:{start + number}"
        return self.file  # pragma: no cover


def _parts(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """(lines before it, its lines) of each part. A line of a text may look like a header: then what is before it is
    no TOML."""
    start = 0
    for end in range(1, len(lines) + 1):
        if end == len(lines) or lines[end].lstrip().startswith("["):
            try:
                tomllib.loads("\n".join(lines[start:end]))
            except tomllib.TOMLDecodeError:
                continue
            yield start, lines[start:end]
            start = end


def _shown(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)


# -- conditions -------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _WrongError(f"{printable(repr(value))} is no text")
    return value


def _role(value: Any) -> Condition:
    known = {role.value: role for role in Role}
    roles = []
    for name in value if isinstance(value, list) else [value]:
        if name not in known:
            raise _WrongError(f"{printable(repr(name))} is none of {', '.join(known)}")
        roles.append(known[name])
    return Condition("", lambda t, m: t.role in roles)


def _name(value: Any) -> Condition:
    return name_condition(_text(value), "name")


def _layers(value: Any) -> Condition:
    """A layer, or the first and the last one; negative numbers count from the end."""
    ends = value if isinstance(value, list) else [value, value]
    if len(ends) != 2 or not all(type(end) is int for end in ends):
        raise _WrongError(f"{printable(repr(value))} is no layer, and no [first, last]")
    if ends[0] > ends[1] and (ends[0] < 0) == (ends[1] < 0):
        raise _WrongError(f"layer {ends[0]} comes after {ends[1]}; write [first, last]")

    def holds(t: TensorRole, m: Hyperparameters) -> bool:
        first, last = (end + m.layers if end < 0 else end for end in ends)
        return t.layer is not None and first <= t.layer <= last

    return Condition("", holds)


_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "": operator.eq,
    "==": operator.eq,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


def _number(count: Callable[[tuple[int, ...]], int]) -> Callable[[Any], Condition]:
    """A condition on a number that `count` gets from the shape: ``4096`` or ``">= 4096"``."""

    def condition(value: Any) -> Condition:
        text = str(value) if isinstance(value, str) or (type(value) is int and abs(value) < 1 << 63) else ""
        found = re.fullmatch(r"\s*(<=|>=|==|<|>|)\s*([0-9][0-9_]{0,18})\s*", text)
        if not found:
            raise _WrongError(f'{printable(repr(value))} is not a number, and no comparison such as ">= 4096"')
        compare, limit = _COMPARISONS[found[1]], int(found[2])
        return Condition("", lambda t, m: compare(count(t.shape), limit))

    return condition


# Shapes are in NumPy order: (experts, rows, cols).
_CONDITIONS: dict[str, Callable[[Any], Condition]] = {
    "role": _role,
    "layers": _layers,
    "name": _name,
    "cols": _number(lambda shape: shape[-1]),
    "rows": _number(lambda shape: shape[-2] if len(shape) > 1 else 1),
    "weights": _number(prod),
    "dims": _number(len),
}
