"""Gradients of every architecture that runs, against finite differences; attention and activations against float64."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import RECIPES, write_tiny

from ggufkit.calibrate.attention import attend, attend_back
from ggufkit.calibrate.elementwise import ACTIVATION_GRADIENTS, gelu
from ggufkit.calibrate.matrix import Matrix
from ggufkit.calibrate.passes import hidden, scored
from ggufkit.calibrate.recurrence import delta_back
from ggufkit.calibrate.tape import Tape
from ggufkit.errors import ArchitectureError
from ggufkit.runtime.cpu.ops import CpuOps
from ggufkit.runtime.model import load
from ggufkit.runtime.ops import AttentionSpec, Norm, Span


class _Embedded:
    """Keeps the gradient of looked up rows."""

    gradient: np.ndarray | None = None

    def met(self, x, linears):
        pass

    def met_experts(self, x, chosen, linears):
        pass

    def returned(self, linear, gradient, chosen=None):
        assert gradient.shape[1] == linear.rows

    def passed(self, linear, x, gradient):
        assert x.shape == gradient.shape

    def normed(self, norm, unit, gradient):
        assert unit.shape == gradient.shape

    def embedded(self, weight, ids, gradient):
        if weight.name == "token_embd.weight":
            self.gradient = gradient


class _Smooth(CpuOps):
    """Without GELU's table of float16, and with the experts noted that were chosen."""

    def __init__(self):
        super().__init__(1)
        self.chosen: list[bytes] = []

    def activate(self, gate, up, activation):
        if activation != "gelu":
            return super().activate(gate, up, activation)
        return gelu(up) if gate is None else gelu(gate) * up

    def choose(self, scores, experts):
        chosen, weights = super().choose(scores, experts)
        self.chosen.append(chosen.tobytes())
        return chosen, weights


# Of what these compute calibration knows no gradient, and says so.
UNKNOWN = {"bailingmoe3", "dots3note", "hy_v4", "hy_v4+index", "k2-horizon", "minimax-m3+all", "minimax-m3+few"}
UNKNOWN |= {"qwen4exp", *(name for name in RECIPES if "rwkv" in name)}


@pytest.mark.parametrize("name", sorted(UNKNOWN))
def test_architectures_without_gradients_say_so(tmp_path, name):
    write_tiny(tmp_path / "tiny.gguf", name)
    refused = pytest.raises(ArchitectureError, match="cannot be calibrated")
    with load(tmp_path / "tiny.gguf", backend=Tape(_Embedded(), threads=1)) as model, refused:
        hidden(model, np.full((1, 8), 7, np.int32))


# Chameleon's logits are huge.
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in {*UNKNOWN, "chameleon"}])
def test_gradient_of_every_architecture(tmp_path, monkeypatch, name):
    """dL along a direction of the embeddings is what the gradient says, L a random mix of all outputs."""
    write_tiny(tmp_path / "tiny.gguf", name, format="F32")
    watch = _Embedded()
    tape = Tape(watch, threads=1)
    tape.cpu = _Smooth()
    rng = np.random.default_rng(1)
    plain = Matrix.rows
    nudge = np.float32(0)
    direction = np.float32(0)

    def rows(self, ids):
        found = plain(self, ids)
        return found + nudge * direction if self.name == "token_embd.weight" else found

    monkeypatch.setattr(Matrix, "rows", rows)
    with load(tmp_path / "tiny.gguf", backend=tape) as model:
        windows = rng.integers(0, model.vocabulary, (2, 12)).astype(np.int32)

        def outputs():
            tape.cpu.chosen = []
            x = hidden(model, windows)
            return x if model.weights.output is None else scored(model, x)

        y = outputs()
        chosen = tape.cpu.chosen
        mix = rng.standard_normal(y.shape).astype(np.float32)
        y.grad = mix
        tape.back()
        gradient = watch.gradient
        direction = rng.standard_normal(gradient.shape) * np.abs(plain(model.weights.embedding, windows[0])).mean()
        direction = direction.astype(np.float32)
        for size in (1e-3, 3e-4, 1e-4):  # small enough that the same experts are chosen
            found, same = [], True
            for nudge in (np.float32(size), np.float32(-size)):  # noqa: B007
                found.append(float((outputs().value.astype(np.float64) * mix).sum()))
                same = same and tape.cpu.chosen == chosen
            if same:
                break
        expected = float((gradient.astype(np.float64) * direction).sum())
    noise = float(np.linalg.norm(gradient * direction))
    assert same
    assert (found[0] - found[1]) / (2 * size) == pytest.approx(expected, rel=2e-2, abs=5e-2 * noise)


