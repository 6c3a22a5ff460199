"""GLM-4.5 and later mixtures of experts, and Solar Open."""

from __future__ import annotations

from ggufkit.arch.export import EXPERTS, GROUPED_ROUTER, NULL, Export, Source, key, rope_scaling
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import OPTIONAL, Row, base, blocks_with_mtp, flag, mtp_layers, partial_rotary, real, uint
from ggufkit.arch.mlx import Mlx
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import mlp_experts, trunk
from ggufkit.checkpoint.config import Config
from ggufkit.tokenizer.from_checkpoint.variants import GLM, bpe_with_roles

_DEFAULTS = {
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "num_key_value_heads": 8,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
}


def _announced(config: Config) -> int | None:
    return mtp_layers(config) if config.mtp and "num_nextn_predict_layers" in config else None


_KEYS: tuple[Row, ...] = (
    *base(uint("block_count", blocks_with_mtp)),
    uint("rope.dimension_count", lambda config: int(config.head_dim * partial_rotary(config, 0.5))),
    uint("expert_count", "n_routed_experts", need=OPTIONAL),
    uint("expert_feed_forward_length", "moe_intermediate_size", need=OPTIONAL),
    uint("expert_shared_count", "n_shared_experts", need=OPTIONAL),
    uint("leading_dense_block_count", "first_k_dense_replace", need=OPTIONAL),
    uint("expert_gating_func", lambda config: 2),
    real("expert_weights_scale", "routed_scaling_factor", need=OPTIONAL),
    flag("expert_weights_norm", "norm_topk_prob", need=OPTIONAL),
    uint("nextn_predict_layers", _announced),
)
_TRANSFORMS = (trunk(blocks_with_mtp), *mlp_experts("n_routed_experts"))


def _layers(s: Source) -> int:
    return s.layers - int(s.get("nextn_predict_layers", 0))


_EXPORT = Export(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    config={
        "mlp_bias": None,
        "num_hidden_layers": _layers,
        "num_nextn_predict_layers": key("nextn_predict_layers", 0),
        "partial_rotary_factor": lambda s: s.require("rope.dimension_count") / s.head_dim,
        **GROUPED_ROUTER,
        "use_qk_norm": lambda s: s.has("attn_q_norm.weight", "attn_k_norm.weight"),
    },
    names={
        **EXPERTS,
        "blk.{bid}.post_attention_norm": "model.layers.{bid}.post_attention_layernorm",
        "blk.{bid}.exp_probs_b.bias": "model.layers.{bid}.mlp.gate.e_score_correction_bias",
        **{
            f"blk.{{bid}}.ffn_{part}_shexp": f"model.layers.{{bid}}.mlp.shared_experts.{part}_proj"
            for part in ("gate", "up", "down")
        },
        **{
            f"blk.{{bid}}.nextn.{part}": f"model.layers.{{bid}}.{name}"
            for part, name in (
                ("eh_proj", "eh_proj"),
                ("enorm", "enorm"),
                ("hnorm", "hnorm"),
                ("shared_head_norm", "shared_head.norm"),
                ("shared_head_head", "shared_head.head"),
                ("embed_tokens", "embed_tokens"),
            )
        },
    },
    mlx=Mlx(
        config={"rope_scaling": lambda s: rope_scaling(s) or NULL},
        skip=lambda s, name: f".layers.{_layers(s)}." in name,
        headed=True,
    ),
)

SPECS = (
    Architecture(
        name="glm4moe",
        exports=(_EXPORT,),
        graph=Graph(rope="neox", ffn_norm="post_attention_norm", router_normalized=False),
        models={
            "Glm4MoeForCausalLM": _DEFAULTS,
            "Glm4vMoeForConditionalGeneration": _DEFAULTS | {"max_position_embeddings": 65536},
        },
        metadata=_KEYS,
        vocabulary=GLM,
        transforms=_TRANSFORMS,
        blocks=blocks_with_mtp,
    ),
    Architecture(
        name="glm4moe",
        graph=Graph(rope="neox", ffn_norm="post_attention_norm", router_normalized=False),
        models={"SolarOpenForCausalLM": _DEFAULTS | {"rope_theta": 1e6}},
        metadata=_KEYS,
        vocabulary=bpe_with_roles(eos="<|endoftext|>", eot="<|endoftext|>", unk="<unk>", bos="<|startoftext|>"),
        transforms=_TRANSFORMS,
        blocks=blocks_with_mtp,
    ),
)
