"""SAM's encoder: patches that see those of their window, or all, by how far away they are; convolutions behind them.

Source: `clip_graph_deepseekocr::build_sam` in tools/mtmd/models/deepseekocr.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ggufkit.arch.hyperparameters import Keys
from ggufkit.runtime.encoders.convolutions import convolved, halved, load_square
from ggufkit.runtime.encoders.grid import interpolated, weights_of
from ggufkit.runtime.feed_forward import FeedForward
from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.ops import Array, Linear, Norm, Ops
from ggufkit.tensors.views import reshaped

__all__ = ["PATCH", "Sam"]

PATCH = 16  # pixels of a patch in each direction

_AT = "v.sam."
_EPSILON = 1e-6
_WHOLE = 2, 5, 8, 11  # blocks that see all of a picture


@dataclass(frozen=True)
class _Block:
    """norm → attention, norm → network.

    Attributes
    ----------
    down, across : arrays of shape (n, head): what a query is multiplied with, by how far a key is away.
    window : rows of a side; 0 for all.
    """

    norm: Norm
    qkv: Linear
    out: Linear
    ffn_norm: Norm
    ffn: FeedForward
    down: np.ndarray
    across: np.ndarray
    heads: int
    window: int

    def run(self, ops: Ops, x: Array, side: int) -> Array:
        """(side², width) → (side², width)."""
        x = ops.add(self._attended(ops, ops.norm(x, self.norm), side), x)
        return ops.add(self.ffn.run(ops, ops.norm(x, self.ffn_norm)), x)

    def _attended(self, ops: Ops, x: Array, side: int) -> Array:
        own = self.window or side
        count, width = -(-side // own), x.shape[1]
        grid = ops.numpy(x).reshape(side, side, width)
        missing = count * own - side  # of zeros, which are seen, too
        grid = np.pad(grid, ((0, missing), (0, missing), (0, 0)))
        windows = grid.reshape(count, own, count, own, width).transpose(0, 2, 1, 3, 4).reshape(-1, width)
        (fused,) = ops.linear(ops.vector(windows), self.qkv)
        q, k, v = (part.reshape(count**2, own**2, self.heads, -1) for part in np.split(ops.numpy(fused), 3, axis=1))
        found = np.empty_like(v)
        down, across = (_by_distance(table, own) for table in (self.down, self.across))
        for head in range(self.heads):
            for i in range(count**2):
                found[i, :, head] = _looked(q[i, :, head], k[i, :, head], v[i, :, head], down, across)
        grid = found.reshape(count, count, own, own, width).transpose(0, 2, 1, 3, 4)
        grid = grid.reshape(count * own, count * own, width)[:side, :side]
        (y,) = ops.linear(ops.vector(np.ascontiguousarray(grid).reshape(side * side, width)), self.out)
        return y


def _looked(q: np.ndarray, k: np.ndarray, v: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """One head's attention: q, k, v (n², head); down, across (n, n, head) by query and key."""
    n, head = len(down), q.shape[1]
    square = q.reshape(n, n, head)
    scores: np.ndarray = (q @ k.T) * np.float32(head**-0.5)
    scores = scores.reshape(n, n, n, n)
    scores += np.matmul(square, down.transpose(0, 2, 1))[:, :, :, None]
    scores += np.matmul(square.transpose(1, 0, 2), across.transpose(0, 2, 1)).transpose(1, 0, 2)[:, :, None, :]
    scores = scores.reshape(n * n, n * n)
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    result: np.ndarray = (scores @ v) / scores.sum(axis=1, keepdims=True)
    return result


def _by_distance(table: np.ndarray, n: int) -> np.ndarray:
    """(n, n, head): of queries and keys, from a table by distance, (m, head), brought to all that there are."""
    if len(table) != 2 * n - 1:
        table = weights_of(len(table), 2 * n - 1, "linear") @ table
    at = np.arange(n)
    found: np.ndarray = table[at[:, None] - at[None, :] + n - 1]
    return found


