"""What goes into an engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ggufkit.errors import GgufkitError, UsageError, printable
from ggufkit.runtime.constrain import Constraint
from ggufkit.runtime.sampling import Sampling

__all__ = [
    "Constraint",
    "ContextTooLong",
    "EngineClosed",
    "Event",
    "Finished",
    "QueueFull",
    "Reason",
    "Request",
    "Token",
    "Usage",
    "as_error",
]


class ContextTooLong(UsageError):
    """The prompt does not fit into the context.

    Attributes
    ----------
    prompt : its tokens.
    limit : tokens that fit.
    """

    def __init__(self, prompt: int, limit: int):
        super().__init__(
            f"the prompt of {prompt} tokens exceeds the available context size of {limit} tokens (context length)",
            "shorten it, or give a larger context with {context}",
        )
        self.prompt, self.limit = prompt, limit


class QueueFull(GgufkitError):
    """As many requests wait as may.

    Attributes
    ----------
    retry_after : seconds until it is worth trying again.
    """

    def __init__(self, waiting: int, retry_after: float):
        super().__init__(f"{waiting} requests wait already; try again in {retry_after:.0f} s")
        self.waiting, self.retry_after = waiting, retry_after


class EngineClosed(GgufkitError):
    """The engine takes no more requests."""

    def __init__(self) -> None:
        super().__init__("the model is being unloaded; it takes no more requests")


@dataclass(frozen=True)
class Request:
    """A text to be continued.

    Attributes
    ----------
    tokens : of the prompt, at least one.
    max_tokens : at most so many come; None for as many as the context holds.
    sampling : how they are chosen, the seed among it (`runtime.sampling`). With a seed the tokens are the same
        whatever else runs.
    stop : the text ends before the first of these strings.
    stop_tokens : and before these tokens, besides those that end a text for the model.
    ignore_ends : the model's own ends do not end it.
    show_special : control tokens are shown in the text: all, none, or these.
    logprobs : None for none; 0 for the chosen token's logarithm of its probability; n for those of the n best, too.
        Probabilities are the model's own, before any sampler.
    prompt_logprobs : the same of the prompt's tokens but the first: see `Stream.prompt`. Then no cache is reused.
    constraint : or None.
    priority : of those that wait the greatest come first, among equals the one that came first.
    reuse : what caches hold of the prompt is not computed again.
    speculate : guess tokens ahead, where the engine can. The tokens stay the same.
    adapters : name of an adapter of the engine → its scale; None for the scales that the engine was given.
    """

    tokens: list[int]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    ignore_ends: bool = False
    show_special: bool | frozenset[int] = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    priority: int = 0
    reuse: bool = True
    speculate: bool = True
    adapters: Mapping[str, float] | None = None

    @property
    def reuses(self) -> bool:
        """Whether it may take what caches hold."""
        return self.reuse and self.prompt_logprobs is None


@dataclass(frozen=True)
class Token:
    """A token that was chosen, or one of a prompt.

    Attributes
    ----------
    id : the token.
    data : its own bytes, perhaps a part of a character.
    text : what is certain now of the text: whole characters, before any stop string; often "".
    logprob : natural logarithm of its probability, where asked for.
    top : (token, logprob) of the best, the best first, as many as asked for.
    rank : 1 of the most probable; of a prompt's tokens alone.
    """

    id: int
    data: bytes
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    rank: int | None = None


@dataclass(frozen=True)
class Usage:
    """What a request took.

    Attributes
    ----------
    prompt_tokens : of the prompt, those in caches included.
    cached_tokens : of these, taken from a cache.
    completion_tokens : that were chosen, an end of the text included.
    drafted_tokens, accepted_tokens : guessed ahead, and of these, right.
    queue_seconds : from `submit` to the first work on it.
    prompt_seconds : from there to the first token; completion_seconds : to the end.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    queue_seconds: float = 0.0
    prompt_seconds: float = 0.0
    completion_seconds: float = 0.0


Reason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Finished:
    """The last event of a request.

    Attributes
    ----------
    reason : ``"stop"``: the model's end, a stop string or token, or the end of a constraint; ``"length"``: `max_tokens`
        or a full context; ``"cancelled"``; ``"error"``.
    usage : what it took.
    text : the rest of the text, held back until now.
    stop : the stop string or the token that ended it, or None.
    error : what went wrong, of reason ``"error"``.
    """

    reason: Reason
    usage: Usage
    text: str = ""
    stop: str | int | None = None
    error: GgufkitError | None = None


Event = Token | Finished


def as_error(error: Exception) -> GgufkitError:
    """What went wrong, as what a request may end with; what nobody foresaw keeps its cause."""
    if isinstance(error, GgufkitError):
        return error
    found = GgufkitError(f"the request failed inside: {printable(f'{type(error).__name__}: {error}')}")
    found.__cause__ = error
    return found
