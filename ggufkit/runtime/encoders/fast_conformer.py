"""NeMo's encoder of sound, in LFM2-Audio, as `arch.tower.FastConformer` describes it.

    mel spectrogram ─ three convolutions ─ matrix ─ block × layers ─ project ─► rows

    x ─┬─ FFN / 2 ─ + ─┬─ attention ─ + ─┬─ gate ─ convolution over time ─ + ─┬─ FFN / 2 ─ + ─ norm ─
       └───────────────┘└────────────────┘└───────────────────────────────────┘└────────────┘

Source: tools/mtmd/models/conformer.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ggufkit.arch.hyperparameters import Keys
from ggufkit.arch.tower import FastConformer
from ggufkit.media.sounds import even_log_mel
from ggufkit.runtime.encoders.blocks import Sizes, read_sizes
from ggufkit.runtime.encoders.conformer import Half, softmax
from ggufkit.runtime.encoders.convolutions import along, halved, halved_each, load_square, load_taps
from ggufkit.runtime.encoders.steps import load_steps, through
from ggufkit.runtime.feed_forward import FeedForward
from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.ops import Array, Linear, Norm, Ops
from ggufkit.runtime.seen import Seen
from ggufkit.tensors.views import reshaped

__all__ = ["FastConformerEncoder"]

_EPSILON = 1e-5
_TAPS = 9  # of the convolution over time
_AT_ONCE = 128  # queries
_SEPARATE = ((2, 3), (5, 6))  # numbers of the convolutions of each channel, and across them


class FastConformerEncoder:
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

    def __init__(self, load: Tensors, keys: Keys, conformer: FastConformer):
        self.ops, self.ear = load.ops, conformer
        self.sizes = sizes = read_sizes(keys, "silu", named=False)
        self.width, self._bins = sizes.out, keys.count("num_mel_bins", most=1 << 10)
        self._first = load_square(load, "a.conv1d.0", 1)
        channels, height = self._first.rows, -(-self._bins // 2)
        self._front = []
        for each, across in _SEPARATE:
            taps = load.numbers(f"a.conv1d.{each}.weight", channels, 1, 3, 3).reshape(channels, 9)
            bias = load.numbers(f"a.conv1d.{each}.bias", channels, 1, 1).reshape(1, channels)
            vectors = load.ops.vector(np.ascontiguousarray(taps.T)), load.ops.vector(bias)
            self._front.append((*vectors, _point(load, f"a.conv1d.{across}", channels)))
            height = -(-height // 2)
        self._enter = load.linear("a.pre_encode.out", sizes.width, channels * height)
        self._blocks = [_load_block(load, f"a.blk.{i}.", sizes) for i in range(sizes.layers)]
        self._project = load_steps(load, conformer.project, sizes.width, sizes.out, _EPSILON)
        load.taken.update(name for name in conformer.unread if load.has(name))

    def pieces(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """The spectrogram of all of it, (bins, frames) float32."""
        yield even_log_mel(samples, self._bins)

    def encode(self, mel: np.ndarray) -> Seen:
        """What the language model gets of a spectrogram, (bins, frames) float32."""
        ops = self.ops
        x, shape = ops.vector(np.ascontiguousarray(mel.T).reshape(-1, 1)), (mel.shape[1], mel.shape[0])
        x, shape = halved(ops, x, shape, self._first)
        x = ops.activate(None, x, "relu")
        for taps, bias, across in self._front:
            x, shape = halved_each(ops, x, shape, taps)
            (x,) = ops.linear(ops.add(x, bias), across)
            x = ops.activate(None, x, "relu")
        (x,) = ops.linear(x.reshape(*shape, -1).transpose(0, 2, 1).reshape(shape[0], -1), self._enter)
        waves = _waves(len(x), self.sizes.width)
        for block in self._blocks:
            x = block.run(ops, x, waves)
        return Seen(ops.numpy(through(self._project, x)))


@dataclass(frozen=True)
class _Attention:
    """softmax((q + u) · k + (q + v) · r) v, by √head, where r are vectors of distances.

    Attributes
    ----------
    near, far : (heads, head): u and v.
    places : makes vectors of distances of their waves.
    """

    q: Linear
    k: Linear
    v: Linear
    out: Linear
    near: np.ndarray
    far: np.ndarray
    places: Linear

    def run(self, ops: Ops, x: Array, waves: np.ndarray) -> Array:
        heads, head = self.near.shape
        n = len(x)
        q, k, v = (ops.numpy(part).reshape(n, heads, head) for part in ops.linear(x, self.q, self.k, self.v))
        (places,) = ops.linear(ops.vector(waves), self.places)
        r = ops.numpy(places).reshape(2 * n - 1, heads, head).transpose(1, 2, 0)  # (heads, head, distances)
        k, v = k.transpose(1, 2, 0), v.transpose(1, 0, 2)
        found = np.empty((n, heads, head), np.float32)
        for lo in range(0, n, _AT_ONCE):
            rows = np.arange(lo, min(n, lo + _AT_ONCE))
            scores = (q[rows] + self.near).transpose(1, 0, 2) @ k  # (heads, rows, n)
            away = (q[rows] + self.far).transpose(1, 0, 2) @ r
            columns = n - 1 - rows[:, None] + np.arange(n)
            scores += np.take_along_axis(away, np.broadcast_to(columns, (heads, *columns.shape)), axis=2)
            scores /= np.float32(math.sqrt(head))
            weights = softmax(scores)
            found[rows] = (weights @ v).transpose(1, 0, 2)
        (y,) = ops.linear(ops.vector(found.reshape(n, -1)), self.out)
        return y


@dataclass(frozen=True)
class _OverTime:
    """A gate, then each number with its own of the rows around, (taps, width) weights of them, scaled and shifted."""

    norm: Norm
    start: Linear
    taps: Array
    bias: Array
    factor: Array
    shift: Array
    end: Linear

    def run(self, ops: Ops, x: Array) -> Array:
        (y,) = ops.linear(ops.norm(x, self.norm), self.start)
        y = ops.gated(*ops.halves(y, 1))
        edge = ops.zeros(_TAPS // 2, y.shape[1])
        padded = ops.concatenate([edge, y, edge])
        y = along(ops, padded, self.taps)
        y = (y + self.bias) * self.factor + self.shift
        (y,) = ops.linear(ops.activate(None, y, "silu"), self.end)
        return y


@dataclass(frozen=True)
class _Block:
    first: Half
    attention_norm: Norm
    attention: _Attention
    over_time: _OverTime
    second: Half
    norm: Norm

    def run(self, ops: Ops, x: Array, waves: np.ndarray) -> Array:
        x = self.first.run(ops, x)
        x = ops.add(self.attention.run(ops, ops.norm(x, self.attention_norm), waves), x)
        x = ops.add(self.over_time.run(ops, x), x)
        return ops.norm(self.second.run(ops, x), self.norm)


def _load_block(load: Tensors, at: str, sizes: Sizes) -> _Block:
    width = sizes.width
    head = width // sizes.heads

    def norm(name: str) -> Norm:
        if (found := load.norm_of("layer", f"{at}{name}", width, _EPSILON)) is None:
            raise load.fail(f"the tensor {at}{name}.weight is missing; the encoder cannot be run without it")
        return found

    def row(name: str) -> Array:
        return load.ops.vector(load.vector(f"{at}{name}", width).reshape(1, width))

    def half(end: str) -> Half:
        up = load.linear(f"{at}ffn_up{end}", -1, width)  # of which the file's feed_forward_length says nothing
        down = load.linear(f"{at}ffn_down{end}", width, up.rows)
        return Half(norm(f"ffn_norm{end}"), FeedForward(None, up, down, "silu"), None)

    q, k, v, out = (load.linear(f"{at}attn_{name}", width, width) for name in ("q", "k", "v", "out"))
    attention = _Attention(
        q=q,
        k=k,
        v=v,
        out=out,
        near=load.numbers(f"{at}pos_bias_u", sizes.heads, head),
        far=load.numbers(f"{at}pos_bias_v", sizes.heads, head),
        places=load.linear(f"{at}linear_pos", width, width),
    )
    over_time = _OverTime(
        norm=norm("norm_conv"),
        start=load.linear(f"{at}conv_pw1", 2 * width, width),
        taps=load_taps(load, f"{at}conv_dw.weight", width, _TAPS),
        bias=row("conv_dw.bias"),
        factor=row("conv_norm.weight"),
        shift=row("conv_norm.bias"),
        end=load.linear(f"{at}conv_pw2", width, width),
    )
    return _Block(half(""), norm("ln1"), attention, over_time, half("_1"), norm("ln2"))


def _point(load: Tensors, name: str, channels: int) -> Linear:
    """A convolution of one place, across channels."""
    tensor = reshaped(load.tensor(f"{name}.weight", channels, channels, 1, 1), (channels, channels))
    bias = load.ops.vector(load.numbers(f"{name}.bias", channels, 1, 1).reshape(channels))
    return Linear(load.ops.weight(tensor), f"{name}.weight", channels, channels, bias)


def _waves(n: int, width: int) -> np.ndarray:
    """Sines and cosines, in turn, of distances n − 1 … 1 − n: (2 n − 1, width) float32."""
    rates = np.exp(-np.arange(0, width, 2) * (math.log(10000) / width))
    angles = np.arange(n - 1, -n, -1)[:, None] * rates
    return np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(2 * n - 1, width).astype(np.float32)
