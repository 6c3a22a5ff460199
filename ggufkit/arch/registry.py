"""Find the architecture of a checkpoint among the specs."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from ggufkit.arch.catalogue import ARCHITECTURES, CLASSES
from ggufkit.arch.export import Export
from ggufkit.arch.graph import Graph
from ggufkit.arch.spec import Architecture, Transform
from ggufkit.checkpoint.config import Config, text_model
from ggufkit.errors import ArchitectureError, printable
from ggufkit.policy.traits import PLAIN, Traits
from ggufkit.tensors.tensor import Tensor

__all__ = ["architecture_of", "exports_of", "graph_of", "known_models", "register", "traits_of"]

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

    result: tuple[Architecture, ...] = importlib.import_module(f"{specs.__name__}.{module}").SPECS
    return result


def _likely_first(name: str) -> Iterator[Architecture]:
    """All specs, first those of the files that have the architecture `name`: the others may stay unread."""
    yield from _registered
    likely = ARCHITECTURES.get(name, ())
    for module in sorted(_modules(), key=lambda module: module not in likely):
        yield from _specs_of(module)


def _of_class(name: str) -> list[Architecture]:
    """The specs of a Hugging Face class, of which only the files are read that have it."""
    likely = [spec for module in CLASSES.get(name, ()) for spec in _specs_of(module)]
    return [spec for spec in (*_registered, *likely) if name in spec.models]


def architecture_of(
    config: Mapping[str, Any],
    text: Callable[[str], str | None] = lambda name: None,
    tensors: Mapping[str, Tensor] | None = None,
    mtp: bool = True,
    base: Mapping[str, Any] | None = None,
) -> tuple[Architecture, Config]:
    """The architecture that `config.json` names, and the config with its defaults.

    Parameters
    ----------
    config : `config.json`.
    text, tensors, mtp, base : see `Config`.

    Raises
    ------
    ArchitectureError : it names none, or one that is not known.
    """
    values = text_model(config)
    names = values.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ArchitectureError("config.json has no 'architectures', so the model's architecture is unknown")
    specs = _of_class(names[0])
    if not specs and (whole := _whole_class(names[0])):
        # A model without its head, as sentence encoders are: the same tensors without the head's prefix.
        values = {**values, "architectures": [whole]}
        spec, found = architecture_of(values, text, tensors, mtp, base)
        return replace(spec, transforms=(_under(_PREFIXES.get(names[0], "model.")), *spec.transforms)), found
    if not specs:
        models = known_models()
        near = get_close_matches(names[0], models, n=3)
        known = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(sorted(models))}"
        raise ArchitectureError(f"the architecture {printable(names[0])} is not known; {known}")
    for spec in specs:
        found = Config(values, spec.models[names[0]], text, tensors, mtp, base)
        if spec.when(found):
            return spec, found
    raise ArchitectureError(f"config.json describes a {printable(names[0])} of a kind that is not known")


# Under what the class with a head has its model, where that is not "model.".
_PREFIXES = {
    "GPT2Model": "transformer.",
    "GPTBigCodeModel": "transformer.",
    "GPTNeoXModel": "gpt_neox.",
    "FalconModel": "transformer.",
    "BloomModel": "transformer.",
    "MptModel": "transformer.",
    "MambaModel": "backbone.",
    "Mamba2Model": "backbone.",
}


def _whole_class(name: str) -> str:
    """The class with a language model's head of a bare one: LlamaModel → LlamaForCausalLM."""
    stem = name.removesuffix("Model")
    return next((stem + end for end in ("ForCausalLM", "LMHeadModel") if _of_class(stem + end)), "")


def _under(prefix: str) -> Transform:
    """Tensors under the prefix, where they are not yet."""

    def renamed(source: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        for tensor in source:
            there = tensor.name.startswith((prefix, "lm_head."))
            yield tensor if there else tensor.renamed(prefix + tensor.name)

    return renamed


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


def traits_of(name: str) -> Traits:
    """What llama-quantize knows of the architecture that a GGUF calls `name`."""
    from ggufkit.arch.specs.unconverted import TRAITS

    if name in TRAITS:
        return TRAITS[name]
    bundled = (spec for module in ARCHITECTURES.get(name, ()) for spec in _specs_of(module))
    # Of several specs of this name, which differ in their checkpoints, one has them.
    return next((s.traits for s in (*_registered, *bundled) if s.name == name and s.traits is not PLAIN), PLAIN)


def exports_of(name: str) -> tuple[Export, ...]:
    """How the architecture that a GGUF calls `name` becomes a checkpoint again.

    Raises
    ------
    ArchitectureError : it cannot.
    """
    bundled = (spec for module in ARCHITECTURES.get(name, ()) for spec in _specs_of(module))
    # Of several specs of this name, which differ in their checkpoints, each may have some of its own.
    found = (export for spec in (*_registered, *bundled) if spec.name == name for export in spec.exports)
    if exports := tuple({id(export): export for export in found}.values()):
        return exports
    known = sorted({spec.name for spec in _all() if spec.exports})
    raise ArchitectureError(f"{printable(name)} models cannot be exported; those that can: {', '.join(known)}")
