"""SAM, and behind it blocks of a language model, which read its rows and then as many learned queries.

    rows of SAM ─┐ see each other
    queries ─────┴ see all rows and the queries before them ─ norm ─ matrix ─► rows for the language model

Source: tools/mtmd/models/deepseekocr2.cpp of llama.cpp.
"""

from __future__ import annotations

import numpy as np

from ggufkit.arch.hyperparameters import Keys, RopeScaling
from ggufkit.arch.tower import Queried
from ggufkit.errors import UsageError
from ggufkit.media.pictures import normalized
from ggufkit.runtime.encoders.blocks import Whole, attention_spec, load_encoder_block, read_sizes
from ggufkit.runtime.encoders.colours import colours_of
from ggufkit.runtime.encoders.layout import layout_of
from ggufkit.runtime.encoders.sam import PATCH, Sam
from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.ops import Span
from ggufkit.runtime.rope import Rope
from ggufkit.runtime.seen import Seen

__all__ = ["QueriedEncoder"]

_BASE = 1e6  # of rope


class QueriedEncoder:
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

    def __init__(self, load: Tensors, keys: Keys, tower: Queried):
        self.ops, self.tower = load.ops, tower
        named, self._sizes = read_sizes(keys, "gelu"), read_sizes(keys, "silu", named=False)
        sizes = self._sizes
        self.width = sizes.out
        self.layout = layout_of(tower, keys, PATCH, 4)
        self.mean, self.std = (colours_of(keys, name) for name in ("image_mean", "image_std"))
        self._sam = Sam(load, keys, sizes.width, named.activation)
        self._queries = {}
        for size in (tower.fit.tile, tower.fit.base):
            table = load.numbers(f"v.resample_query_{size}.weight", -1, sizes.width)
            self._queries[len(table)] = load.ops.vector(table)
        scaling = RopeScaling("none", 1.0, 1, extrapolation=0.0)
        rope = Rope("neox", sizes.head, _BASE, scaling)
        self._spec = attention_spec(sizes, causal=True)
        self._blocks = [
            load_encoder_block(load, f"v.blk.{i}.", sizes, "rms", rope, self._spec) for i in range(sizes.layers)
        ]
        self._norm = load.norm_of("rms", "v.post_ln", sizes.width, sizes.epsilon)
        self._project = load.linear("mm.model.fc", sizes.out, sizes.width)
        self._image_end = load.numbers("v.view_seperator", 1, sizes.out)

    def encode(self, pixels: np.ndarray) -> Seen:
        """What the language model gets of a square tile or the whole image, (side, side, 3) uint8.

        Raises
        ------
        UsageError : the file has no queries for a picture of this size.
        """
        ops = self.ops
        seen, side = self._sam.run(normalized(pixels, self.mean, self.std))
        n = len(seen)
        if n not in self._queries:
            raise UsageError(f"the encoder has no queries for a picture of {side} × {side} rows")
        x = ops.concatenate([seen, self._queries[n]])
        angles = np.arange(2 * n)[:, None] * _BASE ** (-np.arange(self._sizes.head // 2) * 2 / self._sizes.head)
        turns = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        step = Whole(ops, self._spec, [2 * n], turns)
        (span,) = step.spans(0)
        step.be([Span(0, n, 0, span.cache, whole=True), Span(n, 2 * n, n, span.cache)])
        for block in self._blocks:
            x = block.run(x, step)
        x = x[n:] if self._norm is None else ops.norm(x[n:], self._norm)
        (y,) = ops.linear(x, self._project)
        rows = ops.numpy(y)
        if len(pixels) == self.tower.fit.base:
            rows = np.concatenate([rows, self._image_end])
        return Seen(np.ascontiguousarray(rows))
