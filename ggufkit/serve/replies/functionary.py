"""Functionary's way since 3.2: a reply is for all, or for a tool by its name. The prompt ends with the first >>>.

all
It rains.>>>look
{"at": "sky"}

Source: the chat template that the models come with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggufkit.serve.replies.parser import Incremental
from ggufkit.serve.replies.pieces import CallBegins, CallText, Said
from ggufkit.serve.replies.reader import Waiting

__all__ = ["FunctionaryParser"]


class FunctionaryParser(Incremental):
    """Takes such a reply apart while it comes; a `ReplyParser` for one family.

    Parameters
    ----------
    tools : name → JSON schema of its arguments. What is for others is text.
    """

    MARKS: tuple[str, ...] = ()

    def __init__(self, tools: Mapping[str, Any] | None = None):
        super().__init__()
        self._for = ("all", *(tools or {}))
        self._begin()

    def _run(self) -> Waiting[None]:
        marks = [f">>>{name}\n" for name in self._for]
        name = ""
        for one in self._for:
            if (yield from self._reader.passes(f"{one}\n")):
                name = one
                break
        while True:
            put = self._say
            if name not in ("", "all"):
                if (yield from self._reader.begins("{")):
                    self._out.put(CallBegins(name))
                    yield from self._reader.json_flow(lambda text: self._out.put(CallText(text)))
                    put = self._drop
                else:
                    self._say(f"{name}\n")
            mark = yield from self._reader.first_of(marks, put)
            if mark is None:
                return
            self._reader.at += len(mark)
            name = mark[3:-1]

    def _say(self, text: str) -> None:
        self._out.put(Said(text))

    def _drop(self, text: str) -> None:
        """What follows a call up to the next is white space, or the end of the turn."""
