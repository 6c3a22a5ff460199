"""The cache of a conversation: keys and values of the tokens so far, and which tokens these are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ggufkit.errors import UsageError

__all__ = ["Cache"]


class Cache:
    """Room for a number of tokens.

    Attributes
    ----------
    layers : one entry per layer, of `Ops.layer_cache`.
    length : how many tokens fit.
    tokens : those that are in it.
    """

    def __init__(self, layers: Sequence[Any], length: int):
        self.layers = layers
        self.length = length
        self.tokens: list[int] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"<Cache: {len(self)} of {self.length} tokens>"

    def require(self, n: int) -> None:
        """See that `n` more tokens fit.

        Raises
        ------
        UsageError : they do not.
        """
        if len(self) + n > self.length:
            have = f"{len(self)} tokens and {n} more" if self.tokens else f"{n} tokens"
            raise UsageError(
                f"the context has room for {self.length} tokens, not for {have}", "give a larger one with {context}"
            )

    def truncate(self, n: int) -> None:
        """Forget all but the first `n` tokens."""
        del self.tokens[n:]

    def keep_prefix(self, tokens: Sequence[int]) -> int:
        """Keep what `tokens` begins with, forget the rest; returns how many tokens need no computing again.

        The last of `tokens` is always computed: its logits are wanted.
        """
        kept = 0
        for old, new in zip(self.tokens, tokens[:-1], strict=False):
            if old != new:
                break
            kept += 1
        self.truncate(kept)
        return kept
