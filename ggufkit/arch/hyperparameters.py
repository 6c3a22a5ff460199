"""The hyperparameters that a forward pass needs, from a GGUF's metadata, with llama.cpp's defaults.

Source: `llama_model_base::load_hparams` in src/llama-model.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggufkit.errors import ArchitectureError, printable

if TYPE_CHECKING:
    from ggufkit.arch.graph import Graph
    from ggufkit.gguf.reader import GGUF

__all__ = ["Hyper", "RopeScaling", "read_hyper"]

# What no honest file exceeds; refused before anything is allocated.
_MOST = 1 << 24
_MOST_LAYERS = 512  # LLAMA_MAX_LAYERS
_TINY, _HUGE = 1e-30, 1e30  # what float32 can divide by, and multiply with once more


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
class Hyper:
    """Sizes and constants of a model.

    Attributes
    ----------
    name : `general.architecture`.
    context_length : tokens that it was trained on.
    width : of the residual stream.
    layers : how many blocks.
    heads, kv_heads : per layer, of queries, and of keys and values.
    head_k, head_v : numbers per head.
    epsilon : of the norms.
    rope_dimensions : how many numbers of a head turn.
    rope_base, local_rope_base : of all layers, of layers with a window.
    scaling : of rope.
    windows : per layer, how many tokens back it sees, itself included; 0 for all.
    attention_scale : what queries are multiplied by.
    attention_cap, logit_cap : soft caps; 0 for none.
    embedding_scale, residual_scale, logit_scale : factors; 1 for none.
    experts, experts_used : 0 for none.
    expert_scale : multiplies the weights of experts.
    causal : tokens see only those before them.
    pooling : ``"none"``, ``"mean"``, ``"cls"``, ``"last"``, ``"rank"``.
    parallel_residual : the key of this name.
    """

    name: str
    context_length: int
    width: int
    layers: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    head_k: int
    head_v: int
    epsilon: float
    rope_dimensions: int
    rope_base: float
    local_rope_base: float
    scaling: RopeScaling
    windows: tuple[int, ...]
    attention_scale: float
    attention_cap: float
    logit_cap: float
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    experts: int
    experts_used: int
    expert_scale: float
    causal: bool
    pooling: str
    parallel_residual: bool


class _Keys:
    """Metadata of one architecture, checked for type and range."""

    def __init__(self, gguf: GGUF, name: str):
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

    def counts(self, key: str, n: int, default: int | tuple[int, ...] | None = None) -> tuple[int, ...]:
        """One number a layer, given as a number or a list."""
        value = self.gguf.metadata.get(f"{self.name}.{key}", default)
        if not isinstance(value, (list, tuple)):
            return (self.count(key, default if isinstance(default, int) else None),) * n
        if len(value) < n or any(type(v) is not int or not 1 <= v <= _MOST for v in value):
            raise self.fail(key, f"must be {n} whole numbers of at least 1, one per layer")
        return tuple(value[:n])

    def flag(self, key: str, default: bool) -> bool:
        value = self.gguf.metadata.get(f"{self.name}.{key}", default)
        if not isinstance(value, bool):
            raise self.fail(key, f"must be true or false, not {printable(repr(value))}")
        return value

    def get(self, key: str) -> Any:
        return self.gguf.metadata.get(f"{self.name}.{key}")


_POOLING = ("none", "mean", "cls", "last", "rank")


def read_hyper(gguf: GGUF, name: str, graph: Graph) -> Hyper:
    """Read what a forward pass needs.

    Raises
    ------
    ArchitectureError : a key is missing, of another type or out of range, or two contradict each other.
    """
    keys = _Keys(gguf, name)
    layers, width = keys.count("block_count", most=_MOST_LAYERS), keys.count("embedding_length")
    heads = keys.counts("attention.head_count", layers)
    kv_heads = keys.counts("attention.head_count_kv", layers, heads)
    head_k = keys.count("attention.key_length", width // heads[0])
    head_v = keys.count("attention.value_length", width // heads[0])
    for layer, (q, kv) in enumerate(zip(heads, kv_heads, strict=True)):
        if q % kv:
            raise keys.fail("attention.head_count_kv", f"is {kv} in layer {layer}, which does not divide {q} heads")
    context_length = keys.count("context_length")
    rope_dimensions = keys.count("rope.dimension_count", head_k, least=0)
    if graph.rope and (rope_dimensions > head_k or rope_dimensions % 2):
        raise keys.fail("rope.dimension_count", f"must be even and at most {head_k}, not {rope_dimensions}")
    rope_base = keys.between("rope.freq_base", 1e-3, 1e18, 10000.0)
    by_width = graph.scale_by_width == layers
    scale = keys.number("attention.scale", 0.0) or 1 / math.sqrt(width // heads[0] if by_width else head_k)
    experts = keys.count("expert_count", 0, least=0)
    experts_used = keys.count("expert_used_count", 0, least=0)
    if experts and not 1 <= experts_used <= experts:
        raise keys.fail("expert_used_count", f"must be from 1 to {experts}, not {experts_used}")
    pooling = keys.count("pooling_type", 0, least=0)
    if pooling >= len(_POOLING):
        raise keys.fail("pooling_type", f"must be from 0 to {len(_POOLING) - 1}, not {pooling}")
    epsilon = "attention.layer_norm_rms_epsilon" if graph.norm == "rms" else "attention.layer_norm_epsilon"
    logit_scale = keys.number("logit_scale", 0.0)
    return Hyper(
        name=name,
        context_length=context_length,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_k=head_k,
        head_v=head_v,
        epsilon=keys.between(epsilon, 0, 1, keys.number(epsilon)),
        rope_dimensions=rope_dimensions,
        rope_base=rope_base,
        local_rope_base=keys.between("rope.freq_base_swa", 1e-3, 1e18, graph.local_rope_base or rope_base),
        scaling=_scaling(keys, context_length, rope_base),
        windows=_windows(keys, graph, layers),
        attention_scale=scale,
        attention_cap=keys.number("attn_logit_softcapping", graph.attention_cap),
        logit_cap=keys.number("final_logit_softcapping", graph.logit_cap),
        embedding_scale=math.sqrt(width) if graph.scaled_embedding else keys.number("embedding_scale", 0.0) or 1.0,
        residual_scale=keys.number("residual_scale", 0.0) or 1.0,
        logit_scale=1 / logit_scale if logit_scale else 1.0,
        experts=experts,
        experts_used=experts_used,
        expert_scale=keys.number("expert_weights_scale", 0.0) or 1.0,
        causal=keys.flag("attention.causal", True),
        pooling=_POOLING[pooling],
        parallel_residual=keys.flag("use_parallel_residual", True),
    )


def _scaling(keys: _Keys, context_length: int, rope_base: float) -> RopeScaling:
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


def _windows(keys: _Keys, graph: Graph, layers: int) -> tuple[int, ...]:
    window = keys.count("attention.sliding_window", graph.window, least=0) if graph.window_period else 0
    if not window:
        return (0,) * layers
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) < layers or not all(isinstance(local, (bool, int)) for local in pattern):
            raise keys.fail("attention.sliding_window_pattern", f"must say of {layers} layers whether they have one")
        return tuple(window if local else 0 for local in pattern[:layers])
    period = keys.count("attention.sliding_window_pattern", graph.window_period, least=0)
    # The last of each period sees everything; a period of 0 leaves no such layer, one of 1 only such.
    return tuple(window if period == 0 or layer % period < period - 1 else 0 for layer in range(layers))
