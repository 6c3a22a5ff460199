"""The cache of a conversation: keys and values of the tokens so far, and which tokens these are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ggufkit.errors import UsageError

__all__ = ["TYPES", "Cache", "cache_type", "rotation"]

TYPES = ("F32", "F16", "Q8_0", "Q4_0")


def cache_type(name: str, head: int) -> str:
    """The type of keys or values called `name`, for heads of `head` numbers.

    Raises
    ------
    UsageError : there is no such type, or the heads do not divide into its blocks.
    """
    kind = name.upper()
    if kind not in TYPES:
        raise UsageError(f"the cache can be {', '.join(TYPES)}, not {name}")
    if kind.startswith("Q") and head % 32:
        raise UsageError(f"the cache cannot be {kind}: heads of {head} numbers are not a multiple of 32; take F16")
    return kind


def rotation(kind: str, head: int, largest: bool) -> int:
    """How many numbers are rotated together before they are quantized: a power of two, or 0 for none.

    Source: `llama_kv_cache` in src/llama-kv-cache.cpp of llama.cpp.
    """
    if not kind.startswith("Q") or head % 64:
        return 0
    return head & -head if largest else 64


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
