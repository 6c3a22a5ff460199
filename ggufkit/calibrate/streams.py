"""Quantizing on the way through the model: every matrix with the inputs that the quantized ones before it give.

Two streams of the calibration text's activations go through `forward.py` side by side, all windows at once:

    quantized    what the matrices that are done make of the text            X
    original     what the model's own would                                 X₀

A matrix W that is met aims at W X₀ and not at W X: GPTQ gets W* = W + W (X₀ − X)ᵀX (XᵀX)⁻¹ in its place, and makes good
what the matrices before it did wrong. With one stream X₀ is X. Looked up rows have the metric of the statistics.

Source: Li et al., "GPTAQ", 2025, for the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggufkit.calibrate.attention import attend
from ggufkit.calibrate.choice import weigh
from ggufkit.calibrate.costs import combined, shares_of
from ggufkit.calibrate.elementwise import sigmoid
from ggufkit.calibrate.gptq import SWEEPS, damp_for, rounded
from ggufkit.calibrate.matrix import Matrix, part_of
from ggufkit.calibrate.opaque import Opaque, OpaqueOps
from ggufkit.calibrate.passes import hidden, scored
from ggufkit.calibrate.products import Factor, product, second_moment, transposed
from ggufkit.calibrate.recurrence import fresh
from ggufkit.calibrate.statistics import Statistics
from ggufkit.errors import GgufkitError, printable
from ggufkit.formats.codec import decode
from ggufkit.formats.grids import GRIDS
from ggufkit.gguf.reader import GGUF
from ggufkit.jobs.plan import PlannedTensor
from ggufkit.runtime.cpu.ops import CpuOps
from ggufkit.runtime.model import Model
from ggufkit.runtime.ops import AttentionSpec, CacheSpec, Choice, Linear, Norm, Span, StateSpace
from ggufkit.tensors.tensor import Tensor

__all__ = ["Inputs", "Pair", "Streams", "quantize_on_the_way"]

_FEW = 4  # an expert that met fewer tokens than a fourth of its columns shares the moment of all
_REPAIR = 0.05  # damping of what a target takes over from the original's inputs

# Called with a tensor's name, the first of some rows and their blocks, when these are made.
Made = Callable[[str, int, np.ndarray], None]
# Called with a tensor's name, a row and a number of rows: their blocks, where an earlier run made them.
Known = Callable[[str, int, int], "np.ndarray | None"]


@dataclass
class Pair(Opaque):
    """Activations of both streams, (n, width) or (n, used, width) float32 each; `original` may be the same array."""

    quantized: np.ndarray
    original: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.quantized.shape

    def __len__(self) -> int:
        return len(self.quantized)

    def reshape(self, *shape: int) -> Pair:
        return self.map(lambda x: x.reshape(*shape))

    def __mul__(self, factors: np.ndarray) -> Pair:
        return self.map(lambda x: x * factors) if isinstance(factors, np.ndarray) else self._refuse()

    def __getitem__(self, rows: slice) -> Pair:
        return self.map(lambda x: x[rows])

    def __add__(self, other: Pair | np.ndarray) -> Pair:
        if not isinstance(other, Pair):
            return self.map(lambda x: x + other)
        first = self.quantized + other.quantized
        alone = self.original is self.quantized and other.original is other.quantized
        return Pair(first, first if alone else self.original + other.original)

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Pair:
        first = function(self.quantized)
        return Pair(first, first if self.original is self.quantized else function(self.original))


class Streams(OpaqueOps):
    """Implements `Ops`: quantizes each matrix when activations first meet it. An array is a `Pair`.

    Parameters
    ----------
    planned : tensor name → what it becomes.
    statistics : of the model.
    output : name of the tensor that gives logits.
    made, known : see `Made` and `Known`.
    two : whether the original's activations go along.
    sweeps : of descent.
    warn : called with a sentence about a matrix that is encoded plainly.

    Attributes
    ----------
    forget : called when a matrix is done, to give back the memory that reading it took.
    """

    def __init__(
        self,
        planned: Mapping[str, PlannedTensor],
        statistics: Statistics,
        output: str,
        made: Made,
        known: Known,
        *,
        two: bool = True,
        sweeps: int = SWEEPS,
        threads: int | None = None,
        warn: Callable[[str], None] = lambda text: None,
    ):
        self.cpu = CpuOps(threads)
        self.threads = self.cpu.threads
        self.planned, self.statistics, self.output = planned, statistics, output
        self.made, self.known, self.two, self.sweeps, self.warn = made, known, two, sweeps, warn
        self.forget: Callable[[], None] = lambda: None
        self._parts: dict[str, list[Matrix]] = {}
        self._done: dict[tuple[str, int, int], np.ndarray] = {}

    # -- what a model is loaded with --------------------------------------------------------------------------

    def weight(self, tensor: Tensor) -> Matrix:
        return part_of(self._parts, tensor)

    def vector(self, values: np.ndarray) -> np.ndarray:
        return self.cpu.vector(values)

    def numpy(self, x: Any) -> np.ndarray:
        return x.quantized if isinstance(x, Pair) else x

    def layer_cache(self, spec: AttentionSpec, types: CacheSpec, length: int) -> None:
        return None

    # -- what models are made of ------------------------------------------------------------------------------

    def embed(self, weight: Matrix, ids: np.ndarray) -> Pair:
        blocks = self._looked_up(weight)
        original = weight.rows(ids)
        if blocks is None:
            return Pair(original, original.copy() if self.two else original)
        quantized = decode(blocks[ids], self.planned[weight.name].format, threads=self.threads)
        return Pair(quantized, original if self.two else quantized)

    def linear(self, x: Pair, *linears: Linear) -> list[Pair]:
        if linears[0].name == self.output and len(linears) == 1:
            self._matrices(x, linears)
            return [x.map(lambda v: np.zeros((len(v), 0), np.float32))]  # nobody reads the logits
        quantized = self._matrices(x, linears)
        found = [self._multiplied(x, linear, q) for linear, q in zip(linears, quantized, strict=True)]
        self.forget()
        return found

    def _multiplied(self, x: Pair, linear: Linear, quantized: np.ndarray) -> Pair:
        def biased(y: np.ndarray) -> np.ndarray:
            y = y if linear.factor is None else y * linear.factor
            return y if linear.bias is None else y + linear.bias

        first = biased(product(x.quantized, quantized, self.threads))
        if not self.two:
            return Pair(first, first)
        return Pair(first, biased(product(x.original, linear.weight.floats(), self.threads)))

    def norm(self, x: Pair, norm: Norm) -> Pair:
        return x.map(lambda v: self.cpu.norm(v, norm))

    def rope(self, x: Pair, heads: int, style: str, table: tuple[np.ndarray, np.ndarray]) -> Pair:
        return x.map(lambda v: self.cpu.rope(np.array(v, np.float32, order="C"), heads, style, table))

    def attention(self, q: Pair, k: Pair, v: Pair, spans: Sequence[Span], spec: AttentionSpec) -> Pair:
        def found(which: str) -> np.ndarray:
            queries, keys, values = (getattr(x, which) for x in (q, k, v))
            return attend(queries, keys, values, spans, spec, self.threads)

        first = found("quantized")
        return Pair(first, found("original") if self.two else first)

    def activate(self, gate: Pair | None, up: Pair, activation: str) -> Pair:
        if gate is None:
            return up.map(lambda v: self.cpu.activate(None, v, activation))
        first = self.cpu.activate(gate.quantized, up.quantized, activation)
        return Pair(first, self.cpu.activate(gate.original, up.original, activation) if self.two else first)

    def choose(self, scores: Pair, choice: Choice) -> tuple[Pair, Pair]:
        """Both streams go through the experts that the original chooses, so that they can be compared."""
        chosen, _ = self.cpu.choose(scores.original, choice)
        return Pair(chosen, chosen), scores.map(lambda v: weigh(v, chosen, choice))

    def each(self, x: Pair, chosen: Pair, *linears: Linear) -> list[Pair]:
        n, used = chosen.shape
        experts = chosen.original.reshape(-1)
        rows = x.map(lambda v: np.repeat(v, used // v.shape[1], axis=1).reshape(n * used, -1))
        return [self._through(rows, experts, linear).reshape(n, used, -1) for linear in linears]

    def _through(self, x: Pair, experts: np.ndarray, linear: Linear) -> Pair:
        """Row i of x through matrix `experts[i]` of a stack, which is quantized on the way, expert by expert."""
        matrix: Matrix = linear.weight
        out = [np.empty((len(x), linear.rows), np.float32) for _ in range(2 if self.two else 1)]
        pooled = None
        for expert in range(matrix.experts):
            rows = np.flatnonzero(experts == expert)
            own = x.map(lambda v: v[rows])  # noqa: B023
            if len(rows) * _FEW < x.shape[1] and pooled is None:
                pooled = second_moment(x.quantized, self.threads) / np.float32(max(len(x), 1))
            (quantized,) = self._matrices(own, [linear], expert, pooled)
            bias = np.float32(0) if linear.bias is None else linear.bias[expert]
            factor = np.float32(1) if linear.factor is None else linear.factor[expert]
            out[0][rows] = product(own.quantized, quantized, self.threads) * factor + bias
            if self.two:
                out[1][rows] = product(own.original, matrix.floats(expert), self.threads) * factor + bias
            self.forget()
        return Pair(out[0], out[-1])

    def mix(self, x: Pair, weights: Pair) -> Pair:
        def mixed(v: np.ndarray, share: np.ndarray) -> np.ndarray:
            result: np.ndarray = self.cpu.mix(np.ascontiguousarray(v), np.ascontiguousarray(share))
            return result

        first = mixed(x.quantized, weights.quantized)
        return Pair(first, mixed(x.original, weights.original) if self.two else first)

    # -- glue -------------------------------------------------------------------------------------------------

    def add(self, x: Pair, y: Pair | np.ndarray) -> Pair:
        if not isinstance(y, Pair):
            return x.map(lambda v: v + y if v.size else v)  # nobody reads the logits
        first = x.quantized + y.quantized
        return Pair(first, x.original + y.original if self.two else first)

    def scale(self, x: Pair, factor: float) -> Pair:
        return x.map(lambda v: v * np.float32(factor))

    def gated(self, x: Pair, score: Pair) -> Pair:
        def through(v: np.ndarray, s: np.ndarray) -> np.ndarray:
            shape = (*s.shape, -1)
            result: np.ndarray = (v.reshape(shape) * sigmoid(s)[..., None]).reshape(v.shape)
            return result

        first = through(x.quantized, score.quantized)
        return Pair(first, through(x.original, score.original) if self.two else first)

    def clamp(self, x: Pair, low: float, high: float) -> Pair:
        return x.map(lambda v: self.cpu.clamp(v, low, high))

    def halves(self, x: Pair, heads: int) -> tuple[Pair, Pair]:
        def half(which: int) -> Pair:
            return x.map(lambda v: np.ascontiguousarray(self.cpu.halves(v, heads)[which]))

        return half(0), half(1)

    def split(self, x: Pair, sizes: Sequence[int]) -> list[Pair]:
        ends = np.cumsum(sizes).tolist()

        def part(lo: int, hi: int) -> Pair:
            return x.map(lambda v: np.ascontiguousarray(v[..., lo:hi]))

        return [part(hi - size, hi) for size, hi in zip(sizes, ends, strict=True)]

    def joined(self, parts: Sequence[Pair]) -> Pair:
        first = np.concatenate([part.quantized for part in parts], axis=-1)
        return Pair(first, np.concatenate([part.original for part in parts], axis=-1) if self.two else first)

    def concatenate(self, parts: Sequence[Pair]) -> Pair:
        first = np.concatenate([part.quantized for part in parts])
        return Pair(first, np.concatenate([part.original for part in parts]) if self.two else first)

    def zeros(self, *shape: int) -> Pair:
        found = np.zeros(shape, np.float32)
        return Pair(found, found)

    def scan(self, x: Pair, b: Pair, c: Pair, dt: Pair, spans: Sequence[Span], space: StateSpace) -> Pair:
        def found(which: str) -> np.ndarray:
            x_, b_, c_, dt_ = (getattr(part, which) for part in (x, b, c, dt))
            result: np.ndarray = self.cpu.scan(x_, b_, c_, dt_, fresh(spans), space)
            return result

        first = found("quantized")
        return Pair(first, found("original") if self.two else first)

    def delta(self, q: Pair, k: Pair, v: Pair, decay: Pair, beta: Pair, spans: Sequence[Span]) -> Pair:
        def found(which: str) -> np.ndarray:
            q_, k_, v_, decay_, beta_ = (getattr(part, which) for part in (q, k, v, decay, beta))
            result: np.ndarray = self.cpu.delta(q_, k_, v_, decay_, beta_, fresh(spans))
            return result

        first = found("quantized")
        return Pair(first, found("original") if self.two else first)

    def indices(self, n: int, count: int) -> Pair:
        found = self.cpu.indices(n, count)
        return Pair(found, found)

    def copy(self, x: Pair) -> Pair:
        return x.map(lambda v: v.copy())

    def soft_cap(self, x: Pair, cap: float) -> Pair:
        return x.map(lambda v: self.cpu.soft_cap(v.copy(), cap) if v.size else v)

    def pick(self, x: Pair, rows: np.ndarray) -> Pair:
        return x.map(lambda v: v[rows])

    # -- quantizing -------------------------------------------------------------------------------------------

    def _looked_up(self, matrix: Matrix) -> np.ndarray | None:
        """The blocks of a tensor whose rows are looked up, made at first; None where it is not quantized here."""
        planned = self.planned.get(matrix.name)
        if planned is None:
            return None
        key = (matrix.name, 0, matrix.matrix_rows)
        if key not in self._done:
            blocks = self.known(*key)
            if blocks is None:
                shares = shares_of(matrix.name, self.statistics, self.output)
                H = combined(shares)
                blocks = self._rounded(matrix.tensor.floats(), H, self.statistics.tokens, planned, None)
                self.made(matrix.name, 0, blocks)
            self._done[key] = blocks
        return self._done[key]

    def _matrices(
        self, x: Pair, linears: Sequence[Linear], expert: int = 0, pooled: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """What the matrices that x meets become, decoded; they are quantized now if that is to be done."""
        inputs = Inputs(x, self, pooled)
        found = []
        for linear in linears:
            matrix: Matrix = linear.weight
            planned = self.planned.get(linear.name)
            if planned is None:
                found.append(matrix.floats(expert))
                continue
            if linear.name in self.statistics.metrics:  # embeddings that are the output, too
                blocks = self._looked_up(matrix)
            else:
                first = matrix.start + expert * matrix.whole_rows
                blocks = self.known(linear.name, first, matrix.matrix_rows)
                if blocks is None:
                    blocks = self._quantized(matrix, expert, first, planned, inputs)
                    self.made(linear.name, first, blocks)
            assert blocks is not None
            last = linear.name == self.output  # nobody reads the logits
            found.append(blocks if last else decode(blocks, planned.format, threads=self.threads))
        return found

    def _quantized(self, matrix: Matrix, expert: int, first: int, planned: PlannedTensor, inputs: Inputs) -> np.ndarray:
        W = matrix.floats(expert)
        what = printable(matrix.name) + (f", expert {expert}," if matrix.experts > 1 else "")
        if not inputs.met:
            self.warn(f"{what} met no token of the text; it is encoded without it")
            return planned.encode(first, first + len(W))
        try:
            target = inputs.target(W)
            return rounded(target, inputs.factor, planned.format.name, self.sweeps, self.threads)
        except GgufkitError as e:
            self.warn(f"{what} is encoded without the text: {e}")
            return planned.encode(first, first + len(W))

    def _rounded(
        self, W: np.ndarray, H: np.ndarray, tokens: int, planned: PlannedTensor, target: np.ndarray | None
    ) -> np.ndarray:
        try:
            factor = Factor(H, damp_for(tokens, len(H)), self.threads)
            return rounded(W if target is None else target, factor, planned.format.name, self.sweeps, self.threads)
        except GgufkitError as e:
            self.warn(f"{printable(planned.tensor.name)} is encoded without the text: {e}")
            return planned.encode(0, len(W))


class Inputs:
    """What some matrices meet: moment, factor and repair are made when they are first needed, for all of them."""

    def __init__(self, x: Pair, streams: Streams, pooled: np.ndarray | None):
        self.x, self.streams, self.pooled = x, streams, pooled
        self._factor: Factor | None = None
        self._lag: np.ndarray | None = None

    @property
    def met(self) -> bool:
        return len(self.x) > 0

    @property
    def factor(self) -> Factor:
        if self._factor is None:
            n, cols, threads = len(self.x), self.x.shape[1], self.streams.threads
            H = second_moment(self.x.quantized, threads)
            H /= np.float32(n)
            if self.pooled is not None and n * _FEW < cols:
                share = np.float32(n * _FEW / cols)
                H = H * share + self.pooled * (1 - share)
            self._factor = Factor(H, damp_for(n, cols), threads, owned=True)
        return self._factor

    def target(self, W: np.ndarray) -> np.ndarray:
        """W*, (rows, cols) float32."""
        if not self.streams.two:
            return W
        factor, threads = self.factor, self.streams.threads
        n, cols = self.x.shape
        if self._lag is None and cols <= n:
            lag = transposed(self.x.original - self.x.quantized, threads)  # (cols, n)
            self._lag = product(transposed(self.x.quantized, threads), lag, threads) / np.float32(n)
        if self._lag is not None:
            missed = product(W, self._lag, threads)  # (rows, cols)
        else:  # what each token misses, (rows, n), is less than what columns do
            missed = product(W, self.x.original - self.x.quantized, threads)
            missed = product(missed, transposed(self.x.quantized, threads), threads) / np.float32(n)
        result: np.ndarray = W + factor.solve(missed)
        return result


def quantize_on_the_way(
    gguf: GGUF,
    planned: Mapping[str, PlannedTensor],
    statistics: Statistics,
    made: Made,
    known: Known = lambda name, row, rows: None,
    **options: Any,
) -> None:
    """Quantize the planned tensors of a model, in the order in which the text meets them.

    Parameters
    ----------
    gguf : the model.
    planned : tensor name → what it becomes; formats that have a grid.
    statistics : of the model, with the text.
    made, known : see `Made` and `Known`.
    options : of `Streams`.

    Raises
    ------
    ArchitectureError : the model cannot be run.
    """
    assert all(p.format.name in GRIDS for p in planned.values())
    streams = Streams(planned, statistics, "", made, known, **options)
    model = Model(gguf, streams)
    streams.forget = gguf.forget
    if model.weights.output is not None:
        streams.output = model.weights.output.name
    x = hidden(model, statistics.windows)
    if model.weights.output is not None:
        scored(model, x)
