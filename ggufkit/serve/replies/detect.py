"""Which row of `styles` a chat template writes.

A template is asked to write down a call that is known; the row whose parser reads it back is the model's. Where a
template does not write calls, the marks in its text tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggufkit.errors import GgufkitError
from ggufkit.runtime.chat import ChatTemplate, Message
from ggufkit.serve.replies.functionary import FunctionaryParser
from ggufkit.serve.replies.harmony import HarmonyParser
from ggufkit.serve.replies.muse import MuseParser
from ggufkit.serve.replies.parser import Incremental, ReplyParser
from ggufkit.serve.replies.pieces import CallBegins, CallText, Piece
from ggufkit.serve.replies.styles import FUNCTIONARY, HARMONY, MUSE, STYLES, THOUGHTS, Style, Thoughts

__all__ = ["Manner", "manner_of", "reads_back"]

_NAME, _ARGUMENTS = "ggufkitprobe", {"at": "sky", "far": 3}
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Look.",
        "parameters": {
            "type": "object",
            "properties": {
                "at": {"type": "string", "description": "where"},
                "far": {"type": "integer", "description": "m"},
            },
            "required": ["at"],
        },
    },
}
_USER: Message = {"role": "user", "content": "What do you see?"}
_TOOLS = {_NAME: _TOOL["function"]["parameters"]}  # type: ignore[index]
# Styles with parsers of their own: (style, parser, what their templates have in them).
_OWN: tuple[tuple[Style, type[HarmonyParser | FunctionaryParser], tuple[str, ...]], ...] = (
    (HARMONY, HarmonyParser, ("<|channel|>", "<|message|>")),
    (MUSE, MuseParser, ("<atem:function_calls>", "<|message|>")),
    (FUNCTIONARY, FunctionaryParser, (">>>all",)),
)
_PARSERS = {style.name: parser for style, parser, _ in _OWN}
_PLAIN = next(style for style in STYLES if style.name == "hermes")


@dataclass(frozen=True)
class Manner:
    """How a model replies.

    Attributes
    ----------
    style : how it writes calls.
    thoughts : what stands around its thoughts, or None.
    shows_tools : the template tells the model of the tools; else somebody has to.
    writes_calls : it writes the calls of an assistant's message; else its text has to have them.
    """

    style: Style
    thoughts: Thoughts | None = None
    shows_tools: bool = False
    writes_calls: bool = False

    def parser(self, tools: Mapping[str, Any], prompt: str, apart: bool = True) -> Incremental:
        """A parser for the reply to a prompt.

        Parameters
        ----------
        tools : name → JSON schema of its arguments.
        apart : tell thoughts from text.
        """
        if self.style.name in _PARSERS:
            return _PARSERS[self.style.name](tools)
        thoughts = self.thoughts if apart else None
        return ReplyParser(self.style, thoughts, tools, thinking=self.thinks(prompt) and apart)

    def thinks(self, prompt: str) -> bool:
        """Whether a prompt ends within thoughts."""
        return self.thoughts is not None and prompt.rstrip().endswith(self.thoughts.opening.strip())

    @property
    def marks(self) -> list[str]:
        """What the parser looks for, which a text without its control tokens would lack."""
        if self.style.name in _PARSERS:
            return list(_PARSERS[self.style.name].MARKS)
        around = [self.thoughts.opening.strip(), self.thoughts.closing] if self.thoughts else []
        return [*self.style.marks, *around]


def manner_of(template: ChatTemplate) -> Manner:
    """What a template tells of its model."""
    source = template.source
    shows_tools = _NAME in (_rendered(template, [_USER], True) or "")
    written = _written_call(template)
    writes = written is not None and _NAME in written
    for style, _, telling_marks in _OWN:
        if all(mark in source for mark in telling_marks):
            return Manner(style, None, shows_tools, writes)
    seen = source + (written or "")  # some put their marks together from parts
    thoughts = next((marks for marks in THOUGHTS if marks.closing.strip() in seen), None)
    telling = [style for style in STYLES if not style.bare and all(mark in source for mark in style.telling)]
    if written is not None:
        for style in (*telling, *(style for style in STYLES if style not in telling)):
            parser = ReplyParser(style, thoughts, _TOOLS)
            if _is_the_call([*parser.feed(written), *parser.close()]):
                return Manner(style, thoughts, shows_tools, writes)
    if telling:
        return Manner(telling[0], thoughts, shows_tools, writes)
    return Manner(_PLAIN, thoughts, False, writes)


def reads_back(template: ChatTemplate) -> bool | None:
    """Whether the parser reads the call that a template writes; None where it writes none that can be found."""
    text = _written_call(template)
    if text is None or _NAME not in text:
        return None
    parser = manner_of(template).parser(_TOOLS, "")
    return _is_the_call([*parser.feed(text), *parser.close()])


def _written_call(template: ChatTemplate) -> str | None:
    """What the template writes for an assistant's call."""
    in_text = json.dumps(_ARGUMENTS)
    for arguments, more in ((_ARGUMENTS, {}), (in_text, {}), (_ARGUMENTS, {"reasoning_content": "I look."})):
        call = {"id": "ggufkit00", "type": "function", "function": {"name": _NAME, "arguments": arguments}}
        said: Message = {"role": "assistant", "content": "", "tool_calls": [call], **more}
        whole = _rendered(template, [_USER, said], False)
        before = _rendered(template, [_USER], True)
        if whole is None or before is None:
            continue
        if not whole.startswith(before):
            before = _rendered(template, [_USER], False) or ""
        return whole[_common(whole, before) :]
    return None


def _rendered(template: ChatTemplate, messages: Sequence[Message], asks: bool) -> str | None:
    try:
        return template.render(messages, add_generation_prompt=asks, tools=[_TOOL], xml_tools=[_TOOL])
    except GgufkitError:
        return None


def _common(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _is_the_call(pieces: Sequence[Piece]) -> bool:
    names = [piece.name for piece in pieces if isinstance(piece, CallBegins)]
    text = "".join(piece.text for piece in pieces if isinstance(piece, CallText))
    try:
        return names == [_NAME] and json.loads(text) == _ARGUMENTS
    except ValueError:
        return False
