"""The CPU's kernels against slow twins in NumPy: any width, windows, caps, sinks, every type of cache."""

from __future__ import annotations

import zlib

import ggml
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ggufkit import turboquant
from ggufkit.errors import UsageError
from ggufkit.formats.codec import decode, encode
from ggufkit.formats.table import FORMATS
from ggufkit.kernels.jit import kernel
from ggufkit.kernels.lane_math import exp, tanh
from ggufkit.kernels.lanes import load, store
from ggufkit.kernels.recording import Recording
from ggufkit.runtime.cpu import activations, choosing, functions, ops
from ggufkit.runtime.cpu.cache import LayerCache, Turn
from ggufkit.runtime.cpu.calls import Recorded
from ggufkit.runtime.cpu.ops import CpuOps
from ggufkit.runtime.kv.types import TYPES, Rotation, cache_type
from ggufkit.runtime.ops import AttentionSpec, CacheSpec, Choice, Norm, NotRecorded, Span
from ggufkit.runtime.router import choose

RNG = np.random.default_rng(0)
OPS = CpuOps(threads=2)


@pytest.fixture(autouse=True)
def own_numbers(request):
    """The same numbers for a test, whatever others ran before."""
    RNG.bit_generator.state = np.random.default_rng(zlib.crc32(request.node.name.encode())).bit_generator.state


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


# ---- Functions --------------------------------------------------------------------------------------------------


@kernel
def all_exp(x, out):
    for i in range(0, x.shape[0], 16):
        store(out, i, exp(load(x, i)))


@kernel
def all_tanh(x, out):
    for i in range(0, x.shape[0], 16):
        store(out, i, tanh(load(x, i)))


def test_exp_is_within_two_units():
    x = np.concatenate([np.linspace(-87, 88, 15984), [0, -0.0, 1, -1, 1e-30, -1e-7, 88, -87.3]] * 2).astype(np.float32)
    out = np.empty_like(x[:16000])
    all_exp(x[:16000], out)
    exact = np.exp(x[:16000].astype(np.float64))
    assert np.abs(out / exact - 1).max() < 2.5e-7


@pytest.mark.parametrize("name", ["exp", "sigmoid", "softplus", "tanh"])
def test_functions_are_near_and_the_same_wherever_a_number_stands(name):
    x = np.concatenate([np.linspace(-80, 80, 4000), np.linspace(-1, 1, 999)]).astype(np.float32)
    exact = {
        "exp": np.exp,
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "softplus": lambda x: np.logaddexp(0, x),
        "tanh": np.tanh,
    }[name](x.astype(np.float64))
    out = np.empty_like(x)
    getattr(functions, name)(x, out)
    assert np.abs(out - exact).max() < 1e-6 if name == "tanh" else np.abs(out / exact - 1).max() < 6e-7
    for lo, hi in ((1, 14), (5, 4999), (4990, 4999)):
        part = np.empty(hi - lo, np.float32)
        getattr(functions, name)(x[lo:hi], part)
        assert np.array_equal(part, out[lo:hi])


@given(st.data())
def test_recorded_arithmetic_is_numpys(data):
    """Shapes that broadcast, parts of arrays that do not lie side by side, numbers; each operand first or second."""
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    recording = Recording(1)
    calls = Recorded(recording, ())
    given, operands = [], []
    for _ in range(2):
        own = [data.draw(st.sampled_from([1, size])) for size in shape]
        whole = normal(*own[:-1], own[-1] + 2)
        array, later = whole[..., 1 : own[-1] + 1], calls.zeros(*whole.shape)
        later.array[...] = whole
        given.append(array)
        operands.append(later[..., 1 : own[-1] + 1])
    if data.draw(st.booleans()):
        which = data.draw(st.integers(0, 1))
        given[which] = operands[which] = data.draw(st.sampled_from([2, -0.3, given[which]]))
    found = {
        "+": (given[0] + given[1], operands[0] + operands[1]),
        "-": (given[0] - given[1], operands[0] - operands[1]),
        "*": (given[0] * given[1], operands[0] * operands[1]),
    }
    if not isinstance(given[0], (int, float)):
        found["/"] = given[0] / given[1], operands[0] / operands[1]
    recording.finish()
    recording.play()
    for expected, later in found.values():
        assert expected.shape == later.shape
        assert np.array_equal(expected, later.array)


