"""Encoders of sound that look back a little: Gemma 4's, as `arch.tower.Conformer` describes them.

    mel spectrogram ─ two convolutions ─ matrix ─ block × layers ─ project ─► rows

    x ─┬─ FFN / 2 ─ + ─┬─ attention ─ + ─┬─ gate ─ convolution over time ─ + ─┬─ FFN / 2 ─ + ─ norm ─
       └───────────────┘└────────────────┘└───────────────────────────────────┘└────────────┘

Source: tools/mtmd/models/gemma4a.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ggufkit.arch.hyperparameters import Keys
from ggufkit.arch.tower import Conformer
from ggufkit.media.sounds import short_log_mel
from ggufkit.runtime.encoders.blocks import Sizes, read_sizes
from ggufkit.runtime.encoders.convolutions import along, halved, load_square, load_taps
from ggufkit.runtime.encoders.limits import with_limits
from ggufkit.runtime.encoders.steps import load_steps, through
from ggufkit.runtime.feed_forward import FeedForward
from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.ops import Array, Linear, Norm, Ops
from ggufkit.runtime.seen import Seen

__all__ = ["ConformerEncoder", "Half", "softmax"]

_EPSILON = 1e-6  # whatever the file says: early converters wrote another
_TAPS = 5  # of the convolution over time
_AT_ONCE = 256  # queries


class ConformerEncoder:
    """The encoder of an open file.

    Parameters
    ----------
    load : the file's tensors.
    keys : of ``clip.audio``.
    conformer : what it computes.

    Attributes
    ----------
    width : numbers of a row for the language model.

    Raises
    ------
    ArchitectureError : a tensor or key is missing, or has another shape or range.
    """

    def __init__(self, load: Tensors, keys: Keys, conformer: Conformer):
        load.ops = with_limits(load)
        self.ops, self.ear = load.ops, conformer
        self.sizes = sizes = read_sizes(keys, "silu", named=False)
        self.width, self._bins = sizes.out, keys.count("num_mel_bins", most=1 << 10)
        self._front, channels = [], 1
        for i in range(2):
            convolution = load_square(load, f"a.conv1d.{i}", channels)
            channels = convolution.rows
            norm = load.norm_of("layer", f"a.conv1d.{i}.norm", channels, _EPSILON)
            self._front.append((convolution, norm))
        left = math.ceil(math.ceil(self._bins / 2) / 2)
        self._enter = load.linear("a.input_projection", sizes.width, left * channels)
        self._blocks = [_load_block(load, f"a.blk.{i}.", sizes, conformer) for i in range(sizes.layers)]
        self._project = load_steps(load, conformer.project, sizes.width, sizes.out, _EPSILON)

    def pieces(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """Spectrograms of up to half a minute each, (bins, frames) float32."""
        return short_log_mel(samples, self._bins)

    def encode(self, mel: np.ndarray) -> Seen:
        """What the language model gets of a spectrogram, (bins, frames) float32."""
        ops = self.ops
        x, shape = ops.vector(np.ascontiguousarray(mel.T).reshape(-1, 1)), (mel.shape[1], mel.shape[0])
        for convolution, norm in self._front:
            x, shape = halved(ops, x, shape, convolution)
            x = ops.activate(None, x if norm is None else ops.norm(x, norm), "relu")
        (x,) = ops.linear(x.reshape(shape[0], -1), self._enter)
        for block in self._blocks:
            x = block.run(ops, x)
        return Seen(ops.numpy(through(self._project, x)))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Weights of what is along the last axis."""
    weights: np.ndarray = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


@dataclass(frozen=True)
class Half:
    """A feed-forward network of which half is added."""

    norm: Norm
    network: FeedForward
    post_norm: Norm | None

    def run(self, ops: Ops, x: Array) -> Array:
        y = self.network.run(ops, ops.norm(x, self.norm))
        if self.post_norm is not None:
            y = ops.norm(y, self.post_norm)
        return ops.add(ops.scale(y, 0.5), x)


