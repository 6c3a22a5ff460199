"""The named things that can be done to a checkpoint's tensors on their way to GGUF.

Each function here makes a `Transform` for an architecture's spec. All are lazy: they change how rows are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ggufkit.arch.config import Config
from ggufkit.arch.spec import Transform, rope_parameters
from ggufkit.errors import CheckpointError, printable
from ggufkit.formats.table import FORMATS
from ggufkit.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["permute_rope", "rope_freqs", "stack_experts"]


def permute_rope(projection: str, *heads: str) -> Transform:
    """Reorder the rows of each head of `projection` from Hugging Face's rotary layout to the original one.

    Hugging Face rotates the pairs (i, i + d/2) of a head of d rows, GGUF's llama rotates (2i, 2i + 1):

        rows of a head   0 1 2 3 | 4 5 6 7   →   0 4 1 5 2 6 3 7

    Parameters
    ----------
    projection : the module, e.g. ``"q_proj"``; its weight and its bias are permuted.
    heads : names in the config of its number of heads.
    """
    endings = (f".{projection}.weight", f".{projection}.bias")

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        n_heads = config.integer(*heads, what=projection)
        for tensor in tensors:
            yield _rope_order(tensor, n_heads) if tensor.name.endswith(endings) else tensor

    return transform


def _rope_order(tensor: Tensor, heads: int) -> Tensor:
    import numpy as np

    # A bias has one entry a row of the weight: give each a row of its own.
    column = len(tensor.shape) == 1
    rows = tensor.cols if column else tensor.rows
    if rows % (2 * heads):
        raise CheckpointError(
            f"{printable(tensor.name)} has {rows} rows, which {heads} heads of pairs do not divide; "
            "is config.json the right one?"
        )
    order = np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    if column:
        return replace(tensor, read=lambda lo, hi: _entries(tensor, order)[lo:hi])
    return _rows_in_order(tensor, order)


def _entries(vector: Tensor, order: np.ndarray) -> np.ndarray:
    """A vector's numbers in another order, (1, row_bytes) uint8."""
    import numpy as np

    numbers = vector.read(0, 1).reshape(-1, vector.format.type_size)
    return np.ascontiguousarray(numbers[order]).reshape(1, -1)


def _rows_in_order(tensor: Tensor, order: np.ndarray) -> Tensor:
    """Row i of the result is row `order[i]`. Neighbours should stay near: a slice reads all rows it spans."""

    def read(lo: int, hi: int) -> np.ndarray:
        if lo == hi:
            return tensor.read(0, 0)
        wanted = order[lo:hi]
        first, last = int(wanted.min()), int(wanted.max())
        return tensor.read(first, last + 1)[wanted - first]

    return replace(tensor, read=read)


def stack_experts(pattern: str, parts: tuple[str, ...], stacked: str, count: str) -> Transform:
    """Stack the matrices of a layer's experts into one tensor (experts, rows, cols) for each part.

    Parameters
    ----------
    pattern : regex of an expert's weight with the groups `layer`, `expert` and `part`.
    parts : the values of `part`, in the order in which the stacked tensors come.
    stacked : name of the result, with ``{layer}`` and ``{part}``.
    count : the config's number of experts.

    A layer's tensors come out where the last of its experts stood.
    """
    matcher = re.compile(pattern)

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        waiting: dict[str, dict[tuple[str, int], Tensor]] = {}
        for tensor in tensors:
            if (match := matcher.fullmatch(tensor.name)) is None:
                yield tensor
                continue
            n_experts = config.integer(count, what=tensor.name)
            layer = waiting.setdefault(match["layer"], {})
            layer[match["part"], int(match["expert"])] = tensor
            if len(layer) == n_experts * len(parts):
                del waiting[match["layer"]]
                for part in parts:
                    experts = [_expert(layer, part, i, tensor.name) for i in range(n_experts)]
                    yield _stack(stacked.format(layer=match["layer"], part=part), experts)
        if waiting:
            layer_number, layer = next(iter(waiting.items()))
            raise CheckpointError(f"layer {layer_number} has {len(layer)} expert matrices; some are missing")

    return transform


def _expert(layer: dict[tuple[str, int], Tensor], part: str, expert: int, seen: str) -> Tensor:
    if (tensor := layer.get((part, expert))) is None:
        raise CheckpointError(f"expert {expert} has no {part}, near {printable(seen)}")
    return tensor


def _stack(name: str, tensors: list[Tensor]) -> Tensor:
    first = tensors[0]
    for tensor in tensors:
        if tensor.shape != first.shape or tensor.format != first.format:
            raise CheckpointError(
                f"{printable(tensor.name)} is {tensor.format.name} {list(tensor.shape)}, "
                f"{printable(first.name)} is {first.format.name} {list(first.shape)}; they cannot be stacked"
            )

    def read(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        pieces = []
        while lo < hi:
            which, row = divmod(lo, first.rows)
            n = min(hi - lo, first.rows - row)
            pieces.append(tensors[which].read(row, row + n))
            lo += n
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [first.read(0, 0)])

    return Tensor(name, (len(tensors), *first.shape), first.format, read)


def rope_freqs(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Put llama3's rope scaling in front as `rope_freqs.weight`: a divisor for each of the head's frequencies.

    Wavelengths shorter than `original / high_freq_factor` stay, those longer than `original / low_freq_factor`
    are divided by `factor`, and between the two the divisor blends smoothly. Source: Llama 3.1's `apply_scaling`.
    """
    scaling = rope_parameters(config)
    if scaling["rope_type"] == "llama3":
        head = config.get("head_dim") or config.integer("hidden_size") // config.integer("num_attention_heads")
        yield _vector("rope_freqs.weight", _llama3_divisors(scaling, head))
    yield from tensors


def _llama3_divisors(scaling: dict, head: int) -> np.ndarray:
    """array of shape (head / 2,), float32"""
    import numpy as np

    def setting(name: str, default: float) -> float:
        value = scaling.get(name)
        return default if value is None else value

    factor, context = setting("factor", 8.0), setting("original_max_position_embeddings", 8192)
    low, high = setting("low_freq_factor", 1.0), setting("high_freq_factor", 4.0)
    # float32 throughout, as the reference computes it.
    exponents = np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
    frequencies = np.float32(1) / np.power(np.float32(setting("rope_theta", 10000.0)), exponents)
    divisors = []
    for frequency in frequencies:
        wavelength = np.float32(2 * math.pi) / frequency
        if wavelength < np.float32(context / high):
            divisors.append(np.float32(1))
        elif wavelength > np.float32(context / low):
            divisors.append(np.float32(factor))
        else:
            smooth = (np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low)
            divisors.append(np.float32(1) / ((1 - smooth) / np.float32(factor) + smooth))
    return np.array(divisors, np.float32)


def _vector(name: str, numbers: np.ndarray) -> Tensor:
    """A float32 tensor of one dimension that is held in memory."""
    import numpy as np

    blocks = numbers.astype(np.float32).view(np.uint8).reshape(1, -1)
    blocks.flags.writeable = False
    return Tensor(name, numbers.shape, FORMATS["F32"], lambda lo, hi: blocks[lo:hi])
