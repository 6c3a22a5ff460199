"""The named things that can be done to a checkpoint's tensors on their way to GGUF.

Each function here makes a `Transform` for an architecture's spec. All are lazy: they change how rows are read (see
`rows`). `pattern` is always a regular expression that is searched in the checkpoint's names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from ggufkit.arch.metadata import rope_parameters
from ggufkit.arch.rope import llama3_divisors, rope_order
from ggufkit.arch.spec import Transform
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import (
    LastMatrices,
    computed,
    each_matrix,
    reshaped,
    stacked,
    take_columns,
    take_rows,
    transposed,
    vector,
)

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "drop",
    "drop_tied_output",
    "first_rows",
    "group_qkv",
    "interleaved",
    "map_each",
    "norm_plus_one",
    "permute_rope",
    "rename",
    "reshape",
    "rope_factors",
    "rope_freqs",
    "split_qkv",
    "split_rows",
    "stack",
    "stack_experts",
    "transpose",
]


def map_each(pattern: str, function: Callable[[Tensor, Config], Tensor]) -> Transform:
    """`function` of every tensor whose name matches."""
    matcher = re.compile(pattern)

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        for tensor in tensors:
            yield function(tensor, config) if matcher.search(tensor.name) else tensor

    return transform


def rename(*pairs: tuple[str, str]) -> Transform:
    """Replace, in every name, what each pattern matches; in the order of the pairs."""
    matchers = [(re.compile(pattern), replacement) for pattern, replacement in pairs]

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        for tensor in tensors:
            name = tensor.name
            for matcher, replacement in matchers:
                name = matcher.sub(replacement, name)
            yield tensor.renamed(name)

    return transform


def drop(pattern: str) -> Transform:
    """Leave out the tensors whose names match: buffers, heads that GGUF has no use for."""
    matcher = re.compile(pattern)

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        yield from (tensor for tensor in tensors if not matcher.search(tensor.name))

    return transform


def norm_plus_one(pattern: str = r"norm\.weight$") -> Transform:
    """Add the 1 that some models' norms leave out of their weights."""
    return map_each(pattern, lambda tensor, config: computed(tensor, lambda weights: weights + weights.dtype.type(1)))


def transpose(pattern: str) -> Transform:
    """Swap the last two dimensions, for weights stored (in, out)."""

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        cache = LastMatrices()
        return map_each(pattern, lambda tensor, config: transposed(tensor, cache))(tensors, config)

    return transform


def reshape(pattern: str, shape: Callable[[Tensor, Config], tuple[int, ...]]) -> Transform:
    """Another shape for the same numbers."""
    return map_each(pattern, lambda tensor, config: reshaped(tensor, shape(tensor, config)))


def first_rows(pattern: str, rows: Callable[[Config], range | None]) -> Transform:
    """Keep a range of rows; None keeps all."""

    def cut(tensor: Tensor, config: Config) -> Tensor:
        import numpy as np

        kept = rows(config)
        if kept is None:
            return tensor
        return take_rows(tensor, np.arange(*slice(kept.start, kept.stop).indices(tensor.rows)))

    return map_each(pattern, cut)


def permute_rope(projection: str, heads: Callable[[Config], int]) -> Transform:
    """Reorder the rows of each head of `projection` from Hugging Face's rotary layout to the original one.

    Hugging Face rotates the pairs (i, i + d/2) of a head of d rows, GGUF's llama rotates (2i, 2i + 1):

        rows of a head   0 1 2 3 | 4 5 6 7   →   0 4 1 5 2 6 3 7

    Parameters
    ----------
    projection : the module, e.g. ``"q_proj"``; its weight and its bias are permuted.
    heads : how many it has.
    """

    def permute(tensor: Tensor, config: Config) -> Tensor:
        import numpy as np

        rows, n_heads = _length(tensor), heads(config)
        if rows % (2 * n_heads):
            raise CheckpointError(
                f"{printable(tensor.name)} has {rows} rows, which {n_heads} heads of pairs do not divide; "
                "is config.json the right one?"
            )
        return take_rows(tensor, rope_order(np.arange(rows), n_heads))

    return map_each(rf"\.{projection}\.(weight|bias)$", permute)


