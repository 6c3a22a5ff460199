"""The hyperparameters that a forward pass needs, from a GGUF's metadata, with llama.cpp's defaults.

Source: `llama_model_base::load_hparams` in src/llama-model.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ggufkit.errors import ArchitectureError, printable

if TYPE_CHECKING:
    from ggufkit.arch.graph import Graph

__all__ = ["Described", "Hyperparameters", "Keys", "RopeScaling", "read_hyperparameters"]

# What no honest file exceeds; refused before anything is allocated.
_MOST = 1 << 24
_MOST_LAYERS = 512  # LLAMA_MAX_LAYERS
_TINY, _HUGE = 1e-30, 1e30  # what float32 can divide by, and multiply with once more


class Described(Protocol):
    """What has a path, for messages, and metadata: an open GGUF, or one that is only planned."""

    @property
    def path(self) -> str: ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class RopeScaling:
    """How rope is stretched to longer contexts.

    Attributes
    ----------
    kind : ``"none"``, ``"linear"``, ``"yarn"`` or ``"longrope"``.
    factor : how many times longer the context is.
    original : the context length that the model was first trained on.
    attention_factor : multiplies cosine and sine.
    beta_fast, beta_slow : yarn: turns in the original context above which a frequency stays, below which it is divided.
    """

    kind: str
    factor: float
    original: int
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    extrapolation: float = 1.0


@dataclass(frozen=True)
class Hyperparameters:
    """Sizes and constants of a model.

    Attributes
    ----------
    name : `general.architecture`.
    context_length : tokens that it was trained on.
    width : of the residual stream.
    layers : how many blocks text goes through; a file may have more, which draft several tokens ahead.
    spare_layers : these.
    order : the blocks that texts go through, by number; some several times.
    heads, kv_heads : per layer, of queries, and of keys and values; 0 where there is no attention.
    head_k, head_v : per layer, numbers per head.
    epsilon : of the norms.
    rope_dimensions, local_rope_dimensions : how many numbers of a head turn.
    rope_base, local_rope_base : of all layers, of layers with a window.
    scaling : of rope.
    rope_sections : of how many pairs each axis of positions turns: time, row, column; () where there is one axis.
    windows : per layer, how many tokens back it sees, itself included; 0 for all.
    attention_scale : per layer, what queries are multiplied by.
    attention_cap, logit_cap : soft caps; 0 for none.
    embedding_scale, residual_scale, logit_scale : factors; 1 for none.
    causal : tokens see only those before them.
    pooling : ``"none"``, ``"mean"``, ``"cls"``, ``"last"``, ``"rank"``.
    parallel_residual : the key of this name.
    keys : the metadata, for what only some mixers need.
    """

    name: str
    context_length: int
    width: int
    layers: int
    spare_layers: int
    order: tuple[int, ...]
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    head_k: tuple[int, ...]
    head_v: tuple[int, ...]
    epsilon: float
    rope_dimensions: int
    local_rope_dimensions: int
    rope_base: float
    local_rope_base: float
    scaling: RopeScaling
    windows: tuple[int, ...]
    attention_scale: tuple[float, ...]
    attention_cap: float
    logit_cap: float
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    causal: bool
    pooling: str
    parallel_residual: bool
    rope_sections: tuple[int, ...] = field(repr=False)
    keys: Keys = field(repr=False, compare=False)


class Keys:
    """Metadata of one architecture, checked for type and range."""

    def __init__(self, gguf: Described, name: str):
        self.gguf, self.name = gguf, name

    def fail(self, key: str, problem: str) -> ArchitectureError:
        return ArchitectureError(f"{printable(self.gguf.path)}: {self.name}.{key} {problem}")

    def number(self, key: str, default: float | None = None) -> float:
        value = self.gguf.metadata.get(f"{self.name}.{key}", default)
        if value is None:
            raise self.fail(key, "is missing; the model cannot be run without it")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.fail(key, f"must be a finite number, not {printable(repr(value))}")
        if value and not _TINY <= abs(value) <= _HUGE:
            raise self.fail(key, f"must be 0, or {_TINY:g} to {_HUGE:g} in magnitude, not {printable(repr(value), 60)}")
        return float(value)

    def between(self, key: str, least: float, most: float, default: float) -> float:
        value = self.number(key, default)
        if not least <= value <= most:
            raise self.fail(key, f"must be from {least:g} to {most:g}, not {value:g}")
        return value

    def count(self, key: str, default: int | None = None, least: int = 1, most: int = _MOST) -> int:
        value = self.number(key, default)
        if not value.is_integer() or not least <= value <= most:
            raise self.fail(key, f"must be a whole number from {least} to {most}, not {value:g}")
        return int(value)

    def counts(self, key: str, n: int, default: int | tuple[int, ...] | None = None, least: int = 1) -> tuple[int, ...]:
        """One number a layer, given as a number or a list."""
        value = self.gguf.metadata.get(f"{self.name}.{key}", default)
        if not isinstance(value, (list, tuple)):
            return (self.count(key, default if isinstance(default, int) else None, least),) * n
        if len(value) < n or any(type(v) is not int or not least <= v <= _MOST for v in value):
            raise self.fail(key, f"must be {n} whole numbers of at least {least}, one per layer")
        return tuple(value[:n])

    def per_layer(self, key: str, layer: int, default: float | None = None) -> float:
        """A number of one layer, given for all or as a list; the key may lack the architecture's name."""
        values = self.gguf.metadata.get(f"{self.name}.{key}", self.gguf.metadata.get(key, default))
        if not isinstance(values, (list, tuple)):
            return self.number(key, values)
        if layer >= len(values) or isinstance(values[layer], bool) or not isinstance(values[layer], (int, float)):
            raise self.fail(key, f"must be numbers, one per layer, and has none for layer {layer}")
        return float(values[layer])

    def flag(self, key: str, default: bool) -> bool:
        value = self.gguf.metadata.get(f"{self.name}.{key}", default)
        if not isinstance(value, bool):
            raise self.fail(key, f"must be true or false, not {printable(repr(value))}")
        return value

    def get(self, key: str) -> Any:
        return self.gguf.metadata.get(f"{self.name}.{key}")


