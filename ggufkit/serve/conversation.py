"""Messages and tools of a request as a chat template takes them, whatever dialect they came in.

The common form is OpenAI's: ``{"role": …, "content": text}``, calls of tools as `tool_calls` with their arguments as
objects, results as messages of the role `tool`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ggufkit.errors import GGUFError
from ggufkit.runtime.seen import Prompt, Seen
from ggufkit.serve.bodies import Body
from ggufkit.serve.disarm import Disarmed
from ggufkit.serve.models import Served
from ggufkit.serve.problems import bad
from ggufkit.serve.replies.styles import Style
from ggufkit.serve.replies.writing import described, written

__all__ = ["MAX_MESSAGES", "MEDIA", "Conversation", "decoded", "joined", "openai_messages", "openai_tools"]

MEDIA = "\ue0f0"  # stands in a text for an image or sound
MAX_MEDIA = 16
MAX_MESSAGES = 10_000
MAX_TOOLS = 256
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True)
class Conversation:
    """What a model is asked.

    Attributes
    ----------
    messages : the last may be the beginning of the answer, where `goes_on`.
    tools : as OpenAI has them.
    variables : more for the template: `enable_thinking`, …
    goes_on : the last message is the assistant's, to be continued.
    media : images and sound, files; each stands where the messages have `MEDIA`.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    goes_on: bool = False
    media: Sequence[bytes] = ()

    @property
    def schemas(self) -> dict[str, Any]:
        """Name of a tool → JSON schema of its arguments."""
        return {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in self.tools}

    def prompt(self, served: Served) -> tuple[str, list[int]]:
        """The prompt, as a text and as tokens.

        Raises
        ------
        GgufkitError : the template fails, or refuses the conversation.
        """
        disarmed = Disarmed(served.tokenizer, self.messages)
        text = self._text(served, disarmed.messages)
        with served.encoding(text):
            return text, disarmed.tokens(text) if not self.media else self._with_media(served, text, disarmed)

    def _with_media(self, served: Served, text: str, disarmed: Disarmed) -> list[int]:
        media = served.engine.model.media
        if media is None:
            raise bad("this model was loaded without encoders of images and sound; it reads text alone", "messages")
        parts = text.split(MEDIA)
        if len(parts) != len(self.media) + 1:
            raise bad("the model's chat template leaves out what the user shows", "messages")
        ids, seen = disarmed.tokens(parts[0]), list[Seen]()
        for data, after in zip(self.media, parts[1:], strict=True):
            found = served.engine.see(media.prepared(data)).result()
            assert isinstance(found, Prompt)
            ids += [*found, *disarmed.tokens(after, first=False)]
            seen += found.seen
        return Prompt(ids, seen)

    def _text(self, served: Served, messages: list[Mapping[str, Any]]) -> str:
        template = served.tool_template if self.tools else served.template
        tools = list(self.tools)
        manner = served.manner
        if not manner.writes_calls:
            messages = [_with_written_calls(message, manner.style) for message in messages]
            if not manner.shows_tools:
                messages = _with_told_results(messages)
        if tools and not manner.shows_tools:
            messages, tools = _told_of_tools(messages, described(manner.style, tools)), []
        more: dict[str, Any] = {"tools": tools or None, **({"xml_tools": tools} if tools else {}), **self.variables}
        last = ""
        if self.goes_on:
            last = messages.pop()["content"] or ""
        try:
            return template.prompt(messages, **more) + last
        except GGUFError:
            texts = _with_texts(messages)
            if texts == messages:
                raise
            return template.prompt(texts, **more) + last