def _length(tensor: Tensor) -> int:
    """Rows of a matrix, entries of a vector."""
    return tensor.cols if len(tensor.shape) == 1 else tensor.rows


def _qkv_rows(tensor: Tensor, config: Config, kv_heads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which rows of a fused projection are queries, keys and values.

        for each key head:   its query heads | key | value

    Each of the three is an array of shape (n,), in the order of the heads.
    """
    import numpy as np

    group, rest = divmod(config.heads, kv_heads)
    rows = _length(tensor)
    if rest or rows % ((group + 2) * kv_heads):
        raise CheckpointError(
            f"{printable(tensor.name)} has {rows} rows, which are not {config.heads} query heads and twice "
            f"{kv_heads} key heads; is config.json the right one?"
        )
    heads = np.arange(rows).reshape(kv_heads, group + 2, -1)  # (key heads, heads per group, rows per head)
    return heads[:, :-2].reshape(-1), heads[:, -2].reshape(-1), heads[:, -1].reshape(-1)


def group_qkv(pattern: str, kv_heads: Callable[[Config], int]) -> Transform:
    """Bring a fused projection that goes head by head into the order all queries, all keys, all values."""

    def regroup(tensor: Tensor, config: Config) -> Tensor:
        import numpy as np

        return take_rows(tensor, np.concatenate(_qkv_rows(tensor, config, kv_heads(config))))

    return map_each(pattern, regroup)


def split_qkv(pattern: str, names: tuple[str, str, str], *, permuted: bool) -> Transform:
    """Split a fused projection that goes head by head into queries, keys and values.

    Parameters
    ----------
    pattern : matches the fused projection's module in a name; `names` stand in its place.
    permuted : queries and keys get `permute_rope`'s order too.
    """
    matcher = re.compile(pattern)

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        for tensor in tensors:
            if not matcher.search(tensor.name):
                yield tensor
                continue
            orders = _qkv_rows(tensor, config, config.kv_heads)
            heads = (config.heads, config.kv_heads, 0)
            for name, order, n in zip(names, orders, heads, strict=True):
                rows = rope_order(order, n) if permuted and n else order
                yield take_rows(tensor, rows).renamed(matcher.sub(name, tensor.name))

    return transform


def split_rows(pattern: str, *names: str) -> Transform:
    """Split every matrix of a tensor into equal parts, top to bottom: ``gate_up_proj`` into gate and up.

    Parameters
    ----------
    pattern : matches what `names` stand for in the parts' names.
    """
    return _split(pattern, names, lambda rows, part: slice(part * rows // len(names), (part + 1) * rows // len(names)))


def interleaved(pattern: str, *names: str) -> Transform:
    """As `split_rows`, for parts that take turns row by row; of a stack of vectors, entry by entry."""
    return _split(pattern, names, lambda rows, part: slice(part, None, len(names)))


def _split(pattern: str, names: tuple[str, ...], part_of: Callable[[int, int], slice]) -> Transform:
    matcher = re.compile(pattern)

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        import numpy as np

        for tensor in tensors:
            if not matcher.search(tensor.name):
                yield tensor
                continue
            of_vectors = tensor.name.endswith(("bias", ".bias"))
            length = tensor.shape[-1] if of_vectors else tensor.shape[-2]
            if length % len(names):
                raise CheckpointError(f"{printable(tensor.name)} of shape {list(tensor.shape)} cannot be split evenly")
            for part, name in enumerate(names):
                order = np.arange(length)[part_of(length, part)]
                if of_vectors:
                    result = take_columns(tensor, order)
                else:
                    outer = tensor.shape[:-2]
                    rows = each_matrix(order, math.prod(outer), length)
                    result = take_rows(tensor, rows, (*outer, len(order), tensor.cols))
                yield result.renamed(matcher.sub(name, tensor.name))

    return transform


def stack_experts(
    pattern: str,
    parts: tuple[str, ...],
    name: str,
    count: Callable[[Config], int] = lambda config: config.integer("num_local_experts", "num_experts"),
) -> Transform:
    """Stack the matrices of a layer's experts into one tensor (experts, rows, cols) for each part.

    Parameters
    ----------
    pattern : of an expert's weight, the whole name, with the groups `layer`, `expert` and `part`.
    parts : the values of `part`, in the order in which the stacked tensors come.
    name : of the result, with ``{layer}`` and ``{part}``.
    count : the number of experts.

    A layer's tensors come out where the last of its experts stood.
    """
    matcher = re.compile(pattern)

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        waiting: dict[str, dict[tuple[str, int], Tensor]] = {}
        for tensor in tensors:
            if (match := matcher.fullmatch(tensor.name)) is None:
                yield tensor
                continue
            n_experts = count(config)
            layer = waiting.setdefault(match["layer"], {})
            layer[match["part"], int(match["expert"])] = tensor
            if len(layer) == n_experts * len(parts):
                del waiting[match["layer"]]
                for part in parts:
                    experts = [_expert(layer, part, i, tensor.name) for i in range(n_experts)]
                    yield stacked(name.format(layer=match["layer"], part=part), experts)
        for layer_number, layer in waiting.items():
            raise CheckpointError(
                f"layer {layer_number} has {len(layer)} expert tensors instead of {count(config) * len(parts)}; "
                "some are missing"
            )

    return transform


def _expert(layer: dict[tuple[str, int], Tensor], part: str, expert: int, seen: str) -> Tensor:
    if (tensor := layer.get((part, expert))) is None:
        raise CheckpointError(f"expert {expert} has no {part}, near {printable(seen)}")
    return tensor


def stack(pattern: str, name: str, count: Callable[[Config], int]) -> Transform:
    """Stack the tensors of a layer that are numbered by the group `expert`: (n, …)."""
    return stack_experts(f"{pattern}(?P<part>)", ("",), name, count)


def drop_tied_output(output: str, embedding: str) -> Transform:
    """Leave out an output matrix that repeats the token embedding, which the file then uses twice."""

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        by_name = {tensor.name: tensor for tensor in tensors}
        a, b = by_name.get(output), by_name.get(embedding)
        if a is not None and b is not None and _equal(a, b):
            del by_name[output]
        yield from by_name.values()

    return transform


def _equal(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.format) != (b.shape, b.format):
        return False
    step = max(1, (1 << 20) // max(a.cols, 1))
    return all(
        (a.read(lo, min(lo + step, a.rows)) == b.read(lo, min(lo + step, a.rows))).all()
        for lo in range(0, a.rows, step)
    )


def rope_freqs(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Put llama3's rope scaling in front as `rope_freqs.weight`: a divisor for each of the head's frequencies.

    Wavelengths shorter than `original / high_freq_factor` stay, those longer than `original / low_freq_factor`
    are divided by `factor`, and between the two the divisor blends smoothly. Source: Llama 3.1's `apply_scaling`.
    """
    scaling = rope_parameters(config)
    if scaling["rope_type"] == "llama3":
        yield vector("rope_freqs.weight", llama3_divisors(scaling, config.head_dim))
    yield from tensors


def rope_factors(dimensions: Callable[[Config], int]) -> Transform:
    """Put longrope's divisors in front: `rope_factors_long.weight` and `rope_factors_short.weight`.

    Parameters
    ----------
    dimensions : the rotated part of a head; there is a divisor for every two.
    """

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        scaling = rope_parameters(config)
        for kind in ("long", "short") if scaling.get("long_factor") or scaling.get("short_factor") else ():
            numbers, expected = scaling.get(f"{kind}_factor"), dimensions(config) // 2
            if not isinstance(numbers, list) or len(numbers) != expected:
                found = len(numbers) if isinstance(numbers, list) else "none"
                raise ArchitectureError(
                    f"config.json: rope_scaling needs {expected} numbers as {kind}_factor, it has {found}"
                )
            yield vector(f"rope_factors_{kind}.weight", numbers)
        yield from tensors

    return transform
