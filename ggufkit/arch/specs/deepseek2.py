"""DeepSeek V2, V3, R1, V3.2: attention with latent keys and values (MLA), mixtures of many small experts.

And what is built like them: Kimi K2, GLM-4.7-Flash, GLM-5, Youtu, Mistral 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ggufkit.arch.export import EXPERTS as EXPORTED_EXPERTS
from ggufkit.arch.export import (
    GROUPED_ROUTER,
    NULL,
    Export,
    Setting,
    Source,
    Undo,
    key,
    rope_scaling,
    transposed_back,
)
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import (
    OPTIONAL,
    VOCAB_SIZE,
    Row,
    base,
    blocks_with_mtp,
    flag,
    flags,
    mtp_layers,
    partial_rotary,
    real,
    rope_parameters,
    string,
    uint,
)
from ggufkit.arch.mlx import PLAIN_MLX, Mlx
from ggufkit.arch.spec import Architecture, Transform
from ggufkit.arch.transforms import drop, mlp_experts, rename, trunk, untied
from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.gguf.header import Value
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import LastMatrices, take_rows, transposed
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.tiktoken import kimi
from ggufkit.tokenizer.from_checkpoint.tokens import first_of
from ggufkit.tokenizer.from_checkpoint.variants import GLM


def absorbed(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Split each layer's decompression of the latent vectors, for attention that works on these themselves.

    kv_b_proj   for each head:  keys (nope rows) | values (v rows)      by the latent width
    k_b_proj    (heads, latent, nope): transposed, it brings queries to the latent space
    v_b_proj    (heads, v, latent)
    """
    import numpy as np

    cache = LastMatrices()
    for tensor in tensors:
        if not tensor.name.endswith(".kv_b_proj.weight"):
            yield tensor
            continue
        heads, nope, v = config.kv_heads, config.integer("qk_nope_head_dim"), config.integer("v_head_dim")
        if tensor.rows != heads * (nope + v):
            raise CheckpointError(
                f"{printable(tensor.name)} has {tensor.rows} rows, not {heads} heads of {nope} and {v}; "
                "is config.json the right one?"
            )
        rows = np.arange(tensor.rows).reshape(heads, nope + v)
        keys = take_rows(tensor, rows[:, :nope].reshape(-1), (heads, nope, tensor.cols))
        values = take_rows(tensor, rows[:, nope:].reshape(-1), (heads, v, tensor.cols))
        yield transposed(keys, cache).renamed(tensor.name.replace("kv_b_proj", "k_b_proj"))
        yield values.renamed(tensor.name.replace("kv_b_proj", "v_b_proj"))


def _dense_layers(config: Config) -> int:
    """Leading layers without experts."""
    default = 0 if "n_routed_experts" in config else config.layers
    result: int = config.get("first_k_dense_replace", default=default)
    return result


def _latent(config: Config) -> int:
    return config.integer("kv_lora_rank")


def _rotated(config: Config) -> int:
    return config.integer("qk_rope_head_dim")


def _log_multiplier(config: Config) -> float | None:
    scale = rope_parameters(config).get("mscale_all_dim")
    return None if scale is None else 0.1 * scale


_V2 = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_key_value_heads": lambda config: config.heads,
    "head_dim": lambda config: config.get("qk_rope_head_dim"),
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "q_lora_rank": 1536,
    "first_k_dense_replace": 0,
    "moe_intermediate_size": 1407,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": False,
}
MLA_DEFAULTS = _V3 = _V2 | {
    "max_position_embeddings": 4096,
    "first_k_dense_replace": 3,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
}

_EXPERTS = (
    "first_k_dense_replace",
    "moe_intermediate_size",
    "n_routed_experts",
    "n_shared_experts",
    "norm_topk_prob",
    "routed_scaling_factor",
)
_DENSE = {key: value for key, value in _V2.items() if key not in _EXPERTS}
# These write no head size of their own.
_OCR = {"rms_norm_eps": 1e-6}
_LITE = {key: value for key, value in _V2.items() if key != "head_dim"}

_GLM_LITE = {
    "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-5,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "q_lora_rank": 768,
    "moe_intermediate_size": 1536,
    "n_shared_experts": 1,
    "routed_scaling_factor": 1.8,
    "norm_topk_prob": True,
}
_GLM_DSA = {
    "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-5,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "q_lora_rank": 2048,
    "n_group": 1,
    "topk_group": 1,
}


def _announced(config: Config) -> int | None:
    return mtp_layers(config) if config.mtp and "num_nextn_predict_layers" in config else None


def _indexer_types(config: Config) -> list[bool] | None:
    if "indexer_types" not in config:
        return None
    return [kind == "full" for kind in config.list("indexer_types")]


