"""Bytes of what is computed on the way.

llama.cpp reserves one buffer per device, for a prompt's pass over `ubatch` tokens. Its size is what ggml's allocator
makes of the graph, so both are followed here (`memory.ggml`), down to the gaps between tensors. On a CPU that is what
its log says, but for a few architectures; on cards the graph is cut into pieces and inputs are copied, which is
followed less closely.

This package allocates each result when it is made. Of n tokens in float32, at most alive at once, in numbers per token:

    attention   the stream, its norm, all projections, what was found
    FFN         the stream, its norm, gate and up, what becomes of them, and its levels for the next product
    experts     the same as often as a token goes through one, and the rows that are gathered for them
"""

from __future__ import annotations

from collections.abc import Sequence

from ggufkit.memory.cache import cells, padded, streams
from ggufkit.memory.devices import Device
from ggufkit.memory.ggml.allocator import buffer_size
from ggufkit.memory.ggml.layers import pass_graph
from ggufkit.memory.line import Line, amount
from ggufkit.memory.model import Layer, Model
from ggufkit.memory.placement import Placement
from ggufkit.memory.setup import Setup
from ggufkit.runtime.sizes import LIMIT

__all__ = ["compute_lines", "passed"]

# How far llama.cpp's buffers may be off: on a CPU, where `tools/verify/verify_fit.py` compares them with its log; of an
# architecture that is not known here; and on cards, where nothing was compared.
_ON_CPU, _UNKNOWN, _ON_CARDS = 0.07, 0.5, 0.3

# Layers at each end of a model whose tensors are placed.
_ENDS = 8

# The same of this package's own, against the peaks of allocations.
_OWN = 0.3


def passed(setup: Setup) -> int:
    """Tokens that go through the layers together at most."""
    if setup.engine != "llama.cpp":
        return min(LIMIT, setup.context * setup.slots)
    asked = setup.context * (1 if setup.unified else setup.slots)
    return padded(min(setup.ubatch, setup.batch, padded(asked, 256)), setup.slots)


def compute_lines(model: Model, setup: Setup, devices: Sequence[Device], placement: Placement) -> list[Line]:
    """The lines of computing, and of the logits that are handed out."""
    lines = _llama(model, setup, devices, placement) if setup.engine == "llama.cpp" else [_own(model, setup)]
    if model.causal and model.vocabulary:
        nbytes = 4 * model.vocabulary * setup.slots
        text = f"{amount(setup.slots, 'slot')} × {model.vocabulary} × 4 B"
        lines.append(Line("logits", placement.host, nbytes, text))
    return lines


# -- llama.cpp ----------------------------------------------------------------------------------------------------


def _llama(model: Model, setup: Setup, devices: Sequence[Device], placement: Placement) -> list[Line]:
    n = passed(setup)
    error = _ON_CPU if model.known else _UNKNOWN
    if len(devices) == 1:
        nbytes = buffer_size(pass_graph(model, setup, n, _telling(range(len(model.layers)))))
        on = "" if devices[0].kind == "host" else ", CPU and GPU together"
        return [Line("compute", 0, nbytes, f"ggml's allocator, {n} tokens{on}", error)]
    lines = []
    for number in range(len(devices)):
        own = [layer for layer, where in enumerate(placement.layers) if where == number]
        output, host = placement.output == number, number == placement.host
        if not own and not output and not host:
            continue
        nbytes = buffer_size(pass_graph(model, setup, n, _telling(own), embedding=host, output=output))
        text = f"ggml's allocator, {n} tokens, {amount(len(own), 'layer')}"
        if host and not own:
            nbytes += _masks(model, setup, n)
            text += ", masks"
        lines.append(Line("compute", number, nbytes, text, max(error, _ON_CARDS)))
        copied = 0 if number else _copied(model, setup, placement)
        if copied:
            text = "two of the largest matrices on the CPU, copied to the card for prompts"
            lines.append(Line("compute", number, copied, text, _ON_CARDS))
    return lines


def _telling(layers: Sequence[int]) -> Sequence[int]:
    """The layers that decide on a buffer's size: all of one kind leave the same gaps, after the first few."""
    return layers if len(layers) <= 2 * _ENDS else [*layers[:_ENDS], *layers[-_ENDS:]]


def _masks(model: Model, setup: Setup, n: int) -> int:
    """Bytes of the masks of layers that see everything, and of those with a window."""
    each = (2 if setup.flash else 4) * n
    if not model.cached:
        return each * n
    found = 0
    for windowed in {bool(layer.window) for layer in model.layers if layer.kind}:
        found += each * cells(setup, model.window if windowed else 0) // streams(setup) * streams(setup)
    return found


def _copied(model: Model, setup: Setup, placement: Placement) -> int:
    """Bytes of a card's buffer for matrices that lie on the CPU: for more than 32 tokens the card multiplies them."""
    if passed(setup) < 32:
        return 0
    sizes = [m.nbytes for m in model.used if m.name.startswith("blk.") and placement.of(m) == placement.host]
    return sum(sorted(sizes)[-2:])


# -- this package -------------------------------------------------------------------------------------------------


def _own(model: Model, setup: Setup) -> Line:
    n = passed(setup)
    per_token = max((_alive(model, layer) for layer in model.layers), default=0)
    return Line("compute", 0, 4 * n * per_token, f"{n} tokens × {per_token} × 4 B", _OWN)


def _alive(model: Model, layer: Layer) -> int:
    """Numbers per token that are alive at once in a layer at most."""
    attention = 3 * model.width + layer.projected * (3 if layer.state else 1) + 2 * layer.query
    dense = 3 * model.width + (4 if layer.gated else 3) * layer.inner
    experts = 3 * model.width + layer.used * (5 * layer.expert_inner + 3 * model.width)
    return max(attention, dense, experts if layer.experts else 0)
