"""The way back: from a GGUF's metadata and names to the config.json and names of a Hugging Face checkpoint.

A spec says it with an `Export`. Only those have one whose tensors keep their numbers on the way: no fused or split
matrices, rows that move at most within their matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ggufkit.arch.rope import llama3_divisors, rope_order
from ggufkit.errors import ArchitectureError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import computed, take_rows

if TYPE_CHECKING:
    import numpy as np

__all__ = ["POST_NORMS", "Export", "Exported", "Setting", "Source", "exported", "key"]


@dataclass(frozen=True)
class Source:
    """What an export reads: metadata, and the tensors by name."""

    architecture: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``<architecture>.<key>``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def require(self, key: str) -> Any:
        if (value := self.get(key)) is None:
            raise ArchitectureError(f"the metadata has no {self.architecture}.{key}, which config.json needs")
        return value

    @property
    def head_dim(self) -> int:
        result: int = self.get("attention.key_length") or self.require("embedding_length") // self.heads
        return result

    @property
    def heads(self) -> int:
        result: int = self.require("attention.head_count")
        return result

    @property
    def kv_heads(self) -> int:
        return self.get("attention.head_count_kv") or self.heads


# A value of config.json: a constant is one, too.
Setting = Callable[[Source], Any]


def key(name: str, default: Any = None) -> Setting:
    return (lambda s: s.require(name)) if default is None else (lambda s: s.get(name, default))


def _rope_scaling(s: Source) -> dict[str, Any] | None:
    if (freqs := s.tensors.get("rope_freqs.weight")) is not None:
        return _llama3(freqs.floats().reshape(-1), s)
    kind = s.get("rope.scaling.type")
    if kind in (None, "none"):
        return None
    if kind not in ("linear", "yarn"):
        raise ArchitectureError(f"rope scaling of type {printable(kind)} has no place in this model's config.json")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": s.require("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = s.require("rope.scaling.original_context_length")
    return scaling


# Llama 3.1's settings, which a GGUF holds as divisors only.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def _llama3(divisors: np.ndarray, s: Source) -> dict[str, Any]:
    """The settings that give these divisors."""
    import numpy as np

    factor = float(divisors.max())
    scaling = {"rope_type": "llama3", "rope_theta": s.get("rope.freq_base", 10000.0), "factor": factor, **_LLAMA3}
    if not np.allclose(llama3_divisors(scaling, s.head_dim), divisors, rtol=1e-5):
        raise ArchitectureError("rope_freqs.weight is not Llama 3.1's scaling, which config.json could name")
    return {name: value for name, value in scaling.items() if name != "rope_theta"}


_COMMON: dict[str, Setting] = {
    "hidden_size": key("embedding_length"),
    "num_hidden_layers": key("block_count"),
    "intermediate_size": key("feed_forward_length"),
    "num_attention_heads": lambda s: s.heads,
    "num_key_value_heads": lambda s: s.kv_heads,
    "head_dim": lambda s: s.head_dim,
    "rms_norm_eps": key("attention.layer_norm_rms_epsilon"),
    "rope_theta": key("rope.freq_base", 10000.0),
    "max_position_embeddings": key("context_length"),
    "vocab_size": lambda s: s.tensors["token_embd.weight"].shape[0],
    "tie_word_embeddings": lambda s: "output.weight" not in s.tensors,
    "attention_bias": lambda s: "blk.0.attn_q.bias" in s.tensors,
    "mlp_bias": lambda s: "blk.0.ffn_up.bias" in s.tensors,
    "hidden_act": lambda s: "silu",
    "rope_scaling": _rope_scaling,
    "bos_token_id": lambda s: s.metadata.get("tokenizer.ggml.bos_token_id"),
    "eos_token_id": lambda s: s.metadata.get("tokenizer.ggml.eos_token_id"),
}

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{bid}.attn_norm": "model.layers.{bid}.input_layernorm",
    "blk.{bid}.attn_q": "model.layers.{bid}.self_attn.q_proj",
    "blk.{bid}.attn_k": "model.layers.{bid}.self_attn.k_proj",
    "blk.{bid}.attn_v": "model.layers.{bid}.self_attn.v_proj",
    "blk.{bid}.attn_output": "model.layers.{bid}.self_attn.o_proj",
    "blk.{bid}.attn_q_norm": "model.layers.{bid}.self_attn.q_norm",
    "blk.{bid}.attn_k_norm": "model.layers.{bid}.self_attn.k_norm",
    "blk.{bid}.ffn_norm": "model.layers.{bid}.post_attention_layernorm",
    "blk.{bid}.ffn_gate": "model.layers.{bid}.mlp.gate_proj",
    "blk.{bid}.ffn_up": "model.layers.{bid}.mlp.up_proj",
    "blk.{bid}.ffn_down": "model.layers.{bid}.mlp.down_proj",
}
POST_NORMS = {
    "blk.{bid}.post_attention_norm": "model.layers.{bid}.post_attention_layernorm",
    "blk.{bid}.post_ffw_norm": "model.layers.{bid}.post_feedforward_layernorm",
}

# Tensors that are settings in a checkpoint.
_SETTINGS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Export:
    """How one architecture goes back.

    Attributes
    ----------
    model_type, model_class : config.json's `model_type` and its only architecture.
    config : settings over the common ones; None leaves one out.
    names : names over the common ones, without their ``.weight`` or ``.bias``.
    rotated : q and k have GGUF's order of rotary pairs (see `transforms.permute_rope`).
    norm_offset : what GGUF added to the weights of norms.
    """

    model_type: str
    model_class: str
    config: Mapping[str, Setting | None] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    rotated: bool = False
    norm_offset: float = 0.0


@dataclass(frozen=True)
class Exported:
    """A GGUF seen as a checkpoint: config.json, and name → tensor."""

    config: dict[str, Any]
    tensors: Mapping[str, Tensor]


def exported(export: Export, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Exported:
    """See a GGUF as a Hugging Face checkpoint; reads no weight but rope factors.

    Raises
    ------
    ArchitectureError : a value or name has no place in a checkpoint.
    """
    source = Source(architecture, metadata, tensors)
    if source.get("expert_count"):
        raise ArchitectureError("models with experts cannot be exported")
    config: dict[str, Any] = {"architectures": [export.model_class], "model_type": export.model_type}
    for name, setting in {**_COMMON, **export.config}.items():
        if setting is not None and (value := setting(source)) is not None:
            config[name] = value
    return Exported(config, dict(_renamed(export, source)))


def _renamed(export: Export, source: Source) -> Iterator[tuple[str, Tensor]]:
    stems = {
        gguf.format(bid=bid): name.format(bid=bid)
        for gguf, name in {**_NAMES, **export.names}.items()
        for bid in range(source.require("block_count") if "{bid}" in gguf else 1)
    }
    for name, tensor in source.tensors.items():
        if name in _SETTINGS:
            continue
        stem, _, ending = name.rpartition(".")
        if stem not in stems or ending not in ("weight", "bias"):
            raise ArchitectureError(f"the tensor {printable(name)} has no place in a {export.model_type} checkpoint")
        new = f"{stems[stem]}.{ending}"
        yield new, _restored(export, source, stem, tensor).renamed(new)


def _restored(export: Export, source: Source, stem: str, tensor: Tensor) -> Tensor:
    """The tensor with its rows and numbers as the checkpoint had them."""
    if export.rotated and stem.endswith((".attn_q", ".attn_k")):
        import numpy as np

        rows = tensor.shape[0]
        order = rope_order(np.arange(rows), source.heads if stem.endswith("q") else source.kv_heads)
        return take_rows(tensor, np.argsort(order))
    if export.norm_offset and stem.endswith("norm"):
        return computed(tensor, lambda weights: weights - weights.dtype.type(export.norm_offset))
    return tensor