@given(st.data())
def test_experts_are_chosen_as_by_the_router_of_all_backends(data):
    """Equal scores among them, and groups; weights are the same numbers, computed in another order."""
    groups = data.draw(st.sampled_from([1, 1, 2, 4]))
    count = groups * data.draw(st.integers(2, 5))
    used_groups = data.draw(st.integers(1, groups))
    tied = data.draw(st.booleans())
    scores, bias = 2 * normal(3, count), normal(count)
    if tied:
        scores, bias = np.round(scores, 1), np.round(bias, 1)
    bias = bias if data.draw(st.booleans()) else None
    choice = Choice(
        router=None,
        used=data.draw(st.integers(1, count)),
        scores=data.draw(st.sampled_from(choosing.SCORES)),
        normalized=data.draw(st.booleans()),
        scale=2.5,
        bias=bias,
        groups=groups,
        groups_used=used_groups,
        stands_for=data.draw(st.sampled_from([1, 2])),
    )
    chosen, weights = OPS.choose(scores, choice)
    expected, others = choose(np, scores, choice)
    for row, other, weight, same in zip(chosen, expected, weights, others, strict=True):
        # Sums in another order may make or break a tie.
        assert np.array_equal(row, other) or (tied and choice.scores != "top")
        if np.array_equal(row, other):
            assert np.allclose(weight, same, rtol=1e-5, atol=1e-6)


def test_what_is_no_arithmetic_of_float32_is_not_recorded():
    x = Recorded(Recording(1), ()).zeros(2, 3)
    for function in (
        lambda: x + np.ones(3),
        lambda: x * np.arange(3),
        lambda: np.exp(x),
        lambda: np.sum(x),
        lambda: x**2,
        lambda: np.concatenate([x, x]),
        lambda: x[[1, 0]],
        lambda: OPS.recorder([]).ops.vector(np.ones(3)),
    ):
        with pytest.raises(NotRecorded):
            function()


def test_exp_stays_finite_beyond_its_range():
    x = np.array([-np.inf, -200, 200, np.inf] * 4, np.float32)
    out = np.empty_like(x)
    all_exp(x, out)
    assert np.isfinite(out).all()
    assert out[0] < 1e-37


def test_tanh_is_near():
    x = np.linspace(-50, 50, 1600).astype(np.float32)
    out = np.empty_like(x)
    all_tanh(x, out)
    np.testing.assert_allclose(out, np.tanh(x), atol=2e-7)


