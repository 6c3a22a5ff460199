"""The named things that can be done to a checkpoint's tensors on their way to GGUF.

Each function here makes a `Transform` for an architecture's spec. All are lazy: they change how rows are read (see
`rows`). `pattern` is always a regular expression that is searched in the checkpoint's names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ggufkit.arch.heads import qkv_rows, rope_order
from ggufkit.arch.pieces import together
from ggufkit.arch.spec import Transform
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.scaled import scaled
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
)

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "decay",
    "decays",
    "drop",
    "drop_tied_output",
    "first_rows",
    "group_qkv",
    "interleaved",
    "joined",
    "map_each",
    "mlp_experts",
    "mtp_blocks",
    "multiply",
    "norm_plus_one",
    "only",
    "permute_rope",
    "rename",
    "reshape",
    "split_qkv",
    "split_rows",
    "squeezed",
    "stack",
    "stack_experts",
    "transpose",
    "trunk",
    "untied",
    "w123_again",
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


def permute_rope(projection: str, heads: Callable[[Config], int], biases: bool = True) -> Transform:
    """Reorder the rows of each head of `projection` from Hugging Face's rotary layout to the original one.

    Hugging Face rotates the pairs (i, i + d/2) of a head of d rows, GGUF's llama rotates (2i, 2i + 1):

        rows of a head   0 1 2 3 | 4 5 6 7   →   0 4 1 5 2 6 3 7

    Parameters
    ----------
    projection : the module, e.g. ``"q_proj"``; its weight and its bias are permuted.
    heads : how many it has.
    biases : False for families whose biases the reference leaves as they are.
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

    return map_each(rf"\.{projection}\.(weight{'|bias' if biases else ''})$", permute)


def _length(tensor: Tensor) -> int:
    """Rows of a matrix, entries of a vector."""
    return tensor.cols if len(tensor.shape) == 1 else tensor.rows


