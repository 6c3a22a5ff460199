"""The application: all routes of all dialects behind the guard."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ggufkit.serve.call import Dialect
from ggufkit.serve.dialects import (
    anthropic,
    completions,
    embeddings,
    llama_cpp,
    ollama,
    openai,
    openai_chat,
    operators,
    responses,
)
from ggufkit.serve.models import Models, Pool
from ggufkit.serve.problems import Problem, problem_of
from ggufkit.serve.security import Admission, Guard
from ggufkit.serve.settings import Settings

__all__ = ["make_app"]

# Beginning of a path → the dialect of those who ask there; OpenAI's elsewhere.
_DIALECTS = {"/v1/messages": anthropic.ANTHROPIC, "/api/": ollama.OLLAMA}
_ROUTES = (openai, openai_chat, completions, embeddings, responses, anthropic, ollama, llama_cpp, operators)


def dialect_of(path: str) -> Dialect:
    """The dialect of a path."""
    return next((dialect for start, dialect in _DIALECTS.items() if path.startswith(start)), openai.OPENAI)


def make_app(pool: Pool, settings: Settings | None = None) -> Guard:
    """The ASGI application of a server.

    Parameters
    ----------
    pool : gives the models.
    """
    settings = settings or Settings()
    app = Starlette(
        routes=[one for module in _ROUTES for one in module.routes()],
        exception_handlers={HTTPException: _http_error, Exception: _any_error},
    )
    app.state.models, app.state.settings, app.state.admission = Models(pool, settings), settings, Admission(settings)
    return Guard(app, settings, _refuse)


async def _refuse(problem: Problem, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    await dialect_of(scope["path"]).refuse(problem)(scope, receive, send)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: "there is nothing at this path", 405: f"this path does not take {request.method}"}
    message = what.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    return dialect_of(request.url.path).refuse(Problem(error.status_code, message, headers=headers))


async def _any_error(request: Request, error: Exception) -> Response:
    return dialect_of(request.url.path).refuse(problem_of(error))
