"""One request that is worked on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ggufkit.errors import GgufkitError, UsageError
from ggufkit.runtime.batch import Piece
from ggufkit.runtime.constrain.mask import allowed
from ggufkit.runtime.generate import breakers
from ggufkit.runtime.sampling import Sampler
from ggufkit.runtime.stops import Stops
from ggufkit.serve.engine.request import Finished, Reason, Token, Usage
from ggufkit.serve.engine.stream import Stream

if TYPE_CHECKING:
    from ggufkit.runtime.kv.cache import Cache
    from ggufkit.runtime.speculate import Ahead
    from ggufkit.tokenizer.run.tokenizer import Tokenizer

__all__ = ["Running"]

T = TypeVar("T")

_LOGITS = 64  # rows of logits of a prompt at once

_CONSTRAINING, _CONSTRAINING_EACH = 0.5, 0.02  # seconds of a request that its grammar may take, and more for each token


class Running:
    """A request with its cache: reads its prompt, then writes.

    Attributes
    ----------
    prompt : the request's tokens; where an encoder has read them, the token that an answer begins with.
    tokens : the prompt, then what was chosen. The cache holds a part of them, at most all but the last.
    cached : tokens of the prompt that it held at the beginning.
    served : when something was last done for it.
    finished : how it has ended, or None.
    """

    def __init__(self, stream: Stream, tokenizer: Tokenizer, context: int, submitted: float):
        request = stream.request
        self.stream, self.request, self._tokenizer = stream, request, tokenizer
        self.prompt = request.tokens
        self.tokens = list(request.tokens)
        self.context = context
        self.cached = 0
        self.finished: Finished | None = None
        self.ahead: Ahead | None = None
        self._cache: Cache | None = None
        self._guesses: list[int] = []
        self._constraint, self._constraining = request.constraint, 0.0
        vocab = tokenizer.vocab
        self._ends = (frozenset() if request.ignore_ends else vocab.ends) | request.stop_tokens
        self._sampler = Sampler(request.sampling, vocab.suppressed, breakers(tokenizer, request.sampling))
        self._text, self._stops = tokenizer.stream(request.show_special), Stops(request.stop)
        self._read = 0  # tokens of the prompt in the piece that runs
        self._submitted = submitted
        self.started = self.served = clock()
        self._first = 0.0

    def begin(self, cache: Cache, prompt: list[int]) -> None:
        """Start with a cache that holds a part of the prompt, if any."""
        self._cache, self.cached = cache, len(cache)
        self.prompt, self.tokens = prompt, list(prompt)
        self._sampler.accept([token for token in self.prompt if token >= 0])
        if self.request.prompt_logprobs is not None:
            self._add_prompt(self.request.tokens[0])

    @property
    def cache(self) -> Cache:
        assert self._cache is not None
        return self._cache

    @property
    def left(self) -> int:
        """Tokens of the prompt that are still to be read."""
        return max(0, len(self.prompt) - len(self.cache))

    @property
    def written(self) -> int:
        return len(self.tokens) - len(self.prompt)

    def reading(self, n: int, now: float) -> Piece:
        """The next `n` tokens of the prompt, to be run; the last one's logits."""
        at = len(self.cache)
        self.served = now
        self._read = n
        wanted = 1 if n == self.left else 0
        return Piece(self.cache, self.tokens[at : at + n], wanted if self.request.prompt_logprobs is None else n)

    @property
    def stride(self) -> int:
        """Tokens of the prompt that it reads at once, at most: all logits of long pieces would take much memory."""
        return len(self.tokens) if self.request.prompt_logprobs is None else _LOGITS

    def writing(self) -> Piece:
        """What was chosen last, and what may follow, to be run."""
        most = len(self.tokens) + 1
        room = self.context - most if self.request.max_tokens is None else self.request.max_tokens - self.written - 1
        self._guesses = [] if self.ahead is None else self.ahead.guess(self.tokens, min(room, self.context - most))
        # Recurrent layers may have gone back further than to the last token.
        return Piece(self.cache, [*self.tokens[len(self.cache) :], *self._guesses], 1 + len(self._guesses))

    def take(self, rows: np.ndarray) -> None:
        """Choose tokens: logits (1 + guesses, vocabulary) of the piece that was run."""
        if self.request.prompt_logprobs is not None and self._read:
            rows = self._tell_prompt(rows)
            if not len(rows):
                return
        if self.request.max_tokens == 0:
            self.finish("length")
            return
        right = 0
        for row, guess in zip(rows, [*self._guesses, None], strict=True):
            token = self._next(row)
            if self.finished is not None or token != guess:
                break
            right += 1
        if self.ahead is not None:
            self.ahead.learn(len(self._guesses), right)
        self._guesses = []
        self.cache.truncate(len(self.tokens) - 1)

    def _tell_prompt(self, rows: np.ndarray) -> np.ndarray:
        """Keep what logits say of the prompt's tokens after theirs; the rows that are left."""
        count, self._read = self._read, 0
        at = len(self.cache) - count
        for row, token in zip(rows, self.request.tokens[at + 1 : at + 1 + count], strict=False):
            if token < 0:  # of an image
                self._add_prompt(token)
                continue
            logprob, top = _logprobs(row, token, self.request.prompt_logprobs)
            self._add_prompt(token, logprob, top, 1 + int((row > row[token]).sum()))
        return rows[count - 1 :] if not self.left else rows[:0]

    def _add_prompt(
        self,
        token: int,
        logprob: float | None = None,
        top: tuple[tuple[int, float], ...] = (),
        rank: int | None = None,
    ) -> None:
        data = self._tokenizer.piece(token) if token >= 0 else b""
        self.stream.prompt.append(Token(token, data, "", logprob, top, rank))

    def _next(self, logits: np.ndarray) -> int:
        """Choose the next token, and hand it over."""
        mask = None if self._constraint is None else self._in_time(self._constraint.mask)
        if mask is not None and not mask.any():
            self.finish("stop")
            return -1
        token = self._sampler.draw(allowed(logits, mask))
        self.tokens.append(token)
        if self.written == 1:
            self._first = clock()
        if token in self._ends:
            self.finish("stop", token)
            return token
        if self._constraint is not None:
            self._in_time(partial(self._constraint.accept, token))
        text = self._stops.feed(self._text.feed([token]))
        logprob, top = _logprobs(logits, token, self.request.logprobs)
        data = self._tokenizer.piece(token, self.request.show_special)
        self.stream.put(Token(token, data, text, logprob, top))
        if self._stops.found is not None:
            self.finish("stop", self._stops.found)
        elif self._constraint is not None and self._constraint.done:
            self.finish("stop")
        elif self.written == self.request.max_tokens or len(self.tokens) > self.context:
            self.finish("length")
        return token

    def _in_time(self, work: Callable[[], T]) -> T:
        """What a constraint gives.

        Raises
        ------
        UsageError : it takes so long that the others wait.
        """
        start = time.thread_time()
        found = work()
        self._constraining += time.thread_time() - start
        if self._constraining > _CONSTRAINING + _CONSTRAINING_EACH * self.written:
            raise UsageError(
                f"the grammar is too slow: {self.written} tokens took {self._constraining:.1f} s of computing"
            )
        return found

    def finish(self, reason: Reason, stop: str | int | None = None, error: GgufkitError | None = None) -> Finished:
        """It has ended; what comes later counts no more."""
        if self.finished is not None:
            return self.finished
        text = ""
        if self._stops.found is None:
            text = self._stops.feed(self._text.close()) + self._stops.close()
        self.finished = Finished(reason, self.usage(), text, stop, error)
        return self.finished

    def usage(self) -> Usage:
        """What it has taken so far."""
        now = clock()
        first = self._first or now
        return Usage(
            len(self.request.tokens),
            self.cached,
            self.written,
            0 if self.ahead is None else self.ahead.guessed,
            0 if self.ahead is None else self.ahead.right,
            self.started - self._submitted,
            first - self.started,
            now - first,
        )


def _logprobs(logits: np.ndarray, token: int, count: int | None) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """The token's logarithm of its probability, and the `count` best tokens' with theirs."""
    if count is None:
        return None, ()
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    count = min(count, len(values))
    best: Sequence[int] = np.argpartition(values, -count)[-count:].tolist() if count else []
    top = sorted(((int(i), float(values[i])) for i in best), key=lambda pair: (-pair[1], pair[0]))
    return float(values[token]), tuple(top)


def clock() -> float:
    """Seconds, for differences."""
    return time.perf_counter()
