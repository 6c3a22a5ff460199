"""Models by their names, with what a server must know of each: its chat template, how it replies, its grammars."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ggufkit.errors import GgufkitError, UsageError, printable
from ggufkit.gguf.summary import summary
from ggufkit.runtime.chat import ChatTemplate, read_template, special_tokens, template_names
from ggufkit.runtime.constrain.matcher import Grammars, Matcher
from ggufkit.sandbox.process import Busy
from ggufkit.serve.engine.request import ContextTooLong
from ggufkit.serve.problems import Problem
from ggufkit.serve.replies.detect import Manner, manner_of
from ggufkit.serve.settings import Settings

if TYPE_CHECKING:
    from ggufkit.gguf.reader import GGUF
    from ggufkit.runtime.constrain.grammar import Grammar
    from ggufkit.serve.engine import Engine
    from ggufkit.tokenizer.run.tokenizer import Tokenizer

__all__ = ["Models", "Pool", "Served", "facts"]

_LONG, _ENCODING = 1 << 16, 8  # characters of a long text; of them, how many wait


class Pool(Protocol):
    """What gives engines (`engine.ModelPool` is one)."""

    @property
    def names(self) -> Sequence[str]: ...

    def lease(self, name: str) -> AbstractContextManager[Engine]: ...

    def loaded(self) -> Mapping[str, Engine]: ...


class Served:
    """A loaded model.

    Attributes
    ----------
    name : as clients call it.
    engine : that runs it.
    """

    def __init__(self, name: str, engine: Engine, template: str | None):
        self.name, self.engine = name, engine
        self._template_source = template
        self._one_long, self._encoding = threading.Lock(), 0

    @property
    def gguf(self) -> GGUF:
        """The file."""
        return self.engine.model.gguf

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self.engine.model.tokenizer

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """Its chat template.

        Raises
        ------
        GgufkitError : it has none, or a broken one.
        """
        vocab = self.tokenizer.vocab
        if self._template_source is not None:
            return ChatTemplate(self._template_source, "", special_tokens(vocab))
        return read_template(self.gguf, vocab)

    @functools.cached_property
    def tool_template(self) -> ChatTemplate:
        """The one for conversations with tools, where there is another."""
        if self._template_source is None and "tool_use" in template_names(self.gguf):
            return read_template(self.gguf, self.tokenizer.vocab, "tool_use")
        return self.template

    @functools.cached_property
    def manner(self) -> Manner:
        """How it replies."""
        return manner_of(self.tool_template)

    @functools.cached_property
    def marks(self) -> frozenset[int]:
        """Control tokens that a parser of replies must see."""
        texts = [piece for mark in self.manner.marks for piece in self.partition(mark)]
        return frozenset(piece for piece in texts if isinstance(piece, int))

    @functools.cached_property
    def grammars(self) -> Grammars:
        """What keeps texts to a grammar."""
        return Grammars(self.tokenizer, self.engine.model.vocabulary)

    def constraint(self, grammar: Grammar) -> Matcher:
        """A constraint for one text."""
        return self.grammars.start(grammar)

    @functools.cached_property
    def _longest(self) -> int:
        """Bytes of the longest token."""
        return max(len(self.tokenizer.piece(id, special=True)) for id in range(len(self.tokenizer)))

    @contextmanager
    def encoding(self, text: str, most: int | None = None) -> Iterator[None]:
        """Stands around what makes tokens of a text: long texts one at a time, and none that is too long anyway.

        Parameters
        ----------
        most : tokens that are taken; by default a context of them.

        Raises
        ------
        ContextTooLong : there would be more than a context holds, however long each of them is.
        UsageError : there would be more than `most`.
        Busy : too many long texts wait.
        """
        holds = self.engine.context if self.engine.generates else self.engine.model.hyper.context_length
        if most is None and len(text) > holds * self._longest:
            raise ContextTooLong(-(-len(text) // self._longest), holds)
        if most is not None and len(text) > most * self._longest:
            raise UsageError(f"the text has {len(text)} characters; at most {most * self._longest} are made tokens")
        if len(text) <= _LONG:
            yield
            return
        if self._encoding >= _ENCODING:
            raise Busy(f"{self._encoding} long texts wait to be made tokens; try again")
        self._encoding += 1
        try:
            with self._one_long:
                yield
        finally:
            self._encoding -= 1

    def partition(self, text: str) -> Sequence[str | int]:
        """Pieces of a text, and the special tokens between them."""
        return self.tokenizer.partition(text)


class Models:
    """All that a server has.

    Parameters
    ----------
    pool : gives engines.
    """

    def __init__(self, pool: Pool, settings: Settings):
        self.pool, self._settings = pool, settings
        self._served: dict[int, Served] = {}
        self._waiting = ThreadPoolExecutor(64, "ggufkit-lease")  # for models to be loaded

    @property
    def names(self) -> list[str]:
        """Those that can be asked for, the first by default."""
        return list(self.pool.names)

    def find(self, name: str | None) -> str:
        """The name of a model; of none, or of one alone whatever it is called, the first.

        Raises
        ------
        Problem : there is none of that name.
        """
        names = self.names
        if not name or name in names:
            return name or names[0]
        short = name.removesuffix(":latest")
        if short in names or len(names) == 1:  # clients send "gpt-4o" to whatever they talk to
            return short if short in names else names[0]
        have = ", ".join(map(printable, names[:8]))
        raise Problem(
            404, f"there is no model {printable(name, 100)}; there are {have}", code="model_not_found", param="model"
        )

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[Served]:
        """A model, loaded if need be, and kept as long as it is used."""
        found = self.find(name)
        lease = self.pool.lease(found)
        entering = asyncio.get_running_loop().run_in_executor(self._waiting, lease.__enter__)
        try:
            engine = await asyncio.shield(entering)
        except asyncio.CancelledError:  # nobody is there any more to leave it
            entering.add_done_callback(lambda done: done.exception() or lease.__exit__(None, None, None))
            raise
        try:
            yield self._of(found, engine)
        finally:
            lease.__exit__(None, None, None)

    def _of(self, name: str, engine: Engine) -> Served:
        served = self._served.get(id(engine))
        if served is None or served.engine is not engine:
            alive = {id(one) for one in self.pool.loaded().values()}
            self._served = {key: one for key, one in self._served.items() if key in alive}
            served = self._served[id(engine)] = Served(name, engine, self._settings.template)
        return served

    def loaded(self) -> Iterator[tuple[str, Engine]]:
        """Those in memory."""
        yield from self.pool.loaded().items()


def facts(served: Served) -> dict[str, Any]:
    """What is known of a model, for people."""
    engine, model = served.engine, served.engine.model
    try:
        template = served.template.source
    except GgufkitError:
        template = ""
    return {
        **summary(served.gguf),
        "name": served.name,
        "context": engine.context if engine.generates else model.hyper.context_length,
        "trained_context": model.hyper.context_length,
        "vocabulary": model.vocabulary,
        "width": model.hyper.width,
        "generates": engine.generates,
        "chat_template": template,
    }
