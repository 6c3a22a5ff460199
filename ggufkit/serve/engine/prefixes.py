"""Which caches begin like a prompt.

Caches that nobody uses lie sorted by their tokens. In that order one that has the longest common beginning with a
prompt is right before the prompt's place or right after it, so two comparisons find it, as a tree would.

    [1 7 7]   [1 8 2 4]   ◄ [1 8 2 6 …] belongs here   [1 8 3]
              └─ 3 in common                            └─ 2
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from pathlib import Path

from ggufkit.errors import GgufkitError
from ggufkit.kernels.xxh64 import XXH64
from ggufkit.runtime.kv.cache import Cache, common_prefix
from ggufkit.runtime.kv.file import read_cache, write_cache

__all__ = ["Prefixes"]

_WORTH = 16  # tokens that are worth keeping, or copying
_SUFFIX = ".cache"


class Prefixes:
    """The caches that nobody uses, up to a number of bytes; those that were used last stay.

    Parameters
    ----------
    limit : bytes.
    size : bytes that a cache takes for a number of tokens.
    """

    def __init__(self, limit: int, size: Callable[[int], int]):
        self.limit, self._size = limit, size
        self._sorted: list[Cache] = []
        self._used: dict[int, int] = {}  # id of a cache → when it was used
        self._now = 0

    def __len__(self) -> int:
        return len(self._sorted)

    @property
    def nbytes(self) -> int:
        """What all take."""
        return sum(self._size(cache.most) for cache in self._sorted)

    def best(self, kind: str, tokens: Sequence[int], others: Iterable[Cache] = ()) -> tuple[Cache | None, int]:
        """The cache of a kind that holds most of what `tokens` begins with, and how much; here or among `others`."""
        at = self._place(kind, tokens)
        found: tuple[Cache | None, int] = None, 0
        for cache in (*self._sorted[max(0, at - 1) : at + 1], *others):
            n = common_prefix(cache.tokens, tokens) if cache.kind == kind else 0
            if n > found[1]:
                found = cache, n
        return found

    def take(self, kind: str, tokens: Sequence[int], others: Iterable[Cache] = ()) -> Cache | None:
        """A cache that begins with as much of `tokens` as any, to be used alone; the last of `tokens` is not in it.

        One that holds much besides is copied and stays; `others`, which are in use, always.
        """
        wanted = tokens[:-1]
        cache, n = self.best(kind, wanted, others)
        if cache is None or n < _WORTH:
            return None
        mine = any(cache is one for one in self._sorted)
        if mine and 2 * n >= len(cache):
            self._remove(cache)
            cache.truncate(n)
            return cache
        if mine:
            self._touch(cache)
        return cache.copy(n)

    def put(self, cache: Cache) -> None:
        """Keep a cache that is no longer used. One whose tokens it begins with says nothing more and goes."""
        if len(cache) < _WORTH:
            return
        at = self._place(cache.kind, cache.tokens)
        same = [one for one in self._sorted[max(0, at - 1) : at + 1] if one.kind == cache.kind]
        for one in same:
            if one.tokens == cache.tokens[: len(one)]:
                self._remove(one)
        self._sorted.insert(self._place(cache.kind, cache.tokens), cache)
        self._touch(cache)
        self.shrink()

    def shrink(self) -> None:
        """Let go of what was used longest ago until the rest is within the limit."""
        while self._sorted and self.nbytes > self.limit:
            self._remove(min(self._sorted, key=lambda cache: self._used[id(cache)]))

    def clear(self) -> None:
        """Let go of all."""
        self._sorted.clear()
        self._used.clear()

    def save(self, folder: Path) -> int:
        """Write each cache to a file of its own in a folder; returns how many.

        Raises
        ------
        FileError : it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for cache in self._sorted:
            write_cache(cache, folder / file_name(cache))
        return len(self._sorted)

    def load(self, folder: Path, new: Callable[[], Cache]) -> int:
        """Read caches that `save` wrote, the newest first, as far as the limit goes; returns how many.

        Files that are damaged, or of other models, are left alone.
        """
        files = sorted(folder.glob(f"*{_SUFFIX}"), key=os.path.getmtime, reverse=True) if folder.is_dir() else []
        loaded = []
        room = self.limit - self.nbytes
        for path in files:
            cache = new()
            try:
                if path.stat().st_size > room:
                    continue
                read_cache(cache, path)
            except (GgufkitError, OSError):
                continue
            room -= self._size(cache.most)
            loaded.append(cache)
        for cache in reversed(loaded):
            self.put(cache)
        return len(loaded)

    def _place(self, kind: str, tokens: Sequence[int]) -> int:
        return bisect.bisect_left(self._sorted, (kind, list(tokens)), key=lambda cache: (cache.kind, cache.tokens))

    def _remove(self, cache: Cache) -> None:
        self._sorted = [one for one in self._sorted if one is not cache]
        del self._used[id(cache)]

    def _touch(self, cache: Cache) -> None:
        self._now += 1
        self._used[id(cache)] = self._now


def file_name(cache: Cache) -> str:
    """A name for what a cache holds: the same model and tokens, the same name."""
    digest = XXH64()
    digest.update(cache.kind.encode())
    kept = takewhile(lambda token: token >= 0, cache.tokens)  # what comes behind an image is not saved
    digest.update(b"".join(token.to_bytes(4, "little") for token in kept))
    return digest.digest().hex() + _SUFFIX
