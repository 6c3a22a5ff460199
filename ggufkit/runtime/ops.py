"""The operations that a forward pass is written in; `cpu.ops` and others implement them.

An array (`Array`) is whatever the implementation computes with. Activations are
float32 of shape (tokens, width); heads lie side by side in a row.

    weight vector numpy        a tensor of the file, a small array; an array back as NumPy's
    embed linear norm rope attention activate                what models are made of
    choose each mix                                          experts
    convolve shifted scan delta wkv                          what changes states
    add scale gated soft_cap pick                            glue
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ggufkit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from ggufkit.tensors.tensor import Tensor

__all__ = [
    "Array",
    "AttentionSpec",
    "CacheSpec",
    "Choice",
    "Experts",
    "Linear",
    "LowRank",
    "Norm",
    "NotRecorded",
    "Ops",
    "Recorder",
    "Span",
    "StateSpace",
]

# Arithmetic, slices, `reshape` and `len` work on arrays of all backends as they do on NumPy's.
Array = Any


@dataclass(frozen=True)
class Linear:
    """A weight matrix, the factor that what it gives is multiplied with, and the bias that is added then.

    Attributes
    ----------
    weight : what `Ops.weight` made of the tensor.
    name : the tensor's name in the file; of a part of a fused tensor, the whole one's.
    rows, cols : numbers out and in.
    bias : array of shape (rows,), for a stack of experts (experts, rows), or None.
    factor : array of shape (1,), for a stack of experts (experts, 1), or None for 1: what NVFP4 has for a matrix.
    low_rank : pairs of adapters beside the matrix (see `runtime.lora`).
    """

    weight: Any
    name: str
    rows: int
    cols: int
    bias: Array | None = None
    factor: Array | None = None
    low_rank: tuple[LowRank, ...] = ()


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to what a matrix gives: scale · factor · b (a x).

    Attributes
    ----------
    adapter : its number, by which its scale is known.
    factor : multiplies.
    a, b : (rank, cols) and (rows, rank), or stacks of them.
    """

    adapter: int
    factor: float
    a: Linear
    b: Linear