class Sam:
    """The encoder of an open file.

    Parameters
    ----------
    load : the file's tensors.
    keys : of ``clip.vision``.
    width : numbers of a row behind the convolutions.
    activation : of the networks.

    Raises
    ------
    ArchitectureError : a tensor or key is missing, or has another shape or range.
    """

    def __init__(self, load: Tensors, keys: Keys, width: int, activation: str):
        self.ops = load.ops
        own, heads = keys.count("sam.embedding_length", most=1 << 14), keys.count("sam.head_count", most=1 << 8)
        if own % heads:
            raise keys.fail("sam.head_count", f"must divide the width {own}, not {heads}")
        window, layers = keys.count("window_size", most=1 << 6), keys.count("sam.block_count", most=512)
        self._patches = _flat(load, f"{_AT}patch_embd", own, (3, PATCH, PATCH))
        self._positions = load.numbers(f"{_AT}pos_embd.weight", -1, -1, own)
        self._blocks = [
            _load_block(load, f"{_AT}blk.{i}.", own, heads, 0 if i in _WHOLE else window, activation)
            for i in range(layers)
        ]
        self._neck = _flat(load, f"{_AT}neck.0", -1, (own, 1, 1))
        middle = self._neck.rows
        self._second = load_square(load, f"{_AT}neck.2", middle)
        self._norms = [_norm(load, f"{_AT}neck.{i}", rows) for i, rows in ((1, middle), (3, self._second.rows))]
        first = load_square(load, f"{_AT}net_2", self._second.rows)
        self._halving = first, load_square(load, f"{_AT}net_3", first.rows)
        if self._halving[1].rows != width:
            raise load.fail(f"{_AT}net_3.weight gives rows of {self._halving[1].rows} numbers, not {width}")

    def run(self, numbers: np.ndarray) -> tuple[Array, int]:
        """A square picture, (3, side, side) float32 → (n², width), and n."""
        ops, n = self.ops, PATCH
        side = numbers.shape[1] // n
        patches = numbers.reshape(3, side, n, side, n).transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
        (x,) = ops.linear(ops.vector(np.ascontiguousarray(patches)), self._patches)
        x = ops.add(x, ops.vector(interpolated(self._positions, side, side, "smooth cubic")))
        for block in self._blocks:
            x = block.run(ops, x, side)
        (x,) = ops.linear(x, self._neck)
        x = ops.norm(x, self._norms[0])
        x = ops.norm(convolved(ops, x, (side, side), self._second), self._norms[1])
        shape = side, side
        for linear in self._halving:
            x, shape = halved(ops, x, shape, linear)
        return x, shape[0]


def _flat(load: Tensors, name: str, rows: int, shape: tuple[int, int, int]) -> Linear:
    """A convolution over squares that do not overlap, as a matrix."""
    tensor = load.tensor(f"{name}.weight", rows, *shape)
    tensor = reshaped(tensor, (tensor.shape[0], math.prod(shape)))
    bias = load.ops.vector(load.vector(f"{name}.bias", tensor.rows)) if load.has(f"{name}.bias") else None
    return Linear(load.ops.weight(tensor), f"{name}.weight", tensor.rows, tensor.cols, bias)


def _norm(load: Tensors, name: str, width: int) -> Norm:
    norm = load.norm_of("layer", name, width, _EPSILON)
    if norm is None:
        load.tensor(f"{name}.weight", width)  # which says that it is missing
    assert norm is not None
    return norm


def _load_block(load: Tensors, at: str, width: int, heads: int, window: int, activation: str) -> _Block:
    up = load.linear(f"{at}mlp.lin1", -1, width)
    return _Block(
        norm=_norm(load, f"{at}pre_ln", width),
        qkv=load.linear(f"{at}attn.qkv", 3 * width, width),
        out=load.linear(f"{at}attn.out", width, width),
        ffn_norm=_norm(load, f"{at}post_ln", width),
        ffn=FeedForward(None, up, load.linear(f"{at}mlp.lin2", width, up.rows), activation),
        down=load.numbers(f"{at}attn.pos_h.weight", -1, width // heads),
        across=load.numbers(f"{at}attn.pos_w.weight", -1, width // heads),
        heads=heads,
        window=window,
    )
