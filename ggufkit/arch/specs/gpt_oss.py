"""gpt-oss: experts in MXFP4, which keep their bits."""

from __future__ import annotations

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import interleaved, rename, transpose
from ggufkit.tokenizer.from_checkpoint.bpe import bpe

SPECS = (
    Architecture(
        name="gpt-oss",
        models={
            "GptOssForCausalLM": {
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5,
                "rope_theta": 150000.0,
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 32.0,
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                    "original_max_position_embeddings": 4096,
                },
                "num_key_value_heads": 8,
                "head_dim": 64,
                "num_local_experts": 128,
                "num_experts_per_tok": 4,
                "sliding_window": 128,
            }
        },
        metadata=(
            *BASE,
            uint("attention.sliding_window", "sliding_window"),
            uint("expert_feed_forward_length", "intermediate_size"),
        ),
        vocabulary=bpe,
        graph=Graph(
            rope="neox", activation="swiglu_oai", ffn_norm="post_attention_norm", window_period=2, router="top"
        ),
        transforms=(
            rename(
                (r"\.sinks$", ".sinks.weight"),
                (r"(\.mlp\.experts\.(gate_up|down)_proj)_bias$", r"\1.bias"),
            ),
            # Checkpoints that were trained further have 16-bit experts, stored (in, out).
            transpose(r"\.mlp\.experts\.(gate_up|down)_proj$"),
            rename((r"(\.mlp\.experts\.(gate_up|down)_proj)$", r"\1.weight")),
            interleaved(r"gate_up_proj(?=\.(weight|bias)$)", "gate_proj", "up_proj"),
        ),
    ),
)
