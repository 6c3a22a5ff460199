"""The way back: from a GGUF's metadata and names to the config.json and names of a Hugging Face checkpoint.

A spec says it with `Export`s, one for each class of checkpoints that becomes its GGUF. What transforms did is undone:
rows go back to their places, stacks of experts fall apart, what was split is put together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ggufkit.arch.heads import qkv_rows, rope_order
from ggufkit.arch.metadata import pooling_files
from ggufkit.arch.mlx import Mlx
from ggufkit.arch.pieces import apart, decoded, side_by_side, together
from ggufkit.arch.rope import llama3_divisors
from ggufkit.errors import ArchitectureError, printable
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import LastMatrices, computed, take_rows, transposed

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "COMMON",
    "EXPERTS",
    "GROUPED_ROUTER",
    "NAMES",
    "NULL",
    "POST_NORMS",
    "W123_EXPERTS",
    "Export",
    "Exported",
    "Setting",
    "Source",
    "Undo",
    "exported",
    "key",
    "longrope",
    "one_row",
    "rope_scaling",
    "transposed_back",
    "ungrouped",
]


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

    def natural(self, key: str) -> int:
        """A whole number of at least 1."""
        value = self.require(key)
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise ArchitectureError(
                f"{self.architecture}.{key} is {printable(repr(value), 60)}, and config.json needs a whole number"
            )
        return value

    @property
    def head_dim(self) -> int:
        return self.natural("attention.key_length") if self.get("attention.key_length") else self.width // self.heads

    @property
    def width(self) -> int:
        return self.natural("embedding_length")

    @property
    def heads(self) -> int:
        return self.natural("attention.head_count")

    @property
    def kv_heads(self) -> int:
        """Of the layers that have any."""
        count = self.get("attention.head_count_kv")
        if isinstance(count, list):
            return max((n for n in count if type(n) is int), default=self.heads)
        return self.natural("attention.head_count_kv") if count else self.heads

    @property
    def layers(self) -> int:
        """Blocks; refuses more than there are tensors."""
        return self._blocks("block_count")

    @property
    def blocks(self) -> int:
        """Blocks of the deeper stack, where an encoder has a decoder."""
        return max(self.layers, self._blocks("decoder_block_count") if self.get("decoder_block_count") else 0)

    def _blocks(self, key: str) -> int:
        count = self.natural(key)
        if count > len(self.tensors):
            raise ArchitectureError(f"{self.architecture}.{key} is {count}, of {len(self.tensors)} tensors")
        return count

    def has(self, *names: str) -> bool:
        """Whether the first block has tensors of these names: all or none of them.

        Raises
        ------
        ArchitectureError : it has some, which config.json has no setting for.
        """
        there = [f"blk.0.{name}" in self.tensors for name in names]
        if any(there) and not all(there):
            missing = names[there.index(False)]
            raise ArchitectureError(
                f"blk.0.{names[there.index(True)]} is there and blk.0.{missing} is not, which no config.json can say"
            )
        return all(there)


# A value of config.json: a constant is one, too.
Setting = Callable[[Source], Any]

# A value of config.json that is there, and null.
NULL = object()

# Takes back what a transform did to a tensor.
Undo = Callable[[Source, Tensor], Tensor]


def key(name: str, default: Any = None) -> Setting:
    return (lambda s: s.require(name)) if default is None else (lambda s: s.get(name, default))


# Settings of a router that chooses among groups of experts first, DeepSeek's.
GROUPED_ROUTER = {
    "n_routed_experts": key("expert_count"),
    "num_experts_per_tok": key("expert_used_count"),
    "n_shared_experts": key("expert_shared_count"),
    "moe_intermediate_size": key("expert_feed_forward_length"),
    "first_k_dense_replace": key("leading_dense_block_count"),
    "routed_scaling_factor": key("expert_weights_scale"),
    "norm_topk_prob": key("expert_weights_norm"),
    "n_group": key("expert_group_count", 1),
    "topk_group": key("expert_group_used_count", 1),
}


# Keys of yarn that a config may leave out.
_YARN = {
    "attention_factor": "rope.scaling.yarn_attn_factor",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}


def rope_scaling(s: Source) -> dict[str, Any] | None:
    """`rope_scaling` of config.json: Llama 3's, linear or yarn."""
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
        scaling |= {name: s.get(own) for name, own in _YARN.items() if s.get(own) is not None}
    return scaling


