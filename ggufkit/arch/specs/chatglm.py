"""ChatGLM 3 and the GLM-4 that came with code of their own."""

from __future__ import annotations

from ggufkit.arch.export import COMMON, Export, key
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import FILE_TYPE, LAYERS, flag, partial_rotary, real, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import drop, rename
from ggufkit.checkpoint.config import Config
from ggufkit.tokenizer.from_checkpoint.tokens import first_of
from ggufkit.tokenizer.from_checkpoint.variants import bpe_with_roles, chatglm3


def _glm_width(config: Config) -> int:
    return config.integer("hidden_size", "n_embed")


def _glm_rope(config: Config) -> int:
    size = config.get("attention_dim", default=config.width // config.heads)
    return int(size * partial_rotary(config, 0.5))


_GLM_LAYER = "transformer.encoder.layers.{bid}"
_EXPORT_GLM = Export(
    "chatglm",
    "ChatGLMModel",
    common=False,
    config={
        "hidden_size": lambda s: s.width,
        "num_layers": lambda s: s.layers,
        "num_attention_heads": lambda s: s.heads,
        "ffn_hidden_size": key("feed_forward_length"),
        "kv_channels": lambda s: s.width // s.heads,
        "multi_query_attention": lambda s: True,
        "multi_query_group_num": lambda s: s.kv_heads,
        "seq_length": key("context_length"),
        "layernorm_epsilon": key("attention.layer_norm_rms_epsilon"),
        "rope_ratio": lambda s: s.get("rope.freq_base", 10000.0) / 10000,
        **dict.fromkeys(("rmsnorm", "post_layer_norm", "original_rope"), lambda s: True),
        "add_qkv_bias": lambda s: "blk.0.attn_qkv.bias" in s.tensors,
        "add_bias_linear": lambda s: False,
        **dict.fromkeys(("vocab_size", "padded_vocab_size"), COMMON["vocab_size"]),
        **{name: COMMON[name] for name in ("tie_word_embeddings", "eos_token_id", "pad_token_id")},
    },
    names={
        "token_embd": "transformer.embedding.word_embeddings",
        "output_norm": "transformer.encoder.final_layernorm",
        "output": "transformer.output_layer",
        "blk.{bid}.attn_norm": f"{_GLM_LAYER}.input_layernorm",
        "blk.{bid}.attn_qkv": f"{_GLM_LAYER}.self_attention.query_key_value",
        "blk.{bid}.attn_output": f"{_GLM_LAYER}.self_attention.dense",
        "blk.{bid}.ffn_norm": f"{_GLM_LAYER}.post_attention_layernorm",
        "blk.{bid}.ffn_up": f"{_GLM_LAYER}.mlp.dense_h_to_4h",
        "blk.{bid}.ffn_down": f"{_GLM_LAYER}.mlp.dense_4h_to_h",
    },
    when=lambda s: s.metadata.get("tokenizer.ggml.model") == "gpt2",
)

SPECS = (
    Architecture(
        name="chatglm",
        exports=(_EXPORT_GLM,),
        graph=Graph(),
        models={"ChatGLMForConditionalGeneration": {}, "ChatGLMModel": {}, "GlmForCausalLM": {}},
        metadata=(
            uint("context_length", lambda config: config.get("seq_length", default=_glm_width(config))),
            uint("embedding_length", _glm_width),
            uint(
                "feed_forward_length",
                lambda config: config.get("ffn_hidden_size", "intermediate_size", default=4 * _glm_width(config)),
            ),
            LAYERS,
            uint("attention.head_count", lambda config: config.heads),
            uint(
                "attention.head_count_kv",
                lambda config: config.get("multi_query_group_num", "num_key_value_heads", default=config.heads),
            ),
            real("attention.layer_norm_rms_epsilon", lambda config: config.get("layernorm_epsilon", default=1e-5)),
            FILE_TYPE,
            uint("rope.dimension_count", _glm_rope),
            flag("tokenizer.ggml.add_bos_token", False),
            real("rope.freq_base", lambda config: 10000 * config.get("rope_ratio", default=1)),
        ),
        vocabulary=first_of(bpe_with_roles(eos="<|endoftext|>", eot="<|user|>", unk="<|endoftext|>"), chatglm3),
        transforms=(drop(r"\.rotary_pos_emb\.inv_freq$"), rename((r"^transformer\.", ""))),
    ),
)
