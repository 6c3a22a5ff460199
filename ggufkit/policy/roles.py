"""What each tensor is to a policy: its role, its shape, its place among its like."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ggufkit.gguf.summary import layer_of

__all__ = ["ATTN_VALUES", "Role", "TensorRole", "by_layer", "layer_of", "role_of", "trimmed"]


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
class TensorRole:
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
        """Weights per row."""
        return self.shape[-1] if self.shape else 1

    @property
    def matrices(self) -> int:
        """Matrices in a stack of experts; 1 for a plain matrix."""
        return self.shape[-3] if len(self.shape) >= 3 else 1


def by_layer(name: str) -> tuple[int, bytes]:
    """What llama-quantize sorts tensors by: those outside the layers first, then layer by layer."""
    layer = layer_of(name)
    return (-1 if layer is None else layer, name.encode("utf-8", "surrogateescape"))
