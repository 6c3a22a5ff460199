"""llama-server's own: /completion, /infill, /tokenize, /detokenize, /apply-template, /props, /slots, /lora-adapters."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from ggufkit import __version__
from ggufkit.errors import GgufkitError, UsageError
from ggufkit.serve.answers import Answer, Started
from ggufkit.serve.asks import Ask, choosing_of, grammar_of, text_ask
from ggufkit.serve.bodies import Body
from ggufkit.serve.call import Call, json_response, route
from ggufkit.serve.conversation import Conversation, openai_messages, openai_tools
from ggufkit.serve.dialects.completions import prompts_of
from ggufkit.serve.dialects.openai import OPENAI, chat_logprobs, failed, timings
from ggufkit.serve.dialects.openai_chat import thinking_variables
from ggufkit.serve.engine.request import Finished, Token
from ggufkit.serve.models import Served
from ggufkit.serve.problems import Problem
from ggufkit.serve.settings import Settings
from ggufkit.serve.sse import frame

__all__ = ["routes"]

_TOKENIZED, _DETOKENIZED = 1 << 16, 1 << 20  # tokens of a text


def _asked(body: Body, served: Served, settings: Settings, prompt: str | list[int]) -> Ask:
    choosing = choosing_of(body, served, settings, ("n_predict", "max_tokens"))
    probabilities = body.whole("n_probs", 0, 100, 0)
    choosing = dataclasses.replace(
        choosing, logprobs=probabilities or None, grammar=grammar_of(body), n=1 if "n" not in body else choosing.n
    )
    return text_ask(served, prompt, choosing)


async def _completion(call: Call) -> Response:
    body = await call.body()
    prompts = prompts_of(body, "prompt", 1)
    served = await call.model(body.text("model"))
    return await _continued(call, body, served, prompts[0])


async def _infill(call: Call) -> Response:
    """What fits between two texts, for models with tokens for that."""
    body = await call.body()
    served = await call.model(body.text("model"))
    prompt = await asyncio.to_thread(_infill_prompt, served, body)
    return await _continued(call, body, served, prompt)


def _infill_prompt(served: Served, body: Body) -> list[int]:
    """Tokens of a prompt to fill in: files around, the prefix, the suffix, the place.

    Raises
    ------
    Problem : the model has no such tokens.

    Source: `format_prompt_infill` of tools/server/server-common.cpp of llama.cpp, prefix first.
    """
    tokenizer, roles = served.tokenizer, served.tokenizer.vocab.fill_in
    if not {"prefix", "suffix", "middle"} <= set(roles):
        raise body.wrong("input_prefix", "cannot be filled in: the model has no tokens for that")

    def ids(text: str) -> list[int]:
        with served.encoding(text):
            return tokenizer.encode(text, add_special=False, parse_special=False)

    prefix, suffix, said = (ids(body.text(name, "")) for name in ("input_prefix", "input_suffix", "prompt"))
    around: list[int] = []
    for extra in body.objects("input_extra", 256):
        name, text = extra.text("filename", "file"), extra.text("text", "")
        if "file" in roles:
            around += [roles["file"], *ids(f"{name}\n{text}")]
        else:
            around += ids(f"\n\n--- {name} ---\n\n{text}")
    room = served.engine.context - 256
    prefix, suffix = prefix[-3 * room // 4 :], suffix[: room // 4]
    around = around[-max(0, room - len(prefix) - len(suffix)) :] if around else []
    vocab = tokenizer.vocab
    start = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
    if "file" in roles and around:
        around = [*around, roles["file"], *ids("filename\n")]
    return [*start, *around, roles["prefix"], *prefix, roles["suffix"], *suffix, roles["middle"], *said]


async def _continued(call: Call, body: Body, served: Served, prompt: str | list[int]) -> Response:
    started = await call.begin(served, lambda: _asked(body, served, call.settings, prompt))
    if body.flag("stream"):
        return call.stream(_frames(served, started, body, prompt), failed)
    found = await call.unless_gone(started.whole())
    results = [_result(served, answer, prompt, body) for answer in found]
    return json_response(results[0] if len(results) == 1 else results)


def _result(served: Served, answer: Answer, prompt: str | list[int], body: Body) -> dict[str, Any]:
    assert answer.end is not None
    found = {"index": 0, "content": answer.text, "stop": True, **_ended(served, answer.end, prompt)}
    found["has_new_line"] = "\n" in answer.text
    if body.flag("return_tokens"):
        found["tokens"] = [token.id for token in answer.tokens]
    if body.whole("n_probs", 0, 100, 0):
        found["completion_probabilities"] = chat_logprobs(served, answer.tokens)
    fields = body.items("response_fields", 64)
    return {str(name): found.get(str(name)) for name in fields} if fields else found


def _ended(served: Served, end: Finished, prompt: str | list[int]) -> dict[str, Any]:
    usage = end.usage
    kind = "limit" if end.reason == "length" else "word" if isinstance(end.stop, str) else "eos"
    return {
        "id_slot": -1,
        "model": served.name,
        "prompt": prompt,
        "stop_type": kind,
        "stopping_word": end.stop if isinstance(end.stop, str) else "",
        "truncated": False,
        "tokens_predicted": usage.completion_tokens,
        "tokens_evaluated": usage.prompt_tokens,
        "tokens_cached": usage.prompt_tokens + usage.completion_tokens,
        "timings": timings(usage),
    }


async def _frames(served: Served, started: Started, body: Body, prompt: str | list[int]) -> AsyncGenerator[bytes, None]:
    probabilities = body.whole("n_probs", 0, 100, 0)

    def one(index: int, text: str, tokens: list[Token], **more: Any) -> bytes:
        found = {"index": index, "content": text, "tokens": [token.id for token in tokens], "stop": False}
        if probabilities and tokens:
            found["completion_probabilities"] = chat_logprobs(served, tokens)
        return frame(found | more)

    async with aclosing(started.updates()) as updates:
        async for update in updates:
            answer = Answer()
            answer.add(update)
            if update.end is None:
                yield one(update.index, answer.text, update.tokens)
            else:
                if answer.text:
                    yield one(update.index, answer.text, [])
                yield one(update.index, "", [], **_ended(served, update.end, prompt), stop=True)


async def _tokenize(call: Call) -> Response:
    body = await call.body()
    served = await call.model(body.text("model"))
    add, parse = body.flag("add_special"), body.flag("parse_special", True)
    text = body.text("content", "")

    def encoded() -> list[int]:
        with served.encoding(text, _TOKENIZED):
            return served.tokenizer.encode(text, add_special=add, parse_special=parse)

    ids = await asyncio.to_thread(encoded)
    if not body.flag("with_pieces"):
        return json_response({"tokens": ids})
    return json_response({"tokens": [{"id": id, "piece": _piece(served, id)} for id in ids]})


def _piece(served: Served, id: int) -> Any:
    data = served.tokenizer.piece(id, special=True)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


async def _detokenize(call: Call) -> Response:
    body = await call.body()
    served = await call.model(body.text("model"))
    ids = body.items("tokens", _DETOKENIZED)
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise body.wrong("tokens", "should be whole numbers")
    text = await asyncio.to_thread(lambda: served.tokenizer.decode(ids, remove_special=False, special=True))
    return json_response({"content": text})


async def _apply_template(call: Call) -> Response:
    body = await call.body()
    served = await call.model(body.text("model"))
    conversation = Conversation(openai_messages(body), openai_tools(body), thinking_variables(body))
    text, _ = await asyncio.to_thread(conversation.prompt, served)
    return json_response({"prompt": text})


async def _props(call: Call) -> Response:
    served = await call.model(call.request.query_params.get("model"))
    engine = served.engine
    try:
        template, style = served.template.source, (await asyncio.to_thread(lambda: served.manner)).style.name
    except GgufkitError:
        template = style = ""
    vocab = served.tokenizer.vocab
    return json_response(
        {
            "default_generation_settings": {"n_ctx": engine.context, "params": dataclasses.asdict(_defaults(served))},
            "total_slots": engine.slots,
            "model_alias": served.name,
            "chat_template": template,
            "chat_format": style,
            "bos_token": "" if vocab.bos is None else vocab.texts[vocab.bos],
            "eos_token": "" if vocab.eos is None else vocab.texts[vocab.eos],
            "modalities": {"vision": False, "audio": False},
            "build_info": f"ggufkit {__version__}",
        }
    )


def _defaults(served: Served) -> Any:
    from ggufkit.runtime.sampling import sampling_of

    return sampling_of(served.gguf)


async def _lora_adapters(call: Call) -> Response:
    """The adapters of a model, with the scales that requests have where they say nothing."""
    served = await call.model(call.request.query_params.get("model"))
    return json_response(
        [{"id": i, "path": one.path, "scale": one.scale} for i, one in enumerate(served.engine.model.adapters)]
    )


async def _slots(call: Call) -> Response:
    if not call.settings.slots:
        raise Problem(403, "slots are not shown; they are where the server was started so")
    found: list[dict[str, Any]] = []
    for name, engine in call.models.loaded():
        running = engine.running()
        for number in range(engine.slots):
            slot = running[number] if number < len(running) else None
            shown: dict[str, Any] = {"id": number, "model": name, "n_ctx": engine.context}
            shown["is_processing"] = slot is not None
            found.append(shown if slot is None else shown | dataclasses.asdict(slot))
    return json_response(found)


async def _slot_action(call: Call) -> Response:
    """Save, restore or drop the caches that nobody uses now."""
    folder, action = call.settings.slot_folder, call.request.query_params.get("action")
    if not call.settings.slots or folder is None:
        raise Problem(403, "caches are not saved here; they are where the server was started with a folder for them")
    served = await call.model(call.request.query_params.get("model"))
    if action == "save":
        work = served.engine.save_caches(folder)
    elif action == "restore":
        work = served.engine.load_caches(folder)
    elif action == "erase":
        work = served.engine.drop_caches()
    else:
        raise UsageError("the action is save, restore or erase")
    count = await asyncio.wrap_future(work)
    return json_response({"id_slot": call.request.path_params["slot"], "action": action, "caches": count})


def routes() -> list[Route]:
    """Under llama-server's names."""
    posts = {
        "/completion": _completion,
        "/completions": _completion,
        "/infill": _infill,
        "/tokenize": _tokenize,
        "/detokenize": _detokenize,
        "/apply-template": _apply_template,
        "/slots/{slot:int}": _slot_action,
    }
    gets = {"/props": _props, "/slots": _slots, "/lora-adapters": _lora_adapters}
    return [route(path, endpoint, OPENAI) for path, endpoint in posts.items()] + [
        route(path, endpoint, OPENAI, ("GET",)) for path, endpoint in gets.items()
    ]
