"""The weights of chosen experts, and their gradient: `runtime.router.choose` once more, for a choice that is given.

scores ─ softmax, sigmoid … ─ of the chosen ones ─ normalised ─ × scale
"""

from __future__ import annotations

import numpy as np

from ggufkit.calibrate.elementwise import sigmoid, softmax
from ggufkit.errors import ArchitectureError
from ggufkit.runtime.ops import Choice

__all__ = ["weigh", "weigh_back"]

_LEAST_SUM = np.float32(6.103515625e-5)


def _gates(scores: np.ndarray, kind: str) -> np.ndarray:
    """Weights of all experts, before any are chosen: (n, experts)."""
    if kind == "softmax":
        return softmax(scores)
    if kind == "sigmoid":
        return sigmoid(scores)
    if kind == "top":
        return scores
    raise ArchitectureError(f"a router of the kind {kind} has no gradient here, so the model cannot be calibrated")


def weigh(scores: np.ndarray, chosen: np.ndarray, choice: Choice) -> np.ndarray:
    """Weights of the chosen experts: scores (n, experts), chosen (n, used) → (n, used)."""
    found = np.take_along_axis(_gates(scores, choice.scores), chosen, 1)
    if choice.scores == "top":
        found = softmax(found)
    elif choice.normalized:
        found = found / np.maximum(found.sum(1, keepdims=True), _LEAST_SUM)
    return found * np.float32(choice.scale)


def weigh_back(scores: np.ndarray, chosen: np.ndarray, g: np.ndarray, choice: Choice) -> np.ndarray:
    """The gradient of scores from that of the weights."""
    gates = _gates(scores, choice.scores)
    picked = np.take_along_axis(gates, chosen, 1)
    g = g * np.float32(choice.scale)
    if choice.scores == "top":
        share = softmax(picked)
        g = share * (g - (g * share).sum(1, keepdims=True))
    elif choice.normalized:
        total = np.maximum(picked.sum(1, keepdims=True), _LEAST_SUM)
        g = (g - (g * picked).sum(1, keepdims=True) / total) / total
    gradient = np.zeros(scores.shape, np.float32)
    np.add.at(gradient, (np.arange(len(g))[:, None], chosen), g)  # some may have been chosen twice
    if choice.scores == "softmax":
        result: np.ndarray = gates * (gradient - (gradient * gates).sum(1, keepdims=True))
        return result
    return gradient * gates * (1 - gates) if choice.scores == "sigmoid" else gradient
