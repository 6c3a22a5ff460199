"""What goes wrong with a request, before a dialect puts it into its own shape."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from typing import Any

from ggufkit.errors import GGUFError, GgufkitError, MissingDependency, UsageError, printable
from ggufkit.sandbox.process import Busy
from ggufkit.serve.engine.request import ContextTooLong, EngineClosed, QueueFull

__all__ = ["Problem", "bad", "problem_of"]

# Status → what llama-server calls it.
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}


class Problem(Exception):
    """An answer that is an error.

    Parameters
    ----------
    status : of HTTP.
    message : what, where, which value against which limit.
    kind : by default after the status.
    code : a word for programs.
    param : the field of the request.
    headers : of the answer.
    more : fields beside the message.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.kind = kind or _KINDS.get(status, "server_error")
        self.headers, self.more = dict(headers or {}), dict(more or {})


def bad(message: str, param: str | None = None) -> Problem:
    """A request that says what cannot be."""
    return Problem(400, message, param=param)


def problem_of(error: BaseException) -> Problem:
    """Any error as a problem. Of what nobody expected only the log has more than that it happened."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ContextTooLong):
        return Problem(
            400,
            error.message,
            kind="exceed_context_size_error",
            code="context_length_exceeded",
            more={"n_prompt_tokens": error.prompt, "n_ctx": error.limit},
        )
    if isinstance(error, QueueFull):
        return Problem(429, error.message, headers={"Retry-After": str(max(1, round(error.retry_after)))})
    if isinstance(error, (EngineClosed, Busy)):
        return Problem(503, error.message, headers={"Retry-After": "1"})
    if isinstance(error, (UsageError, GGUFError, MissingDependency)):
        return Problem(400, error.reason if isinstance(error, GGUFError) else error.message)
    if isinstance(error, GgufkitError):
        return Problem(500, error.message)
    traceback.print_exception(error, file=sys.stderr)
    return Problem(500, f"the server failed ({printable(type(error).__name__)}); its log says more")
