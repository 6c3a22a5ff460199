"""Qwen 2, 2.5 and their mixtures of experts."""

from __future__ import annotations

from ggufkit.arch.export import EXPERTS as EXPORTED_EXPERTS
from ggufkit.arch.export import Export, Setting, key, one_row
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, OPTIONAL, pooling, uint
from ggufkit.arch.mlx import PLAIN_MLX
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import mlp_experts, rename
from ggufkit.policy.traits import Traits
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece
from ggufkit.tokenizer.from_checkpoint.tokens import first_of

_DEFAULTS = {
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_key_value_heads": 32,
}
_MOE = _DEFAULTS | {
    "num_key_value_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
}

# Checkpoints of the bare model leave out the module that the language model keeps it in.
BARE = rename((r"^(?=(embed_tokens|layers|norm)\.)", "model."))

EXPERTS = mlp_experts()

# What config.json says of experts, in the words of most families.
MOE_SETTINGS: dict[str, Setting | None] = {
    "num_experts": key("expert_count"),
    "num_experts_per_tok": key("expert_used_count"),
    "moe_intermediate_size": key("expert_feed_forward_length"),
    "decoder_sparse_step": lambda s: 1,
    "mlp_bias": None,
}
# Experts of which one is always there, and a gate before it.
SHARED_EXPERT = {
    **EXPORTED_EXPERTS,
    "blk.{bid}.ffn_gate_inp_shexp": "model.layers.{bid}.mlp.shared_expert_gate",
    **{
        f"blk.{{bid}}.ffn_{part}_shexp": f"model.layers.{{bid}}.mlp.shared_expert.{part}_proj"
        for part in ("gate", "up", "down")
    },
}
_EXPORT_MOE = Export(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    config={
        **MOE_SETTINGS,
        "attention_bias": None,
        "norm_topk_prob": lambda s: False,
        "shared_expert_intermediate_size": key("expert_shared_feed_forward_length"),
    },
    names=SHARED_EXPERT,
    undo={".ffn_gate_inp_shexp": one_row},
    mlx=PLAIN_MLX,
)

EXPERT_LENGTHS = (
    uint("expert_feed_forward_length", "moe_intermediate_size", need=OPTIONAL),
    uint("expert_shared_feed_forward_length", "shared_expert_intermediate_size", need=OPTIONAL),
)

SPECS = (
    Architecture(
        name="qwen2",
        exports=(
            Export("qwen2", "Qwen2ForCausalLM", config={"attention_bias": None, "mlp_bias": None}, mlx=PLAIN_MLX),
        ),
        traits=Traits(layers_of_70b=80),
        models=dict.fromkeys(
            (
                "AudioFlamingo3ForConditionalGeneration",
                "DotsOCRForCausalLM",
                "KORMoForCausalLM",
                "Qwen2AudioForConditionalGeneration",
                "Qwen2ForCausalLM",
                "Qwen2Model",
            ),
            _DEFAULTS,
        ),
        metadata=(*BASE, pooling),
        vocabulary=first_of(sentencepiece, bpe),
        graph=Graph(rope="neox"),
        transforms=(BARE,),
    ),
    Architecture(
        name="qwen2moe",
        exports=(_EXPORT_MOE,),
        models={"Qwen2MoeForCausalLM": _MOE},
        metadata=(*BASE, *EXPERT_LENGTHS),
        vocabulary=bpe,
        graph=Graph(rope="neox", router_normalized=False),
        transforms=EXPERTS,
    ),
)
