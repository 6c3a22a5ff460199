"""Two encoders of images, one behind the other: SAM, and CLIP over the rows that it gives.

Of tiles llama.cpp takes other positions than the authors, whose are taken here.

Source: tools/mtmd/models/deepseekocr.cpp of llama.cpp; deepencoder/clip_sdpa.py of DeepSeek-OCR.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ggufkit.arch.hyperparameters import Keys
from ggufkit.arch.tower import Twofold
from ggufkit.media.pictures import normalized
from ggufkit.runtime.encoders.blocks import Whole, attention_spec, load_encoder_block, read_sizes
from ggufkit.runtime.encoders.colours import colours_of
from ggufkit.runtime.encoders.grid import interpolated
from ggufkit.runtime.encoders.layout import layout_of
from ggufkit.runtime.encoders.sam import PATCH, Sam
from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.ops import Array
from ggufkit.runtime.seen import Seen

__all__ = ["TwofoldEncoder"]

_EPSILON = 1e-5  # of CLIP, which the file does not say


class TwofoldEncoder:
    """The encoders of an open file.

    Parameters
    ----------
    load : the file's tensors.
    keys : of ``clip.vision``.
    tower : what they compute.

    Attributes
    ----------
    layout : makes pictures of an image: text and pixels, see `layout_of`.
    width : numbers of a row for the language model.

    Raises
    ------
    ArchitectureError : a tensor or key is missing, or has another shape or range.
    """

    def __init__(self, load: Tensors, keys: Keys, tower: Twofold):
        self.ops, self.tower = load.ops, tower
        sizes = read_sizes(keys, "gelu_quick")
        self.width, activation = sizes.out, sizes.activation
        inner = load.tensor("v.blk.0.ffn_up.weight", -1, sizes.width).rows  # the key has another number
        self._sizes = sizes = replace(sizes, inner=inner, epsilon=_EPSILON, activation="gelu_quick")
        self.layout = layout_of(tower, keys, PATCH, 4)
        self.mean, self.std = (colours_of(keys, name) for name in ("image_mean", "image_std"))
        self._sam = Sam(load, keys, sizes.width, activation)
        table = load.numbers("v.position_embd.weight", -1, sizes.width)
        if round(len(table) ** 0.5) ** 2 != len(table) - 1:
            raise load.fail(f"v.position_embd.weight has {len(table)} rows, which are no square and one")
        self._positions = table[1:]
        self._extra = load.ops.vector(load.vector("v.class_embd", sizes.width).reshape(1, -1) + table[:1])
        self._first_norm = load.norm_of("layer", "v.pre_ln", sizes.width, sizes.epsilon)
        self._spec = attention_spec(sizes)
        self._blocks = [
            load_encoder_block(load, f"v.blk.{i}.", sizes, "layer", None, self._spec) for i in range(sizes.layers)
        ]
        load.taken.add("v.patch_embd.weight")  # which it does without
        self._project = load.linear("mm.model.fc", sizes.out, 2 * sizes.width)
        self._row_end, self._image_end = (
            load.numbers(f"v.{name}", 1, sizes.out) for name in ("image_newline", "view_seperator")
        )

    def encode(self, pixels: np.ndarray) -> Seen:
        """What the language model gets of a row of square tiles or the whole image, (height, width, 3) uint8."""
        numbers = normalized(pixels, self.mean, self.std)
        side = numbers.shape[1]
        squares = [self._rows(numbers[:, :, x : x + side]) for x in range(0, numbers.shape[2], side)]
        grid = np.concatenate(squares, axis=1)  # (n, n · squares, width)
        ends = np.broadcast_to(self._row_end, (len(grid), 1, self.width))
        rows = np.concatenate([grid, ends], axis=1).reshape(-1, self.width)
        if side == self.tower.fit.base:
            rows = np.concatenate([rows, self._image_end])
        return Seen(np.ascontiguousarray(rows))

    def _rows(self, numbers: np.ndarray) -> np.ndarray:
        """Of one square: (n, n, width)."""
        ops = self.ops
        seen, n = self._sam.run(np.ascontiguousarray(numbers))
        x: Array = ops.add(ops.copy(seen), ops.vector(interpolated(self._positions, n, n, "smooth cubic")))
        x = ops.concatenate([x, self._extra])
        if self._first_norm is not None:
            x = ops.norm(x, self._first_norm)
        whole = Whole(ops, self._spec, [len(x)], None)
        for block in self._blocks:
            x = block.run(x, whole)
        both = np.concatenate([ops.numpy(x)[:-1], ops.numpy(seen)], axis=1)
        (y,) = ops.linear(ops.vector(both), self._project)
        found: np.ndarray = ops.numpy(y).reshape(n, n, -1)
        return found