def _qkv_rows(tensor: Tensor, config: Config, kv_heads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which rows of a fused projection are queries, keys and values."""
    rows = _length(tensor)
    if (found := qkv_rows(rows, config.heads, kv_heads)) is None:
        raise CheckpointError(
            f"{printable(tensor.name)} has {rows} rows, which are not {config.heads} query heads and twice "
            f"{kv_heads} key heads; is config.json the right one?"
        )
    return found


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


def joined(parts: tuple[str, ...], whole: str) -> Transform:
    """Matrices below each other as the one that they are in the published checkpoint.

    GPTQModel takes such apart before it quantizes: ``gate_up_proj`` into ``gate_proj`` and ``up_proj``.

    Parameters
    ----------
    parts, whole : module names, without what stands before them.
    """
    matcher = re.compile(rf"(?P<at>.*\.)(?P<part>{'|'.join(parts)})(?P<end>\.weight)")

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        waiting: dict[str, dict[str, Tensor]] = {}
        for tensor in tensors:
            if (match := matcher.fullmatch(tensor.name)) is None:
                yield tensor
                continue
            found = waiting.setdefault(match["at"], {})
            found[match["part"]] = tensor
            if len(found) == len(parts):
                del waiting[match["at"]]
                yield together(f"{match['at']}{whole}{match['end']}", [found[part] for part in parts])
        for found in waiting.values():
            yield from found.values()

    return transform


# Experts that are published as w1, w2 and w3, under the names that transformers and GPTQModel give them.
w123_again = rename(
    (r"(?<=\.)mlp\.gate(?=\.weight$)", "block_sparse_moe.gate"),
    *(
        (rf"(?<=\.)mlp\.experts\.(\d+)\.{part}_proj(?=\.weight$)", rf"block_sparse_moe.experts.\1.{name}")
        for part, name in (("gate", "w1"), ("down", "w2"), ("up", "w3"))
    ),
)


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


def mlp_experts(
    *count: str,
    parts: tuple[str, ...] = ("down", "gate", "up"),
    pattern: str = r"model\.layers\.(?P<layer>\d+)\.mlp\.experts\.(?P<expert>\d+)\.(?P<part>\w+)_proj\.weight",
    name: str = "model.layers.{layer}.mlp.experts.{part}_proj.weight",
) -> tuple[Transform, ...]:
    """Experts as most families name them: one by one, or all of a layer's already stacked, gate over up.

    Parameters
    ----------
    count : names in config.json of the number of experts, the first that is there.
    """
    names = count or ("num_local_experts", "num_experts", "n_routed_experts")
    return (
        stack_experts(pattern, parts, name, lambda config: config.integer(*names)),
        rename((r"(\.mlp\.experts\.(down|gate_up)_proj)$", r"\1.weight")),
        split_rows(r"(?<=\.mlp\.experts\.)gate_up_proj", "gate_proj", "up_proj"),
    )


def multiply(pattern: str, factor: Callable[[Config], float]) -> Transform:
    """A factor of the model's computation, folded into weights; a factor of 1 leaves them as they are.

    Of a quantized checkpoint the scales take it in, where they stay exact.
    """

    def times(tensor: Tensor, config: Config) -> Tensor:
        if (number := factor(config)) == 1:
            return tensor
        return scaled(tensor, number) or computed(tensor, lambda weights: weights * weights.dtype.type(number))

    return map_each(pattern, times)


def squeezed(pattern: str = r"conv1d\.weight$") -> Transform:
    """Convolutions of one channel each, (channels, 1, kernel), as matrices (channels, kernel)."""
    return reshape(pattern, lambda tensor, config: (tensor.shape[0], tensor.shape[-1]))


# The bfloat16 numbers (upper halves of float32), but for the tiniest, of which PyTorch's exponential on x86, in its
# form without AVX, is not the nearest float32 but the one above or below it.
_EXPONENTIAL_ABOVE = bytes.fromhex(
    "3df0 3ec1 3ed7 3fb6 404c 407f 40ac 40e5 4226 425d 428f bc42 bcc5 bd0e bd95 bdc2 be0d bf52"
)
_EXPONENTIAL_BELOW = bytes.fromhex("3e43 3f7a 4070 4079 40e1 4279 bc0d bc69 bc9d bc9e bd11 bf67")


def decay(pattern: str = r"\.A_log$") -> Transform:
    """A state's decay, −eᵃ, of which checkpoints hold a; correctly rounded.

    The reference's exponential is PyTorch's, which is not, and depends on the CPU: one in a hundred values differs in
    its last bit. Those of checkpoints in bfloat16 are few and known, and are followed.
    """
    return map_each(pattern, lambda tensor, config: computed(tensor, decays))


def decays(logarithms: np.ndarray) -> np.ndarray:
    """−eᵃ as `decay` has it."""
    import numpy as np

    result = np.exp(logarithms.astype(np.float64)).astype(np.float32)
    if logarithms.dtype == np.float32:
        for bits, towards in ((_EXPONENTIAL_ABOVE, np.inf), (_EXPONENTIAL_BELOW, -np.inf)):
            odd = np.isin(logarithms.view(np.uint32), np.frombuffer(bits, ">u2").astype(np.uint32) << 16)
            result = np.where(odd, np.nextafter(result, np.float32(towards)), result)
    return -result


def only(condition: Callable[[Config], Any], *transforms: Transform) -> Transform:
    """Transforms for configs of which `condition` holds."""

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        if condition(config):
            for step in transforms:
                tensors = step(tensors, config)
        yield from tensors

    return transform


def untied(pattern: str = r"^(model\.)?lm_head\.weight$") -> Transform:
    """Without an output matrix that the config calls tied to the embedding."""
    return only(lambda config: config.get("tie_word_embeddings", default=False), drop(pattern))


def trunk(layers: Callable[[Config], int]) -> Transform:
    """Without the blocks behind the first `layers`, which predict further tokens."""

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        count = layers(config)
        for tensor in tensors:
            layer = re.match(r"model\.layers\.(\d+)\.", tensor.name)
            if layer is None or int(layer[1]) < count:
                yield tensor

    return transform


def mtp_blocks(prefix: str = r"mtp\.") -> Transform:
    """Blocks that predict further tokens under names of their own, as blocks behind the last.

    mtp.layers.i.…            model.layers.(N + i).…
    mtp.fc, mtp.norm, …       eh_proj, enorm, hnorm, shared_head.norm of block N
    """
    ends = {
        "fc": "eh_proj",
        "pre_fc_norm_embedding": "enorm",
        "pre_fc_norm_hidden": "hnorm",
        "norm": "shared_head.norm",
    }
    matcher = re.compile(rf"(?:model\.)?{prefix}(?:layers\.(?P<layer>\d+)\.(?P<rest>.+)|(?P<end>\w+)(?P<suffix>\.\w+))")

    def transform(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
        for tensor in tensors:
            if (match := matcher.fullmatch(tensor.name)) is None:
                yield tensor
            elif config.mtp and match["layer"] is not None:
                yield tensor.renamed(f"model.layers.{config.layers + int(match['layer'])}.{match['rest']}")
            elif config.mtp and match["end"] in ends:
                yield tensor.renamed(f"model.layers.{config.layers}.{ends[match['end']]}{match['suffix']}")

    return transform


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
