"""Types under a budget: of all ways to give each tensor a type, the one that costs least and fits.

A tensor's types are points (bytes, cost); only those on the lower convex hull are worth having. From hull point to hull
point each step saves some cost per byte. Taken in the order of what they save, best first, the steps of all tensors
give the frontier: for every budget the best files, up to one step. What is left of the budget goes, step by step, to
whatever then saves most.

    options = {"blk.0.ffn_up.weight": {"IQ2_XXS": Option(67584, 0.004), "Q4_K": Option(147456, 0.0003), …}, …}
    chosen = allocate(options, budget)              # {"blk.0.ffn_up.weight": "Q4_K", …}

Source: Shoham, Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from ggufkit.errors import Hint, PolicyError

__all__ = ["Option", "Options", "Point", "allocate", "frontier", "total"]


class Option(NamedTuple):
    """A type of one tensor: bytes in the file, and what its error costs."""

    nbytes: int
    cost: float


# Of each tensor by name its types by name.
Options = Mapping[str, Mapping[str, Option]]


class Point(NamedTuple):
    """A file of the frontier: bytes of its tensors, its cost, and what one more byte saves."""

    nbytes: int
    cost: float
    saving: float


class _Step(NamedTuple):
    """One tensor's way from one point of its hull to the next."""

    saving: float  # cost per byte
    name: str
    type: str


def _hull(types: Mapping[str, Option]) -> list[tuple[str, Option]]:
    """The lower convex hull of a tensor's types, from the smallest on; costs fall, and more slowly all the time."""
    hull: list[tuple[str, Option]] = []
    for name, option in sorted(types.items(), key=lambda item: (item[1].nbytes, item[1].cost, item[0])):
        if hull and option.cost >= hull[-1][1].cost:
            continue
        if hull and option.nbytes == hull[-1][1].nbytes:
            continue
        while len(hull) > 1 and _saving(hull[-2][1], hull[-1][1]) <= _saving(hull[-2][1], option):
            hull.pop()
        hull.append((name, option))
    return hull


def _saving(before: Option, after: Option) -> float:
    return (before.cost - after.cost) / (after.nbytes - before.nbytes)


def _steps(hulls: Mapping[str, Sequence[tuple[str, Option]]]) -> list[_Step]:
    """All steps of all tensors, those that save most per byte first; of one tensor in their order."""
    steps = [
        _Step(_saving(before, after), name, type_)
        for name, hull in hulls.items()
        for (_, before), (type_, after) in pairwise(hull)
    ]
    return sorted(steps, key=lambda step: -step.saving)


def total(options: Options, chosen: Mapping[str, str]) -> Option:
    """Bytes and cost of all tensors with these types."""
    found = [options[name][type_] for name, type_ in chosen.items()]
    return Option(sum(option.nbytes for option in found), sum(option.cost for option in found))


def _walk(options: Options) -> Iterator[tuple[dict[str, str], _Step | None]]:
    """The files of the frontier from the smallest on, each with the step that comes next; one dict, changed."""
    hulls = {name: _hull(types) for name, types in options.items()}
    chosen = {name: hull[0][0] for name, hull in hulls.items()}
    for step in _steps(hulls):
        yield chosen, step
        chosen[step.name] = step.type
    yield chosen, None


def allocate(options: Options, budget: int) -> dict[str, str]:
    """The type of each tensor.

    Parameters
    ----------
    budget : bytes that all tensors may take together.

    Raises
    ------
    PolicyError : the smallest types take more.
    """
    least = sum(min(option.nbytes for option in types.values()) for types in options.values())
    if least > budget:
        raise PolicyError(
            f"the smallest types take {least} bytes and the budget leaves {budget} for them",
            Hint("allow more bytes", "allow smaller {types}"),
        )
    size = least
    chosen: dict[str, str] = {}
    for chosen, step in _walk(options):
        if step is None:
            break
        grown = size + options[step.name][step.type].nbytes - options[step.name][chosen[step.name]].nbytes
        if grown > budget:
            break
        size = grown
    return _filled(options, dict(chosen), budget - size)


def _filled(options: Options, chosen: dict[str, str], room: int) -> dict[str, str]:
    """What still fits, that which saves most per byte first."""
    while True:
        best: tuple[float, str, str] | None = None
        for name, types in options.items():
            now = types[chosen[name]]
            for type_, option in types.items():
                more = option.nbytes - now.nbytes
                if more > room or option.cost >= now.cost:
                    continue
                saving = (now.cost - option.cost) / max(more, 1)
                if best is None or saving > best[0]:
                    best = saving, name, type_
        if best is None:
            return chosen
        _, name, type_ = best
        room -= options[name][type_].nbytes - options[name][chosen[name]].nbytes
        chosen[name] = type_


def frontier(options: Options, points: int = 12) -> list[Point]:
    """The best files from the smallest to the largest, `points` of them, about evenly spaced by size."""
    found: list[Point] = []
    size, cost = 0, 0.0
    for chosen, step in _walk(options):
        if not found:
            size, cost = total(options, chosen)
        found.append(Point(size, cost, step.saving if step else 0.0))
        if step is not None:
            before, after = options[step.name][chosen[step.name]], options[step.name][step.type]
            size, cost = size + after.nbytes - before.nbytes, cost + after.cost - before.cost
    wanted = [found[0].nbytes + (found[-1].nbytes - found[0].nbytes) * i / (points - 1) for i in range(points)]
    return list(dict.fromkeys(min(found, key=lambda point: abs(point.nbytes - size)) for size in wanted))
