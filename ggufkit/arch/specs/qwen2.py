"""Qwen 2, 2.5 and their mixtures of experts."""

from __future__ import annotations

from ggufkit.arch.export import Export
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, OPTIONAL, pooling, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import rename, split_rows, stack_experts
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

# Experts one by one, or all of a layer's already stacked, gate over up.
EXPERTS = (
    stack_experts(
        r"model\.layers\.(?P<layer>\d+)\.mlp\.experts\.(?P<expert>\d+)\.(?P<part>\w+)_proj\.weight",
        parts=("down", "gate", "up"),
        name="model.layers.{layer}.mlp.experts.{part}_proj.weight",
    ),
    rename((r"(\.mlp\.experts\.(down|gate_up)_proj)$", r"\1.weight")),
    split_rows(r"(?<=\.mlp\.experts\.)gate_up_proj", "gate_proj", "up_proj"),
)

EXPERT_LENGTHS = (
    uint("expert_feed_forward_length", "moe_intermediate_size", need=OPTIONAL),
    uint("expert_shared_feed_forward_length", "shared_expert_intermediate_size", need=OPTIONAL),
)

SPECS = (
    Architecture(
        name="qwen2",
        export=Export("qwen2", "Qwen2ForCausalLM"),
        traits=Traits(layers_of_70b=80),
        models={"Qwen2ForCausalLM": _DEFAULTS, "Qwen2Model": _DEFAULTS},
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
