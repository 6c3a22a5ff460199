"""Shapes that models of a size typically have, for questions that are asked before there is a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["TYPICAL", "Typical"]


@dataclass(frozen=True)
class Typical:
    """A model of a common kind: attention whose heads share keys, a gated network, perhaps of experts.

    Attributes
    ----------
    like : the model that has this shape.
    layers, width, inner, heads, kv_heads, head, vocabulary : its sizes.
    tied : the token embeddings are the output matrix, too.
    experts, used : of a mixture, whose experts are `inner` wide.
    """

    like: str
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool = False
    experts: int = 0
    used: int = 0

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What a GGUF would say of it, as far as memory goes."""
        keys = {
            "block_count": self.layers,
            "context_length": 131072,
            "embedding_length": self.width,
            "feed_forward_length": self.inner,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.key_length": self.head,
            "attention.value_length": self.head,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "rope.dimension_count": self.head,
        }
        if self.experts:
            keys |= {"expert_count": self.experts, "expert_used_count": self.used}
        return {"general.architecture": "llama", **{f"llama.{key}": value for key, value in keys.items()}}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Tensors by name, in NumPy's order."""
        found = {"token_embd.weight": (self.vocabulary, self.width), "output_norm.weight": (self.width,)}
        if not self.tied:
            found["output.weight"] = (self.vocabulary, self.width)
        stack = (self.experts,) if self.experts else ()
        ending = "_exps" if self.experts else ""
        for layer in range(self.layers):
            at = f"blk.{layer}."
            found[f"{at}attn_norm.weight"] = found[f"{at}ffn_norm.weight"] = (self.width,)
            for name, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
                found[f"{at}attn_{name}.weight"] = (heads * self.head, self.width)
            found[f"{at}attn_output.weight"] = (self.width, self.heads * self.head)
            if self.experts:
                found[f"{at}ffn_gate_inp.weight"] = (self.experts, self.width)
            for name in ("gate", "up"):
                found[f"{at}ffn_{name}{ending}.weight"] = (*stack, self.inner, self.width)
            found[f"{at}ffn_down{ending}.weight"] = (*stack, self.width, self.inner)
        return found


TYPICAL = {
    "0.6B": Typical("Qwen3 0.6B", 28, 1024, 3072, 16, 8, 128, 151936, tied=True),
    "1B": Typical("Llama 3.2 1B", 16, 2048, 8192, 32, 8, 64, 128256, tied=True),
    "3B": Typical("Llama 3.2 3B", 28, 3072, 8192, 24, 8, 128, 128256, tied=True),
    "8B": Typical("Llama 3.1 8B", 32, 4096, 14336, 32, 8, 128, 128256),
    "14B": Typical("Qwen3 14B", 40, 5120, 17408, 40, 8, 128, 151936),
    "32B": Typical("Qwen3 32B", 64, 5120, 25600, 64, 8, 128, 151936),
    "70B": Typical("Llama 3.1 70B", 80, 8192, 28672, 64, 8, 128, 128256),
    "405B": Typical("Llama 3.1 405B", 126, 16384, 53248, 128, 8, 128, 128256),
    "30B-A3B": Typical("Qwen3 30B-A3B", 48, 2048, 768, 32, 4, 128, 151936, experts=128, used=8),
    "235B-A22B": Typical("Qwen3 235B-A22B", 94, 4096, 1536, 64, 4, 128, 151936, experts=128, used=8),
}
