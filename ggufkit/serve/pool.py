"""Models that are all in memory, from the start to the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ggufkit.serve.engine import Engine

if TYPE_CHECKING:
    from ggufkit.runtime.model import Model

__all__ = ["LoadedPool"]


class LoadedPool:
    """An engine for each model.

    Parameters
    ----------
    models : name → what loads it.
    drain : seconds that requests have at the end.
    how : more for each `Engine`.
    """

    def __init__(self, models: Mapping[str, Callable[[], Model]], drain: float = 0, **how: Any):
        self._drain = drain
        self._engines: dict[str, Engine] = {}
        try:
            for name, load in models.items():
                self._engines[name] = Engine(load, **how)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LoadedPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def names(self) -> list[str]:
        """Of all models."""
        return list(self._engines)

    def loaded(self) -> Mapping[str, Engine]:
        """Name → engine."""
        return self._engines

    @contextmanager
    def lease(self, name: str) -> Iterator[Engine]:
        """The engine of a model."""
        yield self._engines[name]

    def close(self) -> None:
        """End the engines."""
        for engine in self._engines.values():
            engine.close(self._drain)
