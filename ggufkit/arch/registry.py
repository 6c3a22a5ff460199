"""Find the architecture of a checkpoint among the specs."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from ggufkit.arch.graph import Graph
from ggufkit.arch.spec import Architecture
from ggufkit.checkpoint.config import Config, text_model
from ggufkit.errors import ArchitectureError, printable

__all__ = ["architecture_of", "graph_of", "known_models", "register"]

_registered: list[Architecture] = []


def register(spec: Architecture) -> None:
    """Make a spec known from outside the package; a later one of the same model class wins."""
    _registered.insert(0, spec)


def known_models() -> Mapping[str, list[Architecture]]:
    """Hugging Face class → its architectures; the first whose `when` holds is a checkpoint's."""
    found: dict[str, list[Architecture]] = {}
    for spec in _all():
        for name in spec.models:
            found.setdefault(name, []).append(spec)
    return found


def _all() -> tuple[Architecture, ...]:
    return (*_registered, *_bundled())


@lru_cache(maxsize=1)
def _bundled() -> tuple[Architecture, ...]:
    return tuple(spec for name in _modules() for spec in _specs_of(name))


def _modules() -> list[str]:
    from ggufkit.arch import specs

    return [module.name for module in pkgutil.iter_modules(specs.__path__)]


def _specs_of(module: str) -> tuple[Architecture, ...]:
    from ggufkit.arch import specs

    return importlib.import_module(f"{specs.__name__}.{module}").SPECS


def _likely_first(name: str) -> Iterator[Architecture]:
    """All specs, first those of the file that is called like the beginning of `name`: the others may stay unread."""
    yield from _registered
    plain = name.replace("-", "_")
    for module in sorted(_modules(), key=lambda module: not plain.startswith(module)):
        yield from _specs_of(module)


def architecture_of(
    config: Mapping[str, Any], text: Callable[[str], str | None] = lambda name: None
) -> tuple[Architecture, Config]:
    """The architecture that `config.json` names, and the config with its defaults.

    Parameters
    ----------
    config : `config.json`.
    text : the text of another file of the checkpoint by its name, or None where there is no such file.

    Raises
    ------
    ArchitectureError : it names none, or one that is not known.
    """
    values = text_model(config)
    names = values.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ArchitectureError("config.json has no 'architectures', so the model's architecture is unknown")
    models = known_models()
    if names[0] not in models:
        near = get_close_matches(names[0], models, n=3)
        known = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(sorted(models))}"
        raise ArchitectureError(f"the architecture {printable(names[0])} is not known; {known}")
    for spec in models[names[0]]:
        found = Config(values, spec.models[names[0]], text)
        if spec.when(found):
            return spec, found
    raise ArchitectureError(f"config.json describes a {printable(names[0])} of a kind that is not known")


def graph_of(name: str) -> Graph:
    """How the architecture that a GGUF calls `name` computes.

    Raises
    ------
    ArchitectureError : there is none of this name, or it can be converted but not run.
    """
    for spec in _likely_first(name):
        if spec.name == name and spec.graph is not None:
            return spec.graph
    known = "is known, but" if any(spec.name == name for spec in _all()) else "is not known and"
    runnable = sorted({spec.name for spec in _all() if spec.graph is not None})
    raise ArchitectureError(
        f"the architecture {printable(name)} {known} cannot be run; those that can: {', '.join(runnable)}"
    )
