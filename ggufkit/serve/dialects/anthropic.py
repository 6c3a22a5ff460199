"""Anthropic's: POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from ggufkit.serve.answers import Answer, Started
from ggufkit.serve.asks import Ask, chat_ask, choosing_of
from ggufkit.serve.bodies import Body
from ggufkit.serve.call import Call, Dialect, json_response, route
from ggufkit.serve.conversation import (
    MAX_MEDIA,
    MAX_MESSAGES,
    MAX_TOOLS,
    MEDIA,
    Conversation,
    decoded,
    joined,
    text_of,
    tool_of,
    without_signs,
)
from ggufkit.serve.engine.request import Finished, Usage
from ggufkit.serve.models import Served
from ggufkit.serve.problems import Problem
from ggufkit.serve.replies.pieces import CallBegins, CallText, Piece, Said
from ggufkit.serve.settings import Settings
from ggufkit.serve.sse import frame

__all__ = ["ANTHROPIC", "routes"]

_KINDS = {
    "exceed_context_size_error": "invalid_request_error",
    "server_error": "api_error",
    "unavailable_error": "overloaded_error",
}


def _shape(problem: Problem) -> Any:
    message = problem.message
    if problem.code == "context_length_exceeded":
        message = f"prompt is too long: {message}"  # the words that agents look for
    return {"type": "error", "error": {"type": _KINDS.get(problem.kind, problem.kind), "message": message}}


ANTHROPIC = Dialect("anthropic", _shape)


def _failed(problem: Problem) -> bytes:
    return frame(_shape(problem), "error")


def _conversation(body: Body) -> Conversation:
    messages: list[dict[str, Any]] = []
    media: list[bytes] = []
    if system := text_of(body, "system"):
        messages.append({"role": "system", "content": system})
    for message in body.objects("messages", MAX_MESSAGES):
        messages += _messages(message, media)
    if not any(message["role"] != "system" for message in messages):
        raise body.wrong("messages", "is missing or empty; there is nothing to answer")
    tools: list[Mapping[str, Any]] = []
    for tool in body.objects("tools", MAX_TOOLS):
        if tool.text("type", "custom") != "custom":
            raise tool.wrong("type", f"is {tool.text('type')!r}; this server knows tools with an input_schema alone")
        tools.append(tool_of(tool, "input_schema"))
    thinking = body.at("thinking")
    variables = {} if thinking is None else {"enable_thinking": thinking.text("type", "enabled") != "disabled"}
    goes_on = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    return Conversation(messages, tools, variables, goes_on, media)


def _messages(body: Body, media: list[bytes]) -> list[dict[str, Any]]:
    """One of Anthropic's messages in OpenAI's form; results of tools are messages of their own there."""
    role = body.choice("role", ("user", "assistant", "system"), "user")
    content = body.get("content", (str, list), "")
    if isinstance(content, str):
        return [{"role": role, "content": without_signs(body, "content", content)}]
    texts: list[str] = []
    results: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for part in body.objects("content", MAX_MESSAGES):
        kind = part.text("type", "text")
        if kind == "text":
            texts.append(without_signs(part, "text", part.text("text", "")))
        elif kind == "image" and role == "user":
            media.append(_image(part, media))
            texts.append(MEDIA)
        elif kind == "tool_use":
            function = {"name": part.need_text("name"), "arguments": part.get("input", dict) or {}}
            calls.append({"id": part.text("id", ""), "type": "function", "function": function})
        elif kind == "tool_result":
            result = {"role": "tool", "tool_call_id": part.text("tool_use_id", ""), "content": text_of(part, "content")}
            results.append(result)
        elif kind == "thinking":
            thoughts.append(part.text("thinking", ""))
        elif kind != "redacted_thinking":
            raise part.wrong("type", f"is {kind!r}; this server takes text only, and fetches nothing")
    message: dict[str, Any] = {"role": role, "content": joined(texts)}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return [*results, message] if texts or calls or not results else results


def _image(part: Body, others: Sequence[bytes]) -> bytes:
    source = part.at("source")
    if source is None:
        raise part.wrong("source", "is missing")
    if source.text("type", "base64") != "base64":
        raise source.wrong("type", f"is {source.text('type')!r}; it should be base64: this server fetches nothing")
    if len(others) >= MAX_MEDIA:
        raise part.wrong("type", f"is one of more than {MAX_MEDIA} images")
    return decoded(source, "data", source.need_text("data"))


def _asked(body: Body, served: Served, settings: Settings) -> Ask:
    choosing = choosing_of(body, served, settings, ("max_tokens",))
    stops = tuple(text for text in body.texts("stop_sequences", settings.stops) if text)
    choosing = dataclasses.replace(choosing, stop=stops, n=1)
    choice, many = "auto", True
    given = body.at("tool_choice")
    if given is not None:
        kind = given.choice("type", ("auto", "any", "tool", "none"), "auto")
        choice = {"any": "required", "tool": "named"}.get(kind, kind)
        many = not given.flag("disable_parallel_tool_use")
    named: str | dict[str, str] = choice
    if choice == "named" and given is not None:
        named = {"name": given.need_text("name")}
    return chat_ask(served, _conversation(body), choosing, tool_choice=named, many_calls=many)


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _reason(end: Finished, calls: bool) -> tuple[str, str | None]:
    """(stop_reason, stop_sequence)"""
    if end.reason == "length":
        return "max_tokens", None
    if calls:
        return "tool_use", None
    return ("stop_sequence", end.stop) if isinstance(end.stop, str) else ("end_turn", None)


async def _answer(call: Call) -> Response:
    body = await call.body()
    served = await call.model(body.text("model"))
    started = await call.begin(served, lambda: _asked(body, served, call.settings))
    head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": served.name}
    if body.flag("stream"):
        ping = frame({"type": "ping"}, "ping")
        return call.stream(_frames(started, head), _failed, ping=ping)
    [answer] = await call.unless_gone(started.whole())
    assert answer.end is not None
    content: list[dict[str, Any]] = []
    if answer.thoughts:
        content.append({"type": "thinking", "thinking": answer.thoughts, "signature": ""})
    if answer.text or not answer.calls:
        content.append({"type": "text", "text": answer.text})
    content += [
        {"type": "tool_use", "id": f"toolu_{call.id}", "name": call.name, "input": _input(call.arguments)}
        for call in answer.calls
    ]
    reason, sequence = _reason(answer.end, bool(answer.calls))
    return json_response(
        {**head, "content": content, "stop_reason": reason, "stop_sequence": sequence, "usage": _usage(answer.usage)}
    )


def _input(arguments: str) -> Any:
    """A call's arguments as an object; of a call that was cut off, none."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


