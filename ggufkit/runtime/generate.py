"""The generation loop: a prompt goes through the model once, then one token after the other comes out as text.

    prompt ── tokens ──► forward ──► logits ──► sampler ──► token ──► text, whole characters only ──► stop strings
                           ▲                                  │
                           └──────────────────────────────────┘

The cache remembers its tokens, so a prompt that begins like the last one is computed from where it differs.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ggufkit.errors import Hint, UsageError
from ggufkit.runtime.constrain.mask import allowed
from ggufkit.runtime.sampling import Sampler, Sampling
from ggufkit.runtime.stops import Stops, check_stops, written

if TYPE_CHECKING:
    import numpy as np

    from ggufkit.runtime.constrain import Constraint
    from ggufkit.runtime.speculate import Ahead
    from ggufkit.tokenizer.run.tokenizer import Tokenizer

__all__ = ["Generation", "Runnable", "TokenCache", "breakers", "prompt_tokens"]


class TokenCache(Protocol):
    """What generation needs of a model's cache (`runtime.kv.cache.Cache` is one)."""

    length: int  # tokens that fit
    tokens: list[int]  # those that are in it

    def keep_prefix(self, tokens: Sequence[int]) -> int: ...


class Runnable(Protocol):
    """What generation needs of a model (`runtime.model.Model` is one)."""

    def new_cache(self, length: int | None = None) -> Any: ...

    def forward(self, tokens: Sequence[int], cache: Any, logits: str | int | None = "last") -> np.ndarray: ...


def prompt_tokens(tokenizer: Tokenizer, prompt: str | Sequence[int]) -> list[int]:
    """The tokens of a prompt, with BOS where the model wants it; ids are taken as they are.

    Raises
    ------
    UsageError : there are none.
    """
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt if isinstance(prompt, list) else list(prompt)
    if not ids:
        raise UsageError(
            "the prompt is empty, and the model has no BOS token to start from", "give some text with {prompt}"
        )
    return ids


class Generation:
    """Text of a model, piece by piece: iterate over it.

    Parameters
    ----------
    model, tokenizer : what writes.
    prompt : tokens, at least one.
    cache : to reuse from an earlier generation; what it holds is kept as far as the prompt begins with it.
    max_tokens : at most so many; None for as many as the context holds.
    sampling : how tokens are chosen.
    stop : the text ends before the first of these strings.
    show_special : show control tokens.
    ignore_ends : go on after a token that ends the text.
    constraint : what the text must obey; it ends where nothing can follow.
    ahead : guesses tokens, which are checked together; the text stays the same (see `runtime.speculate`).

    Attributes
    ----------
    tokens : the tokens so far, the one that ended the text included.
    reason : why it ended: "end" (the model's own end), "stop" (a stop string), "length" (`max_tokens`), "context"
        (the context is full); None while it goes on, or when it was interrupted.
    reused : tokens of the prompt that were in the cache.
    prompt_seconds, seconds : time spent on the prompt, and on the tokens after the first.

    Raises
    ------
    UsageError : the prompt is empty, or longer than the context.
    """

    def __init__(
        self,
        model: Runnable,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        cache: TokenCache | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | Sampler | None = None,
        stop: Sequence[str] = (),
        show_special: bool = False,
        ignore_ends: bool = False,
        constraint: Constraint | None = None,
        ahead: Ahead | None = None,
    ):
        self.model, self.tokenizer = model, tokenizer
        # As it is: what was seen stays known as long as the prompt that has it.
        self.prompt = prompt if isinstance(prompt, list) else list(prompt)
        if not self.prompt:
            raise UsageError("the prompt is empty; give at least one token")
        if max_tokens is not None and max_tokens < 0:
            raise UsageError(f"cannot generate {max_tokens} tokens; give 0 or more")
        check_stops(stop)
        self.cache: TokenCache = model.new_cache() if cache is None else cache
        if len(self.prompt) > self.cache.length:
            raise UsageError(
                f"the prompt has {len(self.prompt)} tokens and the context room for {self.cache.length}",
                Hint("shorten it", "give a larger context with {context}"),
            )
        self.sampler = (
            sampling
            if isinstance(sampling, Sampler)
            else Sampler(sampling, tokenizer.vocab.suppressed, breakers(tokenizer, sampling))
        )
        if ahead is not None and any(token < 0 for token in self.prompt):
            raise UsageError("tokens cannot be guessed behind images and sound; do not guess")
        self.max_tokens = max_tokens
        self.stop = tuple(stop)
        self.show_special, self.ignore_ends = show_special, ignore_ends and constraint is None
        self.constraint, self.ahead = constraint, ahead
        self.tokens: list[int] = []
        self.reason: str | None = None
        self.reused = 0
        self.prompt_seconds = self.seconds = 0.0

    def __iter__(self) -> Iterator[str]:
        text = self.tokenizer.stream(self.show_special)
        if (yield from written(([token] for token in self._tokens()), text, Stops(self.stop))):
            self.reason = "stop"

    def _tokens(self) -> Iterator[int]:
        """The tokens to show; sets `reason` at the end."""
        start = time.perf_counter()
        self.reused = self.cache.keep_prefix(self.prompt)
        self.sampler.accept([token for token in self.prompt if token >= 0])
        rows = self.model.forward(self.prompt[self.reused :], self.cache)[None]  # (1, vocabulary)
        self.prompt_seconds = time.perf_counter() - start
        guesses: list[int] = []
        while True:
            right = 0
            for logits, guess in zip(rows, [*guesses, None], strict=True):
                token = self._choose(logits)
                if token is None:
                    return
                yield token
                if len(self.tokens) == self.max_tokens:
                    self.reason = "length"
                    return
                if len(self.prompt) + len(self.tokens) > self.cache.length:
                    self.reason = "context"
                    return
                if token != guess:
                    break
                right += 1
            start = time.perf_counter()
            if self.ahead is None:
                rows = self.model.forward(self.tokens[-1:], self.cache)[None]
            else:
                self.ahead.learn(len(guesses), right)
                text = [*self.prompt, *self.tokens]
                if right < len(guesses):
                    self.cache.keep_prefix(text)
                guesses = self.ahead.guess(text, self._room())
                # Recurrent layers may have gone back further than to the last token: what they forgot is run again.
                rows = self.model.forward([*text[len(self.cache.tokens) :], *guesses], self.cache, len(guesses) + 1)
            self.seconds += time.perf_counter() - start

    def _choose(self, logits: np.ndarray) -> int | None:
        """The next token; None where the text ends, and `reason` says why."""
        if self.max_tokens is not None and len(self.tokens) >= self.max_tokens:
            self.reason = "length"
            return None
        if self.constraint is not None:
            if self.constraint.done:
                self.reason = "end"
                return None
            logits = allowed(logits, self.constraint.mask())
        token = self.sampler.draw(logits)
        self.tokens.append(token)
        if token in self.tokenizer.vocab.ends and not self.ignore_ends:
            self.reason = "end"
            return None
        if self.constraint is not None:
            self.constraint.accept(token)
        return token

    def _room(self) -> int:
        """How many tokens may be guessed: those after them must be wanted, and fit."""
        room = self.cache.length - len(self.prompt) - len(self.tokens)
        return room if self.max_tokens is None else min(room, self.max_tokens - len(self.tokens) - 1)


def breakers(tokenizer: Tokenizer, sampling: Sampling | None) -> Collection[int]:
    """Tokens over which DRY looks for no repetition, where it looks for any."""
    return tokenizer.breakers if sampling is not None and sampling.dry_multiplier else ()