EXPERTS: tuple[Row, ...] = (
    uint("expert_feed_forward_length", "moe_intermediate_size", "intermediate_size"),
    uint("expert_count", "n_routed_experts", need=OPTIONAL),
    uint("expert_shared_count", lambda config: config.get("n_shared_experts", default=0)),
    real("expert_weights_scale", "routed_scaling_factor", need=OPTIONAL),
    flag("expert_weights_norm", lambda config: config.get("norm_topk_prob") or None),
    uint("rope.dimension_count", _rotated),
)


def mla_keys(blocks: Callable[[Config], int] = lambda config: config.layers) -> tuple[Row, ...]:
    """The keys of attention with latent keys and values, and of the experts."""
    return (
        # All query heads share one key of the latent width, and one value.
        *base(uint("attention.head_count_kv", lambda config: 1), uint("block_count", blocks)),
        uint("leading_dense_block_count", _dense_layers),
        VOCAB_SIZE,
        uint("attention.q_lora_rank", "q_lora_rank", need=OPTIONAL),
        uint("attention.kv_lora_rank", _latent),
        uint("attention.key_length", lambda config: _latent(config) + _rotated(config)),
        uint("attention.value_length", _latent),
        uint("attention.key_length_mla", lambda config: config.integer("qk_nope_head_dim") + _rotated(config)),
        uint("attention.value_length_mla", "v_head_dim"),
        *EXPERTS,
        real("rope.scaling.yarn_log_multiplier", _log_multiplier),
    )


def mla_tensors(blocks: Callable[[Config], int] = lambda config: config.layers) -> tuple[Transform, ...]:
    return (untied(), trunk(blocks), *mlp_experts("n_routed_experts"), absorbed)


_NEXTN = uint("nextn_predict_layers", _announced)
INDEXER = (
    uint("attention.indexer.head_count", "index_n_heads"),
    uint("attention.indexer.key_length", "index_head_dim"),
    uint("attention.indexer.top_k", "index_topk"),
)


def _with_bos(checkpoint: Checkpoint, config: Config) -> Iterable[tuple[str, Value]]:
    """Byte-level BPE of a model whose texts must begin with bos."""
    if not (checkpoint.json("tokenizer_config.json") or {}).get("add_bos_token"):
        raise CheckpointError(f"{printable(checkpoint.folder)}/tokenizer_config.json: 'add_bos_token' must be true")
    return bpe(checkpoint, config)


def _router(layers: int, vocabulary: int) -> str:
    """What a file without `expert_gating_func` means: only GLM 4.7 Flash's means a sigmoid."""
    return "sigmoid" if layers in (47, 48) and vocabulary == 154880 else "softmax"


# ---- the way back ----


def _rope_width(s: Source) -> int:
    return s.natural("rope.dimension_count")


def _rope_back(s: Source) -> dict[str, Any] | None:
    scaling = rope_scaling(s)
    if scaling is not None and (multiplier := s.get("rope.scaling.yarn_log_multiplier")) is not None:
        scaling |= dict.fromkeys(("mscale", "mscale_all_dim"), round(multiplier / 0.1, 6))
    return scaling


def heads_together(s: Source, tensor: Tensor) -> Tensor:
    """(heads, rows of each, latent width) as one matrix."""
    return replace(tensor, shape=(tensor.rows, tensor.cols))


_MLA_NAMES = {
    "blk.{bid}.attn_q_a": "model.layers.{bid}.self_attn.q_a_proj",
    "blk.{bid}.attn_q_a_norm": "model.layers.{bid}.self_attn.q_a_layernorm",
    "blk.{bid}.attn_q_b": "model.layers.{bid}.self_attn.q_b_proj",
    "blk.{bid}.attn_kv_a_mqa": "model.layers.{bid}.self_attn.kv_a_proj_with_mqa",
    "blk.{bid}.attn_kv_a_norm": "model.layers.{bid}.self_attn.kv_a_layernorm",
    "blk.{bid}.exp_probs_b.bias": "model.layers.{bid}.mlp.gate.e_score_correction_bias",
    **EXPORTED_EXPERTS,
    **{
        f"blk.{{bid}}.ffn_{part}_shexp": f"model.layers.{{bid}}.mlp.shared_experts.{part}_proj"
        for part in ("gate", "up", "down")
    },
}


_LATENT: dict[str, Setting | None] = {
    "num_key_value_heads": lambda s: s.heads,
    "head_dim": _rope_width,
    "q_lora_rank": lambda s: s.get("attention.q_lora_rank", NULL),
    "kv_lora_rank": key("attention.kv_lora_rank"),
    "qk_rope_head_dim": _rope_width,
    "qk_nope_head_dim": lambda s: s.require("attention.key_length_mla") - _rope_width(s),
    "v_head_dim": key("attention.value_length_mla"),
    "rope_scaling": _rope_back,
    "mlp_bias": None,
}
_KV_B = {"model.layers.{bid}.self_attn.kv_b_proj": ("blk.{bid}.attn_k_b", "blk.{bid}.attn_v_b")}
_KV_B_UNDO: dict[str, Undo] = {".attn_k_b": transposed_back, ".kv_b_proj": heads_together}

