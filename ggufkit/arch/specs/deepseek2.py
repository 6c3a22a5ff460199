"""DeepSeek V2, V3 and R1: attention with latent keys and values (MLA), mixtures of many small experts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ggufkit.arch.metadata import OPTIONAL, VOCAB_SIZE, base, flag, real, rope_parameters, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.transforms import stack_experts
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import LastMatrices, take_rows, transposed
from ggufkit.tokenizer.from_checkpoint.bpe import bpe


def _trunk(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Without the layers behind the last, which predict further tokens, and without an output that is tied."""
    tied = config.get("tie_word_embeddings", default=False)
    for tensor in tensors:
        layer = re.match(r"model\.layers\.(\d+)\.", tensor.name)
        if layer is not None and int(layer[1]) >= config.layers:
            continue
        if not (tied and tensor.name == "lm_head.weight"):
            yield tensor


def _absorbed(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
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
_V3 = _V2 | {
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

SPECS = (
    Architecture(
        name="deepseek2",
        models={"DeepseekV2ForCausalLM": _V2, "DeepseekV3ForCausalLM": _V3},
        metadata=(
            # All query heads share one key of the latent width, and one value.
            *base(uint("attention.head_count_kv", lambda config: 1)),
            uint("leading_dense_block_count", _dense_layers),
            VOCAB_SIZE,
            uint("attention.q_lora_rank", "q_lora_rank", need=OPTIONAL),
            uint("attention.kv_lora_rank", _latent),
            uint("attention.key_length", lambda config: _latent(config) + _rotated(config)),
            uint("attention.value_length", _latent),
            uint("attention.key_length_mla", lambda config: config.integer("qk_nope_head_dim") + _rotated(config)),
            uint("attention.value_length_mla", "v_head_dim"),
            uint("expert_feed_forward_length", "moe_intermediate_size", "intermediate_size"),
            uint("expert_count", "n_routed_experts", need=OPTIONAL),
            uint("expert_shared_count", lambda config: config.get("n_shared_experts", default=0)),
            real("expert_weights_scale", "routed_scaling_factor", need=OPTIONAL),
            flag("expert_weights_norm", lambda config: config.get("norm_topk_prob") or None),
            uint("rope.dimension_count", _rotated),
            real("rope.scaling.yarn_log_multiplier", _log_multiplier),
        ),
        vocabulary=bpe,
        transforms=(
            _trunk,
            stack_experts(
                r"model\.layers\.(?P<layer>\d+)\.mlp\.experts\.(?P<expert>\d+)\.(?P<part>\w+)_proj\.weight",
                parts=("down", "gate", "up"),
                name="model.layers.{layer}.mlp.experts.{part}_proj.weight",
                count=lambda config: config.integer("n_routed_experts"),
            ),
            _absorbed,
        ),
    ),
)