@dataclass(frozen=True)
class _Attention:
    """To a few rows back, each of which has a vector for how far it is: softmax(cap · tanh(q · (k + r) / cap)) v.

    Attributes
    ----------
    scales : of queries and keys, (head,) each.
    distances : (seen, heads, head): what is added to the keys of rows so far back.
    """

    q: Linear
    k: Linear
    v: Linear
    out: Linear
    scales: tuple[np.ndarray, np.ndarray]
    distances: np.ndarray
    cap: float

    def run(self, ops: Ops, x: Array) -> Array:
        seen, heads, head = self.distances.shape
        q, k, v = (ops.numpy(part).reshape(len(x), heads, head) for part in ops.linear(x, self.q, self.k, self.v))
        q, k = q * self.scales[0], k * self.scales[1]
        found = np.empty_like(q)
        for lo in range(0, len(x), _AT_ONCE):
            rows = np.arange(lo, min(len(x), lo + _AT_ONCE))
            places = rows[:, None] - np.arange(seen)  # (n, seen)
            keys = k[np.maximum(places, 0)] + self.distances  # (n, seen, heads, head)
            scores = self.cap * np.tanh(np.einsum("nhd,nshd->nhs", q[rows], keys) / np.float32(self.cap))
            scores = np.where(places[:, None] >= 0, scores, -np.inf)
            weights = softmax(scores)
            found[rows] = np.einsum("nhs,nshd->nhd", weights, v[np.maximum(places, 0)])
        (y,) = ops.linear(ops.vector(found.reshape(len(x), -1)), self.out)
        return y


@dataclass(frozen=True)
class _OverTime:
    """A gate, then each number with its own of the last few rows, (taps, width) weights of them."""

    norm: Norm
    start: Linear
    taps: Array
    inner_norm: Norm | None
    end: Linear

    def run(self, ops: Ops, x: Array) -> Array:
        (y,) = ops.linear(ops.norm(x, self.norm), self.start)
        y = ops.gated(*ops.halves(y, 1))
        padded = ops.concatenate([ops.zeros(_TAPS - 1, y.shape[1]), y])
        y = along(ops, padded, self.taps)
        if self.inner_norm is not None:
            y = ops.norm(y, self.inner_norm)
        (y,) = ops.linear(ops.activate(None, y, "silu"), self.end)
        return y


@dataclass(frozen=True)
class _Block:
    first: Half
    attention_norm: Norm
    attention: _Attention
    attention_post_norm: Norm | None
    over_time: _OverTime
    second: Half
    norm: Norm | None

    def run(self, ops: Ops, x: Array) -> Array:
        x = self.first.run(ops, x)
        y = self.attention.run(ops, ops.norm(x, self.attention_norm))
        x = ops.add(y if self.attention_post_norm is None else ops.norm(y, self.attention_post_norm), x)
        x = ops.add(self.over_time.run(ops, x), x)
        x = self.second.run(ops, x)
        return x if self.norm is None else ops.norm(x, self.norm)


def _load_block(load: Tensors, at: str, sizes: Sizes, conformer: Conformer) -> _Block:
    width, inner = sizes.width, sizes.inner

    def norm(name: str) -> Norm | None:
        return load.norm_of("rms", f"{at}{name}", width, _EPSILON)

    def needed(name: str) -> Norm:
        if (found := norm(name)) is None:
            raise load.fail(f"the tensor {at}{name}.weight is missing; the encoder cannot be run without it")
        return found

    def half(end: str) -> Half:
        up, down = load.linear(f"{at}ffn_up{end}", inner, width), load.linear(f"{at}ffn_down{end}", width, inner)
        return Half(needed(f"ffn_norm{end}"), FeedForward(None, up, down, "silu"), norm(f"ffn_post_norm{end}"))

    head = width // sizes.heads
    scales = [np.full(head, head**-0.5 / math.log(2), np.float32), np.full(head, math.log2(1 + math.e), np.float32)]
    for i, name in enumerate(("per_dim_scale", "per_dim_k_scale")):
        if load.has(f"{at}{name}.weight"):
            scales[i] = scales[i] * load.vector(f"{at}{name}.weight", head)
    turned = load.numbers(f"{at}attn_k_rel.weight", width, width)
    q, k, v, out = (load.linear(f"{at}attn_{name}", width, width) for name in ("q", "k", "v", "out"))
    attention = _Attention(
        q=q,
        k=k,
        v=v,
        out=out,
        scales=(scales[0], scales[1]),
        distances=(_waves(conformer.seen, width) @ turned.T).reshape(conformer.seen, sizes.heads, head),
        cap=conformer.cap,
    )
    over_time = _OverTime(
        norm=needed("conv_norm"),
        start=load.linear(f"{at}conv_pw1", 2 * width, width),
        taps=load_taps(load, f"{at}conv_dw.weight", width, _TAPS),
        inner_norm=norm("norm_conv"),
        end=load.linear(f"{at}conv_pw2", width, width),
    )
    before = needed("attn_pre_norm" if load.has(f"{at}attn_pre_norm.weight") else "ln1")
    return _Block(half(""), before, attention, norm("attn_post_norm"), over_time, half("_1"), norm("ln2"))


def _waves(count: int, width: int) -> np.ndarray:
    """Sines and cosines of 0 … count − 1: (count, width) float32."""
    rates = np.exp(-np.arange(width // 2) * (math.log(10000) / max(width // 2 - 1, 1)))
    angles = np.arange(count)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
