"""Feed-forward networks: a dense one, or experts of which a router chooses a few, and what all tokens share.

Source: `build_ffn` and `build_moe_ffn` in src/llama-graph.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ggufkit.runtime.choices import choice_of
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.ops import Array, Experts, Linear, Norm, Ops

__all__ = ["Beside", "FeedForward", "Limit", "Mixture", "Twins", "load_beside", "load_feed_forward"]


@dataclass(frozen=True)
class Limit:
    """What keeps an FFN's numbers small: gates are at most `gate`, and what they are multiplied with within ± `up`."""

    gate: float
    up: float

    def activated(self, ops: Ops, gate: Array, up: Array, activation: str) -> Array:
        """activation(gate) × up."""
        return ops.activate(ops.clamp(gate, -math.inf, self.gate), ops.clamp(up, -self.up, self.up), activation)


@dataclass(frozen=True)
class FeedForward:
    """up → activation → down, or activation(gate) × up → down.

    Attributes
    ----------
    sub_norm : before `down`, or None.
    share : width → one score whose sigmoid multiplies the result (shared experts), or None.
    sparsity : only gates that are above their row's mean by so many standard deviations count, and by what they are
        above that; 0 for all.
    xielu : of this activation its four numbers: αₙ, αₚ, β, ε.
    limit : see `Limit`; None for none.
    """

    gate: Linear | None
    up: Linear
    down: Linear
    activation: str
    sub_norm: Norm | None = None
    share: Linear | None = None
    sparsity: float = 0.0
    xielu: tuple[float, ...] = ()
    limit: Limit | None = None

    def run(self, ops: Ops, x: Array) -> Array:
        if self.gate is None:
            gate, (up,) = None, ops.linear(x, self.up)
        else:
            gate, up = ops.linear(x, self.gate, self.up)
        if self.sparsity:
            gate = _above(ops, gate, self.sparsity)
        if self.xielu:
            inner = ops.xielu(up, *self.xielu)
        elif gate is not None and self.limit is not None:
            inner = self.limit.activated(ops, gate, up, self.activation)
        else:
            inner = ops.activate(gate, up, self.activation)
        if self.sub_norm is not None:
            inner = ops.norm(inner, self.sub_norm)
        (y,) = ops.linear(inner, self.down)
        if self.share is not None:
            (score,) = ops.linear(x, self.share)
            y = ops.gated(y, score)
        return y


def _above(ops: Ops, x: Array, deviations: float) -> Array:
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).sum(axis=-1, keepdims=True) / (x.shape[-1] - 1)
    return ops.activate(None, x - (mean + variance**0.5 * deviations), "relu")


@dataclass(frozen=True)
class Mixture:
    """Experts, and a dense network that all tokens share, or None.

    Attributes
    ----------
    before, after : matrices around the experts, which are narrower than the model; or None.
    scale : multiplies the sum of both.
    limit : of the experts, see `Limit`; None for none.
    grouped : experts that stand for groups of the others and read what those gave; or None.
    grouped_scale : multiplies what they make of it.
    """

    experts: Experts
    shared: FeedForward | None
    before: Linear | None = None
    after: Linear | None = None
    scale: float = 1.0
    limit: Limit | None = None
    grouped: Experts | None = None
    grouped_scale: float = 1.0

    def run(self, ops: Ops, x: Array, scores: Array | None = None) -> Array:
        """(n, width) → (n, width); `scores` are the router's, if it does not read x."""
        chosen = self.chosen(ops, x, self.scores(ops, x) if scores is None else scores)
        if self.shared is None:
            return chosen
        both = ops.add(chosen, self.shared.run(ops, x))
        return both if self.scale == 1 else ops.scale(both, self.scale)

    def scores(self, ops: Ops, x: Array) -> Array:
        """What the router thinks of the experts, (n, experts)."""
        (scores,) = ops.linear(x, self.experts.router)
        return scores

    def chosen(self, ops: Ops, x: Array, scores: Array) -> Array:
        """What the experts that are chosen by their scores make of x."""
        experts = self.experts
        chosen, weights = ops.choose(scores, experts)  # (n, used) each
        if self.before is not None:
            (x,) = ops.linear(x, self.before)
        x = x.reshape(len(x), 1, -1)
        if experts.weigh_inputs:
            x = x * weights[..., None]  # (n, used, width)
        y = _through(ops, x, chosen, experts, self.limit)
        y = ops.mix(y, weights * 0 + 1 if experts.weigh_inputs else weights)
        if self.after is not None:
            (y,) = ops.linear(y, self.after)
        if self.grouped is not None:
            chosen, weights = ops.choose(scores, self.grouped)
            more = ops.mix(_through(ops, y.reshape(len(y), 1, -1), chosen, self.grouped), weights)
            y = ops.add(ops.scale(more, self.grouped_scale), y)
        return y


