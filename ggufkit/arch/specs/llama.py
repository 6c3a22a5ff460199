"""Llama and the models that share its architecture: Mistral, Mixtral."""

from __future__ import annotations

from ggufkit.arch.export import W123_EXPERTS, Export, Setting, Source, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, ROPE_DIMENSIONS, VOCAB_SIZE
from ggufkit.arch.mlx import PLAIN_MLX
from ggufkit.arch.rope_tensors import rope_freqs
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import permute_rope, rename, stack_experts, w123_again
from ggufkit.policy.traits import Traits
from ggufkit.tokenizer.from_checkpoint.llama import llama_vocabulary

# transformers' defaults of what public configs leave out. A model's shape is never assumed.
_LLAMA = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_key_value_heads": lambda config: config.heads,
    "head_dim": lambda config: config.width // config.heads,
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

PERMUTED = (
    permute_rope("q_proj", lambda config: config.heads),
    permute_rope("k_proj", lambda config: config.kv_heads),
)

# Of these families the reference permutes weights alone; public checkpoints of them have no biases.
WEIGHTS_PERMUTED = (
    permute_rope("q_proj", lambda config: config.heads, biases=False),
    permute_rope("k_proj", lambda config: config.kv_heads, biases=False),
)

# Names of SmolVLM, and of the bare model.
BARE_LLAMA = rename(
    (r"text_model\.", ""),
    (r"^(?=(embed_tokens|layers|norm)\.)", "model."),
)


def _biases(s: Source) -> bool:
    return s.has(*(f"attn_{part}.bias" for part in ("q", "k", "v", "output")))


_BIASES: dict[str, Setting] = {
    "attention_bias": _biases,
    "mlp_bias": lambda s: s.has(*(f"ffn_{part}.bias" for part in ("gate", "up", "down"))),
}

# Mixtral, and the others: a Mistral is a Llama by another name.
_EXPORTS = (
    Export(
        "mixtral",
        "MixtralForCausalLM",
        config={
            "attention_bias": None,
            "mlp_bias": None,
            "num_local_experts": key("expert_count"),
            "num_experts_per_tok": key("expert_used_count"),
        },
        names=W123_EXPERTS,
        rotated=True,
        when=lambda s: bool(s.get("expert_count")),
        mlx=PLAIN_MLX,
    ),
    Export("llama", "LlamaForCausalLM", config=_BIASES, rotated=True, mlx=PLAIN_MLX),
)

LLAMA = Architecture(
    name="llama",
    exports=_EXPORTS,
    traits=Traits(layers_of_70b=80, older_65b=True),
    models={
        "IQuestCoderForCausalLM": _LLAMA,
        "LLaMAForCausalLM": _LLAMA,
        "LlamaForCausalLM": _LLAMA,
        "LlamaModel": _LLAMA,
        "LlavaForConditionalGeneration": _LLAMA,
        "MistralForCausalLM": _MISTRAL,
        "MixtralForCausalLM": _MIXTRAL,
        "VLlama3ForCausalLM": _LLAMA | {"num_attention_heads": 32},
        "VoxtralForConditionalGeneration": _LLAMA
        | {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 1e8},
    },
    metadata=(*BASE, VOCAB_SIZE, ROPE_DIMENSIONS),
    vocabulary=llama_vocabulary,
    transforms=(
        BARE_LLAMA,
        *PERMUTED,
        w123_again,
        stack_experts(
            r"model\.layers\.(?P<layer>\d+)\.block_sparse_moe\.experts\.(?P<expert>\d+)\.(?P<part>w[123])\.weight",
            parts=("w1", "w2", "w3"),
            name="layers.{layer}.feed_forward.experts.{part}.weight",
        ),
        rope_freqs,
    ),
    graph=Graph(),
)

SPECS = (LLAMA,)