@pytest.mark.parametrize("spec", [
    AttentionSpec(4, 2, 8, 8, 0.35),
    AttentionSpec(4, 4, 8, 6, 0.35, cap=2.0, window=5),
    AttentionSpec(6, 2, 8, 8, 0.35, causal=False),
    AttentionSpec(4, 2, 8, 8, 0.35, sinks=np.array([0.3, -1, 2, 0], np.float32)),
])  # fmt: skip
def test_attention(spec):
    rng = np.random.default_rng(0)
    n = 11
    q = rng.standard_normal((n, spec.heads * spec.head_k)).astype(np.float32)
    k = rng.standard_normal((n, spec.kv_heads * spec.head_k)).astype(np.float32)
    v = rng.standard_normal((n, spec.kv_heads * spec.head_v)).astype(np.float32)
    mix = rng.standard_normal((n, spec.heads * spec.head_v)).astype(np.float32)
    spans = [Span(0, 7, 0, None), Span(7, n, 0, None)]
    gradients = list(attend_back(q, k, v, mix, spans, spec, 1))
    inputs = [q, k, v]
    for i, gradient in enumerate(gradients):
        direction = rng.standard_normal(gradient.shape).astype(np.float32)
        found = []
        for nudge in (1e-2, -1e-2):
            moved = [x + np.float32(nudge) * direction if j == i else x for j, x in enumerate(inputs)]
            found.append(float((attend(*moved, spans, spec, 1).astype(np.float64) * mix).sum()))
        assert (found[0] - found[1]) / 2e-2 == pytest.approx(float((gradient * direction).sum()), rel=5e-3, abs=5e-3)


ALWAYS_GATED, NEVER_GATED = {"swiglu_oai"}, {"sigmoid", "softplus"}


@pytest.mark.parametrize(("activation", "gated"), [
    (activation, gated)
    for activation in ACTIVATION_GRADIENTS
    for gated in (False, True)
    if activation not in (NEVER_GATED if gated else ALWAYS_GATED)
])  # fmt: skip
def test_activations(activation, gated):
    rng = np.random.default_rng(0)
    gate, up = rng.standard_normal((2, 8, 32)).astype(np.float32)
    gate = gate * np.float32(3) if gated else None
    ops, step = _Smooth(), np.float32(2e-2)
    for_gate, for_up = ACTIVATION_GRADIENTS[activation](gate, up)
    slope = (ops.activate(gate, up + step, activation) - ops.activate(gate, up - step, activation)) / (2 * step)
    smooth = (np.abs(up) > step) if activation == "relu" and not gated else np.ones(up.shape, bool)
    np.testing.assert_allclose(slope[smooth], for_up[smooth], atol=0.02, rtol=0.02)
    if gate is not None:
        slope = (ops.activate(gate + step, up, activation) - ops.activate(gate - step, up, activation)) / (2 * step)
        smooth = np.abs(gate) > step if activation.startswith("relu") else np.abs(gate - 7) > step
        np.testing.assert_allclose(slope[smooth], for_gate[smooth], atol=0.03, rtol=0.03)


@pytest.mark.parametrize("alike", [True, False])
def test_gradients_of_the_delta_rule(alike):
    """Against differences of a forward pass in float64, for every input."""
    rng = np.random.default_rng(4)
    n, heads, dk, dv = 5, 2, 4, 3
    inputs = [rng.standard_normal((n, heads, size)) for size in (dk, dk, dv)]
    inputs += [-np.abs(rng.standard_normal((n, heads, 1 if alike else dk))), rng.random((n, heads))]
    mix = rng.standard_normal((n, heads, dv))

    def loss(q, k, v, decay, beta):
        S, total = np.zeros((heads, dk, dv)), 0.0
        for t in range(n):
            S = S * np.exp(decay[t])[:, :, None]
            u = beta[t][:, None] * (v[t] - np.einsum("hij,hi->hj", S, k[t]))
            S = S + k[t][:, :, None] * u[:, None]
            total += (np.einsum("hij,hi->hj", S, q[t]) * mix[t]).sum()
        return total

    found = delta_back(*(x.astype(np.float32) for x in inputs), mix.astype(np.float32))
    for i, gradient in enumerate(found):
        direction = rng.standard_normal(inputs[i].shape)
        ends = [loss(*inputs[:i], inputs[i] + size * direction, *inputs[i + 1 :]) for size in (1e-6, -1e-6)]
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((gradient * direction).sum()), rel=1e-3, abs=1e-4)


def test_gradient_of_division_by_length():
    tape = Tape(threads=1)
    x = np.random.default_rng(5).standard_normal((3, 8)).astype(np.float32)
    x[1] = 0  # shorter than the least length
    mix = np.random.default_rng(6).standard_normal((3, 8)).astype(np.float32)
    node = tape.node(x, lambda g: None)
    norm = Norm("l2", 1e-6, 4, np.ones((1, 4), np.float32))
    tape.norm(node, norm).grad = mix
    y, back = tape._steps.pop()
    back(y.grad)
    for row, col in ((0, 1), (2, 6), (0, 7)):
        ends = []
        for step in (1e-5, -1e-5):
            moved = x.astype(np.float64)
            moved[row, col] += step
            heads = moved.reshape(3, 2, 4)
            ends.append(heads / np.linalg.norm(heads, axis=-1, keepdims=True).clip(1e-6))
        expected = ((ends[0] - ends[1]).reshape(3, 8) * mix).sum() / 2e-5
        assert node.grad[row, col] == pytest.approx(expected, rel=1e-2, abs=1e-4)
