"""What OpenAI's endpoints have in common: errors, usage, timings, logarithms of probabilities, the list of models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from ggufkit.errors import printable
from ggufkit.gguf.summary import summary
from ggufkit.serve.call import Call, Dialect, json_response, route
from ggufkit.serve.engine.request import Token, Usage
from ggufkit.serve.models import Served
from ggufkit.serve.problems import Problem
from ggufkit.serve.sse import frame

__all__ = ["OPENAI", "chat_logprobs", "failed", "prompt_logprobs", "routes", "timings", "usage_of"]

_STARTED = int(time.time())


def _shape(problem: Problem) -> Any:
    return {
        "error": {
            "message": problem.message,
            "type": problem.kind,
            "param": problem.param,
            "code": problem.code or problem.status,
            **problem.more,
        }
    }


OPENAI = Dialect("openai", _shape)


def failed(problem: Problem) -> bytes:
    """The frame of an error in a stream."""
    return frame(_shape(problem))


def usage_of(usage: Usage) -> dict[str, Any]:
    """Usage in OpenAI's words."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def timings(usage: Usage) -> dict[str, Any]:
    """Timings in llama-server's words, milliseconds."""
    read = usage.prompt_tokens - usage.cached_tokens
    written = usage.completion_tokens
    found: dict[str, Any] = {"cache_n": usage.cached_tokens}
    for name, n, seconds in (("prompt", read, usage.prompt_seconds), ("predicted", written, usage.completion_seconds)):
        milliseconds = 1000 * seconds
        found |= {
            f"{name}_n": n,
            f"{name}_ms": round(milliseconds, 3),
            f"{name}_per_token_ms": round(milliseconds / max(n, 1), 3),
            f"{name}_per_second": round(n / max(seconds, 1e-9), 3),
        }
    if usage.drafted_tokens:
        found |= {"draft_n": usage.drafted_tokens, "draft_n_accepted": usage.accepted_tokens}
    return found


def chat_logprobs(served: Served, tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """`logprobs.content` of chat completions."""

    def entry(id: int, data: bytes, logprob: float | None) -> dict[str, Any]:
        value = max(-9999.0, logprob if logprob is not None else 0.0)
        return {"id": id, "token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": value}

    def data(id: int) -> bytes:
        return served.tokenizer.piece(id, special=True) if id < len(served.tokenizer) else b""

    return [
        {
            **entry(token.id, token.data, token.logprob),
            "top_logprobs": [entry(id, data(id), logprob) for id, logprob in token.top],
        }
        for token in tokens
    ]


def prompt_logprobs(served: Served, tokens: Sequence[Token]) -> list[dict[str, Any] | None]:
    """`prompt_logprobs` as vLLM has them: of each token of a prompt its own and the best, by their ids."""

    def entry(id: int, logprob: float, rank: int | None) -> dict[str, Any]:
        data = served.tokenizer.piece(id, special=True) if id < len(served.tokenizer) else b""
        return {"logprob": max(-9999.0, logprob), "rank": rank, "decoded_token": data.decode("utf-8", "replace")}

    return [
        None
        if token.logprob is None
        else {
            str(token.id): entry(token.id, token.logprob, token.rank),
            **{str(id): entry(id, value, rank) for rank, (id, value) in enumerate(token.top, 1)},
        }
        for token in tokens
    ]


async def _models(call: Call) -> Response:
    loaded = dict(call.models.loaded())
    data = [_model(name, name in loaded, loaded.get(name)) for name in call.models.names]
    return json_response({"object": "list", "data": data})


async def _one_model(call: Call) -> Response:
    name = call.request.path_params["name"]
    if name not in call.models.names:
        raise Problem(404, f"there is no model {printable(name, 100)}", code="model_not_found", param="model")
    loaded = dict(call.models.loaded())
    return json_response(_model(name, name in loaded, loaded.get(name)))


def _model(name: str, loaded: bool, engine: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "ggufkit",
        "loaded": loaded,
    }
    if engine is not None:
        hyper, known = engine.model.hyper, summary(engine.model.gguf)
        found["meta"] = {
            "n_vocab": engine.model.vocabulary,
            "n_ctx": engine.context,
            "n_ctx_train": hyper.context_length,
            "n_embd": hyper.width,
            "size": engine.model.gguf.size,
            "n_layers": hyper.layers,
            "n_params": known["parameters"],
            "name": known.get("name"),
            "architecture": known.get("architecture"),
            "file_type": known.get("file_type"),
            "bits_per_weight": known.get("bits_per_weight"),
        }
    return found


def routes() -> list[Route]:
    """The list of models."""
    return [
        route("/v1/models", _models, OPENAI, ("GET",)),
        route("/models", _models, OPENAI, ("GET",)),
        route("/v1/models/{name:path}", _one_model, OPENAI, ("GET",)),
    ]
