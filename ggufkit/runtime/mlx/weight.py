"""Weights on MLX's device, ready for products: quantized arrays, blocks for Metal kernels, or plain numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ggufkit.formats.table import Format
from ggufkit.runtime.mlx import metal
from ggufkit.runtime.mlx.arrays import QUANTIZED, Quantized, repack
from ggufkit.runtime.mlx.decode import decode
from ggufkit.tensors.tensor import Tensor

__all__ = ["Blocks", "Dense", "Packed", "Weight", "load_weight"]

_CHUNK = 1 << 24  # weights repacked at a time


@dataclass(frozen=True)
class Dense:
    """Plain numbers, array of shape (…, rows, cols) in float32, float16 or bfloat16."""

    values: mx.array

    def multiply(self, x: mx.array) -> mx.array:
        """x (n, cols) → (n, rows)."""
        return x @ self.values.T

    def rows(self, ids: mx.array) -> mx.array:
        return mx.take(self.values, ids, axis=0).astype(mx.float32)

    def multiply_chosen(self, x: mx.array, experts: mx.array) -> mx.array:
        """Each row with some matrices of a stack: x (n, k or 1, cols), experts (n, k) → (n, k, rows)."""
        stack = mx.swapaxes(self.values, -1, -2)
        return mx.gather_mm(x[..., None, :], stack.astype(mx.float32), rhs_indices=experts)[..., 0, :]


@dataclass(frozen=True)
class Packed:
    """MLX's quantized arrays; see `arrays.Quantized`."""

    codes: mx.array
    scales: mx.array
    biases: mx.array | None
    how: dict[str, Any]

    def multiply(self, x: mx.array) -> mx.array:
        return mx.quantized_matmul(x, self.codes, self.scales, self.biases, transpose=True, **self.how)

    def rows(self, ids: mx.array) -> mx.array:
        biases = None if self.biases is None else mx.take(self.biases, ids, axis=0)
        parts = mx.take(self.codes, ids, axis=0), mx.take(self.scales, ids, axis=0), biases
        return mx.dequantize(*parts, dtype=mx.float32, **self.how)

    def multiply_chosen(self, x: mx.array, experts: mx.array) -> mx.array:
        arrays = self.codes, self.scales, self.biases
        return mx.gather_qmm(x[..., None, :], *arrays, rhs_indices=experts, transpose=True, **self.how)[..., 0, :]


@dataclass(frozen=True)
class Blocks:
    """GGML blocks, array of shape (…, rows, row_bytes), uint8: Metal kernels decode them as they multiply."""

    blocks: mx.array
    format: Format

    def multiply(self, x: mx.array) -> mx.array:
        return self._multiply(x, self.blocks)

    def _multiply(self, x: mx.array, blocks: mx.array) -> mx.array:
        if not mx.metal.is_available():
            return x @ decode(blocks, self.format).T
        if len(x) <= metal.MAX_ROWS:
            return metal.multiply(x, blocks, self.format)
        return x @ metal.dequantize(blocks, self.format).T

    def rows(self, ids: mx.array) -> mx.array:
        return decode(mx.take(self.blocks, ids, axis=0), self.format)

    def multiply_chosen(self, x: mx.array, experts: mx.array) -> mx.array:
        n, k = experts.shape
        rows = mx.broadcast_to(x, (n, k, x.shape[-1])).reshape(n * k, -1)
        chosen = np.array(experts).reshape(-1)
        order = np.argsort(chosen, kind="stable")
        found, starts = np.unique(chosen[order], return_index=True)
        parts = [
            self._multiply(rows[mx.array(part)], self.blocks[int(expert)])
            for expert, part in zip(found, np.split(order, starts[1:]), strict=True)
        ]
        return mx.concatenate(parts)[mx.array(np.argsort(order))].reshape(n, k, -1)


Weight = Dense | Packed | Blocks

_NUMBERS: dict[str, Callable[[np.ndarray], mx.array]] = {
    "F32": lambda blocks: mx.array(blocks.view(np.float32)),
    "F16": lambda blocks: mx.array(blocks.view(np.float16)),
    "BF16": lambda blocks: mx.array(blocks.view(np.uint16)).view(mx.bfloat16),
}


def load_weight(tensor: Tensor) -> Weight:
    """A matrix, or a stack of them, on the device; nothing of it is rounded."""
    if (numbers := _NUMBERS.get(tensor.format.name)) is not None:
        return Dense(numbers(tensor.read(0, tensor.rows)).reshape(tensor.shape))
    if tensor.format.name in QUANTIZED:
        return _packed(tensor)
    if tensor.format.is_quantized:
        blocks = mx.array(tensor.read(0, tensor.rows))
        return Blocks(blocks.reshape(*tensor.shape[:-1], tensor.row_bytes), tensor.format)
    return Dense(mx.array(tensor.floats()).reshape(tensor.shape))


def _packed(tensor: Tensor) -> Packed | Dense:
    step = max(1, _CHUNK // max(tensor.cols, 1))
    pieces: list[Quantized] = []
    for lo in range(0, tensor.rows, step):
        piece = repack(tensor.read(lo, min(lo + step, tensor.rows)), tensor.format)
        if piece is None:  # a scale that MLX has no code for
            return Dense(mx.array(tensor.floats()).reshape(tensor.shape))
        pieces.append(piece)

    def joined(arrays: list[np.ndarray]) -> mx.array:
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return mx.array(whole).reshape(*tensor.shape[:-1], -1)

    first = pieces[0]
    biases = [p.biases for p in pieces if p.biases is not None]
    return Packed(
        joined([p.codes for p in pieces]),
        joined([p.scales for p in pieces]),
        joined(biases) if biases else None,
        {"group_size": first.group_size, "bits": first.bits, "mode": first.mode},
    )
