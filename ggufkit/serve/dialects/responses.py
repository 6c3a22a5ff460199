"""OpenAI's newer form: POST /v1/responses. Nothing is stored: a conversation comes whole each time."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from ggufkit.runtime.constrain.grammar import Grammar
from ggufkit.serve.answers import Answer, Started
from ggufkit.serve.asks import Ask, chat_ask, choosing_of
from ggufkit.serve.bodies import Body
from ggufkit.serve.call import Call, json_response, route
from ggufkit.serve.conversation import MAX_MESSAGES, MAX_TOOLS, Conversation, arguments_of, text_of, tool_of
from ggufkit.serve.dialects.openai import OPENAI
from ggufkit.serve.engine.request import Usage
from ggufkit.serve.models import Served
from ggufkit.serve.problems import Problem
from ggufkit.serve.replies.pieces import CallBegins, CallText, Piece, Said, Thought
from ggufkit.serve.settings import Settings
from ggufkit.serve.sse import frame

__all__ = ["routes"]

_KINDS = ("message", "function_call", "function_call_output", "reasoning")


def _conversation(body: Body) -> Conversation:
    if body.text("previous_response_id"):
        raise body.wrong(
            "previous_response_id", "is not known: this server stores nothing; send the whole conversation"
        )
    messages: list[dict[str, Any]] = []
    if instructions := body.text("instructions"):
        messages.append({"role": "system", "content": instructions})
    given = body.get("input", (str, list))
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        for item in body.objects("input", MAX_MESSAGES):
            _add(messages, item)
    if not any(message["role"] != "system" for message in messages):
        raise body.wrong("input", "is missing or empty; there is nothing to answer")
    tools: list[dict[str, Any]] = []
    for tool in body.objects("tools", MAX_TOOLS):
        if tool.text("type", "function") != "function":
            raise tool.wrong("type", f"is {tool.text('type')!r}; this server knows tools of the type function alone")
        tools.append(tool_of(tool, "parameters"))
    reasoning = body.at("reasoning")
    effort = None if reasoning is None else reasoning.text("effort")
    variables: dict[str, Any] = {}
    if effort is not None:
        variables = {"reasoning_effort": effort, "enable_thinking": effort not in ("none", "minimal")}
    return Conversation(messages, tools, variables)


def _add(messages: list[dict[str, Any]], item: Body) -> None:
    """An item of the input, as a message or a part of the last one."""
    kind = item.choice("type", _KINDS, "message")
    if kind == "message":
        role = item.choice("role", ("user", "assistant", "system", "developer"), "user")
        content = text_of(item, "content")
        messages.append({"role": "system" if role == "developer" else role, "content": content})
    elif kind == "function_call_output":
        output = text_of(item, "output")
        messages.append({"role": "tool", "tool_call_id": item.text("call_id", ""), "content": output})
    elif kind == "function_call":
        function = {"name": item.need_text("name"), "arguments": arguments_of(item.text("arguments", ""))}
        call = {"id": item.text("call_id", ""), "type": "function", "function": function}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        messages[-1].setdefault("tool_calls", []).append(call)


def _asked(body: Body, served: Served, settings: Settings) -> Ask:
    choosing = choosing_of(body, served, settings, ("max_output_tokens",))
    text = body.at("text")
    form = None if text is None else text.at("format")
    grammar = None
    if form is not None:
        kind = form.choice("type", ("text", "json_object", "json_schema"), "text")
        if kind == "json_object":
            grammar = Grammar.json_object()
        elif kind == "json_schema":
            grammar = Grammar.json_schema(form.get("schema", (dict, bool)) or {})
    choosing = dataclasses.replace(choosing, grammar=grammar, n=1)
    choice = body.get("tool_choice", (str, dict), "auto")
    if isinstance(choice, dict):
        choice = {"name": Body(choice, "tool_choice").need_text("name")}
    elif choice not in ("auto", "none", "required"):
        raise body.wrong("tool_choice", "must be auto, none, required or the name of a function")
    many = body.flag("parallel_tool_calls", True)
    return chat_ask(served, _conversation(body), choosing, tool_choice=choice, many_calls=many)


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


@dataclasses.dataclass(frozen=True)
class _Head:
    """What a response says of itself."""

    id: str
    created: int
    model: str
    body: Body

    def with_output(self, status: str, output: list[Any], usage: Usage | None = None) -> dict[str, Any]:
        """The response as it is now."""
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": cut,
            "instructions": self.body.text("instructions"),
            "max_output_tokens": self.body.fields.get("max_output_tokens"),
            "model": self.model,
            "output": output,
            "parallel_tool_calls": self.body.flag("parallel_tool_calls", True),
            "previous_response_id": None,
            "store": False,
            "temperature": self.body.fields.get("temperature"),
            "text": self.body.fields.get("text") or {"format": {"type": "text"}},
            "tool_choice": self.body.fields.get("tool_choice") or "auto",
            "tools": self.body.fields.get("tools") or [],
            "top_p": self.body.fields.get("top_p"),
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
            "metadata": self.body.fields.get("metadata") or {},
        }


async def _answer(call: Call) -> Response:
    body = await call.body()
    served = await call.model(body.text("model"))
    started = await call.begin(served, lambda: _asked(body, served, call.settings))
    head = _Head(f"resp_{secrets.token_hex(12)}", int(time.time()), served.name, body)
    events = _Events(head)
    if body.flag("stream"):
        return call.stream(_frames(started, events), events.failed)
    [answer] = await call.unless_gone(started.whole())
    for piece in _pieces(answer):
        for _ in events.put(piece):
            pass
    for _ in events.end(answer):
        pass
    return json_response(events.response(answer))


def _pieces(answer: Answer) -> Iterator[Piece]:
    if answer.thoughts:
        yield Thought(answer.thoughts)
    if answer.text or not answer.calls:
        yield Said(answer.text)
    for call in answer.calls:
        yield CallBegins(call.name, call.id)
        yield CallText(call.arguments)


async def _frames(started: Started, events: _Events) -> AsyncGenerator[bytes, None]:
    answer = Answer()
    yield events.event("response.created", response=events.head.with_output("in_progress", []))
    yield events.event("response.in_progress", response=events.head.with_output("in_progress", []))
    async with aclosing(started.updates()) as updates:
        async for update in updates:
            answer.add(dataclasses.replace(update, tokens=[]))
            for piece in update.pieces:
                for one in events.put(piece):
                    yield one
    for one in events.end(answer):
        yield one
    kind = "response.incomplete" if answer.reason == "length" else "response.completed"
    yield events.event(kind, response=events.response(answer))


class _Events:
    """The items of a response, and the events of their growth."""

    def __init__(self, head: _Head):
        self.head = head
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._open = ""  # the kind of the last item while it grows

    def response(self, answer: Answer) -> dict[str, Any]:
        """The whole response."""
        status = "incomplete" if answer.reason == "length" else "completed"
        return self.head.with_output(status, self._output, answer.usage)

    def failed(self, problem: Problem) -> bytes:
        """The event of an error."""
        return self.event("error", message=problem.message, code=problem.code or problem.kind, param=problem.param)

    def event(self, kind: str, **fields: Any) -> bytes:
        """An event with its number."""
        found = frame({"type": kind, "sequence_number": self._number, **fields}, kind)
        self._number += 1
        return found

    def put(self, piece: Piece) -> Iterator[bytes]:
        """The events of a piece."""
        if isinstance(piece, CallBegins):
            yield from self.close()
            id = piece.id or secrets.token_hex(5)
            item = {"type": "function_call", "id": f"fc_{id}", "call_id": f"call_{id}", "name": piece.name}
            yield from self._begin("call", {**item, "arguments": "", "status": "in_progress"})
        elif isinstance(piece, CallText):
            self._output[-1]["arguments"] += piece.text
            yield self._grown("response.function_call_arguments.delta", delta=piece.text)
        elif isinstance(piece, Said):
            if self._open != "text":
                yield from self._begin_text()
            self._output[-1]["content"][0]["text"] += piece.text
            yield self._grown("response.output_text.delta", content_index=0, delta=piece.text, logprobs=[])
        else:
            if self._open != "thoughts":
                yield from self.close()
                item = {"type": "reasoning", "id": f"rs_{secrets.token_hex(8)}"}
                content = [{"type": "reasoning_text", "text": ""}]
                yield from self._begin("thoughts", {**item, "summary": [], "content": content})
            self._output[-1]["content"][0]["text"] += piece.text
            yield self._grown("response.reasoning_text.delta", content_index=0, delta=piece.text)

    def end(self, answer: Answer) -> Iterator[bytes]:
        """The events at the end; of an empty answer, an empty text."""
        if not self._output:
            yield from self._begin_text()
        yield from self.close()

    def _begin_text(self) -> Iterator[bytes]:
        yield from self.close()
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = {"type": "message", "id": f"msg_{secrets.token_hex(8)}", "role": "assistant", "status": "in_progress"}
        yield from self._begin("text", {**item, "content": []})
        self._output[-1]["content"].append(part)
        yield self._grown("response.content_part.added", content_index=0, part=part)

    def _begin(self, kind: str, item: dict[str, Any]) -> Iterator[bytes]:
        self._output.append(item)
        self._open = kind
        yield self.event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _grown(self, kind: str, **fields: Any) -> bytes:
        item = self._output[-1]
        return self.event(kind, item_id=item["id"], output_index=len(self._output) - 1, **fields)

    def close(self) -> Iterator[bytes]:
        """The events of the last item's end."""
        if not self._open:
            return
        item, kind, self._open = self._output[-1], self._open, ""
        if kind == "text":
            part = item["content"][0]
            yield self._grown("response.output_text.done", content_index=0, text=part["text"], logprobs=[])
            yield self._grown("response.content_part.done", content_index=0, part=part)
        elif kind == "thoughts":
            yield self._grown("response.reasoning_text.done", content_index=0, text=item["content"][0]["text"])
        else:
            yield self._grown("response.function_call_arguments.done", arguments=item["arguments"], name=item["name"])
        if "status" in item:
            item["status"] = "completed"
        yield self.event("response.output_item.done", output_index=len(self._output) - 1, item=item)


async def _count(call: Call) -> Response:
    body = await call.body()
    served = await call.model(body.text("model"))
    _, tokens = await asyncio.to_thread(_conversation(body).prompt, served)
    return json_response({"object": "response.input_tokens", "input_tokens": len(tokens)})


def routes() -> list[Route]:
    """Responses, and how many tokens a conversation has."""
    return [
        route("/v1/responses", _answer, OPENAI),
        route("/responses", _answer, OPENAI),
        route("/v1/responses/input_tokens", _count, OPENAI),
    ]
