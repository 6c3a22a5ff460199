"""Encoders of images and sound, a file a kind; found by the class that config.json names."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from ggufkit.arch.projector import Projector
from ggufkit.arch.tower import Chunked, Conformer, Ear, FastConformer, Frames, Mobile, Queried, Silent, Tower, Twofold
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, printable
from ggufkit.tensors.tensor import Tensor

__all__ = ["ear_of", "known_projectors", "projector_of", "tower_of"]


def known_projectors() -> dict[str, list[Projector]]:
    """Hugging Face class → its projectors; the first whose `when` holds is a checkpoint's."""
    found: dict[str, list[Projector]] = {}
    for module in pkgutil.iter_modules(__path__):
        for spec in importlib.import_module(f"{__name__}.{module.name}").PROJECTORS:
            for name in spec.models:
                found.setdefault(name, []).append(spec)
    return found


def projector_of(
    values: Mapping[str, Any], text: Callable[[str], str | None], tensors: Mapping[str, Tensor]
) -> tuple[Projector, Config]:
    """The projector of a checkpoint, and its config.

    Raises
    ------
    ArchitectureError : its class has none that is known.
    """
    config = Config(values, None, text, tensors)
    names = config.vision.get("architectures") or config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    known = known_projectors()
    for spec in known.get(name, ()) if isinstance(name, str) else ():
        if spec.when(config):
            return spec, config
    raise ArchitectureError(
        f"the class {printable(name)} has no encoder that is known; known: {', '.join(sorted(known))}"
    )


def tower_of(kind: str) -> Tower | Twofold | Queried | Mobile | None:
    """What the encoder of images of a `projector_type` computes; None where that is not known."""
    found: Tower | Twofold | Queried | Mobile | None = _row("TOWERS", kind)
    return found


def ear_of(kind: str) -> Ear | Chunked | Conformer | FastConformer | Frames | Silent | None:
    """The same of an encoder of sound."""
    found: Ear | Chunked | Conformer | FastConformer | Frames | Silent | None = _row("EARS", kind)
    return found


def _row(table: str, kind: str) -> Any:
    for module in pkgutil.iter_modules(__path__):
        rows = getattr(importlib.import_module(f"{__name__}.{module.name}"), table, {})
        if kind in rows:
            return rows[kind]
    return None
