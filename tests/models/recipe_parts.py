"""What recipes of tiny models are made of: sizes, and shapes of common tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ggufkit.gguf.header import Value, ValueType

WIDTH, HEADS, KV_HEADS, HEAD, FFN, VOCAB, EXPERTS = 64, 4, 2, 16, 96, 96, 4
WIDE = 32  # a head of models whose heads are not width / heads

Shapes = dict[str, tuple[int, ...]]


def real(value: float) -> Value:
    return Value(ValueType.FLOAT32, float(value))


@dataclass(frozen=True)
class Recipe:
    """What is particular to an architecture.

    Attributes
    ----------
    metadata : keys behind the architecture's name.
    block : names behind ``blk.N.`` → shapes.
    whole : other tensors.
    odd : what odd layers have instead of `block`, or None.
    layers : how many.
    kv_heads, head : of keys and values; numbers per head.
    """

    metadata: dict[str, Any]
    block: Shapes
    whole: Shapes = field(default_factory=dict)
    odd: Shapes | None = None
    layers: int = 3
    kv_heads: int = KV_HEADS
    head: int = HEAD


def norms(*names: str, bias: bool = False, size: int = WIDTH) -> Shapes:
    return {f"{name}.{kind}": (size,) for name in names for kind in (("weight", "bias") if bias else ("weight",))}


def linear(name: str, rows: int, cols: int, bias: bool = False, experts: int = 0) -> Shapes:
    stack = (experts,) if experts else ()
    found: Shapes = {f"{name}.weight": (*stack, rows, cols)}
    return found | ({f"{name}.bias": (*stack, rows)} if bias else {})


def attention(
    bias: bool = False,
    out_bias: bool = False,
    fused: bool = False,
    kv: int = KV_HEADS,
    head: int = HEAD,
) -> Shapes:
    q, k = HEADS * head, kv * head
    if fused:
        found = linear("attn_qkv", q + 2 * k, WIDTH, bias)
    else:
        found = linear("attn_q", q, WIDTH, bias) | linear("attn_k", k, WIDTH, bias) | linear("attn_v", k, WIDTH, bias)
    return found | linear("attn_output", WIDTH, q, out_bias)


def gated(bias: bool = False, suffix: str = "", ffn: int = FFN) -> Shapes:
    return linear(f"ffn_gate{suffix}", ffn, WIDTH, bias) | plain(bias, suffix, ffn)


def plain(bias: bool = False, suffix: str = "", ffn: int = FFN) -> Shapes:
    return linear(f"ffn_up{suffix}", ffn, WIDTH, bias) | linear(f"ffn_down{suffix}", WIDTH, ffn, bias)


def experts(bias: bool = False, gate: bool = True) -> Shapes:
    found = linear("ffn_gate_inp", EXPERTS, WIDTH, bias)
    for name, rows, cols in (("gate", FFN, WIDTH), ("up", FFN, WIDTH), ("down", WIDTH, FFN)):
        if gate or name != "gate":
            found |= linear(f"ffn_{name}_exps", rows, cols, bias, EXPERTS)
    return found


RMS = {"attention.layer_norm_rms_epsilon": real(1e-5)}
LAYER = {"attention.layer_norm_epsilon": real(1e-5)}
MIXTURE = {"expert_count": EXPERTS, "expert_used_count": 2}
OUTPUT = {"output.weight": (VOCAB, WIDTH)}
LLAMA = norms("attn_norm", "ffn_norm") | attention() | gated()
FINAL = norms("output_norm")
FINAL_BIAS = norms("output_norm", bias=True)
SANDWICH = norms("post_attention_norm", "post_ffw_norm")
