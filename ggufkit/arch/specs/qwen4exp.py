"""Qwen 3.8 Flash Next: Qwen 3.5's delta nets, hyper-connections instead of norms, attention to chosen blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, integers, longs, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.qwen2 import EXPERTS
from ggufkit.arch.specs.qwen35 import DELTA, DELTA_TENSORS, SECTIONS, tiled_values
from ggufkit.arch.transforms import drop, norm_plus_one, squeezed
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import stacked, take_rows
from ggufkit.tokenizer.from_checkpoint.bpe import bpe


def _ratios(config: Config) -> list[int]:
    """How many tokens the index of a layer takes together; 0 where the layer has none."""
    ratio, kinds = config.integer("indexer_compress_ratio"), config.list("layer_types", config.layers)
    return [ratio if kind == "full_attention" else 0 for kind in kinds]


def _ngram_layers(config: Config) -> list[int] | None:
    """Layers with embeddings of n-grams; the config counts from 1."""
    return [layer - 1 for layer in config.list("ple_layer_ids")] or None


def _if_ngrams(find: Callable[[Config], object]) -> Callable[[Config], object]:
    return lambda config: find(config) if _ngram_layers(config) else None


def _end(config: Config) -> int:
    end = config.require("eos_token_id")
    result: int = end[-1] if isinstance(end, list) and end else end
    return result


def _hash_constants(suffix: str) -> Callable[[Config], list[int] | None]:
    """Whole numbers of up to 45 bits, which a checkpoint holds as a tensor."""

    def find(config: Config) -> list[int] | None:
        if not _ngram_layers(config):
            return None
        for name, tensor in config.tensors.items():
            if name.endswith(suffix):
                return integers_of(tensor)
        raise CheckpointError(f"the checkpoint has no {suffix}, which embeddings of n-grams need")

    return find


def integers_of(tensor: Tensor) -> list[int]:
    """The numbers of a tensor of whole numbers."""
    import numpy as np

    kinds = {"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8}
    if (kind := kinds.get(tensor.format.name)) is None:
        raise CheckpointError(f"{printable(tensor.name)} must hold whole numbers, not {tensor.format.name}")
    return [int(number) for number in tensor.read(0, tensor.rows).reshape(-1).view(kind)]


_SHARD = re.compile(r".*\.ngram_embedding\.shard_(\d+)\..*")


def _ngram_rows(config: Config) -> int | None:
    return next((tensor.cols for name, tensor in config.tensors.items() if _SHARD.match(name)), None)


def _ngram_table(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """The shards of the n-grams' table, one below the other."""
    shards: dict[int, Tensor] = {}
    for tensor in tensors:
        if (match := _SHARD.match(tensor.name)) is None:
            yield tensor
            continue
        shards[int(match[1])] = tensor
        if len(shards) == config.integer("split_ngram_parts"):
            ordered = [shards[number] for number in sorted(shards)]
            rows = sum(shard.rows for shard in ordered)
            yield stacked("per_layer_token_embd.weight", ordered, (rows, ordered[0].cols))
    if shards and len(shards) != (parts := config.integer("split_ngram_parts")):
        raise CheckpointError(f"the n-grams' table has {len(shards)} parts, config.json calls for {parts}")


def _split_index(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """One projection feeds the index's queries and its keys."""
    import numpy as np

    for tensor in tensors:
        if ".indexer.index_qk_proj.weight" not in tensor.name:
            yield tensor
            continue
        queries = config.integer("indexer_n_heads") * config.integer("indexer_head_dim")
        if tensor.rows <= queries:
            raise ArchitectureError(f"{printable(tensor.name)} has {tensor.rows} rows, {queries} of them for queries")
        layer = tensor.name.split(".layers.")[1].split(".")[0]
        yield take_rows(tensor, np.arange(queries)).renamed(f"blk.{layer}.indexer.q_proj.weight")
        yield take_rows(tensor, np.arange(queries, tensor.rows)).renamed(f"blk.{layer}.indexer.k_proj.weight")


SPECS = (
    Architecture(
        name="qwen4exp",
        graph=Graph(rope="neox", mixed_sections=True, delta_gate="sigmoid"),
        models={"Qwen4ExpForCausalLM": {}, "Qwen4ExpForConditionalGeneration": {}},
        metadata=(
            *BASE,
            *(row for row in DELTA if getattr(row, "key", "") != "nextn_predict_layers"),
            SECTIONS,
            uint("hyper_connection.count", "hc_count"),
            uint("hyper_connection.low_rank", "hc_lowrank"),
            uint("attention.indexer.head_count", "indexer_n_heads"),
            uint("attention.indexer.key_length", "indexer_head_dim"),
            uint("attention.indexer.top_k", "indexer_budget"),
            integers("attention.compress_ratios", _ratios),
            integers("ple.layers", _ngram_layers),
            uint("ple.ngram_size", _if_ngrams(lambda config: config.integer("ngram_size"))),
            uint("ple.heads_per_ngram", _if_ngrams(lambda config: config.integer("heads_per_ngram"))),
            uint("ple.conv_kernel", _if_ngrams(lambda config: config.integer("ple_conv_kernel_size"))),
            uint("ple.eos_token_id", _if_ngrams(_end)),
            uint("ple.image_token_id", _if_ngrams(lambda config: config.get("image_token_id"))),
            uint("embedding_length_per_layer_input", _if_ngrams(_ngram_rows)),
            longs("ple.layer_multipliers", _hash_constants("ple_embedding.layer_multipliers")),
            longs("ple.head_offsets", _hash_constants("ple_embedding.ngram_heads_offsets")),
            longs("ple.head_vocab_sizes", _hash_constants("ple_embedding.ngram_heads_vocab_sizes")),
        ),
        vocabulary=bpe,
        transforms=(
            drop(r"^(model\.)?mtp\."),
            drop(r"ple_embedding\.(layer_multipliers|ngram_heads_(offsets|vocab_sizes))$"),
            _ngram_table,
            _split_index,
            norm_plus_one(r"\.ple\.norm_(key|query|conv)\.weight$"),
            squeezed(r"\.ple\.conv1d\.weight$"),
            tiled_values,
            *DELTA_TENSORS,
            *EXPERTS,
        ),
    ),
)
