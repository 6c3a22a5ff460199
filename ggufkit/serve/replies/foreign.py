"""Arguments that are written in no JSON: Gemma's braces and Python's calls."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from ggufkit.serve.replies.pieces import NoCall

__all__ = ["braces_to_json", "python_calls"]

_DEPTH = 50
_KEY = re.compile(r"\s*([^\s:{}\[\],]+)\s*:")
_WORD = re.compile(r"[^,\]}]*")


def braces_to_json(text: str, quote: str) -> str:
    """Gemma's ``{at:<escape>sky<escape>,far:3}`` as JSON.

    Raises
    ------
    NoCall : it is not written so.
    """
    value, at = _braces_value(text, 0, quote, 0)
    if text[at:].strip() or not isinstance(value, dict):
        raise NoCall
    return json.dumps(value, ensure_ascii=False)


def _braces_value(text: str, at: int, quote: str, depth: int) -> tuple[Any, int]:
    if depth > _DEPTH:
        raise NoCall
    while at < len(text) and text[at].isspace():
        at += 1
    if text.startswith(quote, at):
        end = text.find(quote, at + len(quote))
        if end < 0:
            raise NoCall
        return text[at + len(quote) : end], end + len(quote)
    sign = text[at : at + 1]
    if sign not in ("{", "["):
        match = _WORD.match(text, at)
        assert match is not None
        word = match[0].strip()
        try:
            return json.loads(word), match.end()
        except ValueError:
            return word, match.end()
    found: Any = {} if sign == "{" else []
    close = "}" if sign == "{" else "]"
    at += 1
    while True:
        while at < len(text) and (text[at].isspace() or text[at] == ","):
            at += 1
        if text.startswith(close, at):
            return found, at + 1
        if at >= len(text):
            raise NoCall
        if sign == "[":
            value, at = _braces_value(text, at, quote, depth + 1)
            found.append(value)
            continue
        if text.startswith(quote, at):  # a key in quotes
            key, at = _braces_value(text, at, quote, depth + 1)
            if not text.startswith(":", at):
                raise NoCall
            at += 1
        else:
            match = _KEY.match(text, at)
            if match is None:
                raise NoCall
            key, at = match[1].strip('"'), match.end()
        found[key], at = _braces_value(text, at, quote, depth + 1)


def python_calls(text: str) -> list[tuple[str, str]]:
    """Python's ``look(at='sky', far=3), listen()`` as names and arguments in JSON.

    Raises
    ------
    NoCall : it is not written so, or an argument is no constant.
    """
    try:
        tree = ast.parse(f"[{text.strip()}]", mode="eval").body
        assert isinstance(tree, ast.List)
        calls = [(ast.unparse(node.func), _arguments(node)) for node in tree.elts if isinstance(node, ast.Call)]
        if len(calls) != len(tree.elts) or not calls:
            raise NoCall
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError, AssertionError):
        raise NoCall from None
    return calls


def _arguments(call: ast.Call) -> str:
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise NoCall
    return json.dumps({str(k.arg): _constant(k.value) for k in call.keywords}, ensure_ascii=False)


def _constant(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):  # JSON's words
        return {"true": True, "false": False, "null": None}[node.id]
    if isinstance(node, ast.List):
        return [_constant(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {ast.literal_eval(k): _constant(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    return ast.literal_eval(node)
