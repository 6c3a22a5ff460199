"""Norm weights of a quantized model, tuned to the original's predictions.

    changed = tuned(quantized, original, windows)     # tensor name → weights

Norms are a few numbers in F32 that every row of the matrices behind them shares; what rounding did to all of these in
one direction they can make good. The loss is the KL divergence from the original on the calibration text; each weight
is multiplied with 1 + θ, and θ learned by Adam. Some windows are held out: the weights are those of the step that is
best there, and if none is better than the first, nothing changes.

Source: Kingma, Ba, "Adam", 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ggufkit.calibrate.elementwise import softmax
from ggufkit.calibrate.matrix import Matrix
from ggufkit.calibrate.passes import hidden, scored
from ggufkit.calibrate.tape import Node, Tape
from ggufkit.errors import UsageError
from ggufkit.gguf.reader import GGUF
from ggufkit.runtime.model import Model
from ggufkit.runtime.ops import Linear, Norm

__all__ = ["STEPS", "tuned"]

STEPS = 40
_TOKENS = 1024  # of a step
_RATE = 0.012
_CHECK = 8  # steps between two looks at what is held out
_MOMENTA, _SMALL = (0.9, 0.99), 1e-8
_SCORED = 1 << 24  # logits that are compared together


class _Norms:
    """A `Watch` that adds up the gradients of norms' weights."""

    def __init__(self) -> None:
        self.gradients: dict[str, np.ndarray] = {}
        self.norms: dict[str, Norm] = {}

    def met(self, x: np.ndarray, linears: Sequence[Linear]) -> None:
        pass

    def met_experts(self, x: np.ndarray, chosen: np.ndarray, linears: Sequence[Linear]) -> None:
        pass

    def returned(self, linear: Linear, gradient: np.ndarray, chosen: np.ndarray | None = None) -> None:
        pass

    def passed(self, linear: Linear, x: np.ndarray, gradient: np.ndarray) -> None:
        pass

    def embedded(self, weight: Matrix, ids: np.ndarray, gradient: np.ndarray) -> None:
        pass

    def normed(self, norm: Norm, unit: np.ndarray, gradient: np.ndarray) -> None:
        if not norm.name:
            return
        self.norms[norm.name] = norm
        whole = (unit * gradient).sum(0, dtype=np.float64)  # (heads, size)
        found = whole if len(norm.weight) > 1 else whole.sum(0, keepdims=True)
        self.gradients[norm.name] = self.gradients.get(norm.name, 0) + found


