"""Texts of models whose tokens see each other: they begin as masks, and the surest become words, block by block.

    prompt  [mask] [mask] [mask] [mask] │ [mask] …      a pass over all of it
    prompt  [mask]  light  [mask] [mask] │ [mask] …     the surest masks of the first block become tokens
    prompt   The    light   was    out   │ [mask] …     the block is text; the next one

A pass takes the whole text, so that there is no cache. How sure a token is, is its probability before temperature and
filters.

Source: `diffusion_generate` in examples/diffusion/diffusion.cpp of llama.cpp, by blocks and confidence; Nie et al.,
"Large Language Diffusion Models", 2025; Ye et al., "Dream 7B", 2025.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufkit.errors import GGUFError, Hint, UsageError
from ggufkit.runtime.batch import hidden
from ggufkit.runtime.forward import logits
from ggufkit.runtime.sampling import Sampler, Sampling
from ggufkit.runtime.stops import Stops, check_stops, written

if TYPE_CHECKING:
    from ggufkit.runtime.constrain.grammar import Grammar
    from ggufkit.runtime.model import Model
    from ggufkit.runtime.speculate import Ahead

__all__ = ["BLOCK", "LENGTH", "Diffusion", "diffused", "whole"]

BLOCK, LENGTH = 32, 128  # tokens of a block, and of a text where nobody says


class Diffusion:
    """Text of a model, block by block: iterate over it.

    Parameters
    ----------
    model : what writes.
    prompt : tokens, at least one.
    length : tokens of the context: prompt and text.
    max_tokens : of the text; None for `LENGTH`, or what fits.
    passes : over a block; None for one for each two of its tokens.
    sampling : how tokens are chosen.
    stop, show_special, ignore_ends : see `runtime.generate.Generation`.

    Attributes
    ----------
    tokens : the tokens so far.
    reason : why it ended: "end", "stop", "length", or "context"; None while it goes on.
    reused, ahead : 0 and None: nothing is kept of an earlier text, nothing is guessed.
    prompt_seconds, seconds : 0, and time spent on all passes.

    Raises
    ------
    UsageError : the prompt is empty, or leaves no room for a text; there are less than one pass or token.
    GGUFError : the file has no token for a mask.
    """

    def __init__(
        self,
        model: Model,
        prompt: Sequence[int],
        *,
        length: int,
        max_tokens: int | None = None,
        passes: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        show_special: bool = False,
        ignore_ends: bool = False,
    ):
        mask = model.gguf.get("tokenizer.ggml.mask_token_id", int, None)
        if mask is None or not 0 <= mask < model.vocabulary:
            raise GGUFError(
                "tokenizer.ggml.mask_token_id is missing, from which texts of this model begin", model.gguf.path
            )
        self.model, self.tokenizer = model, model.tokenizer
        self.prompt: list[int] = model.checked(prompt).tolist()
        if len(self.prompt) >= length:
            raise UsageError(
                f"the prompt has {len(self.prompt)} tokens and the context room for {length}",
                Hint("shorten it", "give a larger context with {context}"),
            )
        for what, number in (("tokens", max_tokens), ("passes", passes)):
            if number is not None and number < 1:
                raise UsageError(f"a text by diffusion needs at least 1 of its {what}, not {number}")
        check_stops(stop)
        self._mask, self._passes, room = mask, passes, length - len(self.prompt)
        self._size = min(room, LENGTH if max_tokens is None else max_tokens)
        self._end = "context" if self._size == room else "length"
        self.cache = model.new_cache(1)
        self.sampler = Sampler(sampling, {*self.tokenizer.vocab.suppressed, mask})
        self._shifted = model.gguf.get("diffusion.shift_logits", bool, True)
        self.stop, self.show_special, self.ignore_ends = tuple(stop), show_special, ignore_ends
        self.tokens: list[int] = []
        self.reason: str | None = None
        self.reused, self.ahead = 0, None
        self.prompt_seconds = self.seconds = 0.0

    def __iter__(self) -> Iterator[str]:
        text = self.tokenizer.stream(self.show_special)
        if (yield from written(self._blocks(), text, Stops(self.stop))):
            self.reason = "stop"

    def _blocks(self) -> Iterator[list[int]]:
        """The tokens to show, a block at a time; sets `reason` at the end."""
        ids = np.array([*self.prompt, *[self._mask] * self._size], np.int32)
        for start in range(len(self.prompt), len(ids), BLOCK):
            end = min(start + BLOCK, len(ids))
            begun = time.perf_counter()
            self._unmask(ids, start, end)
            self.seconds += time.perf_counter() - begun
            block = ids[start:end].tolist()
            ends = () if self.ignore_ends else self.tokenizer.vocab.ends
            last = next((i for i, token in enumerate(block) if token in ends), None)
            self.tokens += block if last is None else block[: last + 1]
            yield block[:last]
            if last is not None:
                self.reason = "end"
                return
        self.reason = self._end

    def _unmask(self, ids: np.ndarray, start: int, end: int) -> None:
        """Write the tokens of a block into `ids`."""
        passes = min(end - start, self._passes or (end - start + 1) // 2)
        for number in range(passes):
            masked = start + np.flatnonzero(ids[start:end] == self._mask)
            # What does not divide evenly goes to the first passes.
            count = -(-len(masked) // (passes - number))
            scores = whole(self.model, ids, masked - 1 if self._shifted else masked)
            self.sampler.reset()
            self.sampler.accept(ids[ids != self._mask].tolist())
            tokens = np.array([self.sampler.draw(row) for row in scores])
            scores = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
            sure = scores[np.arange(len(tokens)), tokens] - np.log(np.exp(scores).sum(axis=-1))
            surest = np.argsort(-sure, kind="stable")[:count]
            ids[masked[surest]] = tokens[surest]


def diffused(
    model: Model,
    tokens: Sequence[int],
    context: int | None,
    grammar: Grammar | None,
    ahead: Callable[[int], Ahead | None] | None,
    *,
    max_tokens: int | None,
    **how: Any,
) -> Diffusion:
    """What `Model.generate` gives of such a model.

    Raises
    ------
    UsageError : see `Diffusion`; or a grammar or guesses are wanted.
    """
    if grammar is not None or (ahead is not None and ahead(1) is not None):
        what = "kept to a grammar" if grammar is not None else "guessed ahead"
        raise UsageError(f"a text by diffusion cannot be {what}: it is not written from left to right")
    length = model.context(context, len(tokens) + (LENGTH if max_tokens is None else max_tokens))
    return Diffusion(model, tokens, length=length, max_tokens=max_tokens, **how)


def whole(model: Model, tokens: Sequence[int] | np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Logits of a text whose tokens all see each other, (m, vocabulary) float32; `rows` (m,): of these tokens."""
    ids, ops = model.checked(tokens), model.ops
    x = hidden(model, [(model.new_cache(len(ids), "F32", "F32"), ids)])
    return ops.numpy(logits(ops, model.hyper, model.weights, x if rows is None else ops.pick(x, rows)))