# What is multiplied into queries, and into what is found.
ABSORBED = {
    "blk.{bid}.attn_k_b": "model.layers.{bid}.self_attn.embed_q",
    "blk.{bid}.attn_v_b": "model.layers.{bid}.self_attn.unembed_out",
}

# V2's configs may leave them out; of V3's, eight are the default.
_GROUPS: dict[str, Setting] = {
    "n_group": lambda s: s.get("expert_group_count"),
    "topk_group": lambda s: s.get("expert_group_used_count"),
}


def _talks_as_glm(s: Source) -> bool:
    """Whether turns end as GLM's do, whose class is another one for its vocabulary."""
    tokens, end = s.metadata.get("tokenizer.ggml.tokens"), s.metadata.get("tokenizer.ggml.eot_token_id")
    return type(end) is int and isinstance(tokens, list) and tokens[end : end + 1] == ["<|user|>"]


def _export(model_type: str, model_class: str, sigmoid: bool) -> Export:
    return Export(
        model_type,
        model_class,
        config={
            **GROUPED_ROUTER,
            **(
                {}
                if sigmoid
                else {
                    "n_group": lambda s: s.get("expert_group_count"),
                    "topk_group": lambda s: s.get("expert_group_used_count"),
                }
            ),
            "routed_scaling_factor": key("expert_weights_scale", 1.0),
            "norm_topk_prob": key("expert_weights_norm", False),
            "scoring_func": lambda s: "sigmoid" if sigmoid else "softmax",
            "topk_method": lambda s: (
                "noaux_tc" if sigmoid else "group_limited_greedy" if s.get("expert_group_count", 1) > 1 else "greedy"
            ),
            "moe_layer_freq": lambda s: 1,
            **_LATENT,
        },
        names=_MLA_NAMES,
        fused=_KV_B,
        undo=_KV_B_UNDO,
        when=lambda s: (s.get("expert_gating_func") == 2) == sigmoid and not (sigmoid and _talks_as_glm(s)),
        mlx=Mlx(names=ABSORBED, headed=True) if sigmoid else PLAIN_MLX,
    )


# Dense.
_EXPORT_YOUTU = Export(
    "youtu",
    "YoutuForCausalLM",
    config={
        **_LATENT,
        "pad_token_id": None,  # transformers takes away the embedding of one
        "rope_interleave": lambda s: True,
        "rope_parameters": lambda s: {"rope_theta": s.get("rope.freq_base", 10000.0), "rope_type": "default"},
    },
    names={gguf: name for gguf, name in _MLA_NAMES.items() if "attn" in gguf},
    fused=_KV_B,
    undo=_KV_B_UNDO,
    when=lambda s: not s.get("expert_count"),
    mlx=Mlx("youtu_llm"),
)

_EXPORT_V3 = _export("deepseek_v3", "DeepseekV3ForCausalLM", sigmoid=True)
_EXPORTS = (_EXPORT_YOUTU, _EXPORT_V3, _export("deepseek_v2", "DeepseekV2ForCausalLM", sigmoid=False))


def _without_mtp(s: Source) -> int:
    return s.layers - int(s.get("nextn_predict_layers", 0))


_MTP: dict[str, Setting] = {
    "num_hidden_layers": _without_mtp,
    "num_nextn_predict_layers": key("nextn_predict_layers", 0),
}
_MTP_NAMES = {
    f"blk.{{bid}}.nextn.{own}": f"model.layers.{{bid}}.{name}"
    for own, name in (
        *((part, part) for part in ("eh_proj", "enorm", "hnorm", "embed_tokens")),
        ("shared_head_norm", "shared_head.norm"),
        ("shared_head_head", "shared_head.head"),
    )
}
_EXPORT_LITE = replace(
    _EXPORT_V3,
    model_type="glm4_moe_lite",
    model_class="Glm4MoeLiteForCausalLM",
    config={**_EXPORT_V3.config, **_MTP, "rope_interleave": lambda s: True},
    names=_MLA_NAMES | _MTP_NAMES,
    when=lambda s: s.get("expert_gating_func") == 2 and _talks_as_glm(s),
    mlx=Mlx(
        names=ABSORBED,
        headed=True,
        skip=lambda s, name: any(f".layers.{block}." in name for block in range(_without_mtp(s), s.layers)),
    ),
)
_EXPORT_V32 = replace(
    _EXPORT_V3,
    model_type="deepseek_v32",
    model_class="DeepseekV32ForCausalLM",
    config={
        **_EXPORT_V3.config,
        **_MTP,
        "index_n_heads": key("attention.indexer.head_count"),
        "index_head_dim": key("attention.indexer.key_length"),
        "index_topk": key("attention.indexer.top_k"),
    },
    names={
        **_MLA_NAMES,
        **_MTP_NAMES,
        "blk.{bid}.indexer.k_norm": "model.layers.{bid}.self_attn.indexer.k_norm",
        "blk.{bid}.indexer.proj": "model.layers.{bid}.self_attn.indexer.weights_proj",
        "blk.{bid}.indexer.attn_k": "model.layers.{bid}.self_attn.indexer.wk",
        "blk.{bid}.indexer.attn_q_b": "model.layers.{bid}.self_attn.indexer.wq_b",
    },
    when=lambda s: s.get("expert_gating_func") == 2,
    mlx=None,
)

