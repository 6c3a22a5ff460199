"""Memory for a page with sliders: what `fit` says, asked for every place of every slider.

A page that had formulas of its own would say something else one day. The sliders have stops, and for each the lines of
`memory` are here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggufkit.errors import GgufkitError
from ggufkit.memory import DEVICES, Device, Model, Setup
from ggufkit.memory.cache import cache_lines
from ggufkit.memory.compute import compute_lines
from ggufkit.memory.placement import place
from ggufkit.memory.weights import weight_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["sliders_of"]

_ENGINES = ("llama.cpp", "cpu", "mlx")
_SLOTS = (1, 2, 4, 8)
_TYPES = {
    "llama.cpp": ("F16", "Q8_0", "Q5_1", "Q4_0"),
    "cpu": ("F16", "Q8_0", "Q4_0", "tq4", "tq3"),
    "mlx": ("F16", "Q8_0", "Q4_0", "tq4", "tq3"),
}
_LARGE = 1 << 60


def _contexts(trained: int) -> Iterator[int]:
    """Stops from 512 up to what the model was trained on, each twice the last."""
    at = 512
    while at < trained:
        yield at
        at *= 2
    yield trained


def sliders_of(model: Model) -> dict[str, Any]:
    """Bytes of each part, for every stop of the sliders; and the devices that there are.

    Returns
    -------
    dict with ``contexts``, ``slots``, ``devices`` and ``engines``: engine → ``weights`` and ``types``: type of
    the cache → slots → context → part → bytes, in the order of ``slots`` and ``contexts``
    """
    contexts = list(_contexts(max(model.context_length, 512)))[-16:]
    engines = {}
    for engine in _ENGINES:
        where = Device("this", "host" if engine == "cpu" else "unified", _LARGE, _LARGE, engine=engine)
        types = {}
        for kind in _TYPES[engine]:
            setups = [[Setup(engine, n, slots, keys=kind, values=kind) for n in contexts] for slots in _SLOTS]
            try:
                types[kind] = [[_run_lines(model, setup, where) for setup in row] for row in setups]
            except GgufkitError:
                continue  # a type that this model's heads do not fit
        if types:
            setup = Setup(engine)
            weights = weight_lines(model, setup, [where], place(model, setup, [where]))
            engines[engine] = {"weights": sum(line.nbytes for line in weights), "types": types}
    devices = [[d.name, d.usable, d.bandwidth] for d in DEVICES.values()]
    return {"contexts": contexts, "slots": _SLOTS, "engines": engines, "devices": devices}


def _run_lines(model: Model, setup: Setup, where: Device) -> dict[str, int]:
    """Bytes of each part but the weights."""
    placement = place(model, setup, [where])
    sums: dict[str, int] = {}
    for line in (*cache_lines(model, setup, placement.layers), *compute_lines(model, setup, [where], placement)):
        sums[line.part] = sums.get(line.part, 0) + line.nbytes
    return sums
