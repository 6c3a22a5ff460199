"""SmolLM 3: Llama with layers without rope."""

from __future__ import annotations

from ggufkit.arch.export import Export
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, ROPE_DIMENSIONS, VOCAB_SIZE
from ggufkit.arch.mlx import PLAIN_MLX
from ggufkit.arch.rope_tensors import rope_freqs
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.llama import PERMUTED
from ggufkit.tokenizer.from_checkpoint.llama import llama_vocabulary

SPECS = (
    Architecture(
        name="smollm3",
        exports=(
            Export(
                "smollm3",
                "SmolLM3ForCausalLM",
                config={"no_rope_layer_interval": lambda s: 4},
                rotated=True,
                mlx=PLAIN_MLX,
            ),
        ),
        models={
            "SmolLM3ForCausalLM": {
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-6,
                "rope_theta": 2e6,
                "num_key_value_heads": 4,
            }
        },
        metadata=(*BASE, VOCAB_SIZE, ROPE_DIMENSIONS),
        vocabulary=llama_vocabulary,
        graph=Graph(no_rope_period=4),
        transforms=(*PERMUTED, rope_freqs),
    ),
)
