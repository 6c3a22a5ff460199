"""What a model cannot do of what a request asks for, said before it waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufkit.errors import UsageError
from ggufkit.runtime.stops import check_stops
from ggufkit.serve.engine.request import ContextTooLong, Request

if TYPE_CHECKING:
    from ggufkit.runtime.model import Model

__all__ = ["require_possible"]


def require_possible(request: Request, model: Model, context: int) -> None:
    """See that a model with a context of so many tokens can do it.

    Raises
    ------
    ContextTooLong : the prompt does not leave room for a token.
    UsageError : there is no prompt, a token is none of this model, or a number is out of its range.
    """
    reads = model.weights.encoder is not None  # so that the answer has a context of its own
    model.checked(request.tokens)
    if len(request.tokens) > context - (request.max_tokens != 0 and not reads):
        raise ContextTooLong(len(request.tokens), context)
    if request.max_tokens is not None and request.max_tokens < 0:
        raise UsageError(f"cannot generate {request.max_tokens} tokens; give 0 or more")
    check_stops(request.stop)
    if request.prompt_logprobs is not None and reads:
        raise UsageError("the model's encoder reads the prompt; its tokens have no probabilities")
    if any(not 0 <= (n or 0) <= model.vocabulary for n in (request.logprobs, request.prompt_logprobs)):
        raise UsageError(f"logprobs are given of 0 to {model.vocabulary} tokens")
    model.scales(request.adapters)
