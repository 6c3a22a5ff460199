"""The blocks of an encoder: those of language models, with other names, over the patches of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ggufkit.arch.hyperparameters import Keys
from ggufkit.runtime.block import Block
from ggufkit.runtime.feed_forward import FeedForward, Limit
from ggufkit.runtime.loader import Tensors
from ggufkit.runtime.mixers.attention import Attention
from ggufkit.runtime.ops import Array, AttentionSpec, CacheSpec, Linear, Norm, Ops, Span
from ggufkit.runtime.rope import Rope, RopeTables
from ggufkit.runtime.step import Step
from ggufkit.tensors.views import take_rows, vector

__all__ = [
    "Sizes",
    "Turns",
    "Whole",
    "attention_spec",
    "in_order",
    "limit_of",
    "load_attention",
    "load_encoder_block",
    "read_sizes",
]

_CACHE = CacheSpec("F32", "F32")

Turns = tuple[np.ndarray, np.ndarray]  # cosines and sines of all rows, (n, pairs) each


@dataclass(frozen=True)
class Sizes:
    """What the metadata of an encoder says of its blocks.

    Attributes
    ----------
    width, heads, inner, layers : numbers of a row, of heads, in the feed-forward network, of blocks.
    kv_heads, head : heads of keys and values, and numbers of each.
    out : numbers of a row for the language model.
    epsilon : of norms.
    activation : of the feed-forward networks.
    limit : gates and what they are multiplied with are kept within it; 0 for none.
    """

    width: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    layers: int
    out: int
    epsilon: float
    activation: str
    limit: float = 0.0


def read_sizes(keys: Keys, activation: str, named: bool = True) -> Sizes:
    """Of the encoder that `keys` are of, ``clip.vision`` or ``clip.audio``.

    Parameters
    ----------
    activation : where the file names none, or where it is not asked.
    named : it is.

    Raises
    ------
    ArchitectureError : a key is missing or out of range.
    """
    whole = Keys(keys.gguf, "clip")
    if named and whole.flag("use_gelu", False):
        activation = "gelu"
    elif named and whole.flag("use_silu", False):
        activation = "silu"
    width, layers = keys.count("embedding_length", most=1 << 16), keys.count("block_count", least=0, most=512)
    heads = keys.count("attention.head_count", most=1 << 10) if layers else 1
    if width % heads:
        raise keys.fail("attention.head_count", f"must divide the width {width}, not {heads}")
    kv_heads = keys.count("attention.head_count_kv", heads, most=heads)
    if heads % kv_heads:
        raise keys.fail("attention.head_count_kv", f"must divide the {heads} heads, not be {kv_heads}")
    return Sizes(
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head=width // heads,
        inner=keys.count("feed_forward_length", least=min(layers, 1), most=1 << 20),
        layers=layers,
        out=keys.count("projection_dim", most=1 << 17),
        epsilon=keys.between("attention.layer_norm_epsilon", 0, 1, 1e-6),
        activation=activation,
        limit=keys.between("swiglu_clamp", 0, 1e9, 0.0),
    )


class Whole(Step):
    """A pass over rows that all see each other, or those of their window.

    Parameters
    ----------
    windows : how many rows each window has, one after the other.
    turns : by what queries and keys turn, or None.
    """

    def __init__(self, ops: Ops, spec: AttentionSpec, windows: Sequence[int], turns: Turns | None):
        super().__init__(ops, RopeTables({}), [])
        self._turns = turns
        self._spans, lo = [], 0
        for n in windows:
            self._spans.append(Span(lo, lo + n, 0, ops.layer_cache(spec, _CACHE, n)))
            lo += n

    def be(self, spans: list[Span]) -> None:
        """Have other spans, for rows that see each other in another way."""
        self._spans = spans

    def spans(self, slot: int) -> list[Span]:
        return self._spans

    def turned(self, x: Array, heads: int, rope: Rope) -> Array:
        assert self._turns is not None
        return self.ops.rope(x, heads, rope.style, self._turns)


def load_encoder_block(
    load: Tensors,
    at: str,
    sizes: Sizes,
    norm: str,
    rope: Rope | None,
    spec: AttentionSpec,
    value_norm: bool = False,
    late_norm: bool = False,
) -> Block:
    """A block's tensors, checked and taken.

    Parameters
    ----------
    at : what their names begin with, such as ``"v.blk.0."``.
    norm : ``"layer"`` or ``"rms"``.
    rope : whose style says which numbers turn together; or None.
    spec : of attention.
    value_norm : values are normalised, without weights.
    late_norm : see `Tower.late_norm`.
    """
    width = sizes.width
    names = ("attn_post_norm", "ffn_post_norm"), ("ln1", "ln2")
    behind, front = names if not late_norm else names[::-1]

    def normed(name: str, size: int = width) -> Norm | None:
        return load.norm_of(norm, f"{at}{name}", size, sizes.epsilon)

    attention = load_attention(load, at, sizes, norm, rope, spec, value_norm)
    return Block(
        mixers=(attention,),
        ffn=_feed_forward(load, at, sizes),
        mixer_norm=normed(front[0]),
        mixer_post_norm=normed(behind[0]),
        mixer_sum_norm=None,
        ffn_norm=normed(front[1]),
        ffn_post_norm=normed(behind[1]),
        ffn_sum_norm=None,
        parallel=False,
        scale=1.0,
        output_scale=_scalar(load, f"{at}out_scale.weight"),
        mixer_gain=_gain(load, f"{at}ls1.weight", width),
        ffn_gain=_gain(load, f"{at}ls2.weight", width),
    )


def load_attention(
    load: Tensors,
    at: str,
    sizes: Sizes,
    norm: str,
    rope: Rope | None,
    spec: AttentionSpec,
    value_norm: bool = False,
) -> Attention:
    """A block's attention: see `load_encoder_block`."""
    q, k, v = _projections(load, at, sizes)
    return Attention(
        slot=0,
        q=q,
        k=k,
        v=v,
        out=load.linear(f"{at}attn_out", sizes.width, sizes.heads * sizes.head),
        q_norm=_head_norm(load, f"{at}attn_q_norm", norm, sizes),
        k_norm=_head_norm(load, f"{at}attn_k_norm", norm, sizes),
        v_norm=_plain_norm(load.ops, sizes) if value_norm else None,
        sub_norm=None,
        late_norm=False,
        rope=rope,
        spec=spec,
        gate=None,
        gate_kind="sigmoid",
        gated=False,
        clamp=0.0,
        temperature=None,
        value_scale=1.0,
    )


