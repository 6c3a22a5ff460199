"""ollama's: /api/chat, generate, embed, tags, show, ps, version. Streams are lines of JSON."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from datetime import datetime, timezone
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from ggufkit.errors import GgufkitError
from ggufkit.runtime.constrain.grammar import Grammar
from ggufkit.runtime.model import normalized
from ggufkit.serve.answers import Answer, Started
from ggufkit.serve.asks import Ask, Choosing, chat_ask, choosing_of, text_ask
from ggufkit.serve.bodies import Body
from ggufkit.serve.call import Call, Dialect, json_response, route
from ggufkit.serve.conversation import MAX_MESSAGES, Conversation, arguments_of, openai_tools
from ggufkit.serve.dialects.embeddings import vectors_of
from ggufkit.serve.engine.request import Finished
from ggufkit.serve.models import Served, facts
from ggufkit.serve.problems import Problem
from ggufkit.serve.settings import Settings
from ggufkit.serve.sse import json_bytes

__all__ = ["OLLAMA", "routes"]

_VERSION = "0.12.0"  # of the API that is spoken; clients ask for what came with one


def _shape(problem: Problem) -> Any:
    return {"error": problem.message}


OLLAMA = Dialect("ollama", _shape)


def _line(value: Any) -> bytes:
    return json_bytes(value) + b"\n"


def _failed(problem: Problem) -> bytes:
    return _line(_shape(problem))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


def _choosing(body: Body, served: Served, settings: Settings) -> Choosing:
    """ollama has all settings in `options`."""
    options = body.at("options") or Body({}, "options")
    choosing = choosing_of(options, served, settings, ("num_predict",))
    size = options.whole("num_ctx", 0, 1 << 31)
    if size is not None and size > served.engine.context:
        what = f"is {size}; the server was started with a context of {served.engine.context} tokens"
        raise options.wrong("num_ctx", what)
    grammar = None
    form = body.get("format", (str, dict))
    if isinstance(form, dict):
        grammar = Grammar.json_schema(form)
    elif form:
        if form != "json":
            raise body.wrong("format", "is json, or a JSON schema")
        grammar = Grammar.json_object()
    return dataclasses.replace(choosing, grammar=grammar, n=1)


def _messages(body: Body) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for message in body.objects("messages", MAX_MESSAGES):
        role = message.choice("role", ("system", "user", "assistant", "tool"), "user")
        if message.items("images", 64):
            raise message.wrong("images", "are not taken: this server takes text only")
        made: dict[str, Any] = {"role": role, "content": message.text("content", "")}
        calls = [_call(call, i) for i, call in enumerate(message.objects("tool_calls", 256))]
        if calls:
            made["tool_calls"] = calls
        if message.text("thinking"):
            made["reasoning_content"] = message.text("thinking")
        if message.text("tool_name"):
            made["name"] = message.text("tool_name")
        found.append(made)
    return found


def _call(body: Body, number: int) -> dict[str, Any]:
    function = body.at("function")
    if function is None:
        raise body.wrong("function", "is missing")
    call = {"name": function.need_text("name"), "arguments": arguments_of(function.fields.get("arguments"))}
    return {"id": f"{number:09d}", "type": "function", "function": call}


def _thinking(body: Body) -> dict[str, Any]:
    think = body.get("think", (bool, str))
    if think is None:
        return {}
    return {"enable_thinking": think is not False} | ({"reasoning_effort": think} if isinstance(think, str) else {})


def _ended(end: Finished) -> dict[str, Any]:
    usage = end.usage
    nanoseconds = {
        "total_duration": usage.queue_seconds + usage.prompt_seconds + usage.completion_seconds,
        "load_duration": 0.0,
        "prompt_eval_duration": usage.prompt_seconds,
        "eval_duration": usage.completion_seconds,
    }
    return {
        "done": True,
        "done_reason": "length" if end.reason == "length" else "stop",
        "prompt_eval_count": usage.prompt_tokens,
        "eval_count": usage.completion_tokens,
        **{name: int(1e9 * seconds) for name, seconds in nanoseconds.items()},
    }


def _message(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.thoughts:
        message["thinking"] = answer.thoughts
    if answer.calls:
        message["tool_calls"] = [
            {"function": {"name": call.name, "arguments": arguments_of(call.arguments)}} for call in answer.calls
        ]
    return message


async def _chat(call: Call) -> Response:
    body = await call.body()
    served = await call.model(body.text("model"))
    messages = _messages(body)
    if not messages:  # ollama's way to load a model
        done = {"role": "assistant", "content": ""}
        head = {"model": served.name, "created_at": _now(), "message": done}
        return json_response({**head, "done": True, "done_reason": "load"})

    def ask() -> Ask:
        goes_on = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
        conversation = Conversation(messages, openai_tools(body), _thinking(body), goes_on)
        choosing = _choosing(body, served, call.settings)
        return chat_ask(served, conversation, choosing)

    started = await call.begin(served, ask)
    return await _sent(call, body, served, started, lambda answer: {"message": _message(answer)})


async def _generate(call: Call) -> Response:
    body = await call.body()
    served = await call.model(body.text("model"))
    prompt = body.text("prompt", "")
    if body.items("images", 64):
        raise body.wrong("images", "are not taken: this server takes text only")
    if not prompt:
        head = {"model": served.name, "created_at": _now(), "response": ""}
        return json_response({**head, "done": True, "done_reason": "load"})

    def ask() -> Ask:
        choosing = _choosing(body, served, call.settings)
        if body.flag("raw") or not _has_template(served):
            return text_ask(served, prompt, choosing)
        messages: list[Mapping[str, Any]] = [{"role": "user", "content": prompt}]
        if system := body.text("system"):
            messages.insert(0, {"role": "system", "content": system})
        return chat_ask(served, Conversation(messages, (), _thinking(body)), choosing)

    def fields(answer: Answer) -> dict[str, Any]:
        return {"response": answer.text} | ({"thinking": answer.thoughts} if answer.thoughts else {})

    started = await call.begin(served, ask)
    return await _sent(call, body, served, started, fields)


def _has_template(served: Served) -> bool:
    try:
        return bool(served.template.source)
    except GgufkitError:
        return False


async def _sent(
    call: Call, body: Body, served: Served, started: Started, fields: Callable[[Answer], dict[str, Any]]
) -> Response:
    """The answer, by default as it comes; `fields` says what there is of an answer or a part of one."""
    if body.flag("stream", True):
        return call.stream(_lines(served, started, fields), _failed, "application/x-ndjson", ping=b"")
    [answer] = await call.unless_gone(started.whole())
    assert answer.end is not None
    return json_response({"model": served.name, "created_at": _now(), **fields(answer), **_ended(answer.end)})


async def _lines(
    served: Served, started: Started, fields: Callable[[Answer], dict[str, Any]]
) -> AsyncGenerator[bytes, None]:
    whole = Answer()
    told = 0  # calls, which go out whole
    async with aclosing(started.updates()) as updates:
        async for update in updates:
            before = dataclasses.replace(whole)
            whole.add(dataclasses.replace(update, tokens=[]))
            known = len(whole.calls) if update.end is not None else max(told, len(whole.calls) - 1)
            new = Answer(
                whole.text[len(before.text) :], whole.thoughts[len(before.thoughts) :], whole.calls[told:known]
            )
            told = known
            head = {"model": served.name, "created_at": _now()}
            if new.text or new.thoughts or new.calls:
                yield _line({**head, **fields(new), "done": False})
            if update.end is not None:
                yield _line({**head, **fields(Answer()), **_ended(update.end)})


async def _embed(call: Call) -> Response:
    body = await call.body()
    served = await call.model(body.text("model"))
    texts = body.texts("input" if "input" in body else "prompt", call.settings.texts)
    if not texts:
        return json_response({"model": served.name, "embeddings": []})
    vectors, count = await vectors_of(call, served, texts)
    found = [normalized(vector).tolist() for vector in vectors]
    if call.request.url.path == "/api/embeddings":  # the older form
        return json_response({"embedding": found[0]})
    return json_response({"model": served.name, "embeddings": found, "prompt_eval_count": count})


def _tag(name: str, size: int, details: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "modified_at": _now(),
        "size": size,
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "details": {"format": "gguf", "family": "", "families": [], "parameter_size": "", "quantization_level": ""}
        | (details or {}),
    }


async def _tags(call: Call) -> Response:
    loaded = dict(call.models.loaded())
    sizes = {name: engine.model.gguf.size for name, engine in loaded.items()}
    return json_response({"models": [_tag(name, sizes.get(name, 0)) for name in call.models.names]})


async def _ps(call: Call) -> Response:
    models = [
        _tag(name, engine.model.gguf.size) | {"size_vram": 0, "context_length": engine.context}
        for name, engine in call.models.loaded()
    ]
    return json_response({"models": models})


async def _show(call: Call) -> Response:
    body = await call.body()
    served = await call.model(body.text("model") or body.text("name"))
    known = await asyncio.to_thread(facts, served)
    tools = bool(known["chat_template"]) and (await asyncio.to_thread(lambda: served.manner)).shows_tools
    kinds = ["completion"] + (["tools"] if tools else []) if known["generates"] else ["embedding"]
    architecture = str(known.get("architecture", ""))
    level = str(known.get("file_type", ""))
    info = {
        key: field.value
        for key, field in served.gguf.fields.items()
        if field.item_type is None and not key.startswith("tokenizer.chat_template")
    }
    details = {"format": "gguf", "family": architecture, "families": [architecture], "quantization_level": level}
    details["parameter_size"] = f"{known['parameters'] / 1e9:.2f}B"
    return json_response(
        {
            "modelfile": "",
            "parameters": "",
            "template": known["chat_template"],
            "details": details,
            "model_info": info,
            "capabilities": kinds,
            "modified_at": _now(),
        }
    )


async def _version(call: Call) -> Response:
    return json_response({"version": _VERSION})


def routes() -> list[Route]:
    """ollama's paths."""
    posts = {"chat": _chat, "generate": _generate, "embed": _embed, "embeddings": _embed, "show": _show}
    gets = {"tags": _tags, "ps": _ps, "version": _version}
    return [route(f"/api/{name}", endpoint, OLLAMA) for name, endpoint in posts.items()] + [
        route(f"/api/{name}", endpoint, OLLAMA, ("GET",)) for name, endpoint in gets.items()
    ]
