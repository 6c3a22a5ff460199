"""Muse Glimmer's way: a reply is several messages, each for somebody, and calls are elements in one for a tool.

     to=self<|message|>Let me see<|eom|><|start|>assistant to=look<|message|><atem:function_calls>
    <atem:invoke name="look">
    <atem:parameter name="at">sky</atem:parameter>
    </atem:invoke>
    </atem:function_calls><|eot|>

Source: the chat template that the models come with.
"""

from __future__ import annotations

import re

from ggufkit.serve.replies.harmony import HarmonyParser
from ggufkit.serve.replies.layout import layout_of
from ggufkit.serve.replies.pieces import NoCall, Said, Thought
from ggufkit.serve.replies.reader import Waiting
from ggufkit.serve.replies.slots import CallReader
from ggufkit.serve.replies.styles import MUSE

__all__ = ["MuseParser"]

_CALL = layout_of(MUSE.call[MUSE.call.index("<atem:function_calls>") :])
_TO = re.compile(r"to=([^\s<]+)")


class MuseParser(HarmonyParser):
    """Takes such a reply apart while it comes; a `ReplyParser` for one family."""

    MARKS = ("<|start|>", "<|message|>", "<|eom|>", "<|eot|>", "<atem:function_calls>", "</atem:function_calls>")
    _ENDS = ("<|eom|>", "<|eot|>", "<|start|>")
    _BEGINNINGS = ("<|start|>", "assistant", "to=", "<|message|>")

    def _message(self, head: str) -> Waiting[None]:
        to = _TO.search(head)
        if to is not None and to[1] == "self":
            yield from self._reader.first_of(self._ENDS, lambda text: self._out.put(Thought(text)))
            return
        if to is not None and to[1] != "user" and self._tools:
            calls = CallReader(self._reader, self._out.put, self._tools, parameter=MUSE.parameter)
            start = self._reader.at
            try:
                yield from calls.read(_CALL)
                yield from self._reader.first_of(self._ENDS, lambda text: None)
                return
            except NoCall:
                self._reader.at = start
        yield from self._reader.first_of(self._ENDS, lambda text: self._out.put(Said(text)))
