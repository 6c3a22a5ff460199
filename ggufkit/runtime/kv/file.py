"""Caches in files: what was read once need not be read again the next time.

Cache.save    the cache's bytes: model, types and tokens in front
8 bytes       XXH64 of them, little-endian
"""

from __future__ import annotations

import os

from ggufkit.errors import UsageError, os_errors, printable
from ggufkit.kernels.xxh64 import XXH64
from ggufkit.runtime.kv.cache import Cache
from ggufkit.storage.files import AtomicFile

__all__ = ["read_cache", "write_cache"]

_DIGEST = 8


def write_cache(cache: Cache, path: str | os.PathLike[str]) -> None:
    """Write a cache to a file, whole or not at all; one that is there is replaced.

    Raises
    ------
    FileError : it cannot be written.
    """
    data = cache.save()
    with AtomicFile(path, force=True) as output, os_errors(path, "write"):
        for part in (data, _digest(data)):
            rest = memoryview(part)
            while rest:
                rest = rest[output.file.write(rest) :]


def read_cache(cache: Cache, path: str | os.PathLike[str]) -> None:
    """Put what a file holds into a cache of the same model and types.

    Raises
    ------
    FileError : the file is missing or unreadable.
    UsageError : it is not a saved cache, is damaged, is of another model or of other types, or does not fit.
    """
    with os_errors(path, "read"), open(path, "rb") as file:
        data = file.read()
    name = printable(os.fspath(path))
    if len(data) < _DIGEST or data[-_DIGEST:] != _digest(data[:-_DIGEST]):
        raise UsageError(f"{name} is not a saved cache, or it is damaged")
    try:
        cache.load(data[:-_DIGEST])
    except UsageError as e:
        raise UsageError(f"{name}: {e}") from e


def _digest(data: bytes) -> bytes:
    hashed = XXH64()
    hashed.update(data)
    return hashed.digest()
