"""MiniCPM and MiniCPM 3."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    BASE,
    CONTEXT_LENGTH,
    EMBEDDING_LENGTH,
    FEED_FORWARD_LENGTH,
    FILE_TYPE,
    HEAD_COUNT,
    HEAD_COUNT_KV,
    LAYERS,
    OPTIONAL,
    RMS_EPSILON,
    VOCAB_SIZE,
    real,
    uint,
)
from ggufkit.arch.rope_tensors import rope_factors
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.llama import WEIGHTS_PERMUTED
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece

SPECS = (
    Architecture(
        name="minicpm",
        graph=Graph(),
        models={"MiniCPMForCausalLM": {}},
        metadata=(
            *BASE,
            real("embedding_scale", lambda config: config.number("scale_emb")),
            real("residual_scale", lambda config: config.number("scale_depth") / config.layers**0.5),
            real("logit_scale", lambda config: config.width / config.number("dim_model_base")),
        ),
        vocabulary=sentencepiece,
        transforms=(*WEIGHTS_PERMUTED, rope_factors(lambda config: config.width // config.heads)),
    ),
    Architecture(
        name="minicpm3",
        graph=Graph(rope="neox", multipliers=lambda width, layers: (12, 1.4 / layers**0.5, 256 / width)),
        models={"MiniCPM3ForCausalLM": {}},
        metadata=(
            FILE_TYPE,
            CONTEXT_LENGTH,
            EMBEDDING_LENGTH,
            LAYERS,
            FEED_FORWARD_LENGTH,
            HEAD_COUNT,
            HEAD_COUNT_KV,
            RMS_EPSILON,
            VOCAB_SIZE,
            uint("attention.q_lora_rank", "q_lora_rank", need=OPTIONAL),
            uint("attention.kv_lora_rank", "kv_lora_rank"),
            uint(
                "attention.key_length",
                lambda config: config.integer("qk_nope_head_dim") + config.integer("qk_rope_head_dim"),
            ),
            uint("rope.dimension_count", "qk_rope_head_dim"),
        ),
        vocabulary=sentencepiece,
        transforms=(rope_factors(lambda config: config.integer("qk_rope_head_dim")),),
    ),
)