# ---- Rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 6, 16, 31, 48, 80, 257])
@pytest.mark.parametrize("heads", [1, 3])
def test_norms_equal_their_twins(size, heads):
    x, weight, bias = normal(4, 3 * size), normal(heads, size), normal(1, size)
    rows = x.reshape(4, 3, size).astype(np.float64)
    repeated = np.broadcast_to(weight, (3, size)) if heads == 1 else weight
    rms = rows / np.sqrt((rows**2).mean(-1, keepdims=True) + 1e-5) * repeated
    actual = OPS.norm(x, Norm("rms", 1e-5, size, weight))
    np.testing.assert_allclose(actual, rms.reshape(4, -1), rtol=1e-5, atol=1e-6)
    centred = rows - rows.mean(-1, keepdims=True)
    layer = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * repeated
    for b in (None, bias):
        actual = OPS.norm(x, Norm("layer", 1e-5, size, weight, b))
        np.testing.assert_allclose(actual, (layer + (0 if b is None else b)).reshape(4, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("head", "pairs"), [(2, 1), (12, 3), (64, 32), (80, 16), (96, 48)])
@pytest.mark.parametrize("style", ["norm", "neox"])
def test_rope_turns_pairs(head, pairs, style):
    x, angles = normal(5, 2 * head), normal(5, pairs)
    z = x.reshape(5, 2, head).copy()
    first, second = (
        (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
        if style == "norm"
        else (
            slice(0, pairs),
            slice(pairs, 2 * pairs),
        )
    )
    turned = (z[..., first] + 1j * z[..., second]) * np.exp(1j * angles)[:, None]
    expected = z.copy()
    expected[..., first], expected[..., second] = turned.real, turned.imag
    actual = OPS.rope(x.copy(), 2, style, (np.cos(angles), np.sin(angles)))
    np.testing.assert_allclose(actual, expected.reshape(5, -1), atol=1e-5)


def test_gelu_is_rounded_as_in_ggml():
    x = np.array([-11, -10, -1, -0.0, 0.5, 3, 10, 11], np.float32)
    half = x.astype(np.float16).astype(np.float32)
    exact = 0.5 * half * (1 + np.tanh(np.float32(0.7978846) * half * (1 + np.float32(0.044715) * half * half)))
    expected = np.where(x <= -10, 0, np.where(x >= 10, x, exact.astype(np.float16).astype(np.float32)))
    assert np.array_equal(OPS.activate(None, x[None], "gelu")[0], expected)
    assert np.array_equal(OPS.activate(x[None], np.full((1, 8), 2, np.float32), "gelu")[0], 2 * expected)


@pytest.mark.parametrize("size", [1, 16, 100, 70_000])
def test_gates_equal_their_twins(size):
    gate, up = 3 * normal(1, size), 3 * normal(1, size)
    sigmoid = 1 / (1 + np.exp(-gate.astype(np.float64)))
    np.testing.assert_allclose(OPS.activate(gate, up, "silu"), gate * sigmoid * up, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(OPS.activate(None, gate, "silu"), gate * sigmoid, rtol=1e-5, atol=1e-6)
    low = np.minimum(gate, 7)
    clipped = low / (1 + np.exp(-1.702 * low.astype(np.float64))) * (np.clip(up, -7, 7) + 1)
    np.testing.assert_allclose(OPS.activate(gate, up, "swiglu_oai"), clipped, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(OPS.activate(gate, up, "relu_squared"), np.maximum(gate, 0) ** 2 * up, rtol=1e-6)
    np.testing.assert_allclose(OPS.soft_cap(gate.copy(), 2.0), 2 * np.tanh(gate / 2), atol=1e-6)


@pytest.mark.parametrize("name", sorted(ops.ACTIVATIONS))
def test_a_row_that_is_activated_has_its_bits_alone_and_among_others(name):
    gate, up = 3 * normal(5, 27), 3 * normal(5, 27)
    for gates in (gate,) if name == "swiglu_oai" else (gate, None):
        together = OPS.activate(gates, up, name)
        for row in range(5):
            alone = OPS.activate(None if gates is None else gates[row : row + 1], up[row : row + 1], name)
            assert np.array_equal(alone[0], together[row])
    capped = OPS.soft_cap(up.copy(), 2.0)
    assert all(np.array_equal(OPS.soft_cap(up[row].copy(), 2.0), capped[row]) for row in range(5))


def test_weighted_sum_equals_its_twin():
    x, weights = normal(3, 4, 5), normal(3, 4)
    actual = np.empty((3, 5), np.float32)
    activations.weighted_sum(x, weights, actual)
    np.testing.assert_allclose(actual, np.einsum("nkw,nk->nw", x, weights), rtol=1e-5, atol=1e-6)


# ---- Attention --------------------------------------------------------------------------------------------------


def slow_attention(q, k, v, start, spec):
    """(n, heads × head_v) by the definition; k and v of all tokens, (seen, kv_heads × head)."""
    n, seen, group = len(q), len(k), spec.heads // spec.kv_heads
    q = q.reshape(n, spec.heads, spec.head_k).astype(np.float64)
    k = k.reshape(seen, spec.kv_heads, spec.head_k).repeat(group, 1)
    v = v.reshape(seen, spec.kv_heads, spec.head_v).repeat(group, 1)
    scores = np.einsum("nhd,thd->hnt", q, k) * spec.scale
    if spec.cap:
        scores = np.tanh(scores / spec.cap) * spec.cap
    at, token = start + np.arange(n)[:, None], np.arange(seen)
    hidden = np.zeros((n, seen), bool)
    if spec.causal:
        hidden |= token > at
    if spec.window:
        hidden |= token <= at - spec.window
    scores = np.where(hidden, -np.inf, scores)
    if spec.sinks is not None:
        scores = np.concatenate([scores, np.broadcast_to(spec.sinks[:, None, None], (spec.heads, n, 1))], -1)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p = (p / p.sum(-1, keepdims=True))[..., :seen]
    return np.einsum("hnt,thd->nhd", p, v).reshape(n, -1)


def queries_keys_values(n, spec):
    sizes = spec.heads * spec.head_k, spec.kv_heads * spec.head_k, spec.kv_heads * spec.head_v
    return [normal(n, size) for size in sizes]


SPECS = {
    "grouped": AttentionSpec(8, 2, 32, 32, 0.2),
    "alone": AttentionSpec(3, 3, 12, 24, 0.3),
    "one key head": AttentionSpec(5, 1, 80, 80, 0.1),
    "capped": AttentionSpec(4, 2, 64, 64, 0.5, cap=3.0),
    "window": AttentionSpec(4, 2, 16, 16, 0.3, window=7),
    "window of one": AttentionSpec(2, 1, 16, 16, 0.3, window=1),
    "sinks": AttentionSpec(4, 2, 32, 32, 0.2, window=40, sinks=np.array([3, -1, 0, 9], np.float32)),
    "encoder": AttentionSpec(4, 4, 16, 16, 0.25, causal=False),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("n", [1, 33, 100])
def test_attention_equals_its_twin(name, n):
    spec = SPECS[name]
    q, k, v = (
        normal(n, spec.heads * spec.head_k),
        normal(n, spec.kv_heads * spec.head_k),
        normal(n, spec.kv_heads * spec.head_v),
    )
    cache = LayerCache(spec, CacheSpec("F32", "F32"), n)
    actual = OPS.attention(q.copy(), k.copy(), v.copy(), [Span(0, n, 0, cache)], spec)
    np.testing.assert_allclose(actual, slow_attention(q, k, v, 0, spec), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SPECS if name != "encoder"])
def test_attention_in_pieces_is_the_same(name):
    spec, n = SPECS[name], 70
    q, k, v = (
        normal(n, spec.heads * spec.head_k),
        normal(n, spec.kv_heads * spec.head_k),
        normal(n, spec.kv_heads * spec.head_v),
    )
    cache = LayerCache(spec, CacheSpec("F32", "F32"), n)
    pieces = [
        OPS.attention(q[lo:hi].copy(), k[lo:hi].copy(), v[lo:hi].copy(), [Span(0, hi - lo, lo, cache)], spec)
        for lo, hi in ((0, 1), (1, 18), (18, 64), (64, 70))
    ]
    np.testing.assert_allclose(np.concatenate(pieces), slow_attention(q, k, v, 0, spec), rtol=1e-4, atol=1e-5)


def rotate(x: np.ndarray, size: int) -> None:
    Turn(Rotation(size, random=False)).forward(x)


def stored(x: np.ndarray, kind: str, head: int, size: int) -> np.ndarray:
    """What comes back from a cache of this type: by the codec of the format, or by TurboQuant's."""
    x = x.copy()
    if kind.startswith("tq"):
        return turboquant.decode(turboquant.encode(x.reshape(-1, head), int(kind[2:]))).reshape(x.shape)
    if size:
        rotate(x, size)
    rows = x.reshape(-1, head)
    blocks = ggml.from_float(rows, FORMATS[kind].id) if kind == "IQ4_NL" else encode(rows, kind)
    x = decode(blocks, kind).reshape(x.shape)
    if size:
        rotate(x, size)
    return x


@pytest.mark.parametrize(("kind", "head", "sizes"), [
    ("F16", 48, (0, 0)),
    ("Q8_0", 32, (0, 0)),
    ("Q4_0", 96, (0, 0)),
    ("Q8_0", 64, (64, 64)),
    ("Q4_0", 128, (128, 64)),
    ("Q4_0", 192, (64, 64)),
    ("Q4_1", 64, (64, 64)),
    ("Q5_0", 32, (0, 0)),
    ("Q5_1", 128, (128, 64)),
    ("BF16", 80, (0, 0)),
    ("IQ4_NL", 32, (0, 0)),
    ("IQ4_NL", 128, (128, 64)),
    ("tq8", 64, (64, 64)),
    ("tq6", 80, (80, 80)),
    ("tq5", 112, (112, 112)),
    ("tq4", 128, (128, 128)),
    ("tq4", 576, (576, 576)),
    ("tq3", 96, (96, 96)),
    ("tq2", 192, (192, 192)),
])  # fmt: skip
def test_cache_holds_what_the_format_holds(kind, head, sizes):
    spec, n = AttentionSpec(4, 2, head, head, 0.1), 50
    q, k, v = normal(n, 4 * head), normal(n, 2 * head), normal(n, 2 * head)
    cache = LayerCache(spec, CacheSpec(kind, kind), n)
    rotations = (cache_type(kind, head).rotation(head, values) for values in (False, True))
    assert tuple(0 if rotation is None else rotation.size for rotation in rotations) == sizes
    actual = OPS.attention(q.copy(), k.copy(), v.copy(), [Span(0, n, 0, cache)], spec)
    if TYPES[kind].rounds_queries:
        q = stored(q, "Q8_0", head, sizes[0])
    expected = slow_attention(q, stored(k, kind, head, sizes[0]), stored(v, kind, head, sizes[1]), 0, spec)
    # A turned value that lies on the border of two levels may round to either side.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-2)
    assert np.isclose(actual, expected, rtol=1e-3, atol=1e-4).mean() > 0.99


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("head_k", "head_v"), [(64, 64), (80, 112), (128, 96), (192, 128), (256, 512)])
def test_cache_has_the_bytes_of_the_formula(kind, head_k, head_v):
    spec = AttentionSpec(4, 2, head_k, head_v, 0.1)
    if TYPES[kind].bits not in (16, 32) and not kind.startswith("tq") and (head_k % 32 or head_v % 32):
        with pytest.raises(UsageError, match="not a multiple of 32"):
            LayerCache(spec, CacheSpec(kind, kind), 64)
        return
    cache = LayerCache(spec, CacheSpec(kind, kind), 64)
    bits, overhead = TYPES[kind].bits, {"tq": lambda head: 2}.get(kind[:2])
    if overhead is None:
        per_block = {"Q4_1": 4, "Q5_1": 4}.get(kind, 2 if bits < 16 else 0)
        overhead = lambda head: head // 32 * per_block  # noqa: E731
    wide = -(-head_v // 32) * 32 if bits >= 16 else head_v  # rows of numbers are filled up
    expected = 2 * 64 * (head_k * bits // 8 + overhead(head_k) + wide * bits // 8 + overhead(head_v))
    assert cache.nbytes == expected


@pytest.mark.parametrize("kind", ["IQ4_NL", "tq3"])
def test_zeros_and_one_outlier_are_kept(kind):
    spec = AttentionSpec(1, 1, 64, 64, 0.1)
    k, v = np.zeros((3, 64), np.float32), np.zeros((3, 64), np.float32)
    v[2, 5] = 100
    cache = LayerCache(spec, CacheSpec(kind, kind), 3)
    out = OPS.attention(np.ones((3, 64), np.float32), k, v, [Span(0, 3, 0, cache)], spec)
    assert (out[:2] == 0).all()
    assert out[2, 5] == pytest.approx(100 / 3, rel=0.05)


def test_rotation_is_its_own_inverse_and_keeps_lengths():
    x = normal(3, 128)
    y = x.copy()
    rotate(y, 64)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)
    hadamard = np.array([[1.0]])
    for _ in range(6):
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    np.testing.assert_allclose(y[:, :64], x[:, :64] @ hadamard / 8, atol=1e-5)
    rotate(y, 64)
    np.testing.assert_allclose(y, x, atol=1e-5)


def test_quantized_cache_needs_whole_blocks():
    with pytest.raises(UsageError, match="heads of 48 numbers are not a multiple of 32"):
        LayerCache(AttentionSpec(1, 1, 48, 48, 1.0), CacheSpec("Q8_0", "F16"), 8)


FEW_SCORES = st.sampled_from([-2, -1, 0, 1])


@given(scores=arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(2, 40)), elements=FEW_SCORES))
def test_the_best_of_rows_are_none_worse_than_what_is_left_out(scores: np.ndarray):
    from ggufkit.runtime.cpu.choosing import best_of

    for count in range(1, scores.shape[1]):
        seen = best_of(scores, count)
        assert (seen.sum(1) == count).all()
        assert all(row[mask].min() >= row[~mask].max() for row, mask in zip(scores, seen, strict=True))
