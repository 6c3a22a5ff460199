"""The same model as other types, without making any: how large each would be, and whether it would fit.

    family(fit)            each preset of llama-quantize for this model, on its devices
    sizes()                models of typical sizes in a few types, and the smallest device for each

Which tensor gets which format is decided by the policy that quantizes, so sizes are exact to the byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ggufkit.arch.typical import TYPICAL
from ggufkit.memory.devices import DEVICES, Device
from ggufkit.memory.model import Matrix, Model, model_of_shapes
from ggufkit.memory.report import Fit
from ggufkit.memory.setup import Setup
from ggufkit.policy.decide import decide, requires_importance
from ggufkit.policy.presets import PRESETS
from ggufkit.policy.recipe import recipe_of
from ggufkit.policy.roles import by_layer, trimmed

__all__ = ["Member", "Size", "family", "model_as", "sizes"]

# Types that are for models of their own kind, or larger than any file that is passed on.
_SPECIAL = ("F32", "F16", "Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "MXFP4_MOE", "NVFP4")

# Columns of the table of sizes, and devices to look through, the smallest first.
_TYPES = ("BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q3_K_M", "Q2_K")


@dataclass(frozen=True)
class Member:
    """A model as one type.

    Attributes
    ----------
    type : the preset's name.
    fit : of it.
    nbytes : of its weights.
    bits : per weight.
    needs_importance : some of its tensors can only be encoded with an importance matrix.
    """

    type: str
    fit: Fit
    nbytes: int
    bits: float
    needs_importance: bool


def model_as(model: Model, type: str) -> tuple[Model, bool]:
    """A model as it would be as another type, and whether an importance matrix would be needed.

    Raises
    ------
    PolicyError : there is no such type.
    """
    recipe = recipe_of(type)
    ordered = sorted(model.matrices, key=lambda matrix: by_layer(matrix.name))
    named = [(matrix.name, trimmed(matrix.shape) or (1,), matrix.format) for matrix in ordered]
    decisions = decide(named, model.deciding, recipe)
    needs = any(
        decisions[m.name].format != m.format and requires_importance(m.name, decisions[m.name].format, recipe.preset)
        for m in ordered
    )
    if needs:  # with a matrix some tensors get other formats
        decisions = decide(named, replace(model.deciding, imatrix=True), recipe)
    matrices = tuple(Matrix(m.name, m.shape, decisions[m.name].format) for m in model.matrices)
    return replace(model, matrices=matrices), needs


def family(fit: Fit) -> list[Member]:
    """The model as each of llama-quantize's presets, the largest first."""
    found = []
    for name in PRESETS:
        if name in _SPECIAL:
            continue
        model, needs = model_as(fit.model, name)
        nbytes = sum(matrix.nbytes for matrix in model.used)
        bits = 8 * nbytes / max(sum(matrix.size for matrix in model.used), 1)
        found.append(Member(name, fit.with_model(model), nbytes, bits, needs))
    return sorted(found, key=lambda member: -member.nbytes)


@dataclass(frozen=True)
class Size:
    """A model of a typical size as one type.

    Attributes
    ----------
    size, like, type : which: ``"8B"``, ``"Llama 3.1 8B"``, ``"Q4_K_M"``.
    nbytes : of everything, with a context of 4096 tokens.
    mac, card : the smallest that it fits; None where none holds it.
    """

    size: str
    like: str
    type: str
    nbytes: int
    mac: Device | None
    card: Device | None


def sizes(types: Sequence[str] = _TYPES, context: int = 4096) -> Iterator[Size]:
    """A row for each typical size and type.

    Raises
    ------
    PolicyError : there is no such type.
    """
    by_room = sorted(DEVICES.values(), key=lambda device: device.usable)
    setup = Setup("llama.cpp", context)
    for size, shape in TYPICAL.items():
        whole = model_of_shapes(size, shape.metadata, shape.shapes)
        for type in types:
            model, _ = model_as(whole, type)
            nbytes = Fit(model, setup, (_ENDLESS,)).nbytes
            mac, card = (
                next((d for d in by_room if d.kind == kind and d.usable >= nbytes), None)
                for kind in ("unified", "card")
            )
            yield Size(size, shape.like, type, nbytes, mac, card)


_ENDLESS = Device("any", "unified", 1 << 60, 1 << 60)
