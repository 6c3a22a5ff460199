"""What tiny encoders are made of: sizes, and shapes of common tensors."""

from __future__ import annotations

from recipe_parts import WIDTH, Shapes, linear, norms

INNER, HEADS, FFN, LAYERS, PATCH, SIZE = 32, 2, 48, 2, 8, 64
SIDE = SIZE // PATCH

PATCHES: Shapes = {"v.patch_embd.weight": (INNER, 3, PATCH, PATCH)}
BIAS: Shapes = {"v.patch_embd.bias": (INNER,)}
TABLE: Shapes = {"v.position_embd.weight": (SIDE * SIDE, INNER)}


LIMITS = ("input_min", "input_max", "output_min", "output_max")


def block(norm_bias: bool = True, fused: int = 0, gate: bool = False, bias: bool = True) -> Shapes:
    """A block's tensors; with `fused` queries, keys and values, of so many times INNER numbers in all."""
    found = norms("ln1", "ln2", bias=norm_bias, size=INNER)
    names = ("attn_qkv",) if fused else ("attn_q", "attn_k", "attn_v")
    for name in names:
        found |= linear(name, (fused or 1) * INNER, INNER, bias)
    found |= linear("attn_out", INNER, INNER, bias)
    for name in ("ffn_gate", "ffn_up") if gate else ("ffn_up",):
        found |= linear(name, FFN, INNER, bias)
    return found | linear("ffn_down", INNER, FFN, bias)


def merger(first: str, second: str, bias: bool = True) -> Shapes:
    return linear(first, 4 * INNER, 4 * INNER, bias) | linear(second, WIDTH, 4 * INNER, bias)
