"""R1: the stream between the blocks is turned, and what reads and writes it turns along.

    embeddings R ─┬─ norm ─ (q k v, gate up · norm's weights) R ─ … ─ Rᵀ (out, down) ─ + ─ norm ─ (output · weights) R

A turned vector has the same length, so an RMS norm commutes with R once its weights are part of the matrices behind it.
R = D (H ⊗ Q): random signs, a Walsh–Hadamard matrix, and an orthogonal one for the odd part of the width. It spreads
outliers of activations and weights over all columns.

Exact where all norms of the stream are RMS norms with nothing between them and matrices. Weights of the output norm
become a part of the output matrix, and cannot become one of embeddings: where the two are one tensor, the turned model
has it twice (`untied`), and its file is larger.

Source: Ashkboos et al., "QuaRot", 2024; Liu et al., "SpinQuant", 2024.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

from ggufkit.calibrate.consistency import check_model
from ggufkit.calibrate.equivalent import Equivalent, bias_of, computed, dense
from ggufkit.calibrate.products import product, transposed
from ggufkit.calibrate.statistics import Statistics
from ggufkit.calibrate.tape import Tape
from ggufkit.errors import ArchitectureError, printable
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.reader import GGUF
from ggufkit.importance.imatrix_file import Sums
from ggufkit.runtime.model import Model
from ggufkit.runtime.ops import Linear, Norm
from ggufkit.tensors.tensor import Tensor

__all__ = ["rotated", "rotation", "untied"]

_SEED = 20
_EMBEDDINGS, _OUTPUT = "token_embd.weight", "output.weight"

T = TypeVar("T")


def rotation(width: int, seed: int = _SEED) -> np.ndarray:
    """An orthogonal matrix, (width, width) float64; the same bits everywhere."""
    odd = width
    while odd % 2 == 0:
        odd //= 2
    rng = np.random.default_rng(seed)
    H = np.ones((1, 1))
    while len(H) * odd < width:
        H = np.block([[H, H], [H, -H]])
    H = H / np.sqrt(len(H))
    Q = _orthogonal(rng.integers(-512, 513, (odd, odd)).astype(np.float64) + 1024 * np.eye(odd))
    signs = rng.integers(0, 2, width) * 2.0 - 1
    whole = (H[:, None, :, None] * Q[None, :, None, :]).reshape(width, width)
    return np.asarray(signs[:, None] * whole)


def _orthogonal(A: np.ndarray) -> np.ndarray:
    """Rows made orthogonal one after the other, twice, in an order of its own."""
    for _ in range(2):
        for i in range(len(A)):
            for j in range(i):
                A[i] = A[i] - A[j] * np.add.reduce(A[i] * A[j])
            A[i] = A[i] / np.sqrt(np.add.reduce(A[i] * A[i]))
    return A


def untied(model: GGUF, statistics: Statistics) -> Equivalent:
    """The model with an output matrix of its own, where it has none; a copy of the embeddings.

    Parameters
    ----------
    statistics : of the model; what is returned has those of both tensors, each with its part.
    """
    if _OUTPUT in model.tensors or _EMBEDDINGS not in model.tensors:
        return Equivalent(model, statistics)
    found = model.with_tensors({_OUTPUT: replace(model.tensors[_EMBEDDINGS], name=_OUTPUT)})

    def renamed(values: dict[str, T]) -> dict[str, T]:
        return {_OUTPUT if name == _EMBEDDINGS else name: value for name, value in values.items()}

    of_output = replace(
        statistics,
        inputs=renamed({name: _OUTPUT if key == _EMBEDDINGS else key for name, key in statistics.inputs.items()}),
        moments=renamed(statistics.moments),
        squares=renamed(statistics.squares),
        fisher=renamed(statistics.fisher),
        rounding=renamed(statistics.rounding),
    )
    return Equivalent(found, of_output)


def rotated(model: GGUF, statistics: Statistics | None = None, *, threads: int | None = None) -> Equivalent:
    """The model with its stream turned.

    Parameters
    ----------
    statistics : of the model; what is returned has those of the turned one. Gradients at what writes the stream are
        known row by row only, and become their mean.

    Raises
    ------
    ArchitectureError : turning would change what the model computes.
    PolicyError : the statistics are of another model.
    """
    known = statistics or Statistics(np.zeros((0, 1), np.int32))
    check_model(known, model.tensors)
    model, known = (found := untied(model, known)).model, found.statistics
    loaded = Model(model, Tape(threads=threads))
    readers, writers, norms = _stream(loaded)
    R = rotation(loaded.hyper.width)
    right, left = R.astype(np.float32), transposed(R.astype(np.float32))
    changed: dict[str, Tensor] = {}
    changed[_EMBEDDINGS] = _read_turned(model.tensors[_EMBEDDINGS], left, None, threads)
    for linear, norm in readers:
        weight = model.tensors[norm.name].floats().reshape(-1)
        changed[linear.name] = _read_turned(model.tensors[linear.name], left, weight, threads)
    for norm in norms:
        tensor = model.tensors[norm.name]
        changed[norm.name] = computed(tensor, np.ones((tensor.rows, tensor.cols), np.float32))
    for linear in writers:
        changed[linear.name] = _write_turned(model.tensors[linear.name], left, threads)
        if (bias := bias_of(linear.name)) in model.tensors:
            row = model.tensors[bias].floats().reshape(1, -1)
            changed[bias] = computed(model.tensors[bias], product(row, left, threads))
    turned = model.with_tensors(changed)
    if statistics is None:
        return Equivalent(turned, known)
    weights = {linear.name: model.tensors[norm.name].floats().reshape(-1) for linear, norm in readers}
    return Equivalent(turned, _turned(known, right, weights, [linear.name for linear in writers], threads))


def _stream(model: Model) -> tuple[list[tuple[Linear, Norm]], list[Linear], list[Norm]]:
    """What reads the stream, each with the norm before it; what writes it; the norms."""
    name, weights = model.gguf.path, model.weights

    def refuse(what: str) -> ArchitectureError:
        return ArchitectureError(f"{printable(name)} cannot be turned and stay what it is: {what}")

    norm, output = weights.output_norm, weights.output
    if norm is None or output is None or weights.streams is not None or weights.per_layer is not None:
        raise refuse("its stream is not one from embeddings to an output matrix")
    if weights.position is not None or weights.embedding_norm is not None or weights.token_type is not None:
        raise refuse("its embeddings are more than rows of a matrix")
    readers, writers, norms = [(output, norm)], [], [norm]
    for i, block in enumerate(weights.blocks):
        parts = dense(block)
        between = (
            (block.mixer_post_norm, block.mixer_sum_norm, block.ffn_post_norm, block.ffn_sum_norm) if parts else ()
        )
        if parts is None or any(between):
            raise refuse(f"block {i} is not attention and a dense network, each with a norm before and none behind")
        attention, ffn = parts
        readers += [
            (linear, block.mixer_norm)
            for linear in (attention.q, attention.k, attention.v, attention.gate)
            if linear is not None
        ]
        readers += [(linear, block.ffn_norm) for linear in (ffn.gate, ffn.up, ffn.share) if linear is not None]
        writers += [attention.out, ffn.down]
        norms += [block.mixer_norm, block.ffn_norm]
    for each in norms:
        if each.kind != "rms" or each.bias is not None or not each.name or each.weight.size != model.hyper.width:
            raise refuse("its norms subtract means, or have biases, or no weights of their own")
    return readers, writers, norms


def _read_turned(tensor: Tensor, left: np.ndarray, weight: np.ndarray | None, threads: int | None) -> Tensor:
    """Rows times the norm's weights and R. left: Rᵀ, as `product` takes it."""

    def read(lo: int, hi: int) -> np.ndarray:
        rows = tensor.floats(lo, hi)
        return _blocks(product(rows if weight is None else rows * weight, left, threads))

    return replace(tensor, format=FORMATS["F32"], read=read, origin=None)