def longrope(s: Source) -> dict[str, Any] | None:
    """`rope_scaling` of config.json where a GGUF has factors for long contexts and for short ones."""
    factors = [s.tensors.get(f"rope_factors_{kind}.weight") for kind in ("long", "short")]
    if factors[0] is None or factors[1] is None:
        return None
    long, short = (tensor.floats().reshape(-1).tolist() for tensor in factors if tensor is not None)
    return {"type": "longrope", "long_factor": long, "short_factor": short}


# What the settings of Llama 3.1's scaling are, which a GGUF holds as divisors only: how fast a pair must turn at least,
# and the context before; models of others first.
_LLAMA3_HIGH = (4.0, 1.0)
_LLAMA3_CONTEXTS = (8192, *(1 << bits for bits in range(5, 20)))


def _llama3(divisors: np.ndarray, s: Source) -> dict[str, Any]:
    """The settings that give these divisors."""
    import numpy as np

    settings = {"rope_type": "llama3", "factor": float(divisors.max(initial=1)), "low_freq_factor": 1.0}
    for high in _LLAMA3_HIGH:
        for context in _LLAMA3_CONTEXTS:
            found = {**settings, "high_freq_factor": high, "original_max_position_embeddings": context}
            expected = llama3_divisors({**found, "rope_theta": s.get("rope.freq_base", 10000.0)}, s.head_dim)
            if expected.shape == divisors.shape and np.allclose(expected, divisors, rtol=1e-5):
                return found
    raise ArchitectureError("rope_freqs.weight is not Llama 3.1's scaling, which config.json could name")


def _vocabulary(s: Source) -> int:
    if (embedding := s.tensors.get("token_embd.weight")) is None or len(embedding.shape) != 2:
        raise ArchitectureError("there is no matrix token_embd.weight, which every checkpoint has")
    return embedding.shape[0]


def _token(role: str) -> Setting:
    """A special token's id; null says that there is none, and not the class's own."""
    return lambda s: s.metadata.get(f"tokenizer.ggml.{role}_token_id", NULL)


COMMON: dict[str, Setting] = {
    "hidden_size": key("embedding_length"),
    "num_hidden_layers": lambda s: s.layers,
    "intermediate_size": key("feed_forward_length"),
    "num_attention_heads": lambda s: s.heads,
    "num_key_value_heads": lambda s: s.kv_heads,
    "head_dim": lambda s: s.head_dim,
    "rms_norm_eps": key("attention.layer_norm_rms_epsilon"),
    "rope_theta": key("rope.freq_base", 10000.0),
    "max_position_embeddings": key("context_length"),
    "vocab_size": _vocabulary,
    "tie_word_embeddings": lambda s: "output.weight" not in s.tensors,
    "attention_bias": lambda s: "blk.0.attn_q.bias" in s.tensors,
    "mlp_bias": lambda s: "blk.0.ffn_up.bias" in s.tensors,
    "hidden_act": lambda s: "silu",
    "rope_scaling": rope_scaling,
    "bos_token_id": _token("bos"),
    "eos_token_id": _token("eos"),
    "pad_token_id": _token("padding"),
}