def attention_spec(sizes: Sizes, scale: float = 0.0, causal: bool = False) -> AttentionSpec:
    """Of a block; `scale` of the scores where it is not 1 / √head."""
    head = sizes.head
    return AttentionSpec(sizes.heads, sizes.kv_heads, head, head, scale or head**-0.5, causal=causal)


def in_order(load: Tensors, sizes: Sizes, within: np.ndarray) -> None:
    """Reorder queries and keys of all blocks, by the order of the numbers of a head: (head,)."""
    head = sizes.head
    rows = (np.arange(sizes.heads)[:, None] * head + within).reshape(-1)
    tensors = dict(load.tensors)
    for layer in range(sizes.layers):
        for name in ("attn_q", "attn_k"):
            at = f"v.blk.{layer}.{name}"
            if f"{at}.weight" in tensors:
                tensors[f"{at}.weight"] = take_rows(load.tensor(f"{at}.weight", sizes.width, sizes.width), rows)
            if f"{at}.bias" in tensors:
                numbers = load.vector(f"{at}.bias", sizes.width)
                tensors[f"{at}.bias"] = vector(f"{at}.bias", numbers[rows])
            if f"{at}_norm.weight" in tensors:
                numbers = load.vector(f"{at}_norm.weight", head)
                tensors[f"{at}_norm.weight"] = vector(f"{at}_norm.weight", numbers[within])
    load.tensors = tensors


def limit_of(limit: float) -> Limit | None:
    """Of gated networks; None of 0."""
    return Limit(limit, limit) if limit else None


def _scalar(load: Tensors, name: str) -> float:
    return float(load.vector(name, 1)[0]) if load.has(name) else 1.0


def _gain(load: Tensors, name: str, width: int) -> Array | None:
    return load.ops.vector(load.vector(name, width).reshape(1, width)) if load.has(name) else None


def _plain_norm(ops: Ops, sizes: Sizes) -> Norm:
    head = sizes.head
    return Norm("rms", sizes.epsilon, head, ops.vector(np.ones((1, head), np.float32)))


def _projections(load: Tensors, at: str, sizes: Sizes) -> tuple[Linear, Linear, Linear]:
    rows = [heads * sizes.head for heads in (sizes.heads, sizes.kv_heads, sizes.kv_heads)]
    if load.has(f"{at}attn_qkv.weight"):
        q, k, v = load.parts(f"{at}attn_qkv", rows, sizes.width)
    else:
        q, k, v = (load.linear(f"{at}attn_{name}", n, sizes.width) for name, n in zip("qkv", rows, strict=True))
    return q, k, v


def _head_norm(load: Tensors, name: str, kind: str, sizes: Sizes) -> Norm | None:
    """Over each head, or over all of them, as many weights as there are."""
    if not load.has(f"{name}.weight"):
        return None
    head = sizes.head
    size = head if load.tensor(f"{name}.weight", -1).shape == (head,) else sizes.width
    return load.norm_of(kind, name, size, sizes.epsilon)


def _feed_forward(load: Tensors, at: str, sizes: Sizes) -> FeedForward:
    width, inner = sizes.width, sizes.inner
    up, down = f"{at}ffn_up", f"{at}ffn_down"
    if inner != width and load.has(f"{up}.weight") and load.tensor(f"{up}.weight", -1, -1).shape == (width, inner):
        up, down = down, up  # early converters took one for the other
    gate = load.linear(f"{at}ffn_gate", inner, width) if load.has(f"{at}ffn_gate.weight") else None
    return FeedForward(
        gate,
        load.linear(up, inner, width),
        load.linear(down, width, inner),
        sizes.activation,
        limit=limit_of(sizes.limit),
    )
