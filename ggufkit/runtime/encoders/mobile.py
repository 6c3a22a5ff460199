"""MobileNet V5: convolutions over a picture that becomes smaller from stage to stage, and attention in the last ones.

    pixels ─ convolution ─ stages of blocks ─┬─ of the last two both ─ network ─ 16 × 16 places ─ steps ─► rows
                                             ┘

Source: tools/mtmd/models/mobilenetv5.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np

from ggufkit.arch.hyperparameters import Keys
from ggufkit.arch.tower import Mobile
from ggufkit.errors import UsageError
from ggufkit.media.pictures import normalized
from ggufkit.runtime.encoders.colours import colours_of
from ggufkit.runtime.encoders.conformer import softmax
from ggufkit.runtime.encoders.convolutions import around
from ggufkit.runtime.encoders.layout import layout_of
from ggufkit.runtime.encoders.steps import load_steps, through
from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.ops import Array, Linear, Norm, Ops
from ggufkit.runtime.seen import Seen
from ggufkit.tensors.views import matrix

__all__ = ["MobileEncoder"]

_EPSILON = 1e-6
_STAGES = 4
_PLACES = 16  # of a side at the end

Shape = tuple[int, int]  # of a picture: rows and columns of places
Layer = Callable[[Array, Shape], tuple[Array, Shape]]


class MobileEncoder:
    """The encoder of an open file.

    Parameters
    ----------
    load : the file's tensors.
    keys : of ``clip.vision``.
    tower : what it computes.

    Attributes
    ----------
    layout : makes pictures of an image: text and pixels, see `layout_of`.
    width : numbers of a row for the language model.

    Raises
    ------
    ArchitectureError : a tensor or key is missing, or has another shape or range.
    """

    def __init__(self, load: Tensors, keys: Keys, tower: Mobile):
        self.ops, self._load = load.ops, load
        own = keys.count("embedding_length", most=1 << 16)
        self.width = keys.count("projection_dim", most=1 << 17)
        self.layout = layout_of(tower, keys, 1, 1)
        self.mean, self.std = (colours_of(keys, name) for name in ("image_mean", "image_std"))
        self._stem, channels = self._convolution("v.conv_stem.conv", "v.conv_stem.bn", 3, 2, active=True)
        self._stages: list[list[Layer]] = []
        widths = []
        for stage in range(_STAGES):
            layers: list[Layer] = []
            for i in count():
                if not any(name.startswith(f"v.blk.{stage}.{i}.") for name in load.tensors):
                    break
                layer, channels = self._block(f"v.blk.{stage}.{i}.", channels, 1 if i else 2)
                layers.append(layer)
            if not layers:
                raise load.fail(f"the tensors v.blk.{stage}.0 are missing; the model cannot be run without them")
            self._stages.append(layers)
            widths.append(channels)
        self._widen, channels = self._convolution(
            "v.msfa.ffn.pw_exp.conv", "v.msfa.ffn.pw_exp.bn", sum(widths[-2:]), 1, active=True
        )
        self._narrow, channels = self._convolution("v.msfa.ffn.pw_proj.conv", "v.msfa.ffn.pw_proj.bn", channels, 1)
        if channels != own:
            raise load.fail(f"v.msfa.ffn.pw_proj.conv.weight gives {channels} numbers, and embedding_length is {own}")
        self._norm = load.norm_of("rms", "v.msfa.norm", own, _EPSILON)
        self._project = load_steps(load, tower.project, own, self.width, _EPSILON)
        load.taken.update(name for name in tower.unread if load.has(name))

    def encode(self, pixels: np.ndarray) -> Seen:
        """What the language model gets of a picture, (height, width, 3) uint8.

        Raises
        ------
        UsageError : it does not become 16 × 16 places.
        """
        ops = self.ops
        numbers = normalized(pixels, self.mean, self.std)
        x, shape = ops.vector(np.ascontiguousarray(numbers.transpose(1, 2, 0)).reshape(-1, 3)), pixels.shape[:2]
        x, shape = self._stem(x, shape)
        kept = []
        for layers in self._stages:
            for layer in layers:
                x, shape = layer(x, shape)
            kept.append((x, shape))
        (first, shape), (second, smaller) = kept[-2:]
        times = shape[0] // smaller[0]
        side = shape[0] // _PLACES
        if shape[0] != shape[1] or smaller[0] * times != shape[0] or side * _PLACES != shape[0]:
            raise UsageError(f"a picture of {pixels.shape[1]} × {pixels.shape[0]} pixels has not 16 × 16 places")
        at = np.arange(smaller[0] * smaller[1]).reshape(smaller).repeat(times, 0).repeat(times, 1).reshape(-1)
        x = ops.joined([first, ops.pick(second, at)])
        for layer in (self._widen, self._narrow):
            x, _ = layer(x, shape)
        grid = ops.numpy(x).reshape(_PLACES, side, _PLACES, side, -1).mean(axis=(1, 3), dtype=np.float32)
        x = ops.vector(np.ascontiguousarray(grid.reshape(_PLACES**2, -1)))
        if self._norm is not None:
            x = ops.norm(x, self._norm)
        return Seen(ops.numpy(through(self._project, x)), grid=(_PLACES, _PLACES))

    # -- layers -----------------------------------------------------------------------------------------------

    def _block(self, at: str, channels: int, step: int) -> tuple[Layer, int]:
        """A block's layer, and how many numbers a place has behind it."""
        load = self._load
        if load.has(f"{at}conv_exp.weight"):
            first, inner = self._convolution(f"{at}conv_exp", f"{at}bn1", channels, step, active=True)
            second, out = self._convolution(f"{at}conv_pwl", f"{at}bn2", inner, 1)
            return _added([first, second], None, step == 1 and out == channels), out
        if load.has(f"{at}attn.query.proj.weight"):
            return self._attention(at, channels), channels
        layers, inner = [], channels
        if load.has(f"{at}dw_start.conv.weight"):
            layers.append(self._own(f"{at}dw_start.conv", f"{at}dw_start.bn", inner, 1))
        if load.has(f"{at}pw_exp.conv.weight"):
            layer, inner = self._convolution(f"{at}pw_exp.conv", f"{at}pw_exp.bn", inner, 1, active=True)
            layers.append(layer)
        if load.has(f"{at}dw_mid.conv.weight"):
            layers.append(self._own(f"{at}dw_mid.conv", f"{at}dw_mid.bn", inner, step, active=True))
            reduced = step > 1
        else:
            reduced = False
        layer, inner = self._convolution(f"{at}pw_proj.conv", f"{at}pw_proj.bn", inner, 1)
        return _added([*layers, layer], self._gain(at, inner), not reduced and inner == channels), inner

    def _gain(self, at: str, width: int) -> Array | None:
        name = f"{at}layer_scale.gamma"
        if not self._load.has(name):
            return None
        shape = (width, 1, 1) if len(self._load.tensors[name].shape) > 1 else (width,)
        return self.ops.vector(self._load.numbers(name, *shape).reshape(1, -1))

    def _convolution(self, name: str, norm: str, channels: int, step: int, active: bool = False) -> tuple[Layer, int]:
        """Over squares of places, as large as the tensor has them."""
        load, ops = self._load, self.ops
        numbers = load.numbers(f"{name}.weight", -1, channels, -1, -1)  # (rows, channels, side, side)
        rows, side = len(numbers), numbers.shape[2]
        flat = np.ascontiguousarray(numbers.transpose(0, 2, 3, 1)).reshape(rows, -1)
        bias = None
        if load.has(f"{name}.bias"):
            bias = ops.vector(load.numbers(f"{name}.bias", rows, 1, 1).reshape(rows))
        linear = Linear(ops.weight(matrix(f"{name}.weight", flat)), f"{name}.weight", rows, flat.shape[1], bias)
        weights = load.norm_of("rms", norm, rows, _EPSILON)

        def run(x: Array, shape: Shape) -> tuple[Array, Shape]:
            found = shape
            if side > 1 or step > 1:
                places, found = around(shape, side, step)
                x = ops.pick(ops.concatenate([x, ops.zeros(1, channels)]), places.reshape(-1))
                x = x.reshape(len(places), -1)
            (x,) = ops.linear(x, linear)
            return _finished(ops, x, weights, active), found

        return run, rows

    def _own(self, name: str, norm: str, channels: int, step: int, active: bool = False) -> Layer:
        """Each number with those of the places around."""
        load, ops = self._load, self.ops
        numbers = load.numbers(f"{name}.weight", channels, 1, -1, -1)
        side = numbers.shape[2]
        taps = ops.vector(np.ascontiguousarray(numbers.reshape(channels, -1).T))  # (side², channels)
        weights = load.norm_of("rms", norm, channels, _EPSILON)

        def run(x: Array, shape: Shape) -> tuple[Array, Shape]:
            places, found = around(shape, side, step)
            whole = ops.concatenate([x, ops.zeros(1, channels)])
            y = ops.pick(whole, places[:, 0]) * taps[0:1]
            for i in range(1, side**2):
                y = ops.add(y, ops.pick(whole, places[:, i]) * taps[i : i + 1])
            return _finished(ops, y, weights, active), found

        return run

    def _attention(self, at: str, channels: int) -> Layer:
        """All heads have one head of keys and values, which are of every other place."""
        load, ops = self._load, self.ops
        norm = load.norm_of("rms", f"{at}norm", channels, _EPSILON)
        query, width = self._convolution(f"{at}attn.query.proj", "", channels, 1)
        sides, sizes = [], []
        for kind in ("key", "value"):
            layers: list[Layer] = []
            if load.has(f"{at}attn.{kind}.down_conv.weight"):
                layers.append(self._own(f"{at}attn.{kind}.down_conv", f"{at}attn.{kind}.norm", channels, 2))
            layer, head = self._convolution(f"{at}attn.{kind}.proj", "", channels, 1)
            sides.append([*layers, layer])
            sizes.append(head)
        head = sizes[0]
        if sizes[1] != head or width % head:
            raise load.fail(f"{at}attn.query.proj.weight has {width} rows, which are no heads of {head} and {sizes[1]}")
        out, _ = self._convolution(f"{at}attn.output.proj", "", width, 1)
        gain = self._gain(at, channels)

        def run(x: Array, shape: Shape) -> tuple[Array, Shape]:
            y = x if norm is None else ops.norm(x, norm)
            q = ops.numpy(query(y, shape)[0]).reshape(len(x), -1, head)
            k, v = (ops.numpy(_through(layers, y, shape)) for layers in sides)
            scores = np.einsum("nhd,md->hnm", q, k, optimize=True) * np.float32(head**-0.5)
            found = np.matmul(softmax(scores), v).transpose(1, 0, 2).reshape(len(x), -1)
            z, _ = out(ops.vector(np.ascontiguousarray(found, np.float32)), shape)
            return ops.add(z if gain is None else z * gain, x), shape

        return run


def _through(layers: list[Layer], x: Array, shape: Shape) -> Array:
    for layer in layers:
        x, shape = layer(x, shape)
    return x


def _finished(ops: Ops, x: Array, norm: Norm | None, active: bool) -> Array:
    if norm is not None:
        x = ops.norm(x, norm)
    return ops.activate(None, x, "gelu") if active else x


def _added(layers: list[Layer], gain: Array | None, same: bool) -> Layer:
    """One layer behind the other; what comes in is added if it has the `same` shape."""

    def run(x: Array, shape: Shape) -> tuple[Array, Shape]:
        y, found = x, shape
        for layer in layers:
            y, found = layer(y, found)
        if gain is not None:
            y = y * gain
        return (y + x if same else y), found

    return run
