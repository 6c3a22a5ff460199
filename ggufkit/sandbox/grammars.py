"""Grammars and JSON schemas of strangers, compiled by `child.py` first: at most two seconds and 128 MB."""

from __future__ import annotations

from functools import lru_cache

from ggufkit.sandbox.process import Child

__all__ = ["compile_error"]

_SECONDS = 2.0
_WAITING = 8  # of those who ask: a server has other things to do


@lru_cache(256)
def compile_error(grammar: str) -> str:
    """What is wrong with a grammar, "" for nothing.

    Parameters
    ----------
    grammar : as llguidance's `LLMatcher` takes it.

    Raises
    ------
    Busy : too many wait.
    """
    answer = _process.ask({"grammar": grammar}, _SECONDS)
    return str(answer.get("error", answer.get("failed", "")))


_process = Child(_WAITING)