_POOLING = ("none", "mean", "cls", "last", "rank")


def read_hyperparameters(gguf: Described, name: str, graph: Graph) -> Hyperparameters:
    """Read what a forward pass needs.

    Raises
    ------
    ArchitectureError : a key is missing, of another type or out of range, or two contradict each other.
    """
    keys = Keys(gguf, name)
    blocks, width = keys.count("block_count", most=_MOST_LAYERS), keys.count("embedding_length")
    spare = keys.count("nextn_predict_layers", 0, least=0, most=blocks - 1)
    layers = blocks - spare
    windows = _windows(keys, graph, layers)
    heads = keys.counts("attention.head_count", layers, least=0)
    kv_heads = keys.counts("attention.head_count_kv", layers, heads, least=0)
    equal = width // max(*heads, 1)
    head_k, local_k = _head_sizes(keys, "attention.key_length", equal)
    head_v, local_v = _head_sizes(keys, "attention.value_length", equal)
    for layer, (q, kv) in enumerate(zip(heads, kv_heads, strict=True)):
        if kv and q % kv:
            raise keys.fail("attention.head_count_kv", f"is {kv} in layer {layer}, which does not divide {q} heads")
    context_length = keys.count("context_length")
    turned = keys.count("rope.dimension_count", head_k, least=0)
    rope_dimensions = int(turned * graph.full_rope_share)
    local_rope_dimensions = keys.count("rope.dimension_count_swa", min(turned, local_k), least=0)
    for dimensions, head in ((rope_dimensions, head_k), (local_rope_dimensions, local_k)):
        if graph.rope and (dimensions > head or dimensions % 2):
            raise keys.fail("rope.dimension_count", f"must be even and at most {head}, not {dimensions}")
    rope_base = keys.between("rope.freq_base", 1e-3, 1e18, 10000.0)
    by_width = graph.scale_by_width == layers
    given = graph.attention_scale or keys.number("attention.scale", keys.number("attention.output_scale", 0.0))
    sizes = [local_k if window else head_k for window in windows]
    scales = [given(size) if callable(given) else given for size in sizes]
    experts, experts_used = (keys.count(f"expert_{key}", 0, least=0) for key in ("count", "used_count"))
    if experts and not 1 <= experts_used <= experts:
        raise keys.fail("expert_used_count", f"must be from 1 to {experts}, not {experts_used}")
    pooling = keys.count("pooling_type", 0, least=0)
    if pooling >= len(_POOLING):
        raise keys.fail("pooling_type", f"must be from 0 to {len(_POOLING) - 1}, not {pooling}")
    epsilon = "attention.layer_norm_rms_epsilon" if graph.norm == "rms" else "attention.layer_norm_epsilon"
    if keys.get(epsilon) is None and keys.get("attention.layer_norm_epsilon") is not None:
        epsilon = "attention.layer_norm_epsilon"
    embedding_scale, residual_scale, logit_scale = graph.multipliers(width, layers) if graph.multipliers else (1.0,) * 3
    if factor := keys.number("logit_scale", 0.0):
        logit_scale = factor if graph.logit_multiplied else 1 / factor
    return Hyperparameters(
        name=name,
        context_length=context_length,
        width=width,
        layers=layers,
        spare_layers=spare,
        order=_order(keys, layers),
        heads=heads,
        kv_heads=kv_heads,
        head_k=tuple(sizes),
        head_v=tuple(local_v if window else head_v for window in windows),
        epsilon=keys.between(epsilon, 0, 1, keys.number(epsilon)),
        rope_dimensions=rope_dimensions,
        local_rope_dimensions=local_rope_dimensions,
        rope_base=rope_base,
        local_rope_base=keys.between("rope.freq_base_swa", 1e-3, 1e18, graph.local_rope_base or rope_base),
        scaling=_scaling(keys, context_length, rope_base),
        windows=windows,
        attention_scale=tuple(
            scale or 1 / math.sqrt(equal if by_width else size) for scale, size in zip(scales, sizes, strict=True)
        ),
        attention_cap=keys.number("attn_logit_softcapping", graph.attention_cap),
        logit_cap=keys.number("final_logit_softcapping", graph.logit_cap),
        embedding_scale=math.sqrt(width)
        if graph.scaled_embedding
        else keys.number("embedding_scale", 0.0) or embedding_scale,
        residual_scale=keys.number("residual_scale", 0.0) or residual_scale,
        logit_scale=logit_scale,
        causal=keys.flag("attention.causal", graph.encoder != "only") and not graph.diffusion,
        pooling=_POOLING[pooling],
        parallel_residual=keys.flag("use_parallel_residual", True),
        rope_sections=_sections(keys),
        keys=keys,
    )


