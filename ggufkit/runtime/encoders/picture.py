"""Encoders of images: towers of blocks over patches, as `arch.tower` describes them.

    pixels ─ patches · matrix ─ + positions ─ block × layers ─ norm ─ project ─► rows for the language model

Source: tools/mtmd/clip.cpp and tools/mtmd/models/*.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ggufkit.arch.hyperparameters import Keys, RopeScaling
from ggufkit.arch.tower import Activate, Join, Matrix, Normalize, Tower
from ggufkit.errors import UsageError, printable
from ggufkit.media.pictures import normalized
from ggufkit.runtime.encoders.blocks import (
    Turns,
    Whole,
    attention_spec,
    in_order,
    load_encoder_block,
    read_sizes,
)
from ggufkit.runtime.encoders.colours import colours_of
from ggufkit.runtime.encoders.grid import by_block, by_nested_block, by_window, interpolated, side_by_side, turns
from ggufkit.runtime.encoders.layout import layout_of
from ggufkit.runtime.encoders.limits import with_limits
from ggufkit.runtime.encoders.middle import load_middle
from ggufkit.runtime.encoders.steps import Step, load_steps, through
from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.ops import Array, Linear
from ggufkit.runtime.rope import Rope
from ggufkit.runtime.seen import Seen
from ggufkit.tensors.views import matrix, reshaped, take_columns

__all__ = ["PictureEncoder"]

# Of Tower.rope.
_STYLES = {"halves": "neox", "neighbours": "norm", "beside": "norm", "quarters": "neox", "sixths": "neox"}


class PictureEncoder:
    """The tower of an open file.

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

    def __init__(self, load: Tensors, keys: Keys, tower: Tower):
        if tower.least is not None:
            Keys(keys.gguf, "clip").count(tower.least[0], 0, least=tower.least[1])
        load.ops = with_limits(load)
        self.ops, self.tower = load.ops, tower
        self.sizes = sizes = read_sizes(keys, tower.activation, tower.named)
        self._norm = norm = tower.norm
        if norm == "either":
            self._norm = norm = "layer" if load.has("v.blk.0.ln1.bias") else "rms"
        self.width = sizes.out
        self.patch = keys.count("patch_size", most=1 << 10)
        self.merge = keys.count(tower.merge_key, tower.merge, most=64) if tower.merge_key else tower.merge
        if tower.whole_patches:
            self.patch, self.merge = self.patch * self.merge, 1
        self.layout = layout_of(tower, keys, self.patch, self.merge)
        self.mean, self.std = (colours_of(keys, name) for name in ("image_mean", "image_std"))
        self._patches = self._patch_matrix(load)
        self._positions = None
        if tower.positions and load.has("v.position_embd.weight"):
            parts: tuple[int, ...] = (2,) if tower.positions == "axes" else ()
            if not parts and len(load.tensors["v.position_embd.weight"].shape) == 3:
                parts = (-1,)  # a grid
            self._positions = table = load.numbers("v.position_embd.weight", *parts, -1, sizes.width)
            if tower.positions != "table" and not parts and math.isqrt(len(table)) ** 2 != len(table):
                raise load.fail(f"v.position_embd.weight has {len(table)} rows, which are no square")
        self._extra = self._extra_rows(load) if tower.extra else None
        widths = 3 * self.patch**2, sizes.width, sizes.width
        self._pixel_norm, self._patch_norm, self._first_norm = (
            load.norm_of(part.kind or norm, part.name, width, sizes.epsilon if part.epsilon is None else part.epsilon)
            for part, width in zip(tower.patch_norms, widths, strict=True)
        )
        self._last_norm = load.norm_of(norm, "v.post_ln", sizes.width, sizes.epsilon)
        self._window = self._window_side(keys)
        rope = None
        if tower.rope:
            scaling = RopeScaling("none", 1.0, 1, extrapolation=0.0)
            rope = Rope(_STYLES[tower.rope], sizes.head, tower.rope_base, scaling)
        if (within := side_by_side(tower.rope, sizes.head)) is not None:
            in_order(load, sizes, within)
        self._spec = attention_spec(sizes, 1.0 if tower.plain_scores else 0.0)
        self._blocks = [
            load_encoder_block(load, f"v.blk.{i}.", sizes, norm, rope, self._spec, tower.plain_scores, tower.late_norm)
            for i in range(sizes.layers)
        ]
        load.taken.update(name for name in tower.unread if load.has(name))
        self._deep = self._deep_steps(load, keys) if tower.deep else {}
        self._middle, side = None, self.merge
        if tower.middle and load.has(f"{tower.middle}ln1.weight"):
            self._middle, side = load_middle(load, tower.middle, sizes, self._spec), self.merge // 2
            self._middle_layer = _layer(keys, "wa_layer_indexes", sizes.layers)
        self._project = load_steps(
            load, tower.project, sizes.width, sizes.out, sizes.epsilon, side**2, sizes.activation, sizes.limit
        )

    def encode(self, pixels: np.ndarray) -> Seen:
        """What the language model gets of a picture, (height, width, 3) uint8.

        Raises
        ------
        UsageError : its patches do not make whole rows.
        """
        ops, n, merge = self.ops, self.patch, self.merge
        numbers = normalized(pixels, self.mean, self.std)
        if self.tower.contrast:
            numbers = numbers * 2 - 1
        rows, columns = numbers.shape[1] // n, numbers.shape[2] // n
        if rows * n != numbers.shape[1] or columns * n != numbers.shape[2] or rows % merge or columns % merge:
            size = f"{numbers.shape[2]} × {numbers.shape[1]}"
            raise UsageError(f"a picture of {size} pixels has no whole squares of {merge} × {merge} patches of {n}")
        # Patches that become one row lie beside each other: which of them sees which does not depend on their order.
        side = 1 if self.tower.raster else merge
        order = by_block(rows, columns, side) if self._middle is None else by_nested_block(rows, columns)
        windows, back = [len(order)], None
        if self._window:
            groups, sizes = by_window(rows // merge, columns // merge, self._window)
            windows, back = [size * merge * merge for size in sizes], np.argsort(groups)
            order = order.reshape(-1, merge * merge)[groups].reshape(-1)
        patches = numbers.reshape(3, rows, n, columns, n).transpose(1, 3, 0, 2, 4).reshape(rows * columns, -1)
        x = ops.vector(patches[order])
        if self._pixel_norm is not None:
            x = ops.norm(x, self._pixel_norm)
        (x,) = ops.linear(x, self._patches)
        if self._patch_norm is not None:
            x = ops.norm(x, self._patch_norm)
        if self._positions is not None:
            x = ops.add(x, ops.vector(self._table(rows, columns)[order]))
        if self._extra is not None:
            x, windows = ops.concatenate([x, self._extra]), [len(order) + len(self._extra)]
        if self._first_norm is not None:
            x = ops.norm(x, self._first_norm)
        x, deep = self._through_blocks(x, self._turns(rows, columns, order), windows)
        grid = rows // merge, columns // merge
        x = through(self._project, x if self._extra is None else x[: len(order)], grid)
        if back is not None:
            x = ops.pick(x, back)
        return Seen(ops.numpy(x), deep, grid, self.tower.whole(self.width), framed=self.tower.framed)

    def _through_blocks(self, x: Array, angles: Turns | None, windows: list[int]) -> tuple[Array, list[np.ndarray]]:
        """What the last block's norm gives, and what goes to the language model's first blocks."""
        ops, spec = self.ops, self._spec
        whole = Whole(ops, spec, [len(x)], angles)
        in_windows = Whole(ops, spec, windows, angles) if self._window else whole
        deep = []
        for layer, block in enumerate(self._blocks):
            x = block.run(x, whole if layer in self._sees_all else in_windows)
            if self._middle is not None and layer == self._middle_layer:
                x = self._middle.run(ops, x)
                whole = Whole(ops, spec, [len(x)], None)
            if layer in self._deep:
                deep.append(ops.numpy(through(self._deep[layer], ops.copy(x))))
        return x if self._last_norm is None else ops.norm(x, self._last_norm), deep

    def _turns(self, rows: int, columns: int, order: np.ndarray) -> Turns | None:
        if not self.tower.rope:
            return None
        cos, sin = turns(self.tower.rope, rows, columns, self.sizes.head, self.tower.rope_base, self.tower.rope_first)
        cos, sin = cos[order], sin[order]
        if self._extra is not None:  # is not turned
            more = (0, len(self._extra)), (0, 0)
            cos, sin = np.pad(cos, more, constant_values=1), np.pad(sin, more)
        return cos, sin

    def _table(self, rows: int, columns: int) -> np.ndarray:
        """What is added to the patches for where they are: (rows × columns, width)."""
        assert self._positions is not None
        if self.tower.positions == "axes":
            across, down = self._positions
            if max(rows, columns) > len(down):
                raise UsageError(f"the encoder has {len(down)} positions in each direction, the picture more patches")
            found: np.ndarray = (across[None, :columns] + down[:rows, None]).reshape(rows * columns, -1)
            return found
        if self.tower.positions == "buckets":
            side = math.isqrt(len(self._positions))
            down, across = (np.arange(n) * side // n for n in (rows, columns))
            picked: np.ndarray = self._positions[(down[:, None] * side + across).reshape(-1)]
            return picked
        if self.tower.positions != "table":
            return interpolated(self._positions, rows, columns, self.tower.positions)
        if len(self._positions) != rows * columns:
            raise UsageError(f"the encoder has {len(self._positions)} positions, the picture {rows * columns} patches")
        return self._positions

    # -- tensors ----------------------------------------------------------------------------------------------

    def _window_side(self, keys: Keys) -> int:
        """Rows of a window's side, 0 where all blocks see all of a picture; and which blocks do."""
        windows, layers = self.tower.windows, self.sizes.layers
        self._sees_all = set(range(layers))
        if windows is None:
            return 0
        if isinstance(windows.whole, int):
            listed: Any = windows.whole
        else:
            listed = keys.get(windows.whole)
        if isinstance(listed, list):
            if not all(type(layer) is int and 0 <= layer < layers for layer in listed):
                raise keys.fail(str(windows.whole), f"must be blocks below {layers}, not {printable(repr(listed))}")
            self._sees_all = set(listed)
        elif listed:
            period = listed if isinstance(windows.whole, int) else keys.count(windows.whole)
            self._sees_all = set(range(period - 1, layers, period))
            if isinstance(windows.whole, int):
                self._sees_all.add(layers - 1)
        else:
            return 0
        if windows.pixels:
            return max(1, keys.count("window_size", windows.pixels, most=1 << 12) // self.patch // self.merge)
        side = math.isqrt(len(self._positions)) if self._positions is not None else 0
        return max(1, side // self.merge)

    def _patch_matrix(self, load: Tensors) -> Linear:
        """A convolution over patches as a matrix: (width, 3 · patch · patch). Of two frames it is the sum."""
        name, n, width = "v.patch_embd.weight", self.patch, self.sizes.width
        if self.tower.colours_last:
            order = np.arange(3 * n * n).reshape(n, n, 3).transpose(2, 0, 1).reshape(-1)
            load.tensors = {**load.tensors, name: take_columns(load.tensor(name, width, 3 * n * n), order)}
        flat = load.has(name) and len(load.tensors[name].shape) == 2
        tensor = load.tensor(name, width, 3 * n * n) if flat else load.tensor(name, width, 3, n, n)
        tensor = reshaped(tensor, (width, 3 * n * n))
        if load.has(f"{name}.1"):  # a picture is two equal frames
            other = load.tensor(f"{name}.1", width, 3, n, n).floats().reshape(tensor.shape)
            tensor = matrix(name, tensor.floats().reshape(tensor.shape) + other)
        bias = load.ops.vector(load.vector("v.patch_embd.bias", width)) if load.has("v.patch_embd.bias") else None
        return Linear(load.ops.weight(tensor), name, width, 3 * n * n, bias)

    def _extra_rows(self, load: Tensors) -> Array:
        """What stands behind the patches: (n, width); one row with its position, which is the table's last."""
        if self.tower.extra == "rows":
            return load.ops.vector(load.numbers("v.class_embd", -1, self.sizes.width))
        table = load.numbers("v.position_embd.weight", -1, self.sizes.width)
        last, self._positions = table[-1:], table[:-1]
        return load.ops.vector(load.vector("v.class_embd", self.sizes.width).reshape(1, -1) + last)

    def _deep_steps(self, load: Tensors, keys: Keys) -> dict[int, list[Step]]:
        """Of the chosen blocks what brings their outputs to the language model's width."""
        chosen = keys.get("is_deepstack_layers") or []
        if not isinstance(chosen, list):
            raise keys.fail("is_deepstack_layers", f"must be a list, not {printable(repr(chosen))}")
        found = {}
        for layer in [i for i, yes in enumerate(chosen[: self.sizes.layers]) if yes is True]:
            at = f"v.deepstack.{layer}."
            parts = Join("rows"), Normalize(f"{at}norm", self._norm), Matrix(f"{at}fc1"), Activate("gelu")
            sizes, all_parts = self.sizes, (*parts, Matrix(f"{at}fc2"))
            found[layer] = load_steps(load, all_parts, sizes.width, sizes.out, sizes.epsilon, self.merge**2)
        return found


def _layer(keys: Keys, name: str, layers: int) -> int:
    found = keys.get(name)
    if not isinstance(found, list) or not found or type(found[0]) is not int or not 0 <= found[0] < layers:
        raise keys.fail(name, f"must begin with a block below {layers}, not {printable(repr(found))}")
    return found[0]
