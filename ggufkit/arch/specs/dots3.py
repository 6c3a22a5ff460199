"""dots3-note: latent attention of two shapes, with a window and with an index of keys, and experts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator

from ggufkit.arch.graph import Graph
from ggufkit.arch.metadata import Row, flags, integers, uint
from ggufkit.arch.spec import Architecture
from ggufkit.arch.specs.deepseek2 import INDEXER, absorbed, mla_keys
from ggufkit.arch.transforms import drop, mlp_experts, rename, untied
from ggufkit.checkpoint.config import Config
from ggufkit.errors import ArchitectureError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import computed
from ggufkit.tokenizer.from_checkpoint.variants import bpe_with_roles

# What GGUF has no other values of, and what they are where config.json has none.
_FIXED = {
    "use_dsa": (True, True),
    "normalization": ("RMSNorm", "RMSNorm"),
    "final_norm": ("RMSNorm", "RMSNorm"),
    "k_rope_only_layernorm": (True, True),
    "topk_method": ("noaux_tc", "noaux_tc"),
    "scoring_func": ("sigmoid", None),
    "n_group": (1, 1),
    "topk_group": (1, 1),
    "attention_gate_type": ("headwise", "headwise"),
    "swa_attention_gate_type": ("headwise", "headwise"),
}


def _known(architecture: str, config: Config) -> tuple[()]:
    for name, (wanted, default) in _FIXED.items():
        if (found := config.get(name, default=default)) != wanted:
            raise ArchitectureError(f"config.json: {name!r} must be {wanted}, not {printable(repr(found))}")
    for one, other in (("swa_qk_rope_head_dim", "qk_rope_head_dim"), ("swa_q_lora_rank", "q_lora_rank")):
        if config.integer(one) != config.integer(other):
            raise ArchitectureError(f"config.json: {one!r} and {other!r} must be the same")
    return ()


def _further(config: Config) -> int:
    """Blocks that predict further tokens: config.json does not say, the weights do."""
    return int(config.mtp and any(name.endswith("model.mtp.embed_tokens.weight") for name in config.tensors))


def _blocks(config: Config) -> int:
    return config.layers + _further(config)


def _windowed(config: Config, layer: int) -> bool:
    if layer >= config.layers:
        return True
    kinds = config.list("layer_types")
    if len(kinds) < config.layers:
        raise ArchitectureError(f"config.json: 'layer_types' has {len(kinds)} of {config.layers} layers")
    return bool(kinds[layer] == "sliding_attention")


def _windows(config: Config) -> list[bool]:
    return [_windowed(config, layer) for layer in range(config.layers)]


def _heads(config: Config) -> list[int]:
    sizes = (config.integer("num_attention_heads"), config.integer("swa_num_attention_heads"))
    return [sizes[_windowed(config, layer)] for layer in range(_blocks(config))]


def _without_head(row: Row) -> Row:
    """The config's head size is none of this model's."""
    return lambda architecture, config: row(architecture, config.with_values(head_dim=None))


def _of_layer(config: Config, layer: int) -> Config:
    """The settings of a layer's attention under the usual names."""
    prefix = "swa_" if _windowed(config, layer) else ""
    names = ("qk_nope_head_dim", "v_head_dim", "kv_lora_rank")
    values = {name: config.integer(prefix + name) for name in names}
    return config.with_values(**values, num_key_value_heads=config.integer(f"{prefix}num_attention_heads"))


def _attention(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Split what decompresses, and fold what scales the compressed vectors into their norms."""
    scaled = config.get("apply_mla_qkv_lora_rescale", default=False)
    for tensor in tensors:
        match = re.search(r"layers\.(\d+)\..*(q_a_layernorm|kv_a_layernorm|kv_b_proj)\.weight$", tensor.name)
        if match is None:
            yield tensor
            continue
        settings = _of_layer(config, int(match[1]))
        if match[2] == "kv_b_proj":
            yield from absorbed([tensor], settings)
        elif scaled:
            rank = settings.integer("q_lora_rank" if match[2].startswith("q") else "kv_lora_rank")
            yield _times(tensor, math.sqrt(config.width / rank))
        else:
            yield tensor


def _times(tensor: Tensor, factor: float) -> Tensor:
    return computed(tensor, lambda weights: weights * weights.dtype.type(factor))


def _further_block(tensors: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """The block that predicts further tokens has an embedding of its own, which lies apart."""
    layers = config.layers
    for tensor in tensors:
        layer = re.match(r"model\.layers\.(\d+)\.", tensor.name)
        further = tensor.name.startswith("model.mtp.") or (layer is not None and int(layer[1]) >= layers)
        if not further:
            yield tensor
        elif config.mtp:
            yield tensor.renamed(tensor.name.replace("model.mtp.embed_tokens", f"model.layers.{layers}.embed_tokens"))


def _sum(*names: str) -> Callable[[Config], int]:
    return lambda config: sum(config.integer(name) for name in names)


_CLASSES = ("Dots3NoteForCausalLM", "Dots3NoteForConditionalGeneration", "Dots3NoteTextForCausalLM")

SPECS = (
    Architecture(
        name="dots3note",
        graph=Graph(router="sigmoid", router_normalized=False, index_rope="neox", window_period=1),
        models={name: {"rms_norm_eps": 1e-6} for name in _CLASSES},
        metadata=(
            _known,
            *(
                _without_head(integers("attention.head_count", _heads))
                if getattr(row, "key", "") == "attention.head_count"
                else _without_head(row)
                for row in mla_keys(_blocks)
            ),
            uint("attention.sliding_window", "sliding_window_size"),
            flags("attention.sliding_window_pattern", _windows),
            uint("attention.kv_lora_rank_swa", "swa_kv_lora_rank"),
            uint("attention.key_length_swa", _sum("swa_kv_lora_rank", "swa_qk_rope_head_dim")),
            uint("attention.value_length_swa", "swa_kv_lora_rank"),
            uint("attention.key_length_mla_swa", _sum("swa_qk_nope_head_dim", "swa_qk_rope_head_dim")),
            uint("attention.value_length_mla_swa", "swa_v_head_dim"),
            uint("nextn_predict_layers", lambda config: _further(config) or None),
            *INDEXER,
            flags("attention.indexer.types", lambda config: [not window for window in _windows(config)]),
        ),
        vocabulary=bpe_with_roles(eot="<|endofassistant|>"),
        transforms=(
            drop(r"^(vision|audio)_encoder\."),
            untied(),
            _further_block,
            rename((r"\.gate\.e_score_correction_bias$", ".gate.e_score_correction.bias")),
            *mlp_experts("n_routed_experts"),
            _attention,
        ),
        blocks=_blocks,
    ),
)