def tuned(
    quantized: GGUF,
    original: GGUF,
    windows: np.ndarray,
    *,
    steps: int = STEPS,
    threads: int | None = None,
    report: Callable[[int, float], None] = lambda step, kld: None,
) -> dict[str, np.ndarray]:
    """Weights of the norms that bring a quantized model nearer to the original: tensor name → (n,) float32.

    Parameters
    ----------
    quantized, original : models that compute alike.
    windows : (count, length) int32, of a text; a fourth of them is held out.
    steps : of Adam.
    report : called with the number of steps and the divergence on what is held out, before the first and now and then.

    Returns
    -------
    empty if no step was better than none, on the windows that are held out

    Raises
    ------
    UsageError : there are fewer than two windows.
    ArchitectureError : the model has an operation without a gradient.
    """
    if len(windows) < 2:
        raise UsageError("to tune norms needs statistics of two windows of text at least; one is held out")
    watch = _Norms()
    model, teacher = Model(quantized, Tape(watch, threads)), Model(original, Tape(threads=threads))
    count = max(1, _TOKENS // windows.shape[1])
    aside = max(1, len(windows) // 4)
    held_out, learned = windows[:aside], windows[aside:]
    wanted = {id(part): hidden(teacher, part).value for part in (held_out, learned)}  # (tokens, width) each
    length = windows.shape[1]

    def divergence(part: np.ndarray, lo: int, hi: int, back: bool) -> float:
        target = wanted[id(part)][lo * length : hi * length]
        return _divergence(model, teacher, part[lo:hi], target, back)

    def outside() -> float:
        spans = [(lo, min(lo + count, aside)) for lo in range(0, aside, count)]
        return float(sum(divergence(held_out, lo, hi, False) * (hi - lo) for lo, hi in spans)) / aside

    best, found = outside(), {}
    report(0, best)
    turns = np.random.default_rng(0)
    order: list[int] = []
    weights = _Weights(watch)
    for step in range(1, steps + 1):
        if len(order) < min(count, len(learned)):
            order = turns.permutation(len(learned)).tolist()
        rows = sorted(order.pop() for _ in range(min(count, len(learned))))
        target = np.concatenate([wanted[id(learned)][r * length : (r + 1) * length] for r in rows])
        watch.gradients.clear()
        _divergence(model, teacher, learned[rows], target, True)
        weights.step(_RATE * (1 - (step - 1) / steps), step)
        if step % _CHECK == 0 or step == steps:
            now = outside()
            report(step, now)
            if now < best:
                best, found = now, weights.values()
    return found


class _Weights:
    """The weights of all norms that were met, and what Adam remembers of them."""

    def __init__(self, watch: _Norms):
        self.watch = watch
        self.first: dict[str, np.ndarray] = {}
        self.theta: dict[str, np.ndarray] = {}
        self.momenta: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def step(self, rate: float, number: int) -> None:
        for name, gradient in self.watch.gradients.items():
            weight = self.watch.norms[name].weight
            if name not in self.first:
                self.first[name] = weight.astype(np.float64)
                self.theta[name] = np.zeros(weight.shape)
                self.momenta[name] = (np.zeros(weight.shape), np.zeros(weight.shape))
            g = gradient * self.first[name]
            mean, square = self.momenta[name]
            mean *= _MOMENTA[0]
            mean += (1 - _MOMENTA[0]) * g
            square *= _MOMENTA[1]
            square += (1 - _MOMENTA[1]) * g * g
            corrected = mean / (1 - _MOMENTA[0] ** number)
            size = np.sqrt(square / (1 - _MOMENTA[1] ** number)) + _SMALL
            self.theta[name] -= rate * corrected / size
            weight.flags.writeable = True
            weight[...] = self.first[name] * (1 + self.theta[name])
            weight.flags.writeable = False

    def values(self) -> dict[str, np.ndarray]:
        return {name: self.watch.norms[name].weight.reshape(-1).copy() for name in self.first}


def _divergence(model: Model, teacher: Model, windows: np.ndarray, target: np.ndarray, back: bool) -> float:
    """Mean KL divergence of a model's predictions from the teacher's; with `back`, gradients go to the tape's watch.

    Parameters
    ----------
    target : (tokens, width): the teacher's hidden states.
    """
    tape, other = model.ops, teacher.ops
    assert isinstance(tape, Tape)
    assert isinstance(other, Tape)
    x = hidden(model, windows)
    step = max(16, _SCORED // model.vocabulary)
    outer, tape._steps = tape._steps, []  # the layers' steps wait
    gradient, total = np.empty_like(x.value), 0.0
    for lo in range(0, len(target), step):
        p = softmax(scored(teacher, Node(target[lo : lo + step], other)).value)
        other._steps.clear()
        leaf = Node(x.value[lo : lo + step], tape)
        scores = scored(model, leaf)
        q = softmax(scores.value)
        total += float((p * np.log(np.maximum(p, _SMALL) / np.maximum(q, _SMALL))).sum(dtype=np.float64))
        if back:
            scores.grad = (q - p) / np.float32(len(target))
            tape.back()
            gradient[lo : lo + step] = leaf.grad
        tape._steps.clear()
    tape._steps = outer
    if back:
        x.grad = gradient
        tape.back()
    tape._steps.clear()
    return total / len(target)