NAMES = {
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
# Stacks of experts, and what chooses among them.
EXPERTS = {
    "blk.{bid}.ffn_gate_inp": "model.layers.{bid}.mlp.gate",
    **{
        f"blk.{{bid}}.ffn_{part}_exps": f"model.layers.{{bid}}.mlp.experts.{{xid}}.{part}_proj"
        for part in ("gate", "up", "down")
    },
}
W123_EXPERTS = {
    "blk.{bid}.ffn_gate_inp": "model.layers.{bid}.block_sparse_moe.gate",
    **{
        f"blk.{{bid}}.ffn_{part}_exps": f"model.layers.{{bid}}.block_sparse_moe.experts.{{xid}}.{name}"
        for part, name in (("gate", "w1"), ("down", "w2"), ("up", "w3"))
    },
}

# Tensors that are settings in a checkpoint.
_SETTINGS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Export:
    """How GGUF files of one architecture go back to checkpoints of one class.

    Attributes
    ----------
    model_type, model_class : config.json's `model_type` and its only architecture.
    config : settings over the common ones; None leaves one out.
    names : names over the common ones, without their ``.weight`` or ``.bias``, or with it. ``{xid}`` in the
        checkpoint's stands for each matrix of a stack.
    common : with the common settings and names.
    fused : matrix of the checkpoint, without ``.weight`` → those of the GGUF whose rows it has, one after the other.
    rotated : q and k have GGUF's order of rotary pairs (see `transforms.permute_rope`).
    norm_offset : what GGUF added to the weights of norms.
    undo : end of a GGUF name without ``.weight`` or ``.bias``, or of a fused matrix → what takes back what was done to
        it; comes before the rest.
    more : tensors of the checkpoint that are settings in a GGUF.
    called : a tensor under the name that `names` gives → its name in the checkpoint.
    when : which GGUF files it is for; the first of an architecture whose `when` holds is taken.
    wide : activations are larger than float16 can be.
    packs : its matrices may stay quantized: compressed-tensors knows the class's layers.
    layout : the only one in which they may, "mxfp4".
    mlx : what mlx-lm has otherwise, or None where it has no such models.
    """

    model_type: str
    model_class: str
    config: Mapping[str, Setting | None] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    common: bool = True
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rotated: bool = False
    norm_offset: float = 0.0
    undo: Mapping[str, Undo] = field(default_factory=dict)
    more: Callable[[Source], Iterable[Tensor]] = lambda s: ()
    called: Callable[[Source, Tensor], str] = lambda s, tensor: tensor.name
    when: Callable[[Source], bool] = lambda s: True
    wide: bool = False
    packs: bool = True
    layout: str | None = None
    mlx: Mlx | None = None


@dataclass(frozen=True)
class Exported:
    """A GGUF seen as a checkpoint: how, config.json, name → tensor, and further files of JSON, name → what it says."""

    export: Export
    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    files: Mapping[str, Any] = field(default_factory=dict)


def exported(exports: Sequence[Export], source: Source) -> Exported:
    """See a GGUF as a Hugging Face checkpoint; reads no weight but rope factors.

    Raises
    ------
    ArchitectureError : a value or name has no place in a checkpoint.
    """
    export = next((export for export in exports if export.when(source)), None)
    if export is None:
        raise ArchitectureError(
            f"{printable(source.architecture)} models of this kind cannot be exported; those that can are of the "
            f"classes {', '.join(export.model_class for export in exports)}"
        )
    config: dict[str, Any] = {"architectures": [export.model_class], "model_type": export.model_type}
    for name, setting in {**(COMMON if export.common else {}), **export.config}.items():
        if setting is not None and (value := setting(source)) is not None:
            config[name] = None if value is NULL else value
    tensors: dict[str, Tensor] = {}
    for renamed in (*_renamed(export, source), *export.more(source)):
        tensor = renamed.renamed(export.called(source, renamed))
        if tensor.name in tensors:
            raise ArchitectureError(f"two tensors would be called {printable(tensor.name)} in the checkpoint")
        tensors[tensor.name] = tensor
    return Exported(export, config, tensors, pooling_files(source.get("pooling_type"), source.width))


def _renamed(export: Export, source: Source) -> Iterator[Tensor]:
    names = {**(NAMES if export.common else {}), **export.names}
    layers = source.blocks
    stems = {
        gguf.format(bid=bid): name.replace("{bid}", str(bid))
        for gguf, name in names.items()
        for bid in range(layers if "{bid}" in gguf else 1)
    }
    parts = {
        gguf.format(bid=bid): (name.replace("{bid}", str(bid)), [part.format(bid=bid) for part in parts])
        for name, parts in export.fused.items()
        for gguf in parts
        for bid in range(layers)
    }
    for name, tensor in source.tensors.items():
        if name in _SETTINGS:
            continue
        stem, _, ending = name.rpartition(".")
        if stem in parts and ending in ("weight", "bias"):
            whole, pieces = parts[stem]
            if stem == pieces[0]:
                own = [_part(export, source, piece, ending) for piece in pieces]
                fused = (together if ending == "weight" else side_by_side)(f"{whole}.{ending}", own)
                yield _undone(export, source, whole, fused) or fused
        elif name in stems:
            yield from apart(stems[name], _restored(export, source, name, tensor))
        elif stem in stems and ending in ("weight", "bias"):
            yield from apart(f"{stems[stem]}.{ending}", _restored(export, source, name, tensor))
        else:
            raise ArchitectureError(f"the tensor {printable(name)} has no place in a {export.model_type} checkpoint")


def _part(export: Export, source: Source, stem: str, ending: str) -> Tensor:
    if (tensor := source.tensors.get(f"{stem}.{ending}")) is None:
        raise ArchitectureError(
            f"the tensor {printable(stem)}.{ending} is missing, which is a part of one of the checkpoint's"
        )
    return _restored(export, source, tensor.name, tensor)


def _restored(export: Export, source: Source, name: str, tensor: Tensor) -> Tensor:
    """The tensor with its rows and numbers as the checkpoint had them."""
    stem, _, ending = name.rpartition(".")
    undone = _undone(export, source, stem if ending in ("weight", "bias") else name, tensor)
    if undone is not None:
        return undone
    if export.rotated and stem.endswith((".attn_q", ".attn_k")):
        heads = source.heads if stem.endswith("q") else source.kv_heads
        return _with_rows(tensor, lambda rows: None if rows % (2 * heads) else rope_order(_counted(rows), heads))
    if export.norm_offset and stem.endswith("norm") and ending == "weight":
        return computed(tensor, lambda weights: weights - weights.dtype.type(export.norm_offset))
    return tensor


def _undone(export: Export, source: Source, name: str, tensor: Tensor) -> Tensor | None:
    """The tensor as the export's own `undo` of such a name leaves it."""
    return next((undo(source, tensor) for end, undo in export.undo.items() if name.endswith(end)), None)


def _counted(count: int) -> np.ndarray:
    import numpy as np

    return np.arange(count)


def _with_rows(tensor: Tensor, order: Callable[[int], np.ndarray | None]) -> Tensor:
    """The tensor with the rows back in the places that `order`, of their number, took them from."""
    import numpy as np

    rows = tensor.cols if len(tensor.shape) == 1 else tensor.rows
    taken = order(rows)
    if taken is None:
        raise ArchitectureError(f"{printable(tensor.name)} has {rows} rows, which are not those of the model's heads")
    return take_rows(tensor, np.argsort(taken))


def ungrouped(kv_heads: Callable[[Source], int]) -> Undo:
    """All queries, all keys, all values → head by head; see `transforms.group_qkv`."""

    def undo(source: Source, tensor: Tensor) -> Tensor:
        import numpy as np

        def order(rows: int) -> np.ndarray | None:
            found = qkv_rows(rows, source.heads, kv_heads(source))
            return None if found is None else np.concatenate(found)

        return _with_rows(tensor, order)

    return undo


def transposed_back(source: Source, tensor: Tensor) -> Tensor:
    """A matrix as checkpoints have it that store theirs (in, out)."""
    return tensor if len(tensor.shape) == 1 else transposed(decoded(tensor), LastMatrices(1))


def one_row(source: Source, tensor: Tensor) -> Tensor:
    """A vector as the matrix of one row that checkpoints have."""
    return replace(tensor, shape=(1, tensor.cols)) if len(tensor.shape) == 1 else tensor
