"""What latent attention makes of a token: queries of all heads, and the short vector that their keys and values share.

    q = W_b norm(W_a x) of each head: [nope | rope]        c, k = W x, c = norm(c), k turned

Source: src/models/deepseek2.cpp of llama.cpp; DeepSeek-AI, "DeepSeek-V2", 2024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ggufkit.runtime.loader import Loader
from ggufkit.runtime.mixers.attention import rope_of
from ggufkit.runtime.ops import Array, Linear, Norm
from ggufkit.runtime.rope import Rope
from ggufkit.runtime.step import Step

__all__ = ["Latents", "load_latents", "of_window", "yarn"]


@dataclass(frozen=True)
class Latents:
    """The matrices of one layer.

    Attributes
    ----------
    short, short_norm, q : matrices and norm of the queries; the first two may be None.
    latent, latent_norm : c and k of a token.
    heads, rank : of the layer; c has `rank` numbers.
    nope, turned : numbers of a head's query that are not turned, and that are.
    rope : or None.
    scale : what scores are multiplied by.
    k_norm : or None.
    """

    short: Linear | None
    short_norm: Norm | None
    q: Linear
    latent: tuple[Linear, ...]
    latent_norm: Norm | None
    heads: int
    rank: int
    nope: int
    turned: int
    rope: Rope | None
    scale: float
    k_norm: Norm | None = None

    def of(self, x: Array, step: Step) -> tuple[Array, Array, Array, Array, Array | None]:
        """Of rows x: queries (n, heads, nope) and (n, heads, turned), c (n, rank), k (n, turned), the short vectors."""
        ops, n, heads, short = step.ops, len(x), self.heads, None
        if self.short is None:
            q, c, k = ops.linear(x, self.q, *self.latent)
        else:
            short, c, k = ops.linear(x, self.short, *self.latent)
            short = short if self.short_norm is None else ops.norm(short, self.short_norm)
            (q,) = ops.linear(short, self.q)
        c = c if self.latent_norm is None else ops.norm(c, self.latent_norm)
        k = k if self.k_norm is None else ops.norm(k, self.k_norm)
        q_nope, q_rope = ops.split(q.reshape(n, heads, -1), [self.nope, self.turned])
        q_rope = q_rope.reshape(n, -1)
        if self.rope is not None:
            q_rope, k = step.turned(q_rope, heads, self.rope), step.turned(k, 1, self.rope)
        return q_nope, q_rope.reshape(n, heads, -1), c, k, short


def load_latents(load: Loader, layer: int, head: int, key: str) -> Latents:
    """A layer's, its tensors checked and taken; `head` numbers of a query, as metadata's `key` has them."""
    hyper, at, width = load.hyper, f"blk.{layer}.", load.hyper.width
    heads, rank = hyper.heads[layer], of_window(load, layer, "attention.kv_lora_rank")
    turned = hyper.rope_dimensions
    if not heads:
        raise hyper.keys.fail("attention.head_count", f"is 0 in layer {layer}, which has attention")
    if turned >= head:
        raise hyper.keys.fail(key, f"must be more than the {turned} numbers that turn, not {head}")
    short = load.linear(f"{at}attn_q_a", -1, width) if load.has(f"{at}attn_q_a.weight") else None
    name, cols = ("attn_q", width) if short is None else ("attn_q_b", short.rows)
    rope, scale = yarn(load, rope_of(load, layer))
    return Latents(
        short=short,
        short_norm=None if short is None else load.norm(f"{at}attn_q_a_norm", short.rows),
        q=load.linear(f"{at}{name}", heads * head, cols),
        latent=tuple(load.parts(f"{at}attn_kv_a_mqa", [rank, turned], width)),
        latent_norm=load.norm(f"{at}attn_kv_a_norm", rank),
        heads=heads,
        rank=rank,
        nope=head - turned,
        turned=turned,
        rope=rope,
        scale=scale * scale / math.sqrt(head),
        k_norm=load.norm(f"{at}attn_k_norm", turned),
    )


def of_window(load: Loader, layer: int, key: str) -> int:
    """A count of metadata; of layers with a window another, if there is one."""
    keys = load.hyper.keys
    windowed = load.hyper.windows[layer] > 0 and keys.get(f"{key}_swa") is not None
    return keys.count(f"{key}_swa" if windowed else key)


def yarn(load: Loader, rope: Rope | None) -> tuple[Rope | None, float]:
    """The layer's rope, and what queries and keys are multiplied by instead of its cosines and sines."""
    multiplier = load.hyper.keys.number("rope.scaling.yarn_log_multiplier", 0.0)
    if rope is None or rope.scaling.kind != "yarn" or not multiplier:
        return rope, 1.0
    stretched = math.log(rope.scaling.factor)
    scaling = replace(rope.scaling, attention_factor=rope.scaling.attention_factor / (1 + 0.1 * stretched))
    return replace(rope, scaling=scaling), 1 + multiplier * stretched
