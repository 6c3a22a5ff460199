"""The engine: one thread computes, any number of others ask.

    waiting  ──admit──►  running: reads its prompt in pieces, then writes  ──►  finished
                            │  a cache that begins like the prompt              │
                            └──────────────  prefixes  ◄────────────────────────┘

Each pass over the weights has the next token of all that write and a piece of the prompts that are read.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ggufkit.errors import Hint, UsageError
from ggufkit.runtime.batch import LIMIT, Piece
from ggufkit.runtime.embedding import Text, embeddings, together
from ggufkit.runtime.kv.cache import common_prefix
from ggufkit.runtime.kv.size import cache_sizes, request_sizes
from ggufkit.runtime.speculate import Ahead, Draft, FirstToKnow, Guesser, Lookup, require_same_vocabulary
from ggufkit.serve.engine.checks import require_possible
from ggufkit.serve.engine.metrics import Metrics, Slot
from ggufkit.serve.engine.prefixes import Prefixes
from ggufkit.serve.engine.request import EngineClosed, Finished, QueueFull, Request, Usage, as_error
from ggufkit.serve.engine.running import Running, clock
from ggufkit.serve.engine.schedule import Pace, shares
from ggufkit.serve.engine.stream import Stream, settle, wake

if TYPE_CHECKING:
    from ggufkit.runtime.encoders.media import Prepared
    from ggufkit.runtime.kv.cache import Cache
    from ggufkit.runtime.model import Model

__all__ = ["Engine"]

_SHARED = 64  # tokens of a common beginning that are worth waiting for until another has read them


@dataclass(frozen=True)
class _Waiting:
    stream: Stream
    number: int
    submitted: float

    @property
    def order(self) -> tuple[int, int]:
        return -self.stream.request.priority, self.number


class Engine:
    """A model that answers many at once. Its thread starts at once and ends with `close`, which closes the model too.

    Parameters
    ----------
    load : gives the model, e.g. ``partial(ggufkit.load, path)``. Called in the engine's thread: arrays of MLX belong to
        the thread that made them.
    context : tokens of a request, prompt and answer; by default the model's own, up to 4096. Never cut, never divided.
        Of a model whose encoder reads the prompt so many tokens each.
    slots : requests that are worked on at the same time.
    queue : requests that wait at most; one more is refused.
    types : of keys and values in caches.
    cache_bytes : what caches of running requests may grow to together; None for `slots` full contexts. A request waits
        until there is room for all that it may need.
    cache_ram : bytes of caches that nobody uses, kept for prompts that begin like them.
    cache_folder : these caches are read from it at the start, and written to it when the engine closes; or None.
    prompt_piece : tokens of prompts in a pass; None for as many as take 0.15 s.
    draft : gives a small model with the same vocabulary that guesses ahead, or None.
    lookup : guess what followed in the text before.
    guesses : tokens guessed at once at most.

    Attributes
    ----------
    model : whose tokenizer, metadata and sizes any thread may read.
    generates : whether it writes text; else it makes vectors alone.

    Raises
    ------
    GgufkitError : the model cannot be loaded.
    UsageError : a number is out of its range, or the draft has another vocabulary.
    """

    model: Model
    generates: bool

    def __init__(
        self,
        load: Callable[[], Model],
        *,
        context: int | None = None,
        slots: int = 4,
        queue: int = 64,
        types: tuple[str, str] = ("F16", "F16"),
        cache_bytes: int | None = None,
        cache_ram: int = 1 << 30,
        cache_folder: Path | None = None,
        prompt_piece: int | None = None,
        draft: Callable[[], Model] | None = None,
        lookup: bool = False,
        guesses: int = 32,
    ):
        for name, value, least in (("slots", slots, 1), ("queue", queue, 0), ("guesses", guesses, 1)):
            if value < least:
                raise UsageError(f"{name} is {value}; it must be at least {least}")
        if prompt_piece is not None and not 1 <= prompt_piece <= LIMIT:
            raise UsageError(f"a piece of a prompt has 1 to {LIMIT} tokens, not {prompt_piece}")
        self.slots, self.queue = slots, queue
        self._types, self._lookup, self._guesses = types, lookup, guesses
        self._cache_folder = cache_folder
        self._pace = Pace(prompt_piece)
        self._changed = threading.Condition()  # of what follows
        self._waiting: list[_Waiting] = []
        self._calls: deque[tuple[Future[object], Callable[[], object]]] = deque()
        self._closing = self._ended = False  # no new requests; nothing more at all
        self._numbers = 0
        # The worker's own.
        self._running: list[Running] = []
        self._told: list[Stream] = []  # that their requests have ended
        self._metrics = Metrics()
        self._duration = 1.0  # seconds of a request, lately
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._work,
            args=(ready, lambda: self._start(load, draft, context, cache_bytes, cache_ram)),
            name="ggufkit-engine",
            daemon=True,
        )
        self._thread.start()
        ready.result()

    def _start(
        self,
        load: Callable[[], Model],
        draft: Callable[[], Model] | None,
        context: int | None,
        cache_bytes: int | None,
        cache_ram: int,
    ) -> None:
        self.model = load()
        self._draft = None if draft is None else draft()
        if self._draft is not None:
            require_same_vocabulary(self.model, self._draft)
        self.generates = self.model.weights.output is not None
        self._context = self.model.context(context)
        self._size = cache_sizes(self.model, self._types)
        self._grows = request_sizes(self.model, self._size, self._context)
        full = self._grows(self._context, None)
        self._limit = self.slots * full if cache_bytes is None else cache_bytes
        if self.model.weights.encoder is not None and (self._draft is not None or self._lookup):
            raise UsageError("nothing guesses ahead for a model whose encoder reads for it")
        if self._limit < full:  # who asked for it would wait for ever
            raise UsageError(
                f"a context of {self._context} tokens takes {full} bytes of cache, more than the {self._limit} for all",
                Hint("give a smaller {context}", "give more {cache_bytes}"),
            )
        self._prefixes = Prefixes(cache_ram, self._size)
        if self._cache_folder is not None:
            self._prefixes.load(self._cache_folder, self._new_cache)

    @property
    def context(self) -> int:
        """Tokens of a request, prompt and answer."""
        return self._context

    # -- for any thread -----------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Stream:
        """Take a request.

        Raises
        ------
        ContextTooLong : its prompt does not leave room for a token.
        QueueFull : too many wait.
        EngineClosed : the engine is closing.
        UsageError : there is no prompt, a token is none of this model, or a number is out of its range.
        """
        if not self.generates:
            raise UsageError("this model makes embeddings and no text")
        require_possible(request, self.model, self._context)
        with self._changed:
            self._require_open()
            free = max(0, self.slots - len(self._running))
            if len(self._waiting) >= self.queue + free:
                raise QueueFull(len(self._waiting), max(1.0, self._duration * len(self._waiting) / self.slots))
            stream = Stream(request)
            self._numbers += 1
            self._waiting.append(_Waiting(stream, self._numbers, clock()))
            self._changed.notify()
        return stream

    def embed(self, texts: Sequence[Sequence[int]], pooling: str | None = None) -> Future[list[np.ndarray]]:
        """Vectors of texts, one of each, not normalised: see `Model.embed`. They wait for no request, nor it for them.

        Raises
        ------
        EngineClosed : the engine is closing.
        """
        found: Future[list[np.ndarray]] = Future()
        self._call(partial(self._embed, deque(together(texts)), pooling, [], found))
        return found

    def see(self, prepared: Prepared) -> Future[object]:
        """What stands in a prompt for an image or sound, a `runtime.seen.Prompt`: see `Media.encoded`."""
        return self._call(lambda: prepared.media.encoded(prepared))

    def metrics(self) -> Metrics:
        """What was done, and what there is now."""
        with self._changed:
            found = dataclasses.replace(self._metrics)
            found.running, found.waiting = len(self._running), len(self._waiting)
        found.caches, found.cache_bytes = len(self._prefixes), self._prefixes.nbytes
        found.reserved_bytes = sum(map(self._need, self._running))
        return found

    def running(self) -> list[Slot]:
        """The requests that are worked on."""
        now = clock()
        return [
            Slot(len(one.prompt), len(one.prompt) - one.left, one.written, one.context, now - one.started)
            for one in list(self._running)
        ]

    def save_caches(self, folder: Path) -> Future[object]:
        """Write the caches that nobody uses to files in a folder; the result is how many."""
        return self._call(lambda: self._prefixes.save(folder))

    def load_caches(self, folder: Path) -> Future[object]:
        """Read caches that were saved, as far as there is room; the result is how many."""
        return self._call(lambda: self._prefixes.load(folder, self._new_cache))

    def drop_caches(self) -> Future[object]:
        """Forget the caches that nobody uses."""
        return self._call(self._prefixes.clear)

    def close(self, drain: float | None = 0) -> None:
        """Take no more requests, finish those that are here, end the thread, close the model.

        Parameters
        ----------
        drain : seconds that requests have to finish; those that have not then are cancelled. None for as long as it
            takes.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(drain)
        self._ended = True
        for one in [*(waiting.stream for waiting in self._waiting), *(one.stream for one in list(self._running))]:
            one.cancel()
        self._thread.join()
        self.model.__exit__()
        if self._draft is not None:
            self._draft.__exit__()

    def _call(self, function: Callable[[], object]) -> Future[object]:
        future: Future[object] = Future()
        with self._changed:
            self._require_open()
            self._calls.append((future, function))
            self._changed.notify()
        return future

    def _require_open(self) -> None:
        if self._closing:
            raise EngineClosed

    # -- the worker ---------------------------------------------------------------------------------------------

    def _work(self, ready: Future[None], start: Callable[[], None]) -> None:
        settle(ready, start)
        if ready.exception() is not None:
            return
        while True:
            try:
                if not self._turn():
                    break
            except Exception as e:  # nobody's fault alone
                for one in self._running:
                    one.finish("error", error=as_error(e))
        if self._cache_folder is not None:
            folder = self._cache_folder
            settle(Future(), lambda: self._prefixes.save(folder))

    def _turn(self) -> bool:
        """Wait for something to do and do a part of it; False where there is nothing more, ever."""
        with self._changed:
            while not (self._waiting or self._running or self._calls):
                if self._closing:
                    return False
                self._changed.wait()
            call = self._calls.popleft() if self._calls else None
        if call is not None:
            settle(*call)
        self._let_go()
        self._admit()
        if self._running:
            self._pass()
        self._told += [one.stream for one in self._running]
        self._let_go()
        wake(self._told)
        self._told.clear()
        return True

    def _let_go(self) -> None:
        """End what nobody wants, keep the caches of what has ended."""
        with self._changed:
            gone = [one for one in self._waiting if one.stream.cancelled]
            self._waiting = [one for one in self._waiting if not one.stream.cancelled]
        for waiting in gone:
            self._count(Finished("cancelled", Usage(len(waiting.stream.request.tokens))), waiting.stream)
        for one in self._running:
            if one.stream.cancelled:
                one.finish("cancelled")
        ended = [one for one in self._running if one.finished is not None]
        if not ended:
            return
        with self._changed:
            self._running = [one for one in self._running if one.finished is None]
        for one in ended:
            assert one.finished is not None
            self._duration += 0.2 * (clock() - one.started - self._duration)
            if one.finished.reason != "error" and not self._reads:
                self._prefixes.put(one.cache)
            self._count(one.finished, one.stream)

    def _count(self, finished: Finished, stream: Stream) -> None:
        """Count a request that has ended, then let whoever reads know."""
        usage, found = finished.usage, self._metrics
        found.requests += 1
        found.cancelled += finished.reason == "cancelled"
        found.failed += finished.reason == "error"
        found.prompt_tokens += usage.prompt_tokens
        found.cached_tokens += usage.cached_tokens
        found.completion_tokens += usage.completion_tokens
        found.drafted_tokens += usage.drafted_tokens
        found.accepted_tokens += usage.accepted_tokens
        stream.put(finished)
        self._told.append(stream)

    def _admit(self) -> None:
        """Begin with requests that wait, as far as there are slots and room."""
        with self._changed:
            waiting = sorted(self._waiting, key=lambda one: one.order)
        for one in waiting:
            if len(self._running) >= self.slots:
                return
            running = Running(one.stream, self.model.tokenizer, self._context, one.submitted)
            if sum(map(self._need, [*self._running, running])) > self._limit:
                return
            if self._read_by_another(one.stream.request):
                continue
            with self._changed:
                self._waiting.remove(one)
            try:
                self._begin(running)
            except Exception as e:
                self._count(running.finish("error", error=as_error(e)), one.stream)
                continue
            with self._changed:
                self._running.append(running)

    def _begin(self, one: Running) -> None:
        """Give a request its cache. Where an encoder reads the prompt, it does so now, and all of it at once."""
        cache = self._cache_for(one.request)
        self.model.adapt(one.request.adapters)
        one.begin(cache, self.model.answered(one.request.tokens, cache))
        one.ahead = self._ahead_of(one.request)

    @property
    def _reads(self) -> bool:
        """Whether an encoder reads prompts: what caches hold is an answer to one prompt alone."""
        return self.model.weights.encoder is not None

    def _reuses(self, request: Request) -> bool:
        return request.reuses and not self._reads

    def _need(self, one: Running) -> int:
        return self._grows(len(one.request.tokens), one.request.max_tokens)

    def _read_by_another(self, request: Request) -> bool:
        """Whether a running request is reading what this one begins with, too."""
        if not self._reuses(request):
            return False
        wanted, caches = request.tokens[:-1], [one.cache for one in self._running]
        _, have = self._prefixes.best(self._kind(request), wanted, caches)
        return any(
            one.left
            and one.finished is None
            and common_prefix(one.request.tokens, wanted) > max(have, len(one.cache)) + _SHARED
            for one in self._running
        )

    def _cache_for(self, request: Request) -> Cache:
        """A cache that begins like the prompt, or an empty one."""
        others = [one.cache for one in self._running]
        found = self._prefixes.take(self._kind(request), request.tokens, others) if self._reuses(request) else None
        return self._new_cache(request.adapters) if found is None else found

    def _ahead_of(self, request: Request) -> Ahead | None:
        """What guesses for a request."""
        if not request.speculate or min(request.tokens) < 0:  # behind images nothing is guessed
            return None
        guessers: list[Guesser] = [Lookup()] if self._lookup else []
        if self._draft is not None:
            guessers.append(Draft(self._draft, self._draft.new_cache(self._context, *self._types)))
        return Ahead(FirstToKnow(*guessers), self._guesses) if guessers else None

    def _pass(self) -> None:
        """One pass over the weights, and what comes of it."""
        start = clock()
        running = [one for one in self._running if one.finished is None]
        writing = [one for one in running if not one.left]
        pieces = [(one, one.writing()) for one in writing]
        rows = sum(len(piece.tokens) for _, piece in pieces)
        budget = min(self._pace.piece, max(LIMIT - rows, 1))
        read = shares([one for one in running if one.left], budget, self._pace.rate, start)
        read = [(one, min(n, one.stride)) for one, n in read]
        read = [(one, self.model.shown.uncut(one.tokens, len(one.cache), n)) for one, n in read]
        pieces += [(one, one.reading(n, start)) for one, n in read]
        for one, logits in self._run(pieces):
            if len(logits):
                try:
                    one.take(logits)
                except Exception as e:
                    one.finish("error", error=as_error(e))
        seconds, count = clock() - start, sum(n for _, n in read)
        found = self._metrics
        found.steps += 1
        found.step_tokens += rows + count
        found.busy_seconds += seconds
        if count:
            found.prompt_seconds += seconds
            self._pace.learn(count, seconds)

    def _run(self, pieces: Sequence[tuple[Running, Piece]]) -> Iterator[tuple[Running, np.ndarray]]:
        """The logits of each piece. Requests with the same adapters share a pass.

        Where a pass fails each piece runs alone, so that one cannot spoil the others.
        """
        by_scales: dict[tuple[float, ...], list[tuple[Running, Piece]]] = {}
        for one, piece in pieces:
            by_scales.setdefault(self.model.scales(one.request.adapters), []).append((one, piece))
        for some in by_scales.values():
            self.model.adapt(some[0][0].request.adapters)
            try:
                found = self.model.step([piece for _, piece in some])
            except Exception:
                yield from self._each_alone(some)
            else:
                yield from zip([one for one, _ in some], found, strict=True)

    def _each_alone(self, pieces: Sequence[tuple[Running, Piece]]) -> Iterator[tuple[Running, np.ndarray]]:
        for one, piece in pieces:
            try:
                (found,) = self.model.step([piece])
            except Exception as e:
                one.finish("error", error=as_error(e))
            else:
                yield one, found

    def _embed(
        self, runs: deque[list[Text]], pooling: str | None, vectors: list[np.ndarray], found: Future[list[np.ndarray]]
    ) -> None:
        """Make vectors of the next texts that go together; the rest waits behind what others want."""
        if not found.running() and not found.set_running_or_notify_cancel():
            return
        try:
            if self._ended:
                raise EngineClosed
            if runs:
                texts = runs.popleft()
                self.model.adapt()
                vectors += embeddings(self.model, texts, pooling)
                self._metrics.texts += len(texts)
                self._metrics.text_tokens += sum(map(len, texts))
        except Exception as e:
            found.set_exception(as_error(e))
            return
        if not runs:
            found.set_result(vectors)
            return
        with self._changed:
            self._calls.append((Future(), partial(self._embed, runs, pooling, vectors, found)))

    def _new_cache(self, scales: Mapping[str, float] | None = None) -> Cache:
        return self.model.new_cache(self._context, *self._types, scales)

    def _kind(self, request: Request) -> str:
        return self.model.cache_kind(*self._types, request.adapters)