def _told_of_tools(messages: list[Mapping[str, Any]], text: str) -> list[Mapping[str, Any]]:
    """Messages that say what the tools are, for a template that does not."""
    if messages and messages[0]["role"] == "system":
        first = f"{messages[0]['content']}\n\n{text}"
        return [{**messages[0], "content": first}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _with_written_calls(message: Mapping[str, Any], style: Style) -> Mapping[str, Any]:
    """The message with its calls in its text, for a template that does not write them."""
    if not message.get("tool_calls"):
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    calls = [(one["name"], one["arguments"] if isinstance(one["arguments"], dict) else {}) for one in functions]
    texts = [message.get("content") or "", written(style, calls)]
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": "\n".join(text for text in texts if text)}


def _with_told_results(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Results of tools as the user tells them, neighbours in one message, for a template without tools."""
    found: list[Mapping[str, Any]] = []
    told = False
    for message in messages:
        if message["role"] != "tool":
            found.append(message)
            told = False
            continue
        text = f"<tool_response>\n{message['content']}\n</tool_response>"
        if told:
            text = f"{found.pop()['content']}\n{text}"
        found.append({"role": "user", "content": text})
        told = True
    return found


def _with_texts(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Messages with the arguments of calls as texts, which some templates take."""

    def with_text(call: Mapping[str, Any]) -> Mapping[str, Any]:
        function = call["function"]
        arguments = function["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return {**call, "function": {**function, "arguments": text}}

    return [
        {**message, "tool_calls": [with_text(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def openai_messages(body: Body, name: str = "messages", media: list[bytes] | None = None) -> list[dict[str, Any]]:
    """The messages of a body in OpenAI's form, checked; images and sound go to `media`, where there is such a list.

    Raises
    ------
    Problem : they are not of that form, or have in them what is no text.
    """
    found = [_message(message, media) for message in body.objects(name, MAX_MESSAGES)]
    if not found:
        raise body.wrong(name, "is missing or empty; there is nothing to answer")
    return found


def _message(body: Body, media: list[bytes] | None) -> dict[str, Any]:
    role = body.choice("role", _ROLES)
    if role is None:
        raise body.wrong("role", "is missing")
    content = text_of(body, "content", media if role == "user" else None)
    message: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": content}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if name in body:
            message[name] = body.text(name)
    if role == "function":
        message["role"] = "tool"
    if role == "assistant":
        calls = [_call(call) for call in body.objects("tool_calls", MAX_TOOLS)]
        if calls:
            message["tool_calls"] = calls
    return message


def text_of(body: Body, name: str, media: list[bytes] | None = None) -> str:
    """A text, or parts that are texts, as one text; images and sound go to `media`, and `MEDIA` into the text.

    Raises
    ------
    Problem : a part is an image or sound that is not taken here, or not in the body itself.
    """
    value = body.get(name, (str, list), "")
    if isinstance(value, str):
        return without_signs(body, name, value)
    parts: list[str] = []
    for part in body.objects(name, MAX_MESSAGES):
        kind = part.text("type", "text")
        if media is not None and kind in ("image_url", "input_audio"):
            media.append(media_of(part, kind, media))
            parts.append(MEDIA)
        elif kind in ("text", "input_text", "output_text", "refusal"):
            field = "text" if part.text("text") else "refusal"
            parts.append(without_signs(part, field, part.text(field) or ""))
        else:
            raise part.wrong("type", f"is {kind!r}; this server takes text here, and fetches nothing")
    return joined(parts)


def joined(parts: Sequence[str]) -> str:
    """Parts of a message as one text: each text on a line of its own, but beside what it is about."""
    text, behind = "", True
    for part in parts:
        if part == MEDIA:
            text, behind = text + part, True
        else:
            text, behind = text + ("" if behind else "\n") + part, False
    return text


def without_signs(body: Body, name: str, text: str) -> str:
    """A text that cannot be taken for an image.

    Raises
    ------
    Problem : it can.
    """
    if MEDIA in text:
        raise body.wrong(name, "has the character U+E0F0 in it, which stands for images here")
    return text


def media_of(part: Body, kind: str, others: Sequence[bytes]) -> bytes:
    """The bytes of an image or sound that is in a body.

    Raises
    ------
    Problem : it is somewhere else, is not base64, or there are too many.
    """
    if len(others) >= MAX_MEDIA:
        raise part.wrong("type", f"is one of more than {MAX_MEDIA} images and sounds")
    if kind == "input_audio":
        inner, name = part.at("input_audio"), "data"
    else:
        inner = part.at("image_url") if isinstance(part.fields.get("image_url"), dict) else part
        name = "image_url" if inner is part else "url"
    if inner is None:
        raise part.wrong(kind, "is missing")
    text: str = inner.need_text(name)
    if kind == "image_url":
        head, sign, text = text.partition(",")
        if not head.startswith("data:") or not head.endswith(";base64") or not sign:
            raise inner.wrong(name, "should be a data: URL in base64; this server fetches nothing")
    return decoded(inner, name, text)


def decoded(body: Body, name: str, text: str) -> bytes:
    """Base64 in a field.

    Raises
    ------
    Problem : it is not.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise body.wrong(name, "is not base64") from None


def _call(body: Body) -> dict[str, Any]:
    function = body.at("function")
    if function is None:
        raise body.wrong("function", "is missing")
    call = {"name": function.need_text("name"), "arguments": arguments_of(function.fields.get("arguments"))}
    return {"id": body.text("id", ""), "type": "function", "function": call}


def arguments_of(value: Any) -> Any:
    """A call's arguments as an object; what is none stays as it is."""
    if isinstance(value, str):
        try:
            parsed = json.loads(value or "{}")
        except (ValueError, RecursionError):
            return value
        return parsed if isinstance(parsed, dict) else value
    return {} if value is None else value


def openai_tools(body: Body) -> list[dict[str, Any]]:
    """The tools of a body in OpenAI's form.

    Raises
    ------
    Problem : they are not of that form.
    """
    found: list[dict[str, Any]] = []
    for tool in body.objects("tools", MAX_TOOLS):
        kind = tool.text("type", "function")
        if kind != "function":
            raise tool.wrong("type", f"is {kind!r}; this server knows tools of the type function alone")
        function = tool.at("function")
        if function is None:
            raise tool.wrong("function", "is missing")
        found.append(tool_of(function, "parameters"))
    return found


def tool_of(function: Body, schema: str) -> dict[str, Any]:
    """A tool in OpenAI's form.

    Parameters
    ----------
    schema : the field with the JSON schema of its arguments.
    """
    parameters = function.get(schema, dict) or {"type": "object", "properties": {}}
    described_as = function.text("description", "")
    made = {"name": function.need_text("name"), "description": described_as, "parameters": parameters}
    return {"type": "function", "function": made}


def named_tool(tools: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The tool of a name, in a list.

    Raises
    ------
    Problem : there is none.
    """
    found = [tool for tool in tools if tool["function"]["name"] == name]
    if not found:
        raise bad(f"tool_choice names {name!r}, which is none of the tools", "tool_choice")
    return found