def _through(ops: Ops, x: Array, chosen: Array, experts: Experts, limit: Limit | None = None) -> Array:
    """x (n, 1 or used, width) through the experts `chosen` (n, used): (n, used, width)."""
    if experts.gate is None:
        gate, (up,) = None, ops.each(x, chosen, experts.up)
    else:
        gate, up = ops.each(x, chosen, experts.gate, experts.up)  # (n, used, inner) each
    if gate is not None and limit is not None:
        inner = limit.activated(ops, gate, up, experts.activation)
    else:
        inner = ops.activate(gate, up, experts.activation)
    (y,) = ops.each(inner, chosen, experts.down)
    return y


@dataclass(frozen=True)
class Twins:
    """A dense network and experts side by side, each with norms of its own before and after, on the stream itself."""

    dense: FeedForward
    dense_norms: tuple[Norm, Norm]
    mixture: Mixture
    mixture_norms: tuple[Norm, Norm]
    router_norm: Norm

    def run(self, ops: Ops, x: Array) -> Array:
        dense = ops.norm(self.dense.run(ops, ops.norm(x, self.dense_norms[0])), self.dense_norms[1])
        scores = self.mixture.scores(ops, ops.norm(x, self.router_norm))
        chosen = self.mixture.chosen(ops, ops.norm(x, self.mixture_norms[0]), scores)
        return ops.add(dense, ops.norm(chosen, self.mixture_norms[1]))


@dataclass(frozen=True)
class Beside:
    """Experts beside a whole block, which read what comes into it; their norm."""

    norm: Norm
    mixture: Mixture

    def run(self, ops: Ops, x: Array) -> Array:
        return self.mixture.run(ops, ops.norm(x, self.norm))


def load_feed_forward(load: Loader, layer: int) -> FeedForward | Mixture | Twins | None:
    """A layer's, its tensors checked and taken; None where there is none."""
    at = f"blk.{layer}."
    if load.has(f"{at}post_ffw_norm_1.weight"):
        return _twins(load, at, layer)
    if load.has(f"{at}ffn_gate_inp.weight") and not load.has(f"{at}ffn_norm_exps.weight"):
        return _mixture(load, at, layer)
    return _dense(load, at, "", layer) if load.has(f"{at}ffn_down.weight") else None


def load_beside(load: Loader, layer: int) -> Beside | None:
    """Experts that read what comes into the block, its tensors checked and taken; None where there are none."""
    at = f"blk.{layer}."
    norm = load.norm(f"{at}ffn_norm_exps", load.hyper.width)
    return None if norm is None else Beside(norm, _mixture(load, at, layer))


def _twins(load: Loader, at: str, layer: int) -> Twins:
    width = load.hyper.width
    names = "ffn_norm", "post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2"
    norms = [load.norm(f"{at}{name}", width) for name in names]
    if missing := [name for name, norm in zip(names, norms, strict=True) if norm is None]:
        raise load.fail(f"the tensor {at}{missing[0]}.weight is missing; the model cannot be run without it")
    scale = load.vector(f"{at}ffn_gate_inp.scale", width) / math.sqrt(width)
    return Twins(
        dense=_dense(load, at, "", layer),
        dense_norms=(norms[0], norms[1]),  # type: ignore[arg-type]
        mixture=_mixture(load, at, layer),
        mixture_norms=(norms[2], norms[3]),  # type: ignore[arg-type]
        router_norm=Norm("rms", load.hyper.epsilon, width, load.ops.vector(scale.reshape(1, width))),
    )


def _mixture(load: Loader, at: str, layer: int) -> Mixture:
    graph, width, keys = load.graph, load.hyper.width, load.hyper.keys
    count = keys.count("expert_count")
    used = keys.count("expert_used_count", most=count)
    before = load.linear(f"{at}ffn_latent_down", -1, width) if load.has(f"{at}ffn_latent_down.weight") else None
    after = load.linear(f"{at}ffn_latent_up", width, -1) if before is not None else None
    inside = width if before is None else before.rows
    down = load.linear(f"{at}ffn_down_exps", inside, -1, count)
    inner = (down.cols, inside, count)
    bias = f"{at}exp_probs_b.bias" if load.has(f"{at}exp_probs_b.bias") else f"{at}exp_probs_b"
    groups = keys.count("expert_group_count", 1, least=0) or 1
    if count % groups:
        raise keys.fail("expert_group_count", f"is {groups}, which does not divide {count} experts")
    gate = up = None
    if load.has(f"{at}ffn_gate_up_exps.weight"):
        gate, up = load.stacked_parts(f"{at}ffn_gate_up_exps", [down.cols, down.cols], inside, count)
    else:
        gated = load.has(f"{at}ffn_gate_exps.weight")
        gate = load.linear(f"{at}ffn_gate_exps", *inner) if gated else None
        up = load.linear(f"{at}ffn_up_exps", *inner)
    experts = Experts(
        **choice_of(
            load,
            load.linear(f"{at}ffn_gate_inp", count, width, scaled=False),
            used,
            load.ops.vector(load.vector(bias, count)) if load.has(bias) else None,
        ),
        gate=gate,
        up=up,
        down=down,
        activation=graph.activation,
        groups=groups,
        groups_used=keys.count("expert_group_used_count", groups, least=0) or groups,
        weigh_inputs=graph.expert_inputs,
    )
    suffix = "_shexp" if load.has(f"{at}ffn_up_shexp.weight") else ""
    apart = load.has(f"{at}post_ffw_norm_1.weight") or load.has(f"{at}ffn_norm_exps.weight")
    twin = suffix or (load.has(f"{at}ffn_up.weight") and not apart)
    return Mixture(
        experts=experts,
        shared=_dense(load, at, suffix, layer) if twin else None,
        before=before,
        after=after,
        scale=graph.shared_scale,
        limit=_limit(load, "exp", layer),
        grouped=_grouped(load, at, experts),
        grouped_scale=keys.number("expert_group_scale", 1.0),
    )


