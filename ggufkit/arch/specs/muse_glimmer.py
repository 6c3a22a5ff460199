"""Muse Glimmer: Llama with windows, soft caps, and norms of queries and keys that only scale."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, flags, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.llama import PERMUTED
from ggufkit.arch.transforms import norm_plus_one
from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import vector
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.fast import FastTokenizer


def _scales(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Queries are normalised without weights and multiplied by one number: weights that are all that number."""
    for tensor in tensors:
        if (match := re.search(r"layers\.(\d+)\.self_attn\.q_proj\.weight$", tensor.name)) is not None:
            head, scale = config.integer("head_dim"), config.number("qk_scale_factor")
            yield vector(f"blk.{match[1]}.attn_q_norm.weight", [scale] * head)
            yield vector(f"blk.{match[1]}.attn_k_norm.weight", [1.0] * head)
        yield tensor


def _vocabulary(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    yield from bpe(checkpoint, config)
    if (token := FastTokenizer(checkpoint).vocab.get("<|eot|>")) is not None:
        yield "tokenizer.ggml.eot_token_id", Value(ValueType.UINT32, token)


SPECS = (
    Architecture(
        name="muse-glimmer",
        graph=Graph(
            embedding_norm=True,
            window_period=4,
            rope_layers="local",
            logit_multiplied=True,
            post_norm_epsilon=1e-8,
        ),
        models={"MuseGlimmerForConditionalGeneration": {}},
        metadata=(
            *BASE,
            real("final_logit_softcapping", "final_logit_softcapping"),
            real("logit_scale", "output_multiplier"),
            uint("attention.sliding_window", "sliding_window"),
            flags(
                "attention.sliding_window_pattern",
                lambda config: [kind == "sliding_attention" for kind in config.list("layer_types")],
            ),
        ),
        vocabulary=_vocabulary,
        transforms=(norm_plus_one(r"layernorm\.weight$"), *PERMUTED, _scales),
    ),
)
