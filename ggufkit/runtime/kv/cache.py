"""The cache of a conversation: what its layers remember of the tokens so far, and which tokens these are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ggufkit.errors import UsageError
from ggufkit.runtime.sizes import KEPT_STATES

__all__ = ["Cache", "LayerMemory", "common_prefix"]

_MAGIC = b"ggufkit cache 1\n"


class LayerMemory(Protocol):
    """What one layer remembers; `Ops` make and fill it."""

    def prefix(self, n: int) -> list[np.ndarray]:
        """What it holds of the first `n` tokens."""

    def restore(self, n: int, arrays: Sequence[np.ndarray]) -> None:
        """Hold what `prefix(n)` of one that was made alike gave.

        Raises
        ------
        ValueError : the arrays are others.
        """


class Cache:
    """Room for a number of tokens.

    Parameters
    ----------
    make : makes the layers for a number of tokens.
    length : how many tokens fit.
    kind : what caches with the same bytes have in common: the model, the backend, the types.

    Attributes
    ----------
    layers : one entry per layer, of `Ops.layer_cache`.
    length : as given.
    tokens : those that are in it; ids below 0 are of what was seen (`runtime.seen`).
    most : how many it ever held; the memory that they took stays taken.
    """

    def __init__(self, make: Callable[[int], Sequence[Any]], length: int, kind: str = ""):
        self._make, self.kind = make, kind
        self.layers = make(length)
        self.length = length
        self.tokens: list[int] = []
        self.most = 0
        self._shifts: list[tuple[int, int]] = []  # behind so many tokens positions are so much further
        self._states = [layer for layer in self.layers if hasattr(layer, "snapshot")]
        self._kept: dict[int, list[Any]] = {}  # tokens → the states after so many

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def recurrent(self) -> bool:
        """Whether some layers cannot forget single tokens."""
        return bool(self._states)

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

    def begin(self, n: int) -> None:
        """Called before `n` tokens are run; a recurrent layer's state is kept where a longer text begins."""
        if n > 1:
            self._keep()

    def position(self, n: int) -> int:
        """The position of what comes behind the first `n` tokens: `n` but where images stand before it."""
        return n + sum(shift for at, shift in self._shifts if at <= n)

    def extend(self, tokens: Sequence[int], shifts: Sequence[tuple[int, int]] = ()) -> None:
        """These tokens have been run; `shifts`: behind so many tokens of all positions go on so much further."""
        self.tokens.extend(tokens)
        self._shifts.extend(shifts)
        self.most = max(self.most, len(self))
        if len(tokens) > 1:
            self._keep()

    def roll_back(self) -> None:
        """A pass was interrupted: states may be half changed, so the last one kept counts."""
        if self._states:
            self._return_to(len(self))

    def truncate(self, n: int) -> None:
        """Forget all but the first `n` tokens; recurrent layers forget more: back to a kept state."""
        if n >= len(self):
            return
        if self._states:
            self._return_to(n)
        else:
            self._forget(n)

    def _forget(self, n: int) -> None:
        del self.tokens[n:]
        self._shifts = [shift for shift in self._shifts if shift[0] <= n]

    def _keep(self) -> None:
        if self._states and len(self) and len(self) not in self._kept:
            self._kept[len(self)] = [state.snapshot() for state in self._states]
            if len(self._kept) > KEPT_STATES:
                del self._kept[min(self._kept)]

    def _return_to(self, n: int) -> None:
        """To the last position up to `n` whose states are kept, or to the beginning."""
        position = max((p for p in self._kept if p <= n), default=0)
        kept = self._kept.get(position, [None] * len(self._states))
        for state, arrays in zip(self._states, kept, strict=True):
            state.reset(arrays)
        self._kept = {p: arrays for p, arrays in self._kept.items() if p <= position}
        self._forget(position)

    def keep_prefix(self, tokens: Sequence[int]) -> int:
        """Keep what `tokens` begins with, forget the rest; returns how many tokens need no computing again.

        The last of `tokens` is always computed: its logits are wanted.
        """
        self.truncate(common_prefix(self.tokens, list(tokens[:-1])))
        return len(self)

    def copy(self, n: int | None = None, length: int | None = None) -> Cache:
        """Another cache that holds the first `n` tokens, default all, with room for `length`, default as many as here.

        With recurrent layers it may hold fewer, as `truncate` leaves.

        Raises
        ------
        UsageError : the tokens do not fit into `length`.
        """
        copied = Cache(self._make, self.length if length is None else length, self.kind)
        kept = self.tokens[:n]
        copied.require(len(kept))
        for old, new in zip(self.layers, copied.layers, strict=True):
            if old not in self._states or len(kept) == len(self):
                new.restore(len(kept), old.prefix(len(kept)))
        copied.tokens, copied.most = kept, len(kept)
        copied._shifts = [shift for shift in self._shifts if shift[0] <= len(kept)]
        copied._kept = {p: arrays for p, arrays in self._kept.items() if p <= len(kept)}
        if len(kept) < len(self):
            copied.roll_back()
        return copied

    def save(self) -> bytes:
        """The cache's contents, for `load` of a cache of the same kind; they are as large as the tokens in it need.

        What stands behind an image or sound is left out: what was seen has no name that lasts.
        """
        tokens = self.tokens
        if (seen := next((i for i, token in enumerate(tokens) if token < 0), None)) is not None:
            return self.copy(seen, max(1, seen)).save()
        layers = [layer.prefix(len(self)) for layer in self.layers]
        header = {
            "kind": self.kind,
            "tokens": tokens,
            "layers": [[(array.dtype.str, array.shape) for array in arrays] for arrays in layers],
        }
        text = json.dumps(header).encode()
        arrays = [np.ascontiguousarray(array).tobytes() for arrays in layers for array in arrays]
        return b"".join([_MAGIC, len(text).to_bytes(8, "little"), text, *arrays])

    def load(self, data: bytes) -> None:
        """Hold what `save` gave; what was in the cache is forgotten.

        Raises
        ------
        UsageError : the bytes are damaged, are of another model or of other types, or hold more tokens than fit.
        """
        try:
            tokens, layers = self._parsed(data)
            self.tokens, self._kept = [], {}
            for layer, arrays in zip(self.layers, layers, strict=True):
                layer.restore(len(tokens), arrays)
        except (KeyError, TypeError, ValueError) as e:
            raise UsageError("these bytes are not a saved cache, or not a whole one") from e
        self.tokens, self.most, self._shifts = tokens, max(self.most, len(tokens)), []

    def _parsed(self, data: bytes) -> tuple[list[int], list[list[np.ndarray]]]:
        start = len(_MAGIC) + 8
        if not data.startswith(_MAGIC) or len(data) < start:
            raise ValueError("no magic")
        at = start + int.from_bytes(data[start - 8 : start], "little")
        header = json.loads(data[start:at])
        tokens = header["tokens"]
        if header["kind"] != self.kind:
            raise UsageError("the saved cache is of another model, backend or type of keys and values")
        if not all(type(token) is int for token in tokens):
            raise ValueError("tokens")
        if len(tokens) > self.length:
            raise UsageError(f"the context has room for {self.length} tokens, and the saved one holds {len(tokens)}")
        layers = []
        for described in header["layers"]:
            arrays = []
            for dtype, shape in described:
                array = np.frombuffer(data, dtype, int(np.prod(shape)), at).reshape(shape)
                at += array.nbytes
                arrays.append(array)
            layers.append(arrays)
        if at != len(data):
            raise ValueError("length")
        return tokens, layers


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two lists begin with alike. Slices are compared: this is asked for each token of a long text."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low + 1 < high:  # alike up to low, not up to high
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
