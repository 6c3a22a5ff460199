"""For those who run the server: /health, /metrics, and the chat page."""

from __future__ import annotations

import functools

from starlette.responses import Response
from starlette.routing import Route

from ggufkit.serve.call import Call, json_response, route
from ggufkit.serve.dialects.openai import OPENAI
from ggufkit.serve.engine.metrics import Metrics
from ggufkit.serve.problems import Problem
from ggufkit.web.page import assemble, part, policy

__all__ = ["routes"]

# Name of a metric → (Prometheus's kind, what it is, the engine's name and a factor).
_METRICS = {
    "requests_total": ("counter", "Requests that have ended.", "requests"),
    "requests_cancelled_total": ("counter", "Requests that nobody wanted to the end.", "cancelled"),
    "requests_failed_total": ("counter", "Requests that ended with an error.", "failed"),
    "prompt_tokens_total": ("counter", "Tokens of prompts.", "prompt_tokens"),
    "prompt_tokens_cached_total": ("counter", "Tokens of prompts that caches held.", "cached_tokens"),
    "completion_tokens_total": ("counter", "Tokens that were written.", "completion_tokens"),
    "drafted_tokens_total": ("counter", "Tokens that were guessed.", "drafted_tokens"),
    "accepted_tokens_total": ("counter", "Tokens that were guessed rightly.", "accepted_tokens"),
    "embedded_texts_total": ("counter", "Texts that vectors were made of.", "texts"),
    "embedded_tokens_total": ("counter", "Tokens of these.", "text_tokens"),
    "steps_total": ("counter", "Passes over the weights.", "steps"),
    "step_tokens_total": ("counter", "Tokens in them.", "step_tokens"),
    "busy_seconds_total": ("counter", "Seconds spent in them.", "busy_seconds"),
    "prompt_seconds_total": ("counter", "Seconds spent in those with a part of a prompt.", "prompt_seconds"),
    "requests_running": ("gauge", "Requests that are worked on.", "running"),
    "requests_waiting": ("gauge", "Requests that wait.", "waiting"),
    "caches": ("gauge", "Caches that are kept for prompts that begin alike.", "caches"),
    "cache_bytes": ("gauge", "Their bytes.", "cache_bytes"),
    "cache_reserved_bytes": ("gauge", "Bytes that caches of running requests may grow to.", "reserved_bytes"),
}


async def _health(call: Call) -> Response:
    return json_response({"status": "ok"})


@functools.cache
def _chat_page() -> tuple[bytes, dict[str, str]]:
    """The chat page and its headers. It holds nothing of the models: those it asks for, as any client does."""
    styles, scripts = ["page.css", "chat.css"], ["page.js", "chat.js"]
    text = assemble("Chat", "chat.html", styles=styles, scripts=scripts, connect=True)
    rules = policy([part(name) for name in styles], [part(name) for name in scripts], connect=True)
    return text.encode(), {"Content-Security-Policy": f"{rules}; frame-ancestors 'none'"}


async def _page(call: Call) -> Response:
    text, headers = _chat_page()
    return Response(text, headers=headers, media_type="text/html; charset=utf-8")


async def _no_icon(call: Call) -> Response:
    return Response(status_code=204)


async def _metrics(call: Call) -> Response:
    if not call.settings.metrics:
        raise Problem(403, "metrics are not shown; they are where the server was started so")
    found = {name: engine.metrics() for name, engine in call.models.loaded()}
    return Response(prometheus(found), media_type="text/plain; version=0.0.4; charset=utf-8")


def prometheus(found: dict[str, Metrics]) -> str:
    """Metrics of models in Prometheus's text form."""
    lines: list[str] = []
    for name, (kind, text, field) in _METRICS.items():
        lines += [f"# HELP ggufkit_{name} {text}", f"# TYPE ggufkit_{name} {kind}"]
        for model, metrics in found.items():
            label = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
            lines.append(f'ggufkit_{name}{{model="{label}"}} {getattr(metrics, field):g}')
    return "\n".join([*lines, ""])


def routes() -> list[Route]:
    """Health, metrics, the page."""
    return [
        route("/health", _health, OPENAI, ("GET",)),
        route("/v1/health", _health, OPENAI, ("GET",)),
        route("/metrics", _metrics, OPENAI, ("GET",)),
        route("/", _page, OPENAI, ("GET",)),
        route("/favicon.ico", _no_icon, OPENAI, ("GET",)),
    ]
