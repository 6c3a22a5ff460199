"""POST /v1/completions: texts continued, without a chat template."""

from __future__ import annotations

import codecs
import dataclasses
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from ggufkit.serve.answers import Answer, Started, total
from ggufkit.serve.asks import Ask, choosing_of, grammar_of, text_ask
from ggufkit.serve.bodies import Body
from ggufkit.serve.call import Call, json_response, route
from ggufkit.serve.dialects.openai import OPENAI, failed, prompt_logprobs, timings, usage_of
from ggufkit.serve.engine.request import Token, Usage
from ggufkit.serve.models import Served
from ggufkit.serve.settings import Settings
from ggufkit.serve.sse import frame

__all__ = ["prompts_of", "routes"]

_DEFAULT_TOKENS = 16  # OpenAI's
_MAX_LOGPROBS = 20


def prompts_of(body: Body, name: str, limit: int) -> list[str | list[int]]:
    """A text, token ids, or a list of such."""
    value = body.get(name, (str, list))
    if value is None:
        raise body.wrong(name, "is missing")
    if isinstance(value, str):
        return [value]
    if value and all(isinstance(one, int) and not isinstance(one, bool) for one in value):
        return [value]
    if len(value) > limit:
        raise body.wrong(name, f"has {len(value)} texts; at most {limit} are taken")
    for one in value:
        ids = isinstance(one, list) and all(isinstance(id, int) and not isinstance(id, bool) for id in one)
        if not (isinstance(one, str) or ids):
            raise body.wrong(name, "should be a text, token ids, or a list of such")
    if not value:
        raise body.wrong(name, "is empty")
    return list(value)


def _asked(body: Body, served: Served, settings: Settings) -> Ask:
    choosing = choosing_of(body, served, settings, ("max_tokens", "max_completion_tokens", "n_predict"))
    logprobs = body.get("logprobs", (int, bool))
    if logprobs is not None and logprobs is not False:
        wanted = 0 if logprobs is True else body.whole("logprobs", 0, _MAX_LOGPROBS)
        choosing = dataclasses.replace(choosing, logprobs=wanted)
    of_prompt = body.whole("prompt_logprobs", 0, _MAX_LOGPROBS)
    if of_prompt is None and body.flag("echo"):
        of_prompt = choosing.logprobs
    choosing = dataclasses.replace(choosing, prompt_logprobs=of_prompt)
    if body.text("suffix"):
        raise body.wrong("suffix", "is not supported here; ask /infill")
    if choosing.max_tokens is None and "max_tokens" not in body:
        choosing = dataclasses.replace(choosing, max_tokens=_DEFAULT_TOKENS)
    choosing = dataclasses.replace(choosing, grammar=grammar_of(body))
    prompts = prompts_of(body, "prompt", settings.choices)
    if len(prompts) * choosing.n > settings.choices:
        raise body.wrong("n", f"times {len(prompts)} prompts is more than {settings.choices} answers")
    asks = [text_ask(served, prompt, choosing) for prompt in prompts]
    return Ask("", [r for ask in asks for r in ask.requests], [p for ask in asks for p in ask.parsers])


async def _answer(call: Call) -> Response:
    body = await call.body()
    served = await call.model(body.text("model"))
    started = await call.begin(served, lambda: _asked(body, served, call.settings))
    n = body.whole("n", 1, call.settings.choices, 1)
    echoed = [
        prompt if isinstance(prompt, str) else served.tokenizer.decode(prompt)
        for prompt in (prompts_of(body, "prompt", call.settings.choices) if body.flag("echo") else [])
        for _ in range(n)
    ]
    head = {"id": f"cmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}
    probable = "logprobs" in body and body.get("logprobs", (int, bool)) is not False
    if body.flag("stream"):
        options = body.at("stream_options") or Body({})
        frames = _frames(served, started, head, echoed, probable, n, options.flag("include_usage"))
        return call.stream(frames, failed)
    told = "prompt_logprobs" in body
    found = await call.unless_gone(started.whole())
    usage = _usage([answer.usage for answer in found], n)
    choices = [
        {
            "index": index,
            "text": (echoed[index] if echoed else "") + answer.text,
            "logprobs": _of_both(served, started.prompt(index), answer.tokens, echoed[index])
            if echoed and probable
            else logprobs_of(served, answer.tokens),
            "finish_reason": answer.reason,
            **({"prompt_logprobs": prompt_logprobs(served, started.prompt(index))} if told else {}),
        }
        for index, answer in enumerate(found)
    ]
    return json_response(
        {**head, "object": "text_completion", "choices": choices, "usage": usage_of(usage), "timings": timings(usage)}
    )


def _usage(usages: Sequence[Usage], n: int) -> Usage:
    """Of several prompts with `n` answers each."""
    whole = total(usages)
    first = usages[::n]
    prompt = sum(usage.prompt_tokens for usage in first)
    return dataclasses.replace(whole, prompt_tokens=prompt, cached_tokens=sum(usage.cached_tokens for usage in first))


def logprobs_of(served: Served, tokens: Sequence[Token], offset: int = 0) -> dict[str, Any] | None:
    """Logarithms of probabilities in the form of completions; None where there are none. A prompt's first has none."""
    if all(token.logprob is None for token in tokens):
        return None
    decoder, offsets = codecs.getincrementaldecoder("utf-8")("replace"), []
    for token in tokens:
        offsets.append(max(0, offset))
        offset += len(decoder.decode(token.data))
    return {
        "tokens": [token.data.decode("utf-8", "replace") for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            None
            if token.logprob is None
            else {
                served.tokenizer.piece(id, True).decode("utf-8", "replace"): max(-9999.0, value)
                for id, value in token.top
            }
            for token in tokens
        ],
        "text_offset": offsets,
    }


def _of_both(served: Served, prompt: list[Token], tokens: list[Token], text: str) -> dict[str, Any] | None:
    """Of a prompt that is this text, too. Some tokenizers put a space before it, which has no place in it."""
    whole = b"".join(token.data for token in prompt).decode("utf-8", "replace")
    return logprobs_of(served, [*prompt, *tokens], len(text) - len(whole))


async def _frames(
    served: Served,
    started: Started,
    head: dict[str, Any],
    echoed: list[str],
    probable: bool,
    n: int,
    wants_usage: bool,
) -> AsyncGenerator[bytes, None]:
    def one(index: int, text: str, logprobs: Any = None, reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return frame({**head, "object": "text_completion", "choices": [choice], **more})

    answers: dict[int, Answer] = {}
    async with aclosing(started.updates()) as updates:
        async for update in updates:
            said = echoed[update.index] if echoed else ""
            if echoed and update.index not in answers:
                prompt = started.prompt(update.index)
                yield one(update.index, said, _of_both(served, prompt, [], said) if probable else None)
            answer = answers.setdefault(update.index, Answer())
            before = answer.text
            answer.add(dataclasses.replace(update, tokens=[]))
            text = answer.text[len(before) :]
            if text or update.tokens:
                yield one(update.index, text, logprobs_of(served, update.tokens, len(said) + len(before)))
            if update.end is not None:
                yield one(update.index, "", None, answer.reason, timings=timings(update.end.usage))
    if wants_usage:
        usage = _usage([answers[index].usage for index in sorted(answers)], n)
        yield frame({**head, "object": "text_completion", "choices": [], "usage": usage_of(usage)})
    yield b"data: [DONE]\n\n"


def routes() -> list[Route]:
    """Completions. (`/completions` without a version speaks llama-server's dialect.)"""
    return [route("/v1/completions", _answer, OPENAI)]
