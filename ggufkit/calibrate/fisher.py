"""One pass over a text for all that quantization wants to know: inputs, their moments, and what errors cost.

Of each position a label is drawn from the model's own prediction and −log p(label) is differentiated. Its squared
gradient at an output is the Fisher information there: an error E of a matrix costs about

    KLD ≈ ½ E[(gᵀ E x)²] ≈ ½ Σ over rows G_rr · e_r H e_rᵀ          G = mean g gᵀ, H = mean x xᵀ

The text's own next tokens are not looked at, so nothing is fitted to them. Of looked up rows the gradient's second
moment is what H is to a matrix: the metric in which errors of embeddings matter. The gradient at a matrix's inputs
says what it costs that these are rounded (see `rounding`).

Source: Amari, "Natural Gradient Works Efficiently in Learning", 1998, for the metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ggufkit.calibrate.elementwise import exp
from ggufkit.calibrate.matrix import Matrix
from ggufkit.calibrate.passes import hidden, scored
from ggufkit.calibrate.products import Multiply, second_moment
from ggufkit.calibrate.rounding import FORMS, rounding_errors
from ggufkit.calibrate.statistics import WIDTH, Statistics
from ggufkit.calibrate.tape import Node, Tape
from ggufkit.errors import GgufkitError, UsageError, printable
from ggufkit.importance.imatrix_file import Sums
from ggufkit.runtime.model import Model
from ggufkit.runtime.ops import Linear, Norm

__all__ = ["collect", "tempered"]

_TOKENS = 512  # that go through the model together
_SCORED = 1 << 22  # logits that are differentiated together,
_SHARE = 8  # or so many that they take an eighth of what the matrix does, which is decoded for each step


def tempered(gradient: np.ndarray) -> np.ndarray:
    """Gradients (n, width) in which no row's square is larger than those of all smaller rows together.

    The smaller half of the rows stays as it is.
    """
    squares = np.add.reduce(gradient.astype(np.float64) ** 2, 1)
    order = np.argsort(squares, kind="stable")
    below = np.cumsum(squares[order])[:-1]
    half = (len(order) + 1) // 2
    if half == len(order) or (squares[order[half:]] <= below[half - 1 :]).all():
        return gradient
    counted = squares.copy()
    total = np.add.reduce(squares[order[:half]])
    for row in order[half:]:
        counted[row] = min(squares[row], total)
        total += counted[row]
    factors = np.sqrt(counted / np.where(squares > 0, squares, 1)).astype(np.float32)
    result: np.ndarray = gradient * factors[:, None]
    return result


class _Sums:
    """A `Watch` that adds up what it sees to statistics."""

    def __init__(self, found: Statistics, width: int, multiply: Multiply):
        self.found, self.width, self.multiply = found, width, multiply
        self._rounded: tuple[np.ndarray, list[np.ndarray]] | None = None  # what was rounded last, and the errors

    def met(self, x: np.ndarray, linears: Sequence[Linear]) -> None:
        names = list(dict.fromkeys(linear.name for linear in linears))
        squares = np.add.reduce(x.astype(np.float64) ** 2, 0)
        if not np.isfinite(squares).all():
            raise GgufkitError(
                f"what meets {printable(names[0])} is not finite; the model is broken, or its type too narrow"
            )
        for name in names:
            sums = self._sums(name, 1, x.shape[1])
            sums.squares[0] += squares
            sums.counts[0] += len(x)
        self._moments(names, x)

    def met_experts(self, x: np.ndarray, chosen: np.ndarray, linears: Sequence[Linear]) -> None:
        names = list(dict.fromkeys(linear.name for linear in linears))
        for linear in linears:
            sums = self._sums(linear.name, linear.weight.experts, x.shape[1])
            for expert in np.unique(chosen):
                rows = x[chosen == expert].astype(np.float64)
                sums.squares[expert] += np.add.reduce(rows**2, 0)
                sums.counts[expert] += len(rows)
        self._moments(names, x)

    def _sums(self, name: str, experts: int, cols: int) -> Sums:
        if name not in self.found.squares:
            self.found.squares[name] = Sums(np.zeros((experts, cols)), np.zeros(experts, np.int64))
        return self.found.squares[name]

    def _moment(self, x: np.ndarray) -> np.ndarray:
        return second_moment(x, multiply=self.multiply)

    def _moments(self, names: list[str], x: np.ndarray) -> None:
        key = self.found.inputs.setdefault(names[0], names[0])
        for name in names:
            self.found.inputs.setdefault(name, key)
        blocks = [self._moment(x[:, lo : lo + self.width]) for lo in range(0, x.shape[1], self.width)]
        before = self.found.moments.get(key)
        self.found.moments[key] = blocks if before is None else [a + b for a, b in zip(before, blocks, strict=True)]

    def returned(self, linear: Linear, gradient: np.ndarray, chosen: np.ndarray | None = None) -> None:
        matrix: Matrix = linear.weight
        shape = (matrix.experts, matrix.whole_rows)
        sums = self.found.fisher.setdefault(linear.name, np.zeros(shape))
        part = slice(matrix.start, matrix.start + matrix.matrix_rows)
        gradient = tempered(gradient)
        if chosen is None:
            sums[0, part] += np.add.reduce(gradient.astype(np.float64) ** 2, 0)
            return
        for expert in np.unique(chosen):
            sums[expert, part] += np.add.reduce(gradient[chosen == expert].astype(np.float64) ** 2, 0)

    def passed(self, linear: Linear, x: np.ndarray, gradient: np.ndarray) -> None:
        if self._rounded is None or self._rounded[0] is not x:
            self._rounded = x, [rounding_errors(x, form) for form in FORMS]
        gradient = tempered(gradient)
        squares = [np.add.reduce((gradient * errors).astype(np.float64) ** 2, 0) for errors in self._rounded[1]]
        found = np.array([np.add.reduce(columns) for columns in squares])
        self.found.rounding[linear.name] = self.found.rounding.get(linear.name, 0) + found

    def normed(self, norm: Norm, unit: np.ndarray, gradient: np.ndarray) -> None:
        """Norms are not quantized."""

    def embedded(self, weight: Matrix, ids: np.ndarray, gradient: np.ndarray) -> None:
        name = weight.name
        if name not in self.found.metrics:
            self.found.metrics[name] = np.zeros((gradient.shape[1],) * 2, np.float32)
            self.found.frequencies[name] = np.zeros(weight.matrix_rows, np.float32)
        gradient = tempered(gradient)
        self.found.metrics[name] = self.found.metrics[name] + self._moment(gradient)
        self.found.frequencies[name] += np.bincount(ids, minlength=weight.matrix_rows).astype(np.float32)


def collect(
    model: Model,
    windows: np.ndarray,
    datasets: tuple[str, ...] = (),
    *,
    begun: Statistics | None = None,
    width: int = WIDTH,
    report: Callable[[int], None] = lambda tokens: None,
    save: Callable[[Statistics], None] = lambda found: None,
) -> Statistics:
    """Run a model that was loaded with a `Tape` over windows of text, forward and back.

    Parameters
    ----------
    windows : (count, length) int32, as the model sees them.
    datasets : names of the texts.
    begun : statistics of the first of these windows, to continue.
    width : columns of a moment.
    report : called with the number of tokens that are done.
    save : called after each step with what there is so far.

    Raises
    ------
    UsageError : the model predicts nothing.
    GgufkitError : activations are not finite: the model or the text breaks it.
    """
    tape = model.ops
    assert isinstance(tape, Tape)
    if model.weights.output is None:
        raise UsageError(f"{printable(model.gguf.path)} makes embeddings and no text; it cannot be calibrated")
    found = begun or Statistics(windows[:0], datasets)
    tape.watch, tape.forget = _Sums(found, width, tape.multiply), model.gguf.forget
    step = max(1, _TOKENS // windows.shape[1])
    for lo in range(len(found.windows), len(windows), step):
        batch = windows[lo : lo + step]
        x = hidden(model, batch)
        x.grad = _gradient(model, tape, x.value, lo, batch.shape[1])
        tape.back()
        found.windows = windows[: lo + len(batch)]
        report(batch.size)
        save(found)
    return found


def _gradient(model: Model, tape: Tape, x: np.ndarray, first: int, length: int) -> np.ndarray:
    """Of −log p of labels drawn from the predictions, by the hidden states (n, width). first: number of the window."""
    labels = np.concatenate([np.random.default_rng(first + i).random(length) for i in range(len(x) // length)])
    step = max(16, _SCORED // model.vocabulary, x.shape[1] // _SHARE)
    outer, tape._steps = tape._steps, []  # the layers' steps wait
    gradient = np.empty_like(x)
    for lo in range(0, len(x), step):
        leaf = Node(x[lo : lo + step], tape)
        scores = scored(model, leaf)
        scores.grad = _drawn(scores.value, labels[lo : lo + step])
        tape.back()
        gradient[lo : lo + step] = leaf.grad
    tape._steps = outer
    return gradient


def _drawn(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """p − (1 at the drawn label), of each row. labels: (n,), where in 0 … 1 the label lies."""
    p = exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    if not np.isfinite(p).all():
        raise GgufkitError("the model's predictions are not finite; the model is broken, or its type too narrow")
    reached = np.cumsum(p, axis=-1, dtype=np.float64)
    drawn = (reached < labels[:, None] * reached[:, -1:]).sum(-1).clip(max=p.shape[1] - 1)
    p[np.arange(len(p)), drawn] -= 1
    return p