def _order(keys: Keys, layers: int) -> tuple[int, ...]:
    """The blocks in the order of their use."""
    if keys.get("hrm.layers_per_stack") is None:
        loops = keys.count("num_loops", 1, most=_MOST_LAYERS)
        if layers * loops > _MOST_LAYERS:
            raise keys.fail(
                "num_loops", f"is {loops}, so that texts go through {layers * loops} blocks, which are too many"
            )
        return tuple(range(layers)) * loops
    # A fast stack and behind it a slow one; `block_count` counts how often blocks are gone through.
    each = keys.count("hrm.layers_per_stack", most=layers)
    slow, fast = keys.count("hrm.h_cycles", most=layers), keys.count("hrm.l_cycles", most=layers)
    if each * slow * (fast + 1) != layers:
        raise keys.fail("block_count", f"is {layers}, not the {each * slow * (fast + 1)} of its cycles")
    return tuple(block for _ in range(slow) for start in (*(0,) * fast, each) for block in range(start, start + each))


def _head_sizes(keys: Keys, key: str, default: int) -> tuple[int, int]:
    """Numbers per head of layers that see everything, and of those with a window."""
    size = keys.count(key, default or None)
    return size, keys.count(f"{key}_swa", size)


def _sections(keys: Keys) -> tuple[int, ...]:
    found = keys.get("rope.dimension_sections")
    if not found:
        return ()
    if not isinstance(found, list) or len(found) > 4 or any(type(n) is not int or not 0 <= n <= _MOST for n in found):
        raise keys.fail("rope.dimension_sections", f"must be up to four whole numbers, not {printable(repr(found))}")
    return tuple(found)


def _scaling(keys: Keys, context_length: int, rope_base: float) -> RopeScaling:
    kind = keys.get("rope.scaling.type") or "linear"
    factor = keys.number("rope.scaling.factor", 0.0) or keys.number("rope.scale_linear", 0.0) or 1.0
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise keys.fail("rope.scaling.type", f"must be none, linear, yarn or longrope, not {printable(kind)}")
    if not 1e-6 <= factor <= 1e6:
        raise keys.fail("rope.scaling.factor", f"must be from 1e-06 to 1e+06, not {factor:g}")
    extrapolation = keys.between("rope.scaling.yarn_ext_factor", -1, 100, 1.0 if kind == "yarn" else 0.0)
    if extrapolation < 0:  # llama.cpp's "what the type says"
        extrapolation = 1.0 if kind == "yarn" else 0.0
    if extrapolation and rope_base <= 1:
        raise keys.fail("rope.freq_base", f"must be above 1 for yarn's scaling, not {rope_base:g}")
    return RopeScaling(
        kind=kind,
        factor=1.0 if kind == "none" else factor,
        original=keys.count("rope.scaling.original_context_length", context_length),
        attention_factor=keys.between("rope.scaling.attn_factor", 1e-6, 1e6, 1.0),
        beta_fast=keys.between("rope.scaling.yarn_beta_fast", 1e-6, 1e6, 32.0),
        beta_slow=keys.between("rope.scaling.yarn_beta_slow", 1e-6, 1e6, 1.0),
        extrapolation=extrapolation,
    )


def _windows(keys: Keys, graph: Graph, layers: int) -> tuple[int, ...]:
    window = keys.count("attention.sliding_window", graph.window, least=0) if graph.window_period else 0
    if not window or graph.window_layers not in (0, layers):
        return (0,) * layers
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) < layers or not all(isinstance(local, (bool, int)) for local in pattern):
            raise keys.fail("attention.sliding_window_pattern", f"must say of {layers} layers whether they have one")
        return tuple(window if local else 0 for local in pattern[:layers])
    period = keys.count("attention.sliding_window_pattern", graph.window_period, least=0)
    # One of each period sees everything; a period of 0 leaves no such layer, one of 1 only such.
    full = 0 if graph.window_last else period - 1
    return tuple(window if period == 0 or layer % period != full else 0 for layer in range(layers))
