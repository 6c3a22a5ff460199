"""Grok: scores and outputs with multipliers and soft caps, experts in parts."""

from __future__ import annotations

from collections.abc import Iterator

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, OPTIONAL, real, string, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import stack_experts
from ggufkit.checkpoint.config import Config
from ggufkit.gguf.header import Value
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece
from ggufkit.tokenizer.from_checkpoint.tokens import first_of

_DEFAULTS = {"rms_norm_eps": 1e-5}


def _yarn(architecture: str, config: Config) -> Iterator[tuple[str, Value]]:
    """Grok 2's rope: yarn by the name of "original"."""
    if config.get("rope_type") not in ("yarn", "original"):
        return
    rows = (
        string("rope.scaling.type", "yarn"),
        real("rope.scaling.factor", "scaling_factor"),
        uint("rope.scaling.original_context_length", "original_max_position_embeddings"),
        real("rope.scaling.yarn_ext_factor", "extrapolation_factor"),
        real("rope.scaling.yarn_attn_factor", "attn_factor"),
        real("rope.scaling.yarn_beta_fast", "beta_fast"),
        real("rope.scaling.yarn_beta_slow", "beta_slow"),
    )
    for row in rows:
        yield from row(architecture, config)


def _output_scale(config: Config) -> float:
    result: float = config.get("attn_output_multiplier", default=config.head_dim**-0.5)
    return result


_EXPERTS = (
    stack_experts(
        r"transformer\.decoder_layer\.(?P<layer>\d+)\.moe\.(?P<expert>\d+)\.(?P<part>linear(_1|_v)?)\.weight",
        ("linear", "linear_1", "linear_v"),
        "transformer.decoder_layer.{layer}.moe.{part}.weight",
        lambda config: config.integer("num_local_experts"),
    ),
    stack_experts(
        r"model\.layers\.(?P<layer>\d+)\.block_sparse_moe\.experts\.(?P<expert>\d+)\.(?P<part>w[123])\.weight",
        ("w1", "w2", "w3"),
        "model.layers.{layer}.block_sparse_moe.experts.{part}.weight",
        lambda config: config.integer("num_local_experts"),
    ),
)

SPECS = (
    Architecture(
        name="grok",
        # What older files leave out is what Grok 1 has.
        graph=Graph(
            rope="neox",
            activation="gelu",
            multipliers=lambda width, layers: (78.38367176906169, 1, 0.5773502691896257),
            logit_multiplied=True,
            attention_cap=30.0,
            inner_norms=True,
            shared_scale=0.5**0.5,
        ),
        models=dict.fromkeys(("Grok1ForCausalLM", "GrokForCausalLM"), _DEFAULTS),
        metadata=(
            *BASE,
            real("attn_logit_softcapping", lambda config: config.get("attn_logit_softcapping", default=30.0)),
            real("router_logit_softcapping", lambda config: config.get("router_logit_softcapping", default=30.0)),
            real("final_logit_softcapping", lambda config: config.get("final_logit_softcapping") or None),
            uint("expert_feed_forward_length", "moe_intermediate_size", need=OPTIONAL),
            _yarn,
            uint("attention.temperature_length", lambda config: config.get("attn_temperature_len") or None),
            real("attention.output_scale", _output_scale),
            real("embedding_scale", "embedding_multiplier_scale"),
            real("logit_scale", "output_multiplier_scale"),
        ),
        vocabulary=first_of(sentencepiece, bpe),
        transforms=_EXPERTS,
    ),
)
