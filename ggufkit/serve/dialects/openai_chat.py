"""POST /v1/chat/completions."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from ggufkit.serve.answers import Answer, Started, new_id, total
from ggufkit.serve.asks import Ask, chat_ask, choosing_of, grammar_of
from ggufkit.serve.bodies import Body
from ggufkit.serve.call import Call, json_response, route
from ggufkit.serve.conversation import Conversation, openai_messages, openai_tools
from ggufkit.serve.dialects.openai import OPENAI, chat_logprobs, failed, prompt_logprobs, timings, usage_of
from ggufkit.serve.engine.request import Token, Usage
from ggufkit.serve.models import Served
from ggufkit.serve.replies.pieces import CallBegins, CallText, Said, Thought
from ggufkit.serve.settings import Settings
from ggufkit.serve.sse import frame

__all__ = ["chat_of", "routes", "thinking_variables"]

LIMITS = ("max_completion_tokens", "max_tokens", "n_predict")
MAX_TOP_LOGPROBS = 20


def chat_of(body: Body, served: Served, settings: Settings) -> Ask:
    """What a body asks."""
    choosing = dataclasses.replace(
        choosing_of(body, served, settings, LIMITS),
        logprobs=_logprobs(body),
        prompt_logprobs=body.whole("prompt_logprobs", 0, MAX_TOP_LOGPROBS),
        grammar=grammar_of(body),
    )
    tools = openai_tools(body)
    media: list[bytes] = []
    messages = openai_messages(body, media=media)
    goes_on = body.flag("continue_final_message") and messages[-1]["role"] == "assistant"
    conversation = Conversation(messages, tools, thinking_variables(body), goes_on, media)
    return chat_ask(
        served,
        conversation,
        choosing,
        tool_choice=_tool_choice(body, bool(tools)),
        many_calls=body.flag("parallel_tool_calls", True),
        apart=body.text("reasoning_format", "auto") != "none",
    )


def thinking_variables(body: Body) -> dict[str, Any]:
    """What a template is given besides the messages."""
    variables = dict(body.get("chat_template_kwargs", dict) or {})
    for name in ("messages", "tools", "xml_tools", "add_generation_prompt"):
        variables.pop(name, None)
    effort = body.text("reasoning_effort")
    if effort is not None:
        variables.setdefault("reasoning_effort", effort)
        variables.setdefault("enable_thinking", effort not in ("none", "minimal"))
    return variables


def _logprobs(body: Body) -> int | None:
    wanted = body.flag("logprobs")
    top = body.whole("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top is not None and not wanted:
        raise body.wrong("top_logprobs", "needs logprobs: true")
    return (top or 0) if wanted else None


def _tool_choice(body: Body, has_tools: bool) -> str | Mapping[str, str]:
    choice = body.get("tool_choice", (str, dict), "auto")
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise body.wrong("tool_choice", "must be auto, none, required or the name of a function")
        if choice == "required" and not has_tools:
            raise body.wrong("tool_choice", "is required, and there are no tools")
        return choice
    inner = Body(choice, "tool_choice")
    function = inner.at("function") or inner
    return {"name": function.need_text("name")}


async def _answer(call: Call) -> Response:
    body = await call.body()
    served = await call.model(body.text("model"))
    started = await call.begin(served, lambda: chat_of(body, served, call.settings))
    wants_logprobs = body.flag("logprobs")
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}
    if body.flag("stream"):
        options = body.at("stream_options") or Body({})
        frames = _frames(served, started, head, wants_logprobs, options.flag("include_usage"))
        return call.stream(frames, failed)
    found = await call.unless_gone(started.whole())
    usage = total([answer.usage for answer in found])
    choices = [_choice(served, index, answer, wants_logprobs) for index, answer in enumerate(found)]
    return json_response(
        {
            **head,
            "object": "chat.completion",
            "system_fingerprint": "ggufkit",
            "choices": choices,
            "usage": usage_of(usage),
            "timings": timings(usage),
            **({"prompt_logprobs": prompt_logprobs(served, started.prompt(0))} if "prompt_logprobs" in body else {}),
        }
    )


def _choice(served: Served, index: int, answer: Answer, wants_logprobs: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or (None if answer.calls else "")}
    if answer.thoughts:
        message["reasoning_content"] = answer.thoughts
    if answer.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.calls
        ]
    logprobs = {"content": chat_logprobs(served, answer.tokens)} if wants_logprobs else None
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": answer.reason}


async def _frames(
    served: Served, started: Started, head: dict[str, Any], wants_logprobs: bool, wants_usage: bool
) -> AsyncGenerator[bytes, None]:
    chunk = {**head, "object": "chat.completion.chunk", "system_fingerprint": "ggufkit"}

    def one(index: int, delta: dict[str, Any], tokens: list[Token], reason: str | None = None, **more: Any) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": reason}
        if wants_logprobs:
            choice["logprobs"] = {"content": chat_logprobs(served, tokens)} if tokens else None
        return frame({**chunk, "choices": [choice], **more})

    calls: dict[int, int] = {}
    begun: set[int] = set()
    usages: list[Usage] = []
    async with aclosing(started.updates()) as updates:
        async for update in updates:
            index, tokens = update.index, list(update.tokens)
            if index not in begun:
                begun.add(index)
                yield one(index, {"role": "assistant", "content": None}, [])
            for piece in update.pieces:
                delta: dict[str, Any] = {}
                if isinstance(piece, Said):
                    delta["content"] = piece.text
                elif isinstance(piece, Thought):
                    delta["reasoning_content"] = piece.text
                elif isinstance(piece, CallBegins):
                    calls[index] = calls.get(index, -1) + 1
                    function = {"name": piece.name, "arguments": ""}
                    delta["tool_calls"] = [
                        {"index": calls[index], "id": piece.id or new_id(), "type": "function", "function": function}
                    ]
                elif isinstance(piece, CallText):
                    delta["tool_calls"] = [{"index": calls[index], "function": {"arguments": piece.text}}]
                yield one(index, delta, tokens)
                tokens = []
            if tokens and wants_logprobs:
                yield one(index, {}, tokens)
            if update.end is not None:
                usages.append(update.end.usage)
                reason = "length" if update.end.reason == "length" else "tool_calls" if index in calls else "stop"
                yield one(index, {}, [], reason, timings=timings(update.end.usage))
    if wants_usage:
        usage = total(usages)
        yield frame({**chunk, "choices": [], "usage": usage_of(usage), "timings": timings(usage)})
    yield b"data: [DONE]\n\n"


def routes() -> list[Route]:
    """Chat completions, under both their names."""
    return [route(path, _answer, OPENAI) for path in ("/v1/chat/completions", "/chat/completions")]
