"""Jinja templates of strangers, run by `child.py`: at most a second of computing, 128 MB, and a few MB of text.

    check("{% for %}")                                  Broken("expected token …", line=1)
    render("{{ messages[0].content }}", {"messages": …})

The process is started when the first template comes, and again after one that had to be ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ggufkit.sandbox.process import Child

__all__ = ["BrokenTemplate", "FailedTemplate", "RefusedByTemplate", "check", "render"]

# Seconds of computing, and what a megabyte of input adds.
_SECONDS, _PER_MEGABYTE = 1.0, 1.0

# Characters of output, beyond four for each of the input.
_OUTPUT = 4 << 20


class BrokenTemplate(Exception):
    """It does not compile; `line` says where, or is None."""

    def __init__(self, message: str, line: int | None = None):
        super().__init__(message)
        self.line = line


class FailedTemplate(Exception):
    """It went wrong while it ran."""


class RefusedByTemplate(Exception):
    """It refused what it was given, by `raise_exception`."""


def check(source: str) -> bool:
    """Compile a template; returns whether it wants to load another one.

    Raises
    ------
    BrokenTemplate : it does not compile.
    """
    try:
        return bool(_ask({"source": source})["loads"])
    except FailedTemplate as e:
        raise BrokenTemplate(str(e)) from None


def render(source: str, variables: Mapping[str, Any]) -> str:
    """The text of a template.

    Parameters
    ----------
    variables : what JSON can hold.

    Raises
    ------
    BrokenTemplate, FailedTemplate, RefusedByTemplate : it gives none.
    TypeError : a variable is nothing for JSON.
    """
    size = len(json.dumps(variables))
    text: str = _ask({"source": source, "variables": variables, "limit": _OUTPUT + 4 * size})["text"]
    return text


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(request)
    seconds = _SECONDS + _PER_MEGABYTE * len(text) / 1e6
    answer = _process.ask(request, seconds)
    if "broken" in answer:
        raise BrokenTemplate(answer["broken"], answer["line"])
    if "refused" in answer:
        raise RefusedByTemplate(answer["refused"])
    if "failed" in answer:
        raise FailedTemplate(answer["failed"])
    return answer


_process = Child()