def _grouped(load: Loader, at: str, experts: Experts) -> Experts | None:
    """Experts that stand for some of the others each."""
    if not load.has(f"{at}ffn_down_chexps.weight"):
        return None
    keys, width, total = load.hyper.keys, load.hyper.width, experts.router.rows
    size = keys.count("experts_per_group", most=total)
    if total % size:
        raise keys.fail("experts_per_group", f"is {size}, which does not divide {total} experts")
    count = total // size
    down = load.linear(f"{at}ffn_down_chexps", width, -1, count)
    gate, up = (load.linear(f"{at}ffn_{name}_chexps", down.cols, width, count) for name in ("gate", "up"))
    return replace(experts, gate=gate, up=up, down=down, used=min(experts.used, count), stands_for=size)


# Names of `hidden_activation`; others are what the architecture has.
_NAMED = {
    "silu": "silu",
    "swish": "silu",
    "swiglu": "silu",
    "geglu": "gelu",
    "relu": "relu",
    "reglu": "relu",
} | dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh"), "gelu")


def _activation(load: Loader, gated: bool) -> str:
    """What metadata or the architecture says."""
    named = _NAMED.get(str(load.hyper.keys.get("hidden_activation")))
    return named or ("" if gated else load.graph.plain_activation) or load.graph.activation


def _limit(load: Loader, kind: str, layer: int) -> Limit | None:
    most = load.hyper.keys.per_layer(f"swiglu_clamp_{kind}", layer, 0.0)
    if not most > 1e-6:
        return None
    return Limit(most if load.graph.clamp_first and kind == "exp" else _silu_reaches(most), most)


def _silu_reaches(y: float) -> float:
    """The x whose x · sigmoid(x) is y > 0: to keep this below y is to keep x below that."""
    low, high = 0.0, y + 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if middle / (1 + math.exp(-middle)) < y else (low, middle)
    return high


def _xielu(load: Loader, layer: int) -> tuple[float, ...]:
    """What the activation computes with: the file has what softplus makes αₙ − β and αₚ of."""
    found = [load.hyper.keys.per_layer(f"xielu.{name}", layer) for name in ("alpha_n", "alpha_p", "beta", "eps")]
    alpha_n, alpha_p, beta, epsilon = found
    return math.log1p(math.exp(alpha_n)) + beta, math.log1p(math.exp(alpha_p)), beta, epsilon


def _dense(load: Loader, at: str, suffix: str, layer: int = 0) -> FeedForward:
    width = load.hyper.width
    down = load.linear(f"{at}ffn_down{suffix}", width, -1)
    gate: Linear | None
    if load.has(f"{at}ffn_gate{suffix}.weight"):
        gate = load.linear(f"{at}ffn_gate{suffix}", down.cols, width)
        up = load.linear(f"{at}ffn_up{suffix}", down.cols, width)
    elif load.tensor(f"{at}ffn_up{suffix}.weight", -1, width).shape[-2] == 2 * down.cols:
        gate, up = load.parts(f"{at}ffn_up{suffix}", [down.cols, down.cols], width)
    else:
        gate, up = None, load.linear(f"{at}ffn_up{suffix}", down.cols, width)
    share = f"{at}ffn_gate_inp{suffix}"
    sparsity = load.hyper.keys.per_layer("activation_sparsity_scale", layer, 0.0)
    xielu = _xielu(load, layer) if load.graph.activation == "xielu" else ()
    return FeedForward(
        gate=gate,
        up=up,
        down=down,
        activation=_activation(load, gate is not None),
        sub_norm=None if suffix else load.norm(f"{at}ffn_sub_norm", down.cols),
        share=load.linear(share, 1, width) if suffix and load.has(f"{share}.weight") else None,
        sparsity=sparsity if math.isfinite(sparsity) else 0.0,
        xielu=xielu,
        limit=_limit(load, "shexp", layer) if load.graph.activation == "silu" else None,
    )
