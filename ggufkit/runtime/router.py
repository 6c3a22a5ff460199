"""Which experts a token goes through, and with what weights; once for all backends.

    scores ─ softmax, sigmoid … ─ + bias ─ groups ─ the best ─ their weights, without bias ─ normalised ─ × scale

Source: `build_moe_ffn` in src/llama-graph.cpp of llama.cpp.
"""

from __future__ import annotations

from typing import Any

from ggufkit.runtime.ops import Array, Choice

__all__ = ["LEAST_SUM", "choose"]

LEAST_SUM = 6.103515625e-5  # of weights: the smallest normal float16


def choose(xp: Any, scores: Array, choice: Choice) -> tuple[Array, Array]:
    """The experts of each token, best first, and their weights: (n, used) each; of equals the first wins.

    Parameters
    ----------
    xp : NumPy, or a module with its functions.
    scores : (n, experts) of the router.
    """
    weights = _weights(xp, scores, choice.scores)
    selection = weights if choice.bias is None else weights + choice.bias
    if choice.groups > 1:
        selection = _within_groups(xp, selection, choice)
    chosen = _best(xp, selection, choice.used)
    if choice.stands_for > 1:
        chosen = chosen // choice.stands_for
    found = xp.take_along_axis(weights, chosen, axis=-1)
    if choice.scores == "top":
        found = _softmax(xp, found)
    elif choice.normalized:
        found = found / xp.maximum(xp.sum(found, axis=-1, keepdims=True), LEAST_SUM)
    return chosen, found * choice.scale


def _weights(xp: Any, scores: Array, kind: str) -> Array:
    if kind == "softmax":
        return _softmax(xp, scores)
    if kind == "sigmoid":
        return 1 / (1 + xp.exp(-scores))
    if kind == "sqrt_softplus":
        return xp.sqrt(xp.log1p(xp.exp(-abs(scores))) + xp.maximum(scores, 0))
    return scores


def _within_groups(xp: Any, selection: Array, choice: Choice) -> Array:
    """−∞ for experts of groups that are not among the best."""
    n, count = selection.shape
    grouped = selection.reshape(n, choice.groups, -1)
    best_two = xp.sum(xp.sort(grouped, axis=-1)[..., -2:], axis=-1)  # (n, groups)
    rank = xp.argsort(_order(xp, best_two), axis=-1)  # 0 for the best
    return xp.where((rank < choice.groups_used)[..., None], grouped, -xp.inf).reshape(n, count)


def _best(xp: Any, x: Array, count: int) -> Array:
    return _order(xp, x)[:, :count]


def _order(xp: Any, x: Array) -> Array:
    return xp.argsort(-x, axis=-1, **({"kind": "stable"} if xp.__name__ == "numpy" else {}))


def _softmax(xp: Any, x: Array) -> Array:
    e = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True)
