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
from dataclasses import replace
from functools import lru_cache

from ggufkit.formats.table import FORMATS
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
# architecture that is not known here or has parts that are not followed; and on GPUs, where nothing was compared.
_ON_CPU, _UNKNOWN, _ON_GPUS = 0.07, 0.5, 0.3

# Tensors of such parts: several streams, vectors for each layer, indexers, decoders that read an encoder.
_NOT_FOLLOWED = ("altup", "per_layer", "indexer", "cross_attn", "attn_rel_b")

# Layers at each end of a model whose tensors are placed.
_ENDS = 8

_ANY = FORMATS["F32"]  # of tensors whose format does not matter

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
    followed = model.known and not any(part in m.name for m in model.used for part in _NOT_FOLLOWED)
    error = _ON_CPU if followed else _UNKNOWN
    if len(devices) == 1:
        nbytes = _reserved(model, setup, n, range(len(model.layers)))
        if devices[0].kind == "host":
            return [Line("compute", 0, nbytes, f"ggml's allocator, {n} tokens", error)]
        text = f"ggml's allocator, {n} tokens, CPU and GPU together"
        return [Line("compute", 0, nbytes, text, max(error, _ON_GPUS))]
    lines = []
    for number in range(len(devices)):
        own = [layer for layer, where in enumerate(placement.layers) if where == number]
        output, host = placement.output == number, number == placement.host
        if not own and not output and not host:
            continue
        nbytes = _reserved(model, setup, n, own, embedding=host, output=output)
        text = f"ggml's allocator, {n} tokens, {amount(len(own), 'layer')}"
        if host and not own:
            nbytes += _masks(model, setup, n)
            text += ", masks"
        lines.append(Line("compute", number, nbytes, text, max(error, _ON_GPUS)))
        copied = 0 if number else _copied(model, setup, placement)
        if copied:
            text = "two of the largest matrices on the CPU, copied to the card for prompts"
            lines.append(Line("compute", number, copied, text, _ON_GPUS))
    return lines


def _reserved(
    model: Model, setup: Setup, n: int, layers: Sequence[int], embedding: bool = True, output: bool = True
) -> int:
    """Bytes of the buffer for some layers. Those at both ends tell: others of their kind leave the same gaps."""
    told = tuple(layers if len(layers) <= 2 * _ENDS else [*layers[:_ENDS], *layers[-_ENDS:]])
    plain = tuple(replace(matrix, format=_ANY) for matrix in model.matrices)
    alike = replace(setup, gpu_layers=None, cpu_experts=0)
    return _buffer(replace(model, path="", matrices=plain), alike, n, told, embedding, output)


@lru_cache(maxsize=64)
def _buffer(model: Model, setup: Setup, n: int, layers: tuple[int, ...], embedding: bool, output: bool) -> int:
    """The same, once for all types of a model and all ways to place it."""
    return buffer_size(pass_graph(model, setup, n, layers, embedding=embedding, output=output))


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