@dataclass(frozen=True)
class Norm:
    """A normalisation over `size` consecutive numbers, a whole row or each head.

    Attributes
    ----------
    kind : ``"rms"``, ``"layer"``, or ``"l2"``: divided by the length.
    epsilon : added to the mean square; the least length.
    size : numbers that are normalised together.
    weight : array of shape (1, size), or (heads, size) for other weights in each head.
    bias : the same, or None.
    name : the tensor's name in the file; ``""`` for a norm that has none.
    """

    kind: str
    epsilon: float
    size: int
    weight: Array
    bias: Array | None = None
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a router chooses a few of many experts for each token.

    Attributes
    ----------
    router : width → a score for each expert.
    used : how many are chosen.
    scores : what makes weights of the router's scores: ``"softmax"`` over all experts, ``"top"``: over the chosen ones,
        ``"sigmoid"`` or ``"sqrt_softplus"``.
    normalized : the chosen weights are divided by their sum.
    scale : multiplies them.
    bias : array of shape (experts,) that is added for the choice only, or None.
    groups, groups_used : experts come from these groups whose best two have the greatest sum.
    stands_for : of scores that are chosen an expert stands for so many; it has the weight of the score with its number.
    """

    router: Linear
    used: int
    scores: str
    normalized: bool
    scale: float
    bias: Array | None = None
    groups: int = 1
    groups_used: int = 1
    stands_for: int = 1


@dataclass(frozen=True, kw_only=True)
class Experts(Choice):
    """Feed-forward experts of which a router chooses a few for each token.

    Attributes
    ----------
    gate, up, down : stacks of matrices; `gate` may be None.
    activation : as `Graph.activation`.
    weigh_inputs : the weight multiplies what goes into an expert, not what comes out.
    """

    gate: Linear | None
    up: Linear
    down: Linear
    activation: str
    weigh_inputs: bool = False


@dataclass(frozen=True)
class AttentionSpec:
    """One layer's attention.

    Attributes
    ----------
    heads, kv_heads : of queries, and of keys and values; each of these serves `heads / kv_heads` queries.
    head_k, head_v : numbers per head.
    scale : of the scores.
    cap : soft cap of the scores; 0 for none.
    window : how many tokens back is seen, itself included; 0 for all.
    causal : no later tokens are seen.
    chunked : the window is the run of so many tokens, from a multiple of its size on, that a token is in.
    two_sided : the window reaches half its size to both sides.
    slopes : array of shape (heads,): by how much a token's score is less for each token that it is away; or None.
    sinks : array of shape (heads,): a score that takes part in the softmax and gives nothing; or None.
    """

    heads: int
    kv_heads: int
    head_k: int
    head_v: int
    scale: float
    cap: float = 0.0
    window: int = 0
    causal: bool = True
    sinks: Array | None = None
    slopes: Array | None = None
    chunked: bool = False
    two_sided: bool = False

    def require_shifts(self) -> None:
        """See that scores may all be more or less by the same, as they are where keys are centred.

        Raises
        ------
        UsageError : the softmax would see it.
        """
        if self.cap or self.sinks is not None:
            what = "its scores have a soft cap" if self.cap else "it has attention sinks"
            raise UsageError(f"the model's keys cannot be centred: {what}")


@dataclass(frozen=True)
class CacheSpec:
    """Types of keys and values in the cache, of `runtime.kv.types.TYPES`."""

    keys: str = "F16"
    values: str = "F16"


@dataclass(frozen=True)
class StateSpace:
    """The constants of `Ops.scan`.

    Attributes
    ----------
    heads, size : of x: so many of so many numbers each.
    groups, states : of b and c; each group serves `heads / groups` heads.
    a : array of shape (heads, 1 or states), negative.
    d : array of shape (heads,).
    """

    heads: int
    size: int
    groups: int
    states: int
    a: Array
    d: Array


@dataclass(frozen=True)
class Span:
    """Consecutive rows of a pass that belong to one conversation.

    Attributes
    ----------
    lo, hi : the rows.
    start : position of the first in its conversation.
    cache : what the conversation's earlier tokens left: of one layer, what `Ops.layer_cache` made; or a list of all.
    whole : the rows see each other, not only those before them.
    """

    lo: int
    hi: int
    start: int
    cache: Any
    whole: bool = False


class NotRecorded(Exception):
    """Something of a pass cannot be written down, only done."""


class Recorder(Protocol):
    """Writes down a pass, to be done again with other tokens, positions and caches (see `runtime.replay`).

    Attributes
    ----------
    ops : operations that are written down; they raise NotRecorded where they cannot be.
    """

    @property
    def ops(self) -> Ops: ...

    def start(self, run: int, start: int) -> int:
        """The first position of a conversation, as a number that is another one when the pass is done again."""

    def finish(self, result: Array) -> None:
        """All is written down; `result` is what it is done for."""

    def play(self, starts: Sequence[int], caches: Sequence[Sequence[Any]]) -> np.ndarray:
        """Do it all, with the conversations at these positions, and these layers of their caches; gives the result."""


class Ops(Protocol):
    """What a backend provides."""

    def recorder(self, caches: Sequence[Sequence[Any]], beside: Recorder | None = None) -> Recorder | None:
        """What writes down a pass of conversations with caches like these, the layers of each; None if nothing does.

        Passes of it and of those `beside` it are never done at the same time: they use the same memory.
        """

    def weight(self, tensor: Tensor) -> Any:
        """A matrix (rows, cols), or a stack (experts, rows, cols), ready for `linear`, `embed` or `experts`."""

    def vector(self, values: np.ndarray) -> Array:
        """A small float32 array, to be used many times."""

    def numpy(self, x: Array) -> np.ndarray:
        """The numbers of `x` as NumPy's float32."""

    def layer_cache(self, spec: AttentionSpec, types: CacheSpec, length: int) -> Any:
        """Room for keys and values of `length` tokens of one layer."""

    def embed(self, weight: Any, ids: np.ndarray) -> Array:
        """Rows `ids` (n,) of a matrix: (n, cols)."""

    def linear(self, x: Array, *linears: Linear) -> Sequence[Array]:
        """x (n, cols) through several matrices: (n, rows) of each. One call, so that they can share work on `x`."""

    def norm(self, x: Array, norm: Norm) -> Array:
        """Each `norm.size` numbers of the rows of `x` normalised."""

    def rope(self, x: Array, heads: int, style: str, table: tuple[np.ndarray, np.ndarray]) -> Array:
        """Heads of `x` (n, heads × size) turned by the angles of a `RopeTable`'s rows. `x` itself may be used up."""

    def attention(self, q: Array, k: Array, v: Array, spans: Sequence[Span], spec: AttentionSpec) -> Array:
        """Write each span's `k` and `v`, if any, to its cache; (n, heads × head_v) of what its `q` finds there."""

    def activate(self, gate: Array | None, up: Array, activation: str) -> Array:
        """activation(gate) × up, or activation(up) without a gate."""

    def choose(self, scores: Array, choice: Choice) -> tuple[Array, Array]:
        """The experts of each row of `scores` (n, experts), best first, and their weights: (n, used) each."""

    def each(self, x: Array, chosen: Array, *linears: Linear) -> Sequence[Array]:
        """x (n, 1 or used, cols) through the matrices `chosen` (n, used) of stacks: (n, used, rows) of each."""

    def mix(self, x: Array, weights: Array) -> Array:
        """Σ x × weights over the second dimension: x (n, used, width), weights (n, used) → (n, width)."""

    def add(self, x: Array, y: Array) -> Array:
        """x + y; `y` may also be one row. `x` itself may be used up."""

    def scale(self, x: Array, factor: float) -> Array:
        """x × factor. `x` itself may be used up."""

    def gated(self, x: Array, score: Array) -> Array:
        """x × sigmoid(score), `score` (n, m) for m equal parts of each row. `x` itself may be used up."""

    def clamp(self, x: Array, low: float, high: float) -> Array:
        """x kept within low … high."""

    def xielu(self, x: Array, alpha_n: float, alpha_p: float, beta: float, epsilon: float) -> Array:
        """αₚ x² + β x above 0, αₙ (e^min(x, ε) − 1 − x) + β x below."""

    def halves(self, x: Array, heads: int) -> tuple[Array, Array]:
        """Of each of the heads side by side its first half, and its second: (n, 2 m) → (n, m) twice."""

    def split(self, x: Array, sizes: Sequence[int]) -> list[Array]:
        """The columns of `x` in parts of these sizes."""

    def concatenate(self, parts: Sequence[Array]) -> Array:
        """Rows of several arrays one after the other."""

    def joined(self, parts: Sequence[Array]) -> Array:
        """Columns of several arrays side by side."""

    def indices(self, n: int, count: int) -> Array:
        """0 … count − 1 for each of n rows: for `each`, where every row goes through all matrices."""

    def copy(self, x: Array) -> Array:
        """An array of its own."""

    def zeros(self, *shape: int) -> Array:
        """Zeros."""

    def replaced(self, x: Array, y: Array) -> Array:
        """The numbers of `y`, in the memory of `x` where arrays can be changed."""

    def convolve(self, x: Array, weights: Array, bias: Array | None, spans: Sequence[Span], apart: int = 1) -> Array:
        """y[t] = Σ weights[i] · x[t − (taps − 1 − i) · apart] + bias, each channel by itself: (n, channels) → the same.

        Parameters
        ----------
        weights : (taps, channels), the oldest token's first.
        bias : (channels,), or None.
        spans : the first array of their `State`, ((taps − 1) · apart, channels), has the inputs before, then the last.
        """

    def shifted(self, x: Array, spans: Sequence[Span]) -> Array:
        """Each row's predecessor in its conversation; the first array of a span's `State`, (1, width), has the last."""

    def scan(self, x: Array, b: Array, c: Array, dt: Array, spans: Sequence[Span], space: StateSpace) -> Array:
        """A state space: x (n, heads × size), b, c (n, groups × states), dt (n, heads) → (n, heads × size).

        Of each token and head, with the span's state S (heads, size, states), the last array of its `State`,

            S = e^(dt · A) S + dt · x bᵀ        y = S c + D x
        """

    def delta(self, q: Array, k: Array, v: Array, decay: Array, beta: Array, spans: Sequence[Span]) -> Array:
        """The gated delta rule: q, k (n, heads, dk), v (n, heads, dv) → (n, heads, dv).

        Of each token and head, with the span's state S (heads, dk, dv), the last array of its `State`, the logarithm of
        the decay (n, heads, 1 or dk) and beta (n, heads),

            S = e^decay S        S = S + k (beta (v − Sᵀ k))ᵀ        y = Sᵀ q
        """

    def related(self, q: Array, keys: Array, values: Array, bias: Array | None) -> Array:
        """Attention with a bias for each query and key: see `runtime.relative.attend`."""

    def exp(self, x: Array) -> Array:
        """e^x."""

    def inner(self, x: Array, y: Array) -> Array:
        """Σ x y over the last dimension, which becomes 1."""

    def wkv(
        self,
        r: Array,
        w: Array,
        k: Array,
        v: Array,
        a: Array | None,
        b: Array | None,
        bonus: Array | None,
        spans: Sequence[Span],
    ) -> Array:
        """RWKV's recurrence: r, w, k, v, a, b (n, heads, size) → (n, heads, size).

        Of each token and head, with the span's state S (heads, size, size), the last array of its `State`, and a bonus
        u (heads, size) if any,

            S′ = diag(w) S + b (Sᵀ a)ᵀ + k vᵀ        y = Sᵀ r + (r · u k) v, or S′ᵀ r without a bonus        S = S′
        """

    def best(self, q: Array, keys: Array, weights: Array, start: int, count: int) -> Array | None:
        """Which keys an index lets each query see, (n, tokens) bool: the `count` best; None for all.

        Of equal ones those that llama.cpp chooses. See `runtime.chosen.scores`.
        """

    def best_pools(self, q: Array, keys: Array, start: int, size: int, count: int, tokens: int) -> Array | None:
        """Which keys queries see whose index chooses pools of them, (n, tokens) bool; None for all before them.

        See `runtime.chosen.pool_scores`.
        """

    def best_blocks(self, q: Array, keys: Array, start: int, block: int, count: int, near: int) -> Array | None:
        """Which keys queries see whose index chooses blocks, (heads, n, tokens) bool: see `runtime.chosen.blocks`."""

    def attend(
        self,
        q: Array,
        keys: Array,
        values: Array,
        seen: Array | None,
        start: int,
        scale: float,
        sinks: Array | None = None,
    ) -> Array:
        """Attention to keys that are seen: see `runtime.chosen.attend`."""

    def soft_cap(self, x: Array, cap: float) -> Array:
        """cap × tanh(x / cap). `x` itself may be used up."""

    def pick(self, x: Array, rows: np.ndarray) -> Array:
        """Some rows of `x`, by number."""
