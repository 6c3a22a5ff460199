"""What each type would cost each tensor, in KL divergence, before anything is quantized.

    KLD ≈ ½ Σ over rows G_rr · e H eᵀ       e: the error of a row, of some 128 rows; H, G: see `fisher`
        + what rounded activations cost      where a type's products round them: see `rounding`

Of embeddings e is a row's error, weighted by how often the row is looked up, in the metric of the gradients there; of
embeddings that are the output, too, both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ggufkit.calibrate.products import product
from ggufkit.calibrate.statistics import Statistics
from ggufkit.errors import PolicyError, printable
from ggufkit.formats.codec import decode, encode
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.reader import GGUF
from ggufkit.kernels.threads import for_ranges
from ggufkit.policy.allocate import Option
from ggufkit.tensors.tensor import Tensor

__all__ = ["CLASSES", "Sample", "combined", "costs", "error_cost", "fitting", "output_of", "sampled", "shares_of"]

_ROWS = 128  # of a tensor that are tried

_LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
_K = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_CODEBOOKS = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")

# Types by how fast they run.
CLASSES: dict[str, tuple[str, ...]] = {
    "all": (*_LEGACY, "IQ4_NL", "MXFP4", *_K, "IQ4_XS", *_CODEBOOKS),
    "cpu": (*_LEGACY, "IQ4_NL", *_K, "IQ4_XS"),
    "metal": (*_LEGACY, *_K),
}


def output_of(model: GGUF) -> str:
    """The tensor that gives logits."""
    return "output.weight" if "output.weight" in model.tensors else "token_embd.weight"


def fitting(types: Iterable[str], cols: int) -> list[str]:
    """Those of which rows of so many columns are whole blocks."""
    return [name for name in types if cols % FORMATS[name].block_size == 0]


def shares_of(name: str, statistics: Statistics, output: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """What an error of a tensor's rows counts for: pairs (weight of each row, metric of the columns).

    Parameters
    ----------
    output : name of the tensor that gives logits.
    """
    shares = []
    if (metric := statistics.metric(name)) is not None:
        frequency = statistics.frequencies[name] + np.float32(0.5)  # a token that was never seen may come
        shares.append(((frequency / frequency.sum(dtype=np.float64)).astype(np.float32), metric))
    moment, gradients = statistics.moment(name), statistics.output_gradients(name)
    if moment is not None and gradients is not None and (metric is None or name == output):
        shares.append((gradients.reshape(-1), moment))
    return shares


def costs(
    tensors: Sequence[Tensor],
    statistics: Statistics,
    types: Sequence[str],
    output: str,
    *,
    alignment: int = 32,
    threads: int | None = None,
) -> dict[str, dict[str, Option]]:
    """Of each tensor the types that fit, with their bytes and predicted KL divergence.

    Parameters
    ----------
    tensors : that are to be quantized.
    types : names of formats to choose from.
    output : name of the tensor that gives logits.
    alignment : of tensors in the file, bytes.

    Raises
    ------
    PolicyError : the statistics know nothing of a tensor, or are of another model; or no type fits.
    """
    found: dict[str, dict[str, Option]] = {}

    def work(lo: int, hi: int) -> None:
        for tensor in tensors[lo:hi]:
            found[tensor.name] = _of_tensor(tensor, statistics, types, output, alignment)

    for_ranges(work, len(tensors), 1, threads)
    return {tensor.name: found[tensor.name] for tensor in tensors}


def _of_tensor(
    tensor: Tensor, statistics: Statistics, types: Sequence[str], output: str, alignment: int
) -> dict[str, Option]:
    name, cols = tensor.name, tensor.cols
    shares = shares_of(name, statistics, output)
    if not shares:
        raise PolicyError(f"the statistics know nothing of {printable(name)}: they are of another model")
    if any(len(weights) != tensor.rows or len(metric) != cols for weights, metric in shares):
        raise PolicyError(f"the statistics of {printable(name)} are of a tensor of another shape")
    fits = fitting(types, cols)
    if not fits:
        raise PolicyError(f"none of the types {', '.join(types)} fits {printable(name)} with its {cols} columns")
    sample = sampled(tensor, shares)
    importance = np.ascontiguousarray(np.diagonal(shares[-1][1]))
    options = {}
    for type_ in fits:
        errors = decode(encode(sample.values, type_, importance, threads=1), type_, threads=1) - sample.values
        cost = error_cost(errors, sample, shares) + statistics.rounding_cost(name, type_)
        nbytes = tensor.rows * FORMATS[type_].row_bytes(cols)
        options[type_] = Option(-(-nbytes // alignment) * alignment, cost)
    return options


def combined(shares: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """One metric of the columns for all rows, (cols, cols) float32: what GPTQ makes small."""
    if len(shares) == 1:
        return shares[0][1]
    result: np.ndarray = np.add.reduce(
        [metric * np.float32(weights.mean(dtype=np.float64)) for weights, metric in shares]
    )
    return result


class Sample(NamedTuple):
    """Some rows of a tensor.

    Attributes
    ----------
    rows, chances : (n,): their numbers, and the chance that each had to be drawn.
    values : (n, cols) float32.
    """

    rows: np.ndarray
    chances: np.ndarray
    values: np.ndarray


def sampled(tensor: Tensor, shares: list[tuple[np.ndarray, np.ndarray]]) -> Sample:
    """Rows of a tensor by what they weigh."""
    rows, chances = _drawn(shares)
    return Sample(rows, chances, np.concatenate([tensor.floats(int(r), int(r) + 1) for r in rows]))


def error_cost(errors: np.ndarray, sample: Sample, shares: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """What errors (n, cols) of the sampled rows say that those of the whole tensor cost, in KL divergence."""
    cost = 0.0
    for weights, metric in shares:
        squares = (product(errors, metric, 1) * errors).sum(-1, dtype=np.float64)
        cost += 0.5 * float((weights[sample.rows] * squares / sample.chances).mean())
    return cost


def _drawn(shares: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows at even steps through what all rows weigh, and the chance that each had."""
    chances = np.zeros(len(shares[0][0]))
    for weights, _ in shares:
        chances += (weights + 1e-30) / (weights + 1e-30).sum(dtype=np.float64) / len(shares)
    reached = np.cumsum(chances)
    steps = (np.arange(_ROWS) + 0.5) / _ROWS * reached[-1]
    rows = np.searchsorted(reached, steps).clip(max=len(chances) - 1)
    return rows, chances[rows]
