"""What an engine has done so far."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Metrics", "Slot"]


@dataclass
class Metrics:
    """Counters, from the start of the engine on, and what there is now.

    Attributes
    ----------
    requests, cancelled, failed : that have ended; of these, those that nobody wanted any more, and those with errors.
    prompt_tokens, cached_tokens : of prompts that were read; of these, taken from caches.
    completion_tokens : that were chosen.
    drafted_tokens, accepted_tokens : guessed ahead, and of these, right.
    texts, text_tokens : that vectors were made of.
    steps, step_tokens : passes over the weights, and the tokens in them.
    busy_seconds : spent in them; prompt_seconds : in those with a part of a prompt.
    running, waiting : requests now.
    caches, cache_bytes : that nobody uses now, kept for prompts that begin alike.
    reserved_bytes : what the caches of those that run may grow to.
    """

    requests: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    texts: int = 0
    text_tokens: int = 0
    steps: int = 0
    step_tokens: int = 0
    busy_seconds: float = 0.0
    prompt_seconds: float = 0.0
    running: int = 0
    waiting: int = 0
    caches: int = 0
    cache_bytes: int = 0
    reserved_bytes: int = 0


@dataclass(frozen=True)
class Slot:
    """A request that is worked on.

    Attributes
    ----------
    prompt_tokens, read_tokens : of the prompt, and how many of them have been read.
    completion_tokens : chosen so far.
    context : tokens that fit.
    seconds : since work on it began.
    """

    prompt_tokens: int
    read_tokens: int
    completion_tokens: int
    context: int
    seconds: float
