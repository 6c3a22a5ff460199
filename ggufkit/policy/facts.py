"""What a policy looks at: the model's hyperparameters, and each tensor's role, shape and place among its like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ggufkit.gguf.summary import layer_of

__all__ = ["Model", "Role", "Subject", "layer_of", "model_facts", "role_of", "trimmed"]


class Role(Enum):
    """What a weight is for; the value is how policies write it."""

    OUTPUT = "output"
    TOKEN_EMBD = "token_embd"
    ATTN_QKV = "attn_qkv"
    ATTN_KV_B = "attn_kv_b"
    ATTN_V = "attn_v"
    ATTN_K = "attn_k"
    ATTN_Q = "attn_q"
    ATTN_OUTPUT = "attn_output"
    FFN_UP = "ffn_up"
    FFN_GATE = "ffn_gate"
    FFN_DOWN = "ffn_down"
    OTHER = "other"


_WHOLE_NAMES = {
    "output.weight": Role.OUTPUT,
    "token_embd.weight": Role.TOKEN_EMBD,
    "per_layer_token_embd.weight": Role.TOKEN_EMBD,
}

# Parts of names, the first one found decides. Experts count as what they are made of: ffn_up_exps, ffn_up_shexp.
_NAME_PARTS = {
    "attn_qkv.weight": Role.ATTN_QKV,
    "attn_kv_b.weight": Role.ATTN_KV_B,
    "attn_v.weight": Role.ATTN_V,
    "attn_k.weight": Role.ATTN_K,
    "attn_q.weight": Role.ATTN_Q,
    "attn_output.weight": Role.ATTN_OUTPUT,
    "ffn_up": Role.FFN_UP,
    "ffn_gate": Role.FFN_GATE,
    "ffn_down": Role.FFN_DOWN,
}

# Roles whose tensors act as the value projection: all of them are sensitive.
ATTN_VALUES = (Role.ATTN_V, Role.ATTN_QKV, Role.ATTN_KV_B)


def role_of(name: str) -> Role:
    """The role of the tensor called `name` (Source: `tensor_get_category` in src/llama-quant.cpp)."""
    if (role := _WHOLE_NAMES.get(name)) is not None:
        return role
    return next((role for part, role in _NAME_PARTS.items() if part in name), Role.OTHER)


def trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` (NumPy order) without leading ones, as GGML counts dimensions: (1, 64) has one."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


@dataclass(frozen=True)
class Model:
    """The hyperparameters that decide on precision.

    Attributes
    ----------
    architecture : `general.architecture`.
    layers, heads, kv_heads, experts : their numbers; the heads of the first layer. 0 where the model has none.
    value_tensors : tensors that act as the value projection (one per layer, mostly).
    tied : the token embeddings are also the output.
    imatrix : an importance matrix is there.
    """

    architecture: str = ""
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    experts: int = 0
    value_tensors: int = 0
    tied: bool = False
    imatrix: bool = False

    @property
    def gqa(self) -> int:
        """Query heads that share a key-value head."""
        return self.heads // self.kv_heads if self.kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp calls it "70B"; only the number of layers tells."""
        return self.layers == _LAYERS_OF_70B.get(self.architecture) and not (
            self.architecture in _65B_WITHOUT_GQA and self.heads == self.kv_heads
        )


# Source: `load_arch_hparams` of these models in src/models/.
_LAYERS_OF_70B = {"llama": 80, "llama-embed": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}
_65B_WITHOUT_GQA = ("llama", "llama-embed")


def model_facts(metadata: Mapping[str, Any], names: Iterable[str], imatrix: bool = False) -> Model:
    """Collect the facts from a model's metadata (plain Python values) and the names of its tensors."""
    architecture = metadata.get("general.architecture", "")

    def number(key: str, default: int = 0) -> int:
        value = metadata.get(f"{architecture}.{key}", default)
        if isinstance(value, (list, tuple)):  # one value a layer
            value = value[0] if value else default
        return int(value) if isinstance(value, (int, float)) else default

    roles = [role_of(name) for name in names]
    heads = number("attention.head_count")
    return Model(
        architecture=architecture,
        layers=number("block_count"),
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        experts=number("expert_count"),
        value_tensors=sum(role in ATTN_VALUES for role in roles),
        tied=Role.OUTPUT not in roles,
        imatrix=imatrix,
    )


@dataclass(frozen=True)
class Subject:
    """One tensor, as the rules see it.

    Attributes
    ----------
    name, role : its name and role.
    shape : NumPy order, leading ones removed.
    layer : its layer, or None.
    ordinal : how many tensors of the same kind (all value projections are one kind) the preset decided before it.
    position, count : where it is in the depth of the model: `position` of `count`.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    layer: int | None = None
    ordinal: int = 0
    position: int = 0
    count: int = 0

    @property
    def cols(self) -> int:
        """Weights a row."""
        return self.shape[-1] if self.shape else 1

    @property
    def matrices(self) -> int:
        """Matrices in a stack of experts; 1 for a plain matrix."""
        return self.shape[-3] if len(self.shape) >= 3 else 1
