"""Guessing tokens ahead: several are checked in one pass over the weights, which costs little more than one.

    text so far     … return self.name \\n        def
    guessed                                           __repr__ ( self )
    one pass        logits after "def", after "__repr__", after "(", …
    drawn                                             __repr__ ( value            "value" is kept, ")" forgotten

A token is drawn from the logits after each guess as long as guesses are right; the first other token is kept and what
was guessed after it forgotten. So each token is drawn from what the model says of the text before it, with the same
random numbers: the text is the one that comes without guesses, whatever the sampler. A guess of probability p is right
with probability p, as by rejection sampling (Leviathan et al., "Fast Inference from Transformers via Speculative
Decoding", 2023), of a draft that says one token for certain.

Recurrent layers cannot forget single tokens: they go back to their states before the pass, and what was right is run
again, at the head of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ggufkit.errors import UsageError, printable

if TYPE_CHECKING:
    from ggufkit.runtime.kv.cache import Cache
    from ggufkit.runtime.model import Model

__all__ = ["Ahead", "Draft", "FirstToKnow", "Guesser", "Lookup", "require_same_vocabulary"]

MOST = 32  # guesses that are checked in a pass


class Guesser(Protocol):
    """What knows how a text may go on."""

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """What may follow: at most `most` tokens, none where it does not know. `tokens` only grows."""


class Lookup:
    """Guesses what followed the last time that the text had its last tokens: for edited code, quotes, tables.

    Source: Saxena, "Prompt Lookup Decoding", 2023.

    Parameters
    ----------
    longest, shortest : how many of the last tokens are looked for, the most first.
    """

    def __init__(self, longest: int = 5, shortest: int = 3):
        self._sizes = range(longest, shortest - 1, -1)
        self._after: dict[tuple[int, ...], int] = {}  # tokens in a row → where the text went on after them
        self._known = 0  # tokens whose places are in it

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        for end in range(self._known, len(tokens)):  # of those that end before the last token
            for size in self._sizes:
                if size <= end:
                    self._after[tuple(tokens[end - size : end])] = end
        self._known = len(tokens)
        for size in self._sizes:
            at = self._after.get(tuple(tokens[-size:])) if size < len(tokens) else None
            if at is not None:
                found = list(tokens[at : at + most])
                while 0 < len(found) < most:  # the text repeats itself
                    found += found[: most - len(found)]
                return found
        return []


class Draft:
    """Guesses what a smaller model would write.

    Parameters
    ----------
    model : with the vocabulary of the large one.
    cache : of its own, as long as the large one's.
    """

    def __init__(self, model: Model, cache: Cache):
        self._model, self._cache = model, cache

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        most = min(most, self._cache.length - len(tokens))
        guesses: list[int] = []
        ends = self._model.tokenizer.vocab.ends
        new = tokens[self._cache.keep_prefix(tokens) :] if most > 0 else ()
        while len(guesses) < most:
            token = int(self._model.forward(new, self._cache).argmax())
            guesses.append(token)
            if token in ends:
                break
            new = [token]
        return guesses


class FirstToKnow:
    """Guesses what the first of several guesses that knows something.

    Parameters
    ----------
    guessers : the cheapest first: what stood in the text before, then what a small model would write.
    """

    def __init__(self, *guessers: Guesser):
        self._guessers = guessers

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        guesses = (guesser.guess(tokens, most) for guesser in self._guessers)
        return next((found for found in guesses if found), [])


class Ahead:
    """Guesses of one text, as many as prove right: more after guesses that all were, fewer after others.

    Attributes
    ----------
    guessed, right : how many there were.
    """

    def __init__(self, guesser: Guesser, most: int = MOST):
        self._guesser, self._most, self._next = guesser, most, min(8, most)
        self.guessed = self.right = 0

    def guess(self, tokens: Sequence[int], room: int) -> list[int]:
        """Tokens that may follow, at most `room`."""
        return self._guesser.guess(tokens, min(room, self._next)) if room > 0 else []

    def learn(self, guessed: int, right: int) -> None:
        """So many were guessed, and so many of them were right."""
        if not guessed:
            return
        self.guessed += guessed
        self.right += right
        self._next = min(2 * self._next, self._most) if right == guessed else max(2, min(right + 2, self._most))


def require_same_vocabulary(model: Model, draft: Model) -> None:
    """See that a draft's tokens are the model's.

    Raises
    ------
    UsageError : they are not.
    """
    ours, theirs = model.tokenizer.vocab.texts, draft.tokenizer.vocab.texts
    if ours == theirs:
        return
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    raise UsageError(
        f"{printable(draft.gguf.path)} has another vocabulary than {printable(model.gguf.path)} from token {at} on, "
        "so it cannot guess its text"
    )
