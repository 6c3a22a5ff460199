"""ERNIE 4.5, its mixtures of experts, and PaddleOCR's language model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ggufkit.arch.export import EXPERTS, Export, key, one_row
from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import BASE, OPTIONAL, uint
from ggufkit.arch.mlx import PLAIN_MLX
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import drop, mlp_experts, rename, split_rows
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import take_rows
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece
from ggufkit.tokenizer.from_checkpoint.variants import with_space_prefix

_DEFAULTS = {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "head_dim": 128}


def _split_qkv(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """A fused projection: all queries, all keys, all values."""
    import numpy as np

    for tensor in tensors:
        if "qkv_proj" not in tensor.name:
            yield tensor
            continue
        head = config.head_dim
        q, k = config.heads * head, config.kv_heads * head
        if tensor.rows != q + 2 * k:
            raise CheckpointError(f"{printable(tensor.name)} has {tensor.rows} rows, config.json calls for {q + 2 * k}")
        for name, lo, hi in (("q", 0, q), ("k", q, q + k), ("v", q + k, q + 2 * k)):
            yield take_rows(tensor, np.arange(lo, hi)).renamed(tensor.name.replace("qkv_proj", f"{name}_proj"))


def _shared_length(config: Config) -> int | None:
    """As the reference works it out; it is right where a head has as many numbers as an expert is wide."""
    shared = config.get("moe_num_shared_experts")
    if not shared or "intermediate_size" not in config or "num_key_value_heads" not in config:
        return None
    return config.integer("intermediate_size") // config.integer("num_key_value_heads")


_NAMES = (rename((r"ernie\.", "model.")), _split_qkv, split_rows(r"up_gate_proj", "gate_proj", "up_proj"))

_EXPORT = Export(
    "ernie4_5",
    "Ernie4_5ForCausalLM",
    config={
        "attention_bias": None,
        "mlp_bias": None,
        "use_bias": lambda s: s.has(
            *(f"attn_{part}.bias" for part in ("q", "k", "v", "output")),
            *(f"ffn_{part}.bias" for part in ("gate", "up", "down")),
        ),
    },
    mlx=PLAIN_MLX,
)

_EXPORT_MOE = Export(
    "ernie4_5_moe",
    "Ernie4_5_MoeForCausalLM",
    config={
        "attention_bias": None,
        "mlp_bias": None,
        "use_bias": lambda s: s.has(*(f"attn_{part}.bias" for part in ("q", "k", "v", "output"))),
        "moe_num_experts": key("expert_count"),
        "moe_k": key("expert_used_count"),
        "moe_intermediate_size": key("expert_feed_forward_length"),
        "moe_num_shared_experts": key("expert_shared_count", 0),
        "moe_layer_interval": key("interleave_moe_layer_step"),
        "moe_layer_start_index": key("leading_dense_block_count"),
    },
    names={
        **EXPERTS,
        "blk.{bid}.exp_probs_b.bias": "model.layers.{bid}.mlp.moe_statics.e_score_correction_bias",
        **{
            f"blk.{{bid}}.ffn_{part}_shexp": f"model.layers.{{bid}}.mlp.shared_experts.{part}_proj"
            for part in ("gate", "up", "down")
        },
    },
    undo={".exp_probs_b": one_row},
)

SPECS = (
    Architecture(
        name="ernie4_5",
        exports=(_EXPORT,),
        models={"Ernie4_5ForCausalLM": _DEFAULTS, "Ernie4_5_ForCausalLM": _DEFAULTS},
        metadata=BASE,
        vocabulary=with_space_prefix(sentencepiece),
        graph=Graph(),
        transforms=_NAMES,
    ),
    Architecture(
        name="paddleocr",
        models={"PaddleOCRVLForConditionalGeneration": _DEFAULTS},
        metadata=BASE,
        vocabulary=with_space_prefix(sentencepiece),
        graph=Graph(rope="neox"),
        transforms=(drop(r"mlp_AR\."), *_NAMES),
    ),
    Architecture(
        name="ernie4_5-moe",
        exports=(_EXPORT_MOE,),
        graph=Graph(),
        models={"Ernie4_5_MoeForCausalLM": {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5}},
        metadata=(
            *BASE,
            uint("expert_count", "moe_num_experts"),
            uint("expert_used_count", "moe_k"),
            uint("interleave_moe_layer_step", "moe_layer_interval"),
            uint("leading_dense_block_count", "moe_layer_start_index"),
            uint("expert_feed_forward_length", "moe_intermediate_size", need=OPTIONAL),
            uint("expert_shared_count", "moe_num_shared_experts", need=OPTIONAL),
            uint("expert_shared_feed_forward_length", _shared_length),
        ),
        vocabulary=with_space_prefix(sentencepiece),
        transforms=(
            drop(r"^model\.mtp_(block|emb_norm|hidden_norm|linear_proj)\.\d+"),
            *mlp_experts("moe_num_experts", parts=("gate", "up", "down")),
        ),
    ),
)
