"""Models that compute the same with other weights, and what statistics would say of them.

    found = folded(model, statistics, types)          # or rotated(model, statistics)
    job = with_gptq(quantization(found.model, "small.gguf", recipe), found.model, found.statistics)

Some such weights are easier to quantize than others. Nothing is written: the tensors are worked out when they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ggufkit.calibrate.statistics import Statistics
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.reader import GGUF
from ggufkit.importance.imatrix_file import Sums
from ggufkit.runtime.block import Block
from ggufkit.runtime.feed_forward import FeedForward
from ggufkit.runtime.mixers.attention import Attention
from ggufkit.tensors.tensor import Tensor

__all__ = ["Equivalent", "bias_of", "computed", "dense", "scaled", "scaled_statistics"]


@dataclass(frozen=True)
class Equivalent:
    """A model that computes what another does.

    Attributes
    ----------
    model : with its weights; those that are not the file's are F32.
    statistics : of it.
    """

    model: GGUF
    statistics: Statistics


def bias_of(name: str) -> str:
    """What the bias beside a weight is called."""
    return f"{name.removesuffix('.weight')}.bias"


def dense(block: object) -> tuple[Attention, FeedForward] | None:
    """A block's parts if it is attention and then a dense network, each with a norm before; else None."""
    if not isinstance(block, Block) or block.parallel or len(block.mixers) != 1 or block.extra is not None:
        return None
    mixer, ffn = block.mixers[0], block.ffn
    if not isinstance(mixer, Attention) or not isinstance(ffn, FeedForward):
        return None
    if block.mixer_norm is None or block.ffn_norm is None or not (block.mixer_norm.name and block.ffn_norm.name):
        return None
    return mixer, ffn


def computed(tensor: Tensor, rows: np.ndarray) -> Tensor:
    """A tensor with these rows (n, cols) float32."""
    blocks = np.ascontiguousarray(rows, np.float32).view(np.uint8)
    blocks.flags.writeable = False
    return replace(tensor, format=FORMATS["F32"], read=lambda lo, hi: blocks[lo:hi], origin=None)


def scaled(tensor: Tensor, rows: np.ndarray | None, cols: np.ndarray | None) -> Tensor:
    """A tensor whose rows and columns are multiplied with these, in F32."""

    def read(lo: int, hi: int) -> np.ndarray:
        values = tensor.floats(lo, hi)
        with np.errstate(over="ignore"):  # whoever rounds them says which are infinite
            if cols is not None:
                values = values * cols
            if rows is not None:
                values = values * rows[lo:hi, None]
        blocks = np.ascontiguousarray(values, np.float32).view(np.uint8)
        blocks.flags.writeable = False
        return blocks

    return replace(tensor, format=FORMATS["F32"], read=read, origin=None)


def scaled_statistics(found: Statistics, cols: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]) -> Statistics:
    """What statistics are after columns and rows of tensors were multiplied: their inputs and gradients are divided.

    Parameters
    ----------
    cols, rows : tensor name → what its columns, and rows, were multiplied with. Tensors of one input have one `cols`.
    """
    moments = dict(found.moments)
    for name, key in found.inputs.items():
        if name in cols and moments[key] is found.moments[key]:
            moments[key] = _divided(found.moments[key], cols[name])
    squares = {
        name: Sums(sums.squares / cols[name].astype(np.float64) ** 2, sums.counts) if name in cols else sums
        for name, sums in found.squares.items()
    }
    fisher = {
        name: values / rows[name].astype(np.float64) ** 2 if name in rows else values
        for name, values in found.fisher.items()
    }
    return replace(found, moments=moments, squares=squares, fisher=fisher)


def _divided(blocks: list[np.ndarray], s: np.ndarray) -> list[np.ndarray]:
    parts, at = [], 0
    for block in blocks:
        own = s[at : at + len(block)]
        parts.append(block / own[:, None] / own)
        at += len(block)
    return parts
