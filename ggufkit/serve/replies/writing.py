"""A call as a model of some style writes it, and what a model is told that knows nothing of tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ggufkit.serve.replies.elements import elements_of
from ggufkit.serve.replies.layout import Layout, Literal, Maybe, layout_of
from ggufkit.serve.replies.styles import Style

__all__ = ["described", "written"]


def written(style: Style, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Calls as text.

    Parameters
    ----------
    calls : (name, arguments) of each.
    """
    layout = layout_of(style.call)
    if any(not isinstance(part, (Literal, Maybe)) and part.name in ("calls", "keyed", "python") for part in layout):
        return _filled(style, layout, calls)
    return style.section[0] + style.between.join(_filled(style, layout, [call]) for call in calls) + style.section[1]


def described(style: Style, tools: Sequence[Any]) -> str:
    """What a model is told of its tools and how to call one.

    Parameters
    ----------
    tools : as OpenAI has them: ``{"type": "function", "function": {"name": …, "parameters": {…}}}``.
    """
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    example = written(style, [("name_of_the_function", {"argument": "value"})])
    return (
        "You may call one or more functions. They are, as JSON:\n\n"
        f"{lines}\n\n"
        "To call a function, write exactly this, with its name and arguments, and nothing after it:\n\n"
        f"{example}"
    )


def _filled(style: Style, layout: Layout, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    name, arguments = calls[0]
    parts: list[str] = []
    for part in layout:
        if isinstance(part, Literal):
            parts.append(part.text)
        elif isinstance(part, Maybe):
            parts.append(
                _filled(style, part.parts, calls)
                if part.parts[0] == Literal("[") or part.parts[0] == Literal("]")
                else ""
            )
        elif part.name == "parameters":
            parts += [_parameter(style, key, value) for key, value in arguments.items()]
        else:
            parts.append(_slot(style, part.name, name, arguments, calls))
    return "".join(parts)


def _slot(
    style: Style, slot: str, name: str, arguments: Mapping[str, Any], calls: Sequence[tuple[str, Mapping[str, Any]]]
) -> str:
    if slot in ("call", "calls"):
        many = calls if slot == "calls" else calls[:1]
        return ", ".join(_json(dict(zip(style.keys, call, strict=True))) for call in many)
    if slot == "keyed":
        return ", ".join(_json({each: its}) for each, its in calls)
    if slot == "python":
        return ", ".join(f"{each}({', '.join(f'{k}={v!r}' for k, v in its.items())})" for each, its in calls)
    if slot == "elements":
        return elements_of(arguments, style.quote)
    if slot == "braces":
        return _braces(arguments, style.quote)
    return {"name": name, "id": "abcdefgh1", "index": "0", "json": _json(arguments)}[slot]


def _parameter(style: Style, key: str, value: Any) -> str:
    text = isinstance(value, str)
    shown = {"key": key, "value": value if text else _json(value), "string": "true" if text else "false"}
    shown["type"] = "string" if text else "number"
    return "".join(
        part.text if isinstance(part, Literal) else shown[part.name]
        for part in layout_of(style.parameter)
        if not isinstance(part, Maybe)
    )


def _braces(value: Any, quote: str) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_braces(item, quote)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_braces(item, quote) for item in value) + "]"
    return f"{quote}{value}{quote}" if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