def _write_turned(tensor: Tensor, left: np.ndarray, threads: int | None) -> Tensor:
    """Rᵀ times the matrix."""

    def read(lo: int, hi: int) -> np.ndarray:
        return _blocks(product(left[lo:hi], transposed(tensor.floats(), threads), threads))

    return replace(tensor, format=FORMATS["F32"], read=read, origin=None)


def _blocks(values: np.ndarray) -> np.ndarray:
    blocks = np.ascontiguousarray(values, np.float32).view(np.uint8)
    blocks.flags.writeable = False
    return blocks


def _turned(
    found: Statistics, R: np.ndarray, weights: dict[str, np.ndarray], writers: list[str], threads: int | None
) -> Statistics:
    """Statistics of the turned model. weights: reader → those of the norm before, that its inputs no longer have."""
    moments, squares, fisher = dict(found.moments), dict(found.squares), dict(found.fisher)
    for name, weight in weights.items():
        key = found.inputs.get(name)
        if key is None:
            continue
        if moments[key] is found.moments[key]:
            safe = np.where(weight == 0, np.float32(1), weight)
            moments[key] = _turned_blocks(found.moments[key], safe, R, threads)
        diagonal = np.concatenate([np.diagonal(block) for block in moments[key]]).astype(np.float64)
        squares[name] = Sums(diagonal[None], found.squares[name].counts)
    for name in writers:
        if name in fisher:
            fisher[name] = np.broadcast_to(fisher[name].mean(1, keepdims=True), fisher[name].shape).copy()
    metrics = {name: _sandwich(metric, R, threads) for name, metric in found.metrics.items()}
    return replace(found, moments=moments, squares=squares, fisher=fisher, metrics=metrics)


def _turned_blocks(
    blocks: list[np.ndarray], weight: np.ndarray, R: np.ndarray, threads: int | None
) -> list[np.ndarray]:
    """Blocks of a moment, (n, n) each on the diagonal, after the inputs were divided by `weight` and turned."""
    whole = np.zeros((len(R), len(R)), np.float32)
    at = 0
    for block in blocks:
        own = weight[at : at + len(block)]
        whole[at : at + len(block), at : at + len(block)] = block / own[:, None] / own
        at += len(block)
    turned, parts, at = _sandwich(whole, R, threads), [], 0
    for block in blocks:
        parts.append(np.ascontiguousarray(turned[at : at + len(block), at : at + len(block)]))
        at += len(block)
    return parts


def _sandwich(H: np.ndarray, R: np.ndarray, threads: int | None) -> np.ndarray:
    """Rᵀ H R of a symmetric H."""
    left = transposed(R)
    return product(product(left, H, threads), left, threads)
