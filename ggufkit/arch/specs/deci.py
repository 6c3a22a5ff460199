"""DeciLM, and Nemotron models that were pruned block by block: heads and FFN differ from layer to layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    BASE,
    FILE_TYPE,
    LAYERS,
    ROPE_DIMENSIONS,
    VOCAB_SIZE,
    Row,
    integers,
    real,
    rope_parameters,
    uint,
)
from ggufkit.arch.rope_tensors import rope_freqs
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import permute_rope
from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError
from ggufkit.gguf.header import Value
from ggufkit.policy.traits import Traits
from ggufkit.tensors.tensor import Tensor
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece
from ggufkit.tokenizer.from_checkpoint.tokens import first_of

_LLAMA3 = 128256  # tokens


def _blocks(config: Config) -> list[dict[str, Any]] | None:
    """What was left of each layer, of models that say so."""
    if "block_configs" not in config:
        return None
    blocks = config.list("block_configs", config.layers)
    for block in blocks:
        if not isinstance(block, dict) or not all(isinstance(block.get(part), dict) for part in ("attention", "ffn")):
            raise ArchitectureError("config.json: a block of 'block_configs' needs an attention and an ffn")
    return blocks


def _heads(config: Config) -> list[int] | None:
    """Query heads of each layer: none without attention, but where a linear layer stands for it."""
    if (blocks := _blocks(config)) is None:
        return None
    parts = [block["attention"] for block in blocks]
    kept = (part.get("n_heads_in_group") is not None or part.get("replace_with_linear") is True for part in parts)
    return [config.heads if there else 0 for there in kept]


def _kv_heads(config: Config) -> list[int] | None:
    if (blocks := _blocks(config)) is None:
        return config.list("num_key_value_heads_per_layer") if "num_key_value_heads_per_layer" in config else None
    parts = [Config(block["attention"]) for block in blocks]
    return [config.heads // part.integer("n_heads_in_group") if "n_heads_in_group" in part else 0 for part in parts]


def _lengths(config: Config) -> list[int] | None:
    if (blocks := _blocks(config)) is None:
        return None
    parts = [Config(block["ffn"]) for block in blocks]
    factors = [part.number("ffn_mult") if "ffn_mult" in part else 0.0 for part in parts]
    return [-(int(2 * factor * config.width / 3) // -256) * 256 for factor in factors]


def _head(config: Config) -> int:
    return config.width // config.heads


_OF_BLOCKS: tuple[Row, ...] = (
    real("rope.freq_base", lambda config: rope_parameters(config)["rope_theta"]),
    integers("attention.head_count_kv", _kv_heads),
    integers("attention.head_count", _heads),
    integers("feed_forward_length", _lengths),
    LAYERS,
    uint("context_length", "max_position_embeddings"),
    uint("embedding_length", "hidden_size"),
    real("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    uint("attention.key_length", _head),
    uint("attention.value_length", _head),
    FILE_TYPE,
)
_LAST: tuple[Row, ...] = (VOCAB_SIZE, ROPE_DIMENSIONS)


def _vocabulary(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    kind = bpe if config.get("vocab_size", default=_LLAMA3) == _LLAMA3 else first_of(sentencepiece, bpe)
    yield from kind(checkpoint, config)


def _permuted(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """`permute_rope` with as many heads as the tensor's layer has."""
    per_layer = {"q": _heads(config), "k": _kv_heads(config)}
    usual = {"q": config.heads, "k": config.kv_heads}
    for tensor in tensors:
        if (match := re.search(r"layers\.(\d+)\..*\.([qk])_proj\.", tensor.name)) is None:
            yield tensor
            continue
        numbers, layer = per_layer[match[2]], int(match[1])
        found = usual[match[2]] if numbers is None or layer >= len(numbers) else numbers[layer]
        if type(found) is not int or found < 1:
            raise ArchitectureError(f"config.json: layer {layer} has no heads, and the checkpoint has {match[2]}_proj")
        yield from permute_rope(f"{match[2]}_proj", lambda config, found=found: found)([tensor], config)  # type: ignore[misc]


SPECS = (
    Architecture(
        name="deci",
        graph=Graph(),
        traits=Traits(layers_of_70b=80),
        models={"DeciLMForCausalLM": {}},
        when=lambda config: "block_configs" in config,
        metadata=(*_OF_BLOCKS, *_LAST),
        vocabulary=_vocabulary,
        transforms=(_permuted, rope_freqs),
    ),
    Architecture(
        name="deci",
        graph=Graph(),
        models={"DeciLMForCausalLM": {}},
        metadata=(*BASE, integers("attention.head_count_kv", _kv_heads), *_LAST),
        vocabulary=_vocabulary,
        transforms=(_permuted, rope_freqs),
    ),
)
