"""Gradients: the operations of `runtime.ops`, each with what it passes back.

    tape = Tape(watch)
    x = hidden_states(tape, …)            # forward.py as it is: arrays are `Node`s, and the tape remembers
    x.grad = …
    tape.back()                           # the gradient of every node, from the last to the first

So every architecture that runs can be differentiated. A `Watch` sees what meets each matrix and what gradient arrives
at its outputs; calibration sums these, training would use them. Weights are constants here.

Each operation is written as

    y = …                                  the value, float32 (n, width)
    def back(g): x.take(…)                 from dy the gradient of each input

Nothing depends on threads or on the CPU's vectors: products are `products.product`, exponentials are the lanes'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from ggufkit.calibrate.attention import attend, attend_back
from ggufkit.calibrate.choice import weigh, weigh_back
from ggufkit.calibrate.elementwise import ACTIVATION_GRADIENTS, Gradients, sigmoid
from ggufkit.calibrate.matrix import Matrix, part_of
from ggufkit.calibrate.opaque import Opaque, OpaqueOps
from ggufkit.calibrate.products import Multiply, product, transposed
from ggufkit.calibrate.recurrence import delta_back, fresh, scan_back
from ggufkit.errors import ArchitectureError
from ggufkit.runtime.cpu.ops import CpuOps
from ggufkit.runtime.ops import AttentionSpec, CacheSpec, Choice, Linear, Norm, Span, StateSpace
from ggufkit.tensors.tensor import Tensor

__all__ = ["Node", "Tape", "Watch"]


class Node(Opaque):
    """An array of the forward pass, float32 (n, width) or (n, used, width), and the gradient of the loss there."""

    __slots__ = ("grad", "tape", "value")

    def __init__(self, value: np.ndarray, tape: Tape):
        self.value, self.tape = value, tape
        self.grad: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.value)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    def reshape(self, *shape: int) -> Node:
        return self.tape.node(self.value.reshape(*shape), lambda g: self.take(g.reshape(self.shape)))

    def __mul__(self, factors: np.ndarray) -> Node:
        if not isinstance(factors, np.ndarray):
            return self._refuse()
        return self.tape.node(self.value * factors, lambda g: self.take(g * factors))

    def __getitem__(self, rows: slice) -> Node:
        def back(g: np.ndarray) -> None:
            whole = np.zeros(self.shape, np.float32)
            whole[rows] = g
            self.take(whole)

        return self.tape.node(self.value[rows], back)

    def __add__(self, other: Node | np.ndarray) -> Node:
        return self.tape.add(self, other)

    def take(self, gradient: np.ndarray) -> None:
        """Add to the gradient."""
        self.grad = gradient if self.grad is None else self.grad + gradient


class Watch(Protocol):
    """Sees what meets matrices, and what comes back."""

    def met(self, x: np.ndarray, linears: Sequence[Linear]) -> None:
        """x (n, cols) meets these matrices."""

    def met_experts(self, x: np.ndarray, chosen: np.ndarray, linears: Sequence[Linear]) -> None:
        """Row i of x (n, cols) meets matrix `chosen[i]` of each stack."""

    def returned(self, linear: Linear, gradient: np.ndarray, chosen: np.ndarray | None = None) -> None:
        """The gradient (n, rows) at what a matrix gave; of a stack row i at matrix `chosen[i]`."""

    def passed(self, linear: Linear, x: np.ndarray, gradient: np.ndarray) -> None:
        """What met a matrix, and the gradient there that comes through it alone: (n, cols) each."""

    def embedded(self, weight: Matrix, ids: np.ndarray, gradient: np.ndarray) -> None:
        """The gradient (n, cols) at looked up rows."""

    def normed(self, norm: Norm, unit: np.ndarray, gradient: np.ndarray) -> None:
        """What a norm gave before its weights, and the gradient behind them: (n, heads, size) each."""


class Tape(OpaqueOps):
    """Implements `Ops`; an array is a `Node`.

    Parameters
    ----------
    watch : see `Watch`.
    threads : how many.
    multiply : makes x wᵀ; default `products.product`.

    Attributes
    ----------
    forget : called when a matrix has been multiplied with, to give back the memory that reading it took.
    """

    def __init__(self, watch: Watch | None = None, threads: int | None = None, multiply: Multiply | None = None):
        self.cpu = CpuOps(threads)
        self.forget: Callable[[], None] = lambda: None
        self.threads, self.watch = self.cpu.threads, watch
        self.multiply = multiply or partial(product, threads=self.threads)
        self._steps: list[tuple[Node, Callable[[np.ndarray], None]]] = []
        self._parts: dict[str, list[Matrix]] = {}
        self._turned: tuple[Matrix, np.ndarray] | None = None  # the last matrix and its transpose

    def back(self) -> None:
        """Pass gradients back to the first node, and forget the steps."""
        while self._steps:
            node, back = self._steps.pop()
            if node.grad is not None:
                back(node.grad)
                node.grad = None

    def node(self, value: np.ndarray, back: Callable[[np.ndarray], None]) -> Node:
        """An array and how its gradient is passed on."""
        node = Node(value, self)
        self._steps.append((node, back))
        return node

    # -- what a model is loaded with --------------------------------------------------------------------------

    def weight(self, tensor: Tensor) -> Matrix:
        return part_of(self._parts, tensor)

    def vector(self, values: np.ndarray) -> np.ndarray:
        return self.cpu.vector(values)

    def numpy(self, x: Node) -> np.ndarray:
        return x.value

    def layer_cache(self, spec: AttentionSpec, types: CacheSpec, length: int) -> None:
        return None

    # -- what models are made of ------------------------------------------------------------------------------

    def embed(self, weight: Matrix, ids: np.ndarray) -> Node:
        def back(g: np.ndarray) -> None:
            if self.watch is not None:
                self.watch.embedded(weight, ids, g)

        return self.node(weight.rows(ids), back)

    def linear(self, x: Node, *linears: Linear) -> list[Node]:
        if self.watch is not None:
            self.watch.met(x.value, linears)
        return [self._linear(x, linear) for linear in linears]

    def _linear(self, x: Node, linear: Linear) -> Node:
        y = self.multiply(x.value, linear.weight.floats())
        self.forget()
        if linear.factor is not None:
            y *= linear.factor
        if linear.bias is not None:
            y += linear.bias

        def back(g: np.ndarray) -> None:
            if self.watch is not None:
                self.watch.returned(linear, g)
            if linear.factor is not None:
                g = g * linear.factor
            gradient = self.multiply(g, self._transposed(linear.weight))
            if self.watch is not None:
                self.watch.passed(linear, x.value, gradient)
            x.take(gradient)

        return self.node(y, back)

    def _transposed(self, weight: Matrix) -> np.ndarray:
        """A matrix's columns as rows. The last is kept: a few tokens' scores at a time ask for the same, large one."""
        if self._turned is None or self._turned[0] is not weight:
            self._turned = None  # before there are two
            self._turned = weight, transposed(weight.floats(), self.threads)
            self.forget()
        return self._turned[1]

    def norm(self, x: Node, norm: Norm) -> Node:
        def back(g: np.ndarray) -> None:
            shape = (len(g), -1, norm.size)
            if norm.kind == "l2":
                x.take(_by_length(x.value.reshape(shape), g.reshape(shape), norm.epsilon).reshape(g.shape))
                return
            v, d = x.value.reshape(shape), g.reshape(shape) * norm.weight
            if norm.kind == "layer":
                v = v - v.mean(-1, keepdims=True)
            r = 1 / np.sqrt((v * v).mean(-1, keepdims=True) + np.float32(norm.epsilon))
            unit = v * r
            if self.watch is not None:
                self.watch.normed(norm, unit, g.reshape(shape))
            gradient = d - unit * (d * unit).mean(-1, keepdims=True)
            if norm.kind == "layer":
                gradient = gradient - d.mean(-1, keepdims=True)
            x.take((gradient * r).reshape(g.shape))

        return self.node(self.cpu.norm(x.value, norm), back)

    def rope(self, x: Node, heads: int, style: str, table: tuple[np.ndarray, np.ndarray]) -> Node:
        cos, sin = table

        def turned(v: np.ndarray, sin: np.ndarray) -> np.ndarray:
            result: np.ndarray = self.cpu.rope(np.array(v, np.float32, order="C"), heads, style, (cos, sin))
            return result

        return self.node(turned(x.value, sin), lambda g: x.take(turned(g, -sin)))

    def attention(self, q: Node, k: Node, v: Node, spans: Sequence[Span], spec: AttentionSpec) -> Node:
        if k is None:
            raise ArchitectureError("layers that look at another one's keys cannot be calibrated")
        y = attend(q.value, k.value, v.value, spans, spec, self.threads)

        def back(g: np.ndarray) -> None:
            gradients = attend_back(q.value, k.value, v.value, g, spans, spec, self.threads)
            for node, gradient in zip((q, k, v), gradients, strict=True):
                node.take(gradient)

        return self.node(y, back)

    def activate(self, gate: Node | None, up: Node, activation: str) -> Node:
        y = self.cpu.activate(None if gate is None else gate.value, up.value, activation)

        def back(g: np.ndarray) -> None:
            for_gate, for_up = _gradients_of(activation)(None if gate is None else gate.value, up.value)
            if gate is not None:
                gate.take(g * for_gate)
            up.take(g * for_up)

        return self.node(y, back)

    def choose(self, scores: Node, choice: Choice) -> tuple[np.ndarray, Node]:
        chosen, _ = self.cpu.choose(scores.value, choice)  # (n, used)
        weights = weigh(scores.value, chosen, choice)

        def back(g: np.ndarray) -> None:
            scores.take(weigh_back(scores.value, chosen, g, choice))

        return chosen, self.node(weights, back)

    def each(self, x: Node, chosen: np.ndarray, *linears: Linear) -> list[Node]:
        n, used = chosen.shape
        times, experts = used // x.shape[1], chosen.reshape(-1)
        rows = np.repeat(x.value, times, axis=1).reshape(n * used, -1)
        if self.watch is not None:
            self.watch.met_experts(rows, experts, linears)

        def passed(g: np.ndarray) -> None:
            x.take(g.reshape(n, -1, times, x.shape[2]).sum(2))

        return [self._each(rows, experts, linear, chosen.shape, passed) for linear in linears]

    def _each(
        self,
        x: np.ndarray,
        experts: np.ndarray,
        linear: Linear,
        shape: tuple[int, ...],
        passed: Callable[[np.ndarray], None],
    ) -> Node:
        """Row i of x (n × used, cols) through matrix `experts[i]` of a stack."""
        y = np.empty((len(x), linear.rows), np.float32)
        places = [(int(e), np.flatnonzero(experts == e)) for e in np.unique(experts)]
        for e, rows in places:
            y[rows] = self.multiply(x[rows], linear.weight.floats(e))
            self.forget()
        if linear.factor is not None:
            y *= linear.factor[experts]
        if linear.bias is not None:
            y += linear.bias[experts]

        def back(g: np.ndarray) -> None:
            g = g.reshape(len(x), -1)
            if self.watch is not None:
                self.watch.returned(linear, g, experts)
            if linear.factor is not None:
                g = g * linear.factor[experts]
            gradient = np.empty(x.shape, np.float32)
            for e, rows in places:
                gradient[rows] = self.multiply(g[rows], transposed(linear.weight.floats(e), self.threads))
                self.forget()
            if self.watch is not None:
                self.watch.passed(linear, x, gradient)
            passed(gradient)

        return self.node(y.reshape(*shape, -1), back)

    def mix(self, x: Node, weights: Node) -> Node:
        share = weights.value[:, :, None]  # (n, used, 1)

        def back(g: np.ndarray) -> None:
            x.take(g[:, None] * share)
            weights.take((g[:, None] * x.value).sum(-1))

        return self.node((x.value * share).sum(1), back)

    # -- glue -------------------------------------------------------------------------------------------------

    def add(self, x: Node, y: Node | np.ndarray) -> Node:
        other = y.value if isinstance(y, Node) else y

        def back(g: np.ndarray) -> None:
            x.take(_of_shape(g, x.shape))
            if isinstance(y, Node):
                y.take(_of_shape(g, y.shape))

        return self.node(x.value + other, back)

    def scale(self, x: Node, factor: float) -> Node:
        return self.node(x.value * np.float32(factor), lambda g: x.take(g * np.float32(factor)))

    def gated(self, x: Node, score: Node) -> Node:
        share = sigmoid(score.value)  # (n, m)
        shape = (*share.shape, -1)

        def back(g: np.ndarray) -> None:
            x.take((g.reshape(shape) * share[..., None]).reshape(g.shape))
            score.take((g * x.value).reshape(shape).sum(-1) * share * (1 - share))

        return self.node((x.value.reshape(shape) * share[..., None]).reshape(x.shape), back)

    def clamp(self, x: Node, low: float, high: float) -> Node:
        y = self.cpu.clamp(x.value, low, high)
        return self.node(y, lambda g: x.take(g * (y == x.value)))

    def halves(self, x: Node, heads: int) -> tuple[Node, Node]:
        def half(which: int) -> Node:
            def back(g: np.ndarray) -> None:
                whole = np.zeros((len(x), heads, 2, x.shape[1] // (2 * heads)), np.float32)
                whole[:, :, which] = g.reshape(len(x), heads, -1)
                x.take(whole.reshape(x.shape))

            return self.node(np.ascontiguousarray(self.cpu.halves(x.value, heads)[which]), back)

        return half(0), half(1)

    def split(self, x: Node, sizes: Sequence[int]) -> list[Node]:
        ends = np.cumsum(sizes).tolist()

        def part(lo: int, hi: int) -> Node:
            def back(g: np.ndarray) -> None:
                whole = np.zeros(x.shape, np.float32)
                whole[..., lo:hi] = g
                x.take(whole)

            return self.node(np.ascontiguousarray(x.value[..., lo:hi]), back)

        return [part(hi - size, hi) for size, hi in zip(sizes, ends, strict=True)]

    def joined(self, parts: Sequence[Node]) -> Node:
        def back(g: np.ndarray) -> None:
            lo = 0
            for part in parts:
                part.take(np.ascontiguousarray(g[..., lo : lo + part.shape[-1]]))
                lo += part.shape[-1]

        return self.node(np.concatenate([part.value for part in parts], axis=-1), back)

    def concatenate(self, parts: Sequence[Node]) -> Node:
        def back(g: np.ndarray) -> None:
            lo = 0
            for part in parts:
                part.take(g[lo : lo + len(part)])
                lo += len(part)

        return self.node(np.concatenate([part.value for part in parts]), back)

    def zeros(self, *shape: int) -> Node:
        return Node(np.zeros(shape, np.float32), self)

    def scan(self, x: Node, b: Node, c: Node, dt: Node, spans: Sequence[Span], space: StateSpace) -> Node:
        inputs = (x, b, c, dt)
        y = self.cpu.scan(x.value, b.value, c.value, dt.value, fresh(spans), space)

        def back(g: np.ndarray) -> None:
            for span in spans:
                rows = slice(span.lo, span.hi)
                x_, b_, c_, dt_ = (node.value[rows] for node in inputs)
                parts = scan_back(x_, b_, c_, dt_, g[rows], space)
                _take_rows(inputs, parts, rows)

        return self.node(y, back)

    def delta(self, q: Node, k: Node, v: Node, decay: Node, beta: Node, spans: Sequence[Span]) -> Node:
        inputs = (q, k, v, decay, beta)
        y = self.cpu.delta(q.value, k.value, v.value, decay.value, beta.value, fresh(spans))

        def back(g: np.ndarray) -> None:
            for span in spans:
                rows = slice(span.lo, span.hi)
                q_, k_, v_, decay_, beta_ = (node.value[rows] for node in inputs)
                parts = delta_back(q_, k_, v_, decay_, beta_, g[rows])
                _take_rows(inputs, parts, rows)

        return self.node(y, back)

    def indices(self, n: int, count: int) -> np.ndarray:
        return self.cpu.indices(n, count)

    def copy(self, x: Node) -> Node:
        return self.node(x.value.copy(), x.take)

    def soft_cap(self, x: Node, cap: float) -> Node:
        y = self.cpu.soft_cap(x.value.copy(), cap)
        return self.node(y, lambda g: x.take(g * (1 - (y / np.float32(cap)) ** 2)))

    def pick(self, x: Node, rows: np.ndarray) -> Node:
        def back(g: np.ndarray) -> None:
            whole = np.zeros(x.shape, np.float32)
            np.add.at(whole, rows, g)
            x.take(whole)

        return self.node(x.value[rows], back)


def _of_shape(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What a gradient is of an array that was repeated to its shape."""
    if g.shape == shape:
        return g
    g = g.reshape((1,) * (len(shape) - g.ndim) + g.shape)
    axes = tuple(i for i, (n, m) in enumerate(zip(g.shape, shape, strict=True)) if n != m)
    result: np.ndarray = g.sum(axes, keepdims=True)
    return result


def _by_length(x: np.ndarray, g: np.ndarray, least: float) -> np.ndarray:
    """The gradient of x / max(|x|, least), from that of the result."""
    length = np.sqrt((x * x).sum(-1, keepdims=True))
    along = np.where(length > least, (g * x).sum(-1, keepdims=True) / np.maximum(length, least) ** 2, np.float32(0))
    result: np.ndarray = (g - x * along) / np.maximum(length, np.float32(least))
    return result


def _take_rows(inputs: Sequence[Node], gradients: Sequence[np.ndarray], rows: slice) -> None:
    for node, gradient in zip(inputs, gradients, strict=True):
        whole = np.zeros(node.shape, np.float32)
        whole[rows] = gradient
        node.take(whole)


def _gradients_of(activation: str) -> Gradients:
    if activation not in ACTIVATION_GRADIENTS:
        raise ArchitectureError(f"calibration knows no gradient of the activation {activation}")
    return ACTIVATION_GRADIENTS[activation]
