"""Bytes of what is computed on the way: estimates of the widest moment of a pass.

n tokens go through the layers together, float32 each. What is alive at once, in numbers per token:

    input      tokens' vectors, masks of n × cells (float16 with flash attention), positions
    attention  the stream, its norm, all projections; without flash attention also scores: heads × cells
    FFN        the stream, and gate, up and their product: 3 × inner; of experts that many times as go through
    output     the last norm and a score for every token of the vocabulary

and the largest of the last three counts, beside the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ggufkit.memory.cache import cells, padded, streams
from ggufkit.memory.devices import Device
from ggufkit.memory.line import Line
from ggufkit.memory.model import Layer, Model
from ggufkit.memory.placement import Placement
from ggufkit.memory.setup import Setup
from ggufkit.runtime.sizes import LIMIT

__all__ = ["compute_lines", "passed"]

# How far estimates were off at most, against llama.cpp's own figures and this package's peaks.
_ERROR = 0.3


def passed(setup: Setup) -> int:
    """Tokens that go through the layers together at most."""
    if setup.engine != "llama.cpp":
        return min(LIMIT, setup.context * setup.slots)
    asked = setup.context * (1 if setup.unified else setup.slots)
    return padded(min(setup.ubatch, setup.batch, padded(asked, 256)), setup.slots)


def compute_lines(model: Model, setup: Setup, devices: Sequence[Device], placement: Placement) -> list[Line]:
    """The lines of computing and of the logits that are handed out."""
    lines = []
    n = passed(setup)
    for number in range(len(devices)):
        layers = [layer for layer, where in zip(model.layers, placement.layers, strict=True) if where == number]
        output = placement.output == number
        if layers or output:
            nbytes, text = _widest(model, setup, layers, output, n)
            lines.append(Line("compute", number, nbytes, text, _ERROR))
    vocabulary = model.vocabulary if model.causal else 0
    if vocabulary:
        nbytes = 4 * vocabulary * setup.slots
        lines.append(Line("logits", placement.host, nbytes, f"{setup.slots} × {vocabulary} × 4 B"))
    return lines


def _widest(model: Model, setup: Setup, layers: Iterable[Layer], output: bool, n: int) -> tuple[int, str]:
    """Bytes of the widest moment, and what it is."""
    flash = setup.flash or setup.engine != "llama.cpp"
    llama = setup.engine == "llama.cpp"
    moments = {"output": 4 * n * (model.vocabulary + model.width)} if output and llama and model.causal else {}
    tokens = cells(setup) if llama else setup.context
    for layer in layers:
        scores = 0 if flash else layer.heads * tokens
        attention = 2 * model.width + layer.projected + 2 * layer.query + scores
        wide = max((3 if layer.gated else 2) * layer.inner, 3 * layer.used * layer.expert_inner)
        moments["attention"] = max(moments.get("attention", 0), 4 * n * attention)
        moments["FFN"] = max(moments.get("FFN", 0), 4 * n * (2 * model.width + wide))
    name, widest = max(moments.items(), key=lambda item: item[1], default=("nothing", 0))
    inputs = 4 * n * model.width
    if llama:
        mask = (2 if flash else 4) * n // max(streams(setup), 1)
        inputs += mask * tokens * streams(setup) if model.cached else mask * n
        inputs += mask * cells(setup, model.window) * streams(setup) if model.window and model.cached else 0
        inputs += 8 * n * model.width
    return widest + inputs, f"{n} tokens; widest at {name}: {widest} B, beside inputs of {inputs} B"