async def _frames(started: Started, head: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    def send(kind: str, **fields: Any) -> bytes:
        return frame({"type": kind, **fields}, kind)

    start = {**head, "content": [], "stop_reason": None, "stop_sequence": None}
    yield send("message_start", message={**start, "usage": _usage(Usage(started.prompt_tokens))})
    blocks = _Blocks()
    answer = Answer()
    async with aclosing(started.updates()) as updates:
        async for update in updates:
            for piece in update.pieces:
                answer.add(dataclasses.replace(update, pieces=[piece], tokens=[]))
                for one in blocks.put(piece, answer):
                    yield one
            answer.end = update.end or answer.end
    for one in blocks.end():
        yield one
    assert answer.end is not None
    reason, sequence = _reason(answer.end, bool(answer.calls))
    yield send("message_delta", delta={"stop_reason": reason, "stop_sequence": sequence}, usage=_usage(answer.usage))
    yield send("message_stop")


class _Blocks:
    """The blocks of a streamed message: which is open, and its events."""

    def __init__(self) -> None:
        self._index = -1
        self._open = ""

    def put(self, piece: Piece, answer: Answer) -> Iterator[bytes]:
        """The events of a piece."""
        if isinstance(piece, CallBegins):
            yield from self._begin("tool_use", id=f"toolu_{answer.calls[-1].id}", name=piece.name, input={})
        elif isinstance(piece, CallText):
            yield self._delta("input_json_delta", partial_json=piece.text)
        elif isinstance(piece, Said):
            if self._open != "text":
                yield from self._begin("text", text="")
            yield self._delta("text_delta", text=piece.text)
        else:
            if self._open != "thinking":
                yield from self._begin("thinking", thinking="", signature="")
            yield self._delta("thinking_delta", thinking=piece.text)

    def end(self) -> Iterator[bytes]:
        """The end of the block that is open; an empty text where there was none at all."""
        if self._index < 0:
            yield from self._begin("text", text="")
        if self._open == "thinking":
            yield self._delta("signature_delta", signature="")
        yield self._event("content_block_stop")
        self._open = ""

    def _begin(self, kind: str, **fields: Any) -> Iterator[bytes]:
        if self._open:
            yield from self.end()
        self._index += 1
        self._open = kind
        yield self._event("content_block_start", content_block={"type": kind, **fields})

    def _delta(self, kind: str, **fields: Any) -> bytes:
        return self._event("content_block_delta", delta={"type": kind, **fields})

    def _event(self, kind: str, **fields: Any) -> bytes:
        return frame({"type": kind, "index": self._index, **fields}, kind)


async def _count(call: Call) -> Response:
    body = await call.body()
    served = await call.model(body.text("model"))
    _, tokens = await asyncio.to_thread(_conversation(body).prompt, served)
    return json_response({"input_tokens": len(tokens)})


def routes() -> list[Route]:
    """Messages, and how many tokens they have."""
    return [
        route("/v1/messages", _answer, ANTHROPIC),
        route("/v1/messages/count_tokens", _count, ANTHROPIC),
    ]
