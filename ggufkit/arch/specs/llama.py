"""Llama and the models that share its architecture: Mistral, Mixtral."""

from __future__ import annotations

from collections.abc import Iterator

from ggufkit.arch.config import Config
from ggufkit.arch.spec import BASE, REQUIRED, Architecture, Hyperparameter
from ggufkit.arch.transforms import permute_rope, rope_freqs, stack_experts
from ggufkit.arch.vocab.spm import sentencepiece
from ggufkit.gguf.header import Value, ValueType


def _head_dim(config: Config) -> int:
    return config.integer("hidden_size") // config.integer("num_attention_heads")


def _rope_dimensions(architecture: str, config: Config) -> Iterator[tuple[str, Value]]:
    yield (
        f"{architecture}.rope.dimension_count",
        Value(ValueType.UINT32, config.get("head_dim") or _head_dim(config)),
    )


# transformers' defaults of what public configs leave out. A model's shape is never assumed.
_LLAMA = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_key_value_heads": lambda config: config.integer("num_attention_heads"),
    "head_dim": _head_dim,
}
_MISTRAL = _LLAMA | {"max_position_embeddings": 4096 * 32, "num_key_value_heads": 8}
_MIXTRAL = {
    "max_position_embeddings": 4096 * 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}

LLAMA = Architecture(
    name="llama",
    models={
        "LlamaForCausalLM": _LLAMA,
        "LLaMAForCausalLM": _LLAMA,
        "MistralForCausalLM": _MISTRAL,
        "MixtralForCausalLM": _MIXTRAL,
    },
    metadata=(
        *BASE,
        Hyperparameter("vocab_size", ValueType.UINT32, ("vocab_size",), REQUIRED),
        _rope_dimensions,
    ),
    vocabulary=sentencepiece,
    transforms=(
        permute_rope("q_proj", "num_attention_heads"),
        permute_rope("k_proj", "num_key_value_heads"),
        stack_experts(
            r"model\.layers\.(?P<layer>\d+)\.block_sparse_moe\.experts\.(?P<expert>\d+)\.(?P<part>w[123])\.weight",
            parts=("w1", "w2", "w3"),
            stacked="layers.{layer}.feed_forward.experts.{part}.weight",
            count="num_local_experts",
        ),
        rope_freqs,
    ),
)

SPECS = (LLAMA,)
