"""Vectors of texts and what is made of them: POST /v1/embeddings, /embedding, /v1/rerank."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.responses import Response
from starlette.routing import Route

from ggufkit.runtime.model import normalized
from ggufkit.serve.bodies import Body
from ggufkit.serve.call import Call, json_response, route
from ggufkit.serve.dialects.completions import prompts_of
from ggufkit.serve.dialects.openai import OPENAI
from ggufkit.serve.models import Served

__all__ = ["routes", "vectors_of"]


async def vectors_of(
    call: Call, served: Served, texts: Sequence[str | list[int]], pooling: str | None = None
) -> tuple[list[np.ndarray], int]:
    """A vector of each text, (n, width), not normalised; and how many tokens they have.

    Raises
    ------
    UsageError : a text is empty or too long.
    """
    from ggufkit.runtime.generate import prompt_tokens

    own = served.engine.model.hyper.pooling
    if pooling is None and own in ("none", "rank"):
        pooling = "last" if own == "none" else "cls"  # a vector of each text, whatever the model was made for

    def encoded() -> list[list[int]]:
        with served.encoding(max((text for text in texts if isinstance(text, str)), key=len, default="")):
            return [prompt_tokens(served.tokenizer, text) for text in texts]

    tokens = await asyncio.to_thread(encoded)
    return await _embedded(call, served, tokens, pooling), sum(map(len, tokens))


async def _embedded(
    call: Call, served: Served, texts: Sequence[Sequence[int]], pooling: str | None
) -> list[np.ndarray]:
    work = served.engine.embed(texts, pooling)
    call.stack.callback(work.cancel)
    return await call.unless_gone(_result(work))


async def _result(work: Any) -> list[np.ndarray]:
    found: list[np.ndarray] = await asyncio.wrap_future(work)
    return found


async def _embeddings(call: Call) -> Response:
    body = await call.body()
    served = await call.model(body.text("model"))
    name = "input" if "input" in body else "content"
    texts = prompts_of(body, name, call.settings.texts)
    form = body.choice("encoding_format", ("float", "base64"), "float")
    vectors, count = await vectors_of(call, served, texts)
    vectors = [normalized(vector, body.whole("embd_normalize", -1, 100, 2)) for vector in vectors]
    size = body.whole("dimensions", 1, served.engine.model.hyper.width)
    if size is not None:  # for models whose first numbers say the most
        vectors = [normalized(vector[..., :size]) for vector in vectors]
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, form)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return json_response({"object": "list", "data": data, "model": served.name, "usage": usage})


def _encoded(vector: np.ndarray, form: str) -> Any:
    if form == "float":
        return vector.tolist()
    return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()


async def _rerank(call: Call) -> Response:
    """Documents by what the model's classification head says of each and a query, or by cosines of vectors."""
    body = await call.body()
    served = await call.model(body.text("model"))
    query = body.need_text("query")
    documents = [_text(body, one) for one in body.items("documents", call.settings.texts)]
    if not documents:
        raise body.wrong("documents", "is missing or empty")
    top = body.whole("top_n", 1, 1 << 31, len(documents))
    scores, count = await _scores(call, served, query, documents)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:top]
    results = [
        {"index": i, "relevance_score": scores[i]}
        | ({"document": {"text": documents[i]}} if body.flag("return_documents") else {})
        for i in order
    ]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return json_response({"object": "list", "model": served.name, "results": results, "usage": usage})


async def _scores(call: Call, served: Served, query: str, documents: list[str]) -> tuple[list[float], int]:
    model = served.engine.model
    if model.weights.head is None:
        vectors, count = await vectors_of(call, served, [query, *documents])
        first, *others = (normalized(vector) for vector in vectors)
        return [float(first @ other) for other in others], count

    def encoded() -> list[list[int]]:
        with served.encoding(max((query, *documents), key=len)):
            return [model.pair_tokens(query, document) for document in documents]

    texts = await asyncio.to_thread(encoded)
    found = await _embedded(call, served, texts, "rank")
    return [float(outputs[0]) for outputs in found], sum(map(len, texts))


def _text(body: Body, document: Any) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise body.wrong("documents", "should be texts")
    return text


def routes() -> list[Route]:
    """Embeddings and reranking, under all their names."""
    names = ("/v1/embeddings", "/embeddings", "/embedding")
    reranks = ("/v1/rerank", "/rerank", "/v1/reranking", "/reranking")
    return [route(path, _embeddings, OPENAI) for path in names] + [route(path, _rerank, OPENAI) for path in reranks]
