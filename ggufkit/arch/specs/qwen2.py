"""Qwen 2, 2.5 and their mixtures of experts."""

from __future__ import annotations

from ggufkit.arch.export import Export
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, OPTIONAL, pooling, uint
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

EXPERT_LENGTHS = (
    uint("expert_feed_forward_length", "moe_intermediate_size", need=OPTIONAL),
    uint("expert_shared_feed_forward_length", "shared_expert_intermediate_size", need=OPTIONAL),
)

SPECS = (
    Architecture(
        name="qwen2",
        export=Export("qwen2", "Qwen2ForCausalLM"),
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
        models={"Qwen2MoeForCausalLM": _MOE},
        metadata=(*BASE, *EXPERT_LENGTHS),
        vocabulary=bpe,
        graph=Graph(rope="neox", router_normalized=False),
        transforms=EXPERTS,
    ),
)
