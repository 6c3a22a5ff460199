"""Bytes of keys, values and recurrent states, as each engine lays them out. All of it exact.

llama.cpp, of a context of C tokens a conversation and S conversations:

    cells    = pad(C, 256) in each of S streams, or with one pool for all pad(C, 256) in one
    window   : cells = pad(min(cells, window · (S where pooled) + ubatch), 256)
    full, window   cells · streams · (row(keys, kv_heads · head_k) + row(values, kv_heads · head_v))
    latent         cells · streams · row(keys, head_k)          the values are a part of the keys
    states         S · 4 · (convolution + state)                float32, whatever the context

This package keeps a cache per conversation, and in layers with a window all tokens:

    CPU      S · pad(C, 32) · kv_heads · (head of keys + head of values)
    MLX      the same with pad(C, 256), reached step by step as the conversation grows

Source: src/llama-context.cpp, src/llama-kv-cache.cpp, src/llama-kv-cache-iswa.cpp and
src/llama-memory-recurrent.cpp of llama.cpp; `runtime.cpu.cache` and `runtime.mlx.cache`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ggufkit.errors import UsageError, printable
from ggufkit.memory.line import Line, amount
from ggufkit.memory.model import Layer, Model
from ggufkit.memory.setup import Setup
from ggufkit.runtime.kv.types import CacheType, cache_type
from ggufkit.runtime.sizes import CPU_STEP, KEPT_STATES, MLX_STEP

__all__ = ["Held", "cache_lines", "cells", "held_by", "padded", "streams"]

_FLOAT = 4  # bytes of a number of a state


def padded(n: int, step: int) -> int:
    """`n` rounded up to a multiple of `step`."""
    return -(-n // step) * step


def streams(setup: Setup) -> int:
    """Separate caches of llama.cpp."""
    return 1 if setup.unified else setup.slots


def cells(setup: Setup, window: int = 0) -> int:
    """Tokens that fit into one of llama.cpp's streams, in a layer with this window; 0 for none."""
    whole = padded(setup.context, 256)
    if not window or setup.swa_full:
        return whole
    # A batch is no larger than the context was before it was rounded up, nor what goes through the layers at once.
    asked = setup.context * (1 if setup.unified else setup.slots)
    ubatch = min(setup.ubatch, setup.batch, asked)
    return padded(min(whole, window * (setup.slots if setup.unified else 1) + ubatch), 256)


@dataclass(frozen=True)
class Held:
    """What one layer holds.

    Attributes
    ----------
    part : see `Line.part`.
    tokens, copies : for how many tokens, how many times; 1 token for states.
    row : bytes of a token.
    text : where `row` comes from.
    """

    part: str
    tokens: int
    copies: int
    row: int
    text: str

    @property
    def nbytes(self) -> int:
        return self.tokens * self.copies * self.row


def held_by(model: Model, layer: Layer, setup: Setup) -> Iterator[Held]:
    """What a layer of a model holds with an engine.

    Raises
    ------
    UsageError : the cache cannot be of a type.
    """
    if setup.engine == "llama.cpp":
        yield from _llama(model, layer, setup)
    else:
        yield from _own(model, layer, setup)


def _llama(model: Model, layer: Layer, setup: Setup) -> Iterator[Held]:
    if not model.cached:
        return
    if layer.kind in ("full", "window", "latent") and layer.kv_heads:
        tokens = cells(setup, layer.window)
        keys = _llama_type(setup.keys, layer.head_k)
        row, text = _row(layer.kv_heads, layer.head_k, keys, keys.nbytes)
        if layer.kind == "latent" and setup.keys != setup.values:
            raise UsageError("llama.cpp keeps latent attention's keys and values as one; give both the same type")
        values = _llama_type(setup.values, layer.head_v)
        if layer.kind != "latent":
            if values.quantized and not setup.flash:
                raise UsageError(f"llama.cpp keeps values as {values.name} only with flash attention")
            numbers = layer.kv_heads * layer.head_v
            if not setup.flash:  # values lie transposed, those of all layers as wide as the widest
                numbers = max(other.kv_heads * other.head_v for other in model.layers)
            row += values.nbytes(numbers)
            text = f"K {text} + V {numbers} × {values.name} = {values.nbytes(numbers)} B"
        name = {"full": "cache", "window": "window cache", "latent": "latent cache"}[layer.kind]
        yield Held(name, tokens, streams(setup), row, text)
    if layer.indexer:
        keys = _llama_type(setup.keys, layer.indexer)
        row, text = _row(1, layer.indexer, keys, keys.nbytes)
        yield Held("indexer cache", cells(setup), streams(setup), row, text)
    yield from _state(layer, setup.slots)


