"""How much of which prompts is read in the next pass.

Whoever writes gets a token in each pass, so a pass must not take long: prompts are read in pieces that take about
`SECONDS`, by the speed of the last passes. Of several prompts the one that will be read soonest comes first, so that a
short one does not wait for a long one, and where some come to their end in a pass no other is in it; each moment of
waiting counts as if a prompt were that much shorter, so that a long one does not wait for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from ggufkit.runtime.batch import LIMIT

__all__ = ["Pace", "shares"]

SECONDS = 0.15  # of a pass with a part of a prompt in it
_LEAST = 16  # tokens of a prompt in a pass: fewer are hardly faster


class Waits(Protocol):
    """A prompt that is being read."""

    @property
    def left(self) -> int: ...

    @property
    def served(self) -> float: ...


W = TypeVar("W", bound=Waits)


class Pace:
    """How many tokens of prompts are read in a second.

    Parameters
    ----------
    piece : tokens of a pass; None for as many as take `SECONDS`.
    """

    def __init__(self, piece: int | None = None):
        self._piece = piece
        self.rate = _LEAST / SECONDS

    def learn(self, tokens: int, seconds: float) -> None:
        """So many tokens of prompts took so long. The first passes compile and map the file: slow ones count less."""
        rate = tokens / max(seconds, 1e-9)
        share = 0.5 if rate > self.rate else 0.2
        if tokens >= _LEAST:
            self.rate += share * (rate - self.rate)

    @property
    def piece(self) -> int:
        """Tokens of prompts in the next pass."""
        return self._piece or max(_LEAST, min(LIMIT, int(self.rate * SECONDS)))


def shares(reading: Sequence[W], budget: int, rate: float, now: float) -> list[tuple[W, int]]:
    """How many tokens of which prompts come into a pass of at most `budget`.

    Parameters
    ----------
    rate : tokens in a second.
    now : the time, by the clock of `served`.
    """
    found: list[tuple[W, int]] = []
    for one in sorted(reading, key=lambda one: one.left / rate - (now - one.served)):
        if budget < one.left:
            return found or [(one, budget)]
        found.append((one, one.left))
        budget -= one.left
    return found
