"""Hyperparameters of a checkpoint: `config.json` over the defaults that the model's class has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ggufkit.errors import ArchitectureError, printable

__all__ = ["Config", "Default"]

# A value, or a function of the config for those that depend on others (head_dim = hidden_size / heads).
Default = Any | Callable[["Config"], Any]


class Config:
    """Look-ups that say what is missing.

    Public checkpoints leave out what equals the default of their class in transformers, so the defaults of the
    harmless ones are part of an architecture's spec. A missing one of the others stops: it is never guessed.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Default] | None = None):
        self._values = values
        self._defaults = defaults or {}

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of `names` that has a value (JSON's null is none)."""
        for name in names:
            if (value := self._values.get(name)) is not None:
                return value
        for name in names:
            if name in self._defaults:
                value = self._defaults[name]
                return value(self) if callable(value) else value
        return default

    def require(self, *names: str, what: str = "") -> Any:
        """Like `get`, but having none of them is an `ArchitectureError`."""
        value = self.get(*names)
        if value is None:
            needed = f", which {what} needs" if what else ""
            others = f" (nor {', '.join(names[1:])})" if names[1:] else ""
            raise ArchitectureError(f"config.json has no {names[0]!r}{others}{needed}; add it, it is not guessed")
        return value

    def integer(self, *names: str, what: str = "") -> int:
        """A required whole number of at least 1."""
        value = self.require(*names, what=what)
        if type(value) is not int or value < 1:
            raise ArchitectureError(
                f"config.json: {names[0]!r} must be a whole number of at least 1, not {printable(repr(value))}"
            )
        return value
