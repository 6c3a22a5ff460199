"""Qwen 3 and its mixtures of experts."""

from __future__ import annotations

from ggufkit.arch.export import EXPERTS as EXPORTED_EXPERTS
from ggufkit.arch.export import Export
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, pooling
from ggufkit.arch.mlx import PLAIN_MLX, Mlx
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.qwen2 import BARE, EXPERT_LENGTHS, EXPERTS, MOE_SETTINGS
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece
from ggufkit.tokenizer.from_checkpoint.tokens import first_of

_DEFAULTS = {
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_key_value_heads": 32,
    "head_dim": 128,
}
_MOE = _DEFAULTS | {
    "num_key_value_heads": 4,
    "head_dim": None,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}

_EXPORT_MOE = Export(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    config={**MOE_SETTINGS, "norm_topk_prob": lambda s: True},
    names=EXPORTED_EXPERTS,
    mlx=Mlx(config={"decoder_sparse_step": lambda s: 1, "mlp_only_layers": lambda s: []}),
)

SPECS = (
    Architecture(
        name="qwen3",
        exports=(Export("qwen3", "Qwen3ForCausalLM", mlx=PLAIN_MLX),),
        models={"Qwen3ForCausalLM": _DEFAULTS, "Qwen3Model": _DEFAULTS},
        metadata=(*BASE, pooling),
        vocabulary=first_of(sentencepiece, bpe),
        graph=Graph(rope="neox", head_softmax=True),
        transforms=(BARE,),
    ),
    Architecture(
        name="qwen3moe",
        exports=(_EXPORT_MOE,),
        models={"Qwen3MoeForCausalLM": _MOE},
        metadata=(*BASE, *EXPERT_LENGTHS),
        vocabulary=bpe,
        graph=Graph(rope="neox"),
        transforms=EXPERTS,
    ),
)
