"""Types for a whole model by their predicted KL divergence, under a budget of bytes.

found = allocation(model, recipe, statistics, path, size=3_200_000_000)
found.recipe                  # a `Recipe` with the type of every tensor
found.points()                 # what files of other sizes would cost
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ggufkit.calibrate.consistency import check_model
from ggufkit.calibrate.costs import CLASSES, costs, output_of
from ggufkit.calibrate.prediction import after_gptq
from ggufkit.calibrate.statistics import Statistics
from ggufkit.errors import Hint, PolicyError, UsageError, printable
from ggufkit.formats.grids import GRIDS
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.reader import GGUF
from ggufkit.jobs.plan import Plan, PlannedTensor
from ggufkit.jobs.quantize import quantization
from ggufkit.policy.allocate import Options, Point, allocate, frontier, total
from ggufkit.policy.custom import target_format
from ggufkit.policy.decision import Decision
from ggufkit.policy.recipe import Recipe, recipe_of

__all__ = ["Allocation", "allocation", "types_of"]

_EVERY = "Q8_0"  # a preset under which every tensor that may be quantized is


@dataclass(frozen=True)
class Allocation:
    """The types of all tensors.

    Attributes
    ----------
    recipe : with them.
    options : what each tensor could have had.
    chosen : tensor name → type.
    rest : bytes of the file that do not depend on types.
    model, statistics : what it was chosen for.
    """

    recipe: Recipe
    options: Options
    chosen: dict[str, str]
    rest: int
    model: GGUF = field(repr=False)
    statistics: Statistics = field(repr=False)

    @property
    def predicted(self) -> float:
        """KL divergence of the file to come, encoded plainly."""
        return total(self.options, self.chosen).cost

    def after_gptq(self, threads: int | None = None) -> float:
        """The same, rounded by GPTQ; see `prediction`."""
        rounding = {name: self.statistics.rounding_cost(name, type_) for name, type_ in self.chosen.items()}
        costs = {name: self.options[name][type_].cost - rounding[name] for name, type_ in self.chosen.items()}
        return sum(rounding.values()) + after_gptq(self.model, self.statistics, self.chosen, costs, threads=threads)

    def cost(self, name: str) -> float | None:
        """Of one tensor; None of one that is not quantized."""
        return self.options[name][self.chosen[name]].cost if name in self.chosen else None

    def points(self, count: int = 12) -> list[Point]:
        """The best files of all sizes, in bytes of the whole file."""
        return [point._replace(nbytes=point.nbytes + self.rest) for point in frontier(self.options, count)]


def types_of(text: str | None) -> tuple[str, ...]:
    """The types that a text names: a class of `CLASSES`, or types separated by commas; default all.

    Raises
    ------
    PolicyError : there is no such type, or it has no grid to round to.
    """
    if text is None:
        return CLASSES["all"]
    if text.lower() in CLASSES:
        return CLASSES[text.lower()]
    names = tuple(dict.fromkeys(target_format(name.strip(), "types").name for name in text.split(",")))
    if missing := [name for name in names if name not in GRIDS]:
        raise PolicyError(f"{missing[0]} cannot be chosen by its cost; known: {', '.join(GRIDS.names())}")
    return names


def allocation(
    model: GGUF,
    recipe: Recipe,
    statistics: Statistics,
    *,
    size: int | None = None,
    bits: float | None = None,
    like: str | None = None,
    types: Sequence[str] = CLASSES["all"],
    options: Options | None = None,
    threads: int | None = None,
) -> Allocation:
    """Choose types.

    Parameters
    ----------
    recipe : everything else that is asked for.
    size : bytes of the file. bits : per weight, of all weights. like : a preset whose size to keep to. One of them.
    types : to choose from.
    options : what an earlier choice for this model, these statistics and types found.

    Raises
    ------
    PolicyError : the budget is too small, or the statistics are of another model.
    UsageError : not one of `size`, `bits` and `like` is given.
    """
    if [size, bits, like].count(None) != 2:
        raise UsageError("the budget is one of a size, bits per weight, and a preset to be as large as")
    if recipe.rules or recipe.prune_layers:
        raise UsageError("types are chosen by their cost, so rules for tensors and layers to leave out have no place")
    check_model(statistics, model.tensors)
    plan = _plan(model, _like(recipe, _EVERY))
    free = [p for p in plan.tensors if p.format.is_quantized and not _kept(p)]
    if not free:
        raise PolicyError(f"{printable(model.path)} has no tensor that may be quantized")
    unmet = [p for p in free if not statistics.knows(p.tensor.name)]
    if len(unmet) < len(free):  # else `costs` says that they are of another model
        free = [p for p in free if p not in unmet]
    alignment = model.alignment
    rest = plan.size - sum(-(-p.nbytes // alignment) * alignment for p in free)
    if like is not None:
        size = _plan(model, _like(recipe, like)).size
    elif bits is not None:
        size = int(bits * plan.weights / 8) + plan.size - plan.nbytes
    assert size is not None
    if options is None:
        tensors = [p.tensor for p in free]
        options = costs(tensors, statistics, types, output_of(model), alignment=alignment, threads=threads)
    try:
        chosen = allocate(options, size - rest)
    except PolicyError as e:
        raise PolicyError(f"a file of {size} bytes is too small: {e.message}", e.hint or Hint("allow more")) from None
    decisions = {
        name: Decision(FORMATS[type_], f"predicted KLD {options[name][type_].cost:.3g}")
        for name, type_ in chosen.items()
    }
    # A text meets no heads that guess ahead, and no experts for images.
    decisions |= {p.tensor.name: Decision(p.format, "the text of the statistics never met it") for p in unmet}
    most = Counter[str]()
    for p in free:
        most[chosen[p.tensor.name]] += p.tensor.size
    base = _like(recipe, like if like is not None else _preset_of(most.most_common(1)[0][0]))
    return Allocation(replace(base, types=decisions), options, chosen, rest, model, statistics)


def _like(recipe: Recipe, preset: str) -> Recipe:
    """The recipe with another preset."""
    return replace(recipe, preset=recipe_of(preset).preset, copy=False)


def _preset_of(type_: str) -> str:
    """The preset whose file type says best that most weights are of this type."""
    try:
        return recipe_of(type_).preset.name
    except PolicyError:
        return _EVERY


def _kept(p: PlannedTensor) -> bool:
    return p.reason.startswith("kept")


def _plan(model: GGUF, recipe: Recipe) -> Plan:
    return quantization(model, Path(f"{model.path}.quantized"), recipe).plan