SPECS = (
    Architecture(
        name="deepseek2",
        exports=_EXPORTS,
        graph=Graph(router=_router, router_normalized=False),
        models={
            "DeepseekV2ForCausalLM": _V2,
            "DeepseekV3ForCausalLM": _V3,
            "KimiK25ForConditionalGeneration": _V3,
            "KimiVLForConditionalGeneration": _V3,
            "YoutuForCausalLM": _DENSE | {"max_position_embeddings": 131072},
            "YoutuVLForConditionalGeneration": _DENSE,
        },
        metadata=mla_keys(),
        vocabulary=first_of(bpe, kimi),
        transforms=mla_tensors(),
    ),
    Architecture(
        name="deepseek2-ocr",
        graph=Graph(rope="neox", router_normalized=False),
        models={"DeepseekOCRForCausalLM": _OCR, "UnlimitedOCRForCausalLM": _OCR},
        # Checkpoints have no template; a reader of pages is told no roles.
        preamble=(string("tokenizer.chat_template", "{% for m in messages %}{{m['content']}}{% endfor %}"),),
        metadata=(
            *base(),
            uint("leading_dense_block_count", _dense_layers),
            VOCAB_SIZE,
            uint("attention.q_lora_rank", "q_lora_rank", need=OPTIONAL),
            *EXPERTS,
            uint(
                "attention.sliding_window",
                lambda config: config.get("sliding_window_size") or config.get("sliding_window") or None,
            ),
            real("rope.scaling.yarn_log_multiplier", _log_multiplier),
        ),
        vocabulary=bpe,
        transforms=(drop(r"sam_model|qwen2_model"), *mla_tensors()),
    ),
    Architecture(
        name="deepseek2",
        exports=(_EXPORT_LITE,),
        graph=Graph(router=_router, router_normalized=False),
        models={"Glm4MoeLiteForCausalLM": _LITE | _GLM_LITE},
        metadata=(*mla_keys(blocks_with_mtp), uint("nextn_predict_layers", lambda config: mtp_layers(config) or None)),
        vocabulary=GLM,
        transforms=mla_tensors(blocks_with_mtp),
        blocks=blocks_with_mtp,
    ),
    Architecture(
        name="deepseek32",
        exports=(_EXPORT_V32,),
        graph=Graph(router=_router, router_normalized=False, index_rope="neox"),
        models={"DeepseekV32ForCausalLM": _V3 | {"max_position_embeddings": 163840}},
        metadata=(*mla_keys(blocks_with_mtp), _NEXTN, *INDEXER),
        vocabulary=_with_bos,
        transforms=mla_tensors(blocks_with_mtp),
        blocks=blocks_with_mtp,
    ),
    Architecture(
        name="glm-dsa",
        graph=Graph(router="sigmoid", router_normalized=False, index_rope="norm"),
        models={"GlmMoeDsaForCausalLM": _V3 | _GLM_DSA},
        metadata=(
            *mla_keys(blocks_with_mtp),
            uint("rope.dimension_count", lambda config: int(_rotated(config) * partial_rotary(config, 1.0))),
            _NEXTN,
            *INDEXER,
            flags("attention.indexer.types", _indexer_types),
        ),
        vocabulary=GLM,
        transforms=mla_tensors(blocks_with_mtp),
        blocks=blocks_with_mtp,
    ),
    Architecture(
        name="mistral4",
        graph=Graph(),
        models={"Mistral3ForConditionalGeneration": _V2},
        metadata=mla_keys(),
        vocabulary=bpe,
        transforms=(
            untied(),
            rename((r"(\.(down|gate_up)_proj)$", r"\1.weight")),
            absorbed,
        ),
        when=lambda config: config.get("model_type") == "mistral4",
    ),
)