def _llama_type(name: str, head: int) -> CacheType:
    kind = cache_type(name, head)
    if kind.rule == "turbo" or kind.centred:
        raise UsageError(f"llama.cpp has no cache of the type {printable(name)}; it is one of this package's engines")
    return kind


def _own(model: Model, layer: Layer, setup: Setup) -> Iterator[Held]:
    if layer.chosen:
        # In float32, whatever the types: choices would change (see `runtime.kv.rows`).
        yield Held("cache", setup.context, setup.slots, _FLOAT * layer.chosen, f"4 B × {layer.chosen}")
    elif layer.kind not in ("", "shared"):
        on_cpu = setup.engine == "cpu"
        # Encoders read a text as a whole, and keep it in float32 for as long.
        names = (setup.keys, setup.values) if model.causal else ("F32", "F32")
        keys, values = cache_type(names[0], layer.head_k), cache_type(names[1], layer.head_v, values=True)
        key_row, key_text = _row(layer.kv_heads, layer.head_k, keys, keys.nbytes if on_cpu else _on_mlx(keys))
        width = layer.head_v if values.quantized or not on_cpu else padded(layer.head_v, 32)
        row, text = _row(layer.kv_heads, width, values, values.nbytes if on_cpu else _on_mlx(values))
        step = CPU_STEP if on_cpu else MLX_STEP
        name = "latent cache" if layer.kind == "latent" else "cache"
        yield Held(name, padded(setup.context, step), setup.slots, key_row + row, f"K {key_text} + V {text}")
        if keys.centred:
            row = _FLOAT * layer.kv_heads * layer.head_k
            yield Held("mean keys", 1, setup.slots, row, f"{_FLOAT} B × {layer.kv_heads} × {layer.head_k}")
    yield from _state(layer, setup.slots)


def _on_mlx(kind: CacheType) -> Callable[[int], int]:
    """Bytes of a head on MLX's device: scales and biases of MLX's own arrays are float32."""
    if not kind.quantized or kind.leveled:
        return kind.nbytes
    return lambda head: head * kind.bits // 8 + kind.blocks(head) * 8


def _row(heads: int, head: int, kind: CacheType, nbytes: Callable[[int], int]) -> tuple[int, str]:
    row = heads * nbytes(head)
    return row, f"{heads} × {head} × {kind.name} = {row} B"


def _state(layer: Layer, slots: int) -> Iterator[Held]:
    if layer.convolution or layer.state:
        row = _FLOAT * (layer.convolution + layer.state)
        yield Held("states", 1, slots, row, f"4 B × ({layer.convolution} + {layer.state})")


def cache_lines(model: Model, setup: Setup, place_of: Sequence[int]) -> list[Line]:
    """Lines of all that a model keeps of conversations, on each device one for each kind of layers.

    Parameters
    ----------
    place_of : the device of each layer.
    """
    groups: dict[tuple[int, Held], int] = {}
    for number, layer in enumerate(model.layers):
        for held in held_by(model, layer, setup):
            groups[place_of[number], held] = groups.get((place_of[number], held), 0) + 1
    lines = []
    for (place, held), layers in groups.items():
        copies = amount(held.copies, "slot" if setup.engine != "llama.cpp" or held.part == "states" else "stream")
        tokens = "" if held.part == "states" else f" × {held.tokens} tokens"
        formula = f"{amount(layers, 'layer')} × {copies}{tokens} × ({held.text})"
        lines.append(Line(held.part, place, layers * held.nbytes, formula))
        if held.part == "states" and setup.engine != "llama.cpp":
            formula = f"up to {KEPT_STATES} positions to return to × {formula}"
            lines.append(Line("states kept", place, KEPT_STATES * layers * held.nbytes, formula))
    return lines
