"""Several models by name, each loaded when it is first asked for, and only as many as memory has room for.

    asked for a, b          a and b are loaded
    asked for c             the one that was used longest ago makes room, once nobody uses it
    nobody asks for a       it goes after a while

Who asks for a model that needs room waits until others are done with theirs, and whoever asks later waits behind: a
model that is always in use cannot keep others out.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ggufkit.errors import FileError, GgufkitError, UsageError, printable
from ggufkit.serve.engine.engine import Engine

__all__ = ["ModelPool", "models_in"]

_SHARD = re.compile(r"(.*)-(\d{5})-of-\d{5}")


class _Loaded:
    """A model in memory, or on its way there."""

    def __init__(self, size: int):
        self.size = size
        self.engine: Engine | None = None
        self.leases = 0
        self.used = time.monotonic()


class ModelPool:
    """Engines by name.

    Parameters
    ----------
    paths : files by name.
    start : makes the engine of a file.
    size : bytes of memory that it takes, e.g. by `ggufkit.fit`.
    memory : bytes of all that are loaded; None for no limit.
    most : how many are loaded at most.
    idle : seconds after which one that nobody uses is unloaded; None for never.

    Raises
    ------
    UsageError : there is no model, or a number is out of its range.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        start: Callable[[Path], Engine],
        size: Callable[[Path], int],
        *,
        memory: int | None = None,
        most: int = 4,
        idle: float | None = None,
    ):
        if not paths:
            raise UsageError("there is no model to serve")
        if most < 1:
            raise UsageError(f"at most {most} models in memory are none; give 1 or more")
        self._paths, self._start, self._size = dict(paths), start, size
        self._memory, self._most, self._idle = memory, most, idle
        self._changed = threading.Condition()  # of what follows
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()  # who was used last at the end
        self._line: deque[object] = deque()  # who waits, in order
        self._closed = False
        if idle is not None:
            threading.Thread(target=self._watch, name="ggufkit-idle", daemon=True).start()

    @property
    def names(self) -> Sequence[str]:
        """All models that can be asked for."""
        return list(self._paths)

    def path(self, name: str) -> Path:
        """The file of a model.

        Raises
        ------
        UsageError : there is none of that name.
        """
        if name not in self._paths:
            raise UsageError(f"there is no model {printable(name)}; there are {', '.join(map(printable, self._paths))}")
        return self._paths[name]

    def loaded(self) -> dict[str, Engine]:
        """The engines that are in memory now."""
        with self._changed:
            return {name: one.engine for name, one in self._loaded.items() if one.engine is not None}

    @contextmanager
    def lease(self, name: str) -> Iterator[Engine]:
        """The engine of a model, which is loaded if need be; it stays as long as this is not left.

        Raises
        ------
        UsageError : there is none of that name, or it alone needs more memory than there may be.
        GgufkitError : it cannot be loaded, or the pool is closed.
        """
        one = self._leased(name)
        assert one.engine is not None
        try:
            yield one.engine
        finally:
            with self._changed:
                one.leases -= 1
                one.used = time.monotonic()
                self._changed.notify_all()

    def unload(self, name: str) -> None:
        """Take a model out of memory, once nobody uses it."""
        self.path(name)
        with self._changed:
            self._changed.wait_for(lambda: (one := self._loaded.get(name)) is None or _free(one))
            one = self._loaded.pop(name, None)
        self._end([one] if one is not None else [])

    def close(self, drain: float | None = 0) -> None:
        """Lease no more, and close all engines: see `Engine.close`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: all(one.engine is not None for one in self._loaded.values()))
            ended = list(self._loaded.values())
            self._loaded.clear()
        until = None if drain is None else time.monotonic() + drain
        for one in ended:
            assert one.engine is not None
            one.engine.close(None if until is None else max(0.0, until - time.monotonic()))

    # -- room ---------------------------------------------------------------------------------------------------

    def _leased(self, name: str) -> _Loaded:
        size = self._size(self.path(name)) if name not in self._loaded else 0
        if self._memory is not None and size > self._memory:
            raise UsageError(
                f"{printable(name)} needs {size} bytes of memory, more than the {self._memory} for all models",
                "give a smaller {context}, fewer {slots}, or more {memory}",
            )
        me = object()
        with self._changed:
            self._line.append(me)
            try:
                while True:
                    if self._closed:
                        raise GgufkitError("the models are being unloaded")
                    if self._line[0] is me:
                        one = self._loaded.get(name)
                        if one is not None and one.engine is not None:
                            one.leases += 1
                            self._loaded.move_to_end(name)
                            return one
                        if one is None and (ended := self._room_for(size)) is not None:
                            one = self._loaded[name] = _Loaded(size)
                            break
                    self._changed.wait()
            finally:
                self._line.remove(me)
                self._changed.notify_all()
        try:
            self._end(ended)
            engine = self._start(self.path(name))
        except BaseException:
            with self._changed:
                del self._loaded[name]
                self._changed.notify_all()
            raise
        with self._changed:
            one.engine, one.leases = engine, 1
            self._changed.notify_all()
        return one

    def _room_for(self, size: int) -> list[_Loaded] | None:
        """Take out whoever must go so that one more fits, those used longest ago first; None if they are in use."""
        going: list[str] = []
        free = [name for name, one in self._loaded.items() if _free(one)]

        def fits() -> bool:
            left = [one.size for name, one in self._loaded.items() if name not in going]
            return len(left) < self._most and (self._memory is None or sum(left) + size <= self._memory)

        while not fits():
            if not free:
                return None
            going.append(free.pop(0))
        return [self._loaded.pop(name) for name in going]

    def _end(self, ended: Sequence[_Loaded]) -> None:
        for one in ended:
            if one.engine is not None:
                one.engine.close()
        with self._changed:
            self._changed.notify_all()

    def _watch(self) -> None:
        """Unload what nobody has used for a while."""
        assert self._idle is not None
        while True:
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                old = [name for name, one in self._loaded.items() if _free(one) and now - one.used >= self._idle]
                ended = [self._loaded.pop(name) for name in old]
                if not ended:
                    times = [one.used + self._idle - now for one in self._loaded.values() if _free(one)]
                    self._changed.wait(max(0.01, min(times)) if times else None)
            self._end(ended)


def _free(one: _Loaded) -> bool:
    """Whether it is in memory and nobody uses it."""
    return one.engine is not None and not one.leases


def models_in(folder: Path) -> dict[str, Path]:
    """The models in a folder and those below it: names, files' without their ending, and the first file of each.

    Projectors, adapters and importance matrices are left out by what they are called; a name that comes twice is
    given with its folder's.

    Raises
    ------
    FileError : there is no such folder.
    """
    if not folder.is_dir():
        raise FileError(f"{printable(folder)} is no folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.gguf"), key=lambda path: (len(path.parts), path)):
        name = path.stem
        if re.match(r"mmproj|imatrix", name, re.I) or re.search(r"lora|imatrix$", name, re.I):
            continue
        if shard := _SHARD.fullmatch(name):
            if shard[2] != "00001":
                continue
            name = shard[1]
        found[f"{path.parent.name}/{name}" if name in found else name] = path
    return found
