"""What comes before a token in its conversation, with operations that all backends have.

Source: `ggml_compute_forward_ssm_conv_f32` of ggml.
"""

from __future__ import annotations

from collections.abc import Sequence

from ggufkit.runtime.ops import Array, Ops, Span

__all__ = ["convolved", "shifted"]


def convolved(ops: Ops, x: Array, weights: Array, bias: Array | None, spans: Sequence[Span], apart: int = 1) -> Array:
    """What `Ops.convolve` gives."""
    parts = []
    for span in spans:
        n, seen = span.hi - span.lo, _remembered(ops, x, span)
        y = seen[:n] * weights[0]
        for i in range(1, len(weights)):
            y = y + seen[i * apart : i * apart + n] * weights[i]
        parts.append(y if bias is None else y + bias)
    return parts[0] if len(parts) == 1 else ops.concatenate(parts)


def shifted(ops: Ops, x: Array, spans: Sequence[Span]) -> Array:
    """What `Ops.shifted` gives."""
    parts = [_remembered(ops, x, span)[: span.hi - span.lo] for span in spans]
    return parts[0] if len(parts) == 1 else ops.concatenate(parts)


def _remembered(ops: Ops, x: Array, span: Span) -> Array:
    """Rows of a conversation with those before them that its state has; the last of them are its state then."""
    arrays = span.cache.arrays
    seen = ops.concatenate([arrays[0], x[span.lo : span.hi]])
    arrays[0] = ops.copy(seen[span.hi - span.lo :])
    return seen
