"""gpt-oss's way: a reply is several messages, each with a channel and maybe somebody it is for.

    <|channel|>analysis<|message|>Let me see<|end|><|start|>assistant<|channel|>final<|message|>It rains.<|return|>
    <|channel|>commentary to=functions.look <|constrain|>json<|message|>{"at": "sky"}<|call|>

Source: the guide to the harmony format that OpenAI published with the models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ggufkit.serve.replies.parser import Incremental
from ggufkit.serve.replies.pieces import CallBegins, CallText, NoCall, Said, Thought
from ggufkit.serve.replies.reader import Waiting

__all__ = ["HarmonyParser"]

_HEAD = 200  # characters between a message's beginning and <|message|>
_TO = re.compile(r"to=(?:functions\.)?([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*([a-z]+)")


class HarmonyParser(Incremental):
    """Takes such a reply apart while it comes; a `ReplyParser` for one family.

    Parameters
    ----------
    tools : name → JSON schema of its arguments. What is for others is text.
    """

    MARKS: tuple[str, ...] = (
        "<|channel|>",
        "<|message|>",
        "<|start|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|constrain|>",
    )
    _ENDS: tuple[str, ...] = ("<|end|>", "<|return|>", "<|call|>", "<|start|>")
    _BEGINNINGS: tuple[str, ...] = ("<|channel|", "<|start|>", "assistant", "to=", "<|constrai")

    def __init__(self, tools: Mapping[str, Any] | None = None):
        super().__init__()
        self._tools = tools or {}
        self._begin()

    def _run(self) -> Waiting[None]:
        while (yield from self._reader.has(1)):
            head = yield from self._head()
            yield from self._message(head)
            for mark in self._ENDS:
                if (yield from self._reader.passes(mark)):
                    break
            self._reader.forget()

    def _message(self, head: str) -> Waiting[None]:
        """A message up to one of its ends."""
        to, channel = _TO.search(head), _CHANNEL.search(head)
        if to is not None and to[1] in self._tools:
            self._out.put(CallBegins(to[1]))
            yield from self._reader.first_of(self._ENDS, lambda text: self._out.put(CallText(text)))
        elif channel is not None and channel[1] == "analysis":
            yield from self._reader.first_of(self._ENDS, lambda text: self._out.put(Thought(text)))
        else:
            yield from self._reader.first_of(self._ENDS, lambda text: self._out.put(Said(text)))

    def _head(self) -> Waiting[str]:
        """What stands before <|message|>, which is passed; "" where there is no such thing."""
        begins = self._reader.text[self._reader.at :].lstrip()
        while not self._reader.ended and any(mark.startswith(begins) and mark != begins for mark in self._BEGINNINGS):
            yield
            begins = self._reader.text[self._reader.at :].lstrip()
        if not begins.startswith(self._BEGINNINGS):
            return ""
        try:
            head = yield from self._reader.upto("<|message|>", limit=_HEAD)
        except NoCall:
            return ""
        self._reader.at += len("<|message|>")
        self._reader.forget()
        return head
