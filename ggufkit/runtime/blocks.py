"""The tensors of a model, sorted into blocks.

A fused matrix (`attn_qkv`, or `ffn_up` with the gate in front) is cut into its parts here: rows of a tensor are a
tensor. Every tensor must find its place, and every place that the architecture needs its tensor.

Source: `create_tensor` calls in src/models/*.cpp of llama.cpp, names in src/llama-arch.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ggufkit.arch.graph import Graph
from ggufkit.arch.hyperparameters import Hyper
from ggufkit.errors import ArchitectureError, printable
from ggufkit.runtime.ops import AttentionSpec, Experts, Linear, Norm, Ops
from ggufkit.tensors.tensor import Tensor

__all__ = ["Block", "FeedForward", "Weights", "load_weights"]


@dataclass(frozen=True)
class FeedForward:
    """up → activation → down, or activation(gate) × up → down.

    Attributes
    ----------
    sub_norm : before `down`, or None.
    share : width → one score whose sigmoid multiplies the result (shared experts), or None.
    """

    gate: Linear | None
    up: Linear
    down: Linear
    activation: str
    sub_norm: Norm | None = None
    share: Linear | None = None


@dataclass(frozen=True)
class Block:
    """One layer; a norm that the model does without is None.

    Attributes
    ----------
    attention_norm, ffn_norm : of the inputs of attention and FFN. `ffn_norm` of a block whose FFN reads the input of
        attention is the same object.
    attention_post_norm, ffn_post_norm : of their results, before these are added to x.
    attention_sum_norm, ffn_sum_norm : of x after the addition.
    parallel : attention and FFN read the same x.
    rope : whether queries and keys are turned.
    local : whether its rope is that of layers with a window.
    """

    attention_norm: Norm | None
    q: Linear
    k: Linear
    v: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    attention: AttentionSpec
    attention_sub_norm: Norm | None
    out: Linear
    attention_post_norm: Norm | None
    attention_sum_norm: Norm | None
    ffn_norm: Norm | None
    ffn: FeedForward | None
    experts: Experts | None
    ffn_post_norm: Norm | None
    ffn_sum_norm: Norm | None
    parallel: bool
    rope: bool
    local: bool


@dataclass(frozen=True)
class Weights:
    """A model's tensors, ready to compute with.

    Attributes
    ----------
    embedding : matrix of the tokens' vectors.
    position, token_type : what is added to them, or None: a matrix; the row of type 0.
    embedding_norm, output_norm : or None.
    output : to logits; None for encoders.
    factors : rope factors by kind: ``"all"``, ``"short"``, ``"long"``.
    """

    embedding: Any
    vocabulary: int
    position: Any
    positions: int
    token_type: Any
    embedding_norm: Norm | None
    blocks: tuple[Block, ...]
    output_norm: Norm | None
    output: Linear | None
    factors: Mapping[str, np.ndarray]


class _Loader:
    """Takes tensors by name and remembers which."""

    def __init__(self, path: str, tensors: Mapping[str, Tensor], hyper: Hyper, graph: Graph, ops: Ops):
        self.path, self.tensors, self.hyper, self.graph, self.ops = path, tensors, hyper, graph, ops
        self.taken: set[str] = set()

    def fail(self, message: str) -> ArchitectureError:
        return ArchitectureError(f"{printable(self.path)}: {message}")

    def has(self, name: str) -> bool:
        return name in self.tensors

    def tensor(self, name: str, *shape: int) -> Tensor:
        """A tensor of this shape; -1 stands for any number. Dimensions of 1 in front may be missing, or too many."""
        if (tensor := self.tensors.get(name)) is None:
            raise self.fail(f"the tensor {printable(name)} is missing; the model cannot be run without it")
        found = (1,) * (len(shape) - len(tensor.shape)) + tensor.shape
        while len(found) > len(shape) and found[0] == 1:
            found = found[1:]
        if len(found) != len(shape) or any(n not in (-1, m) for n, m in zip(shape, found, strict=True)):
            wanted = " × ".join("any" if n < 0 else str(n) for n in shape)
            raise self.fail(f"{printable(name)} has the shape {' × '.join(map(str, found))}, not {wanted}")
        if 0 in found:
            raise self.fail(f"{printable(name)} has the shape {' × '.join(map(str, found))}: it is empty")
        self.taken.add(name)
        return replace(tensor, shape=found)

    def vector(self, name: str, size: int) -> np.ndarray:
        return self.tensor(name, size).floats().reshape(size)

    def norm(self, name: str, size: int, heads: int = 1) -> Norm | None:
        """The norm of this name, or None. Of heads it is over each, with weights of its own or not, or over all."""
        if not self.has(f"{name}.weight"):
            return None
        shape = self.tensors[f"{name}.weight"].shape
        if heads > 1 and shape == (heads * size,):
            size = heads * size
        rows = heads if shape == (heads, size) else 1
        weight = self.tensor(f"{name}.weight", rows, size).floats().reshape(rows, size)
        bias = None
        if self.graph.norm == "layer" and self.has(f"{name}.bias"):
            bias = self.ops.vector(self.vector(f"{name}.bias", size).reshape(1, size))
        return Norm(self.graph.norm, self.hyper.epsilon, size, self.ops.vector(weight), bias)

    def linear(self, name: str, rows: int, cols: int, experts: int = 0) -> Linear:
        """A matrix, or a stack of `experts` matrices, with its bias if there is one."""
        stack = (experts,) if experts else ()
        tensor = self.tensor(f"{name}.weight", *stack, rows, cols)
        bias = None
        if self.has(f"{name}.bias"):
            values = self.tensor(f"{name}.bias", *stack, rows).floats()
            bias = self.ops.vector(values.reshape(*stack, rows))
        factor = None
        if self.has(f"{name}.scale"):
            values = self.tensor(f"{name}.scale", experts or 1).floats()
            factor = self.ops.vector(values.reshape(experts, 1) if experts else values.reshape(1))
        return Linear(self.ops.weight(tensor), tensor.name, tensor.shape[-2], tensor.shape[-1], bias, factor)

    def parts(self, name: str, rows: list[int], cols: int) -> list[Linear]:
        """A fused matrix as its parts, each of so many rows."""
        tensor = self.tensor(f"{name}.weight", sum(rows), cols)
        factor = self.ops.vector(self.vector(f"{name}.scale", 1)) if self.has(f"{name}.scale") else None
        bias = self.vector(f"{name}.bias", sum(rows)) if self.has(f"{name}.bias") else None
        found, start = [], 0
        for count in rows:
            part = _part(tensor, start, count)
            own = None if bias is None else self.ops.vector(bias[start : start + count].copy())
            found.append(Linear(self.ops.weight(part), tensor.name, count, cols, own, factor))
            start += count
        return found


def _part(tensor: Tensor, start: int, count: int) -> Tensor:
    def read(lo: int, hi: int) -> np.ndarray:
        return tensor.read(start + lo, start + hi)

    return replace(tensor, shape=(count, tensor.cols), read=read)


def load_weights(path: str, tensors: Mapping[str, Tensor], hyper: Hyper, graph: Graph, ops: Ops) -> Weights:
    """Sort a file's tensors into blocks.

    Raises
    ------
    ArchitectureError : a tensor is missing, has another shape, or is one that this forward pass does not know.
    """
    load = _Loader(path, tensors, hyper, graph, ops)
    embedding = load.tensor("token_embd.weight", -1, hyper.width)
    vocabulary = embedding.shape[-2]
    matrix = ops.weight(embedding)
    position, positions = None, 0
    if load.has("position_embd.weight"):
        tensor = load.tensor("position_embd.weight", -1, hyper.width)
        position, positions = ops.weight(tensor), tensor.shape[-2]
    token_type = None
    if load.has("token_types.weight"):
        rows = load.tensor("token_types.weight", -1, hyper.width).floats(0, 1)  # (1, width)
        token_type = ops.vector(rows.reshape(1, hyper.width))
    factors = {}
    for kind, name in (("all", "rope_freqs"), ("short", "rope_factors_short"), ("long", "rope_factors_long")):
        if load.has(f"{name}.weight"):
            factors[kind] = load.vector(f"{name}.weight", hyper.rope_dimensions // 2)
            if not ((factors[kind] >= 1e-6) & (factors[kind] <= 1e9)).all():  # NaN, too
                raise load.fail(f"{name}.weight has a divisor that is not from 1e-06 to 1e+09")
    output_norm = load.norm("output_norm", hyper.width)
    if load.has("output.weight"):
        output = load.linear("output", vocabulary, hyper.width)
    elif hyper.causal:
        output = Linear(matrix, embedding.name, vocabulary, hyper.width)
    else:
        output = None
    weights = Weights(
        embedding=matrix,
        vocabulary=vocabulary,
        position=position,
        positions=positions,
        token_type=token_type,
        embedding_norm=load.norm("token_embd_norm", hyper.width),
        blocks=tuple(_block(load, layer) for layer in range(hyper.layers)),
        output_norm=output_norm,
        output=output,
        factors=factors,
    )
    if unknown := [name for name in tensors if name not in load.taken]:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise load.fail(
            f"nothing is known about the tensor {printable(unknown[0])}{more} of a {hyper.name} model, "
            "so running it would give wrong text"
        )
    return weights


def _block(load: _Loader, layer: int) -> Block:
    hyper, graph, at = load.hyper, load.graph, f"blk.{layer}."
    heads, kv_heads, width = hyper.heads[layer], hyper.kv_heads[layer], hyper.width
    rows = [heads * hyper.head_k, kv_heads * hyper.head_k, kv_heads * hyper.head_v]
    if load.has(f"{at}attn_qkv.weight"):
        q, k, v = load.parts(f"{at}attn_qkv", rows, width)
    else:
        q, k, v = (load.linear(f"{at}attn_{n}", r, width) for n, r in zip("qkv", rows, strict=True))
    post_norm = "post_attention_norm"
    sinks = load.vector(f"{at}attn_sinks.weight", heads) if load.has(f"{at}attn_sinks.weight") else None
    attention_norm = load.norm(f"{at}attn_norm", width)
    ffn_norm = load.norm(f"{at}{graph.ffn_norm}", width)
    parallel = graph.parallel == "key" and hyper.parallel_residual
    if graph.parallel == "shared" and ffn_norm is None:
        # Of two norms on the same input the second is attention's.
        parallel, ffn_norm = True, attention_norm
        attention_norm = load.norm(f"{at}attn_norm_2", width) or attention_norm
    ffn, experts = _feed_forward(load, at)
    return Block(
        attention_norm=attention_norm,
        q=q,
        k=k,
        v=v,
        q_norm=load.norm(f"{at}attn_q_norm", hyper.head_k, heads),
        k_norm=load.norm(f"{at}attn_k_norm", hyper.head_k, kv_heads),
        attention=AttentionSpec(
            heads=heads,
            kv_heads=kv_heads,
            head_k=hyper.head_k,
            head_v=hyper.head_v,
            scale=hyper.attention_scale,
            cap=hyper.attention_cap,
            window=hyper.windows[layer],
            causal=hyper.causal,
            sinks=None if sinks is None else load.ops.vector(sinks),
        ),
        attention_sub_norm=load.norm(f"{at}attn_sub_norm", heads * hyper.head_v),
        out=load.linear(f"{at}attn_output", width, heads * hyper.head_v),
        attention_post_norm=None if graph.ffn_norm == post_norm else load.norm(f"{at}{post_norm}", width),
        attention_sum_norm=load.norm(f"{at}attn_output_norm", width),
        ffn_norm=ffn_norm,
        ffn=ffn,
        experts=experts,
        ffn_post_norm=load.norm(f"{at}post_ffw_norm", width),
        ffn_sum_norm=load.norm(f"{at}layer_output_norm", width),
        parallel=parallel,
        rope=not graph.no_rope_period or (layer + 1) % graph.no_rope_period != 0,
        local=hyper.windows[layer] > 0,
    )


def _feed_forward(load: _Loader, at: str) -> tuple[FeedForward | None, Experts | None]:
    """A dense FFN, or experts, or experts and a dense one that all tokens share."""
    hyper, graph, width = load.hyper, load.graph, load.hyper.width
    if load.has(f"{at}ffn_gate_inp.weight"):
        down = load.linear(f"{at}ffn_down_exps", width, -1, hyper.experts)
        inner = (down.cols, width, hyper.experts)
        gated = load.has(f"{at}ffn_gate_exps.weight")
        experts = Experts(
            router=load.linear(f"{at}ffn_gate_inp", hyper.experts, width),
            gate=load.linear(f"{at}ffn_gate_exps", *inner) if gated else None,
            up=load.linear(f"{at}ffn_up_exps", *inner),
            down=down,
            activation=graph.activation,
            used=hyper.experts_used,
            softmax_first=graph.router == "softmax",
            normalized=graph.router_normalized,
            scale=hyper.expert_scale,
        )
        shared = _dense(load, at, "_shexp") if load.has(f"{at}ffn_up_shexp.weight") else None
        return shared, experts
    return _dense(load, at, ""), None


def _dense(load: _Loader, at: str, suffix: str) -> FeedForward:
    width = load.hyper.width
    down = load.linear(f"{at}ffn_down{suffix}", width, -1)
    gate: Linear | None
    if load.has(f"{at}ffn_gate{suffix}.weight"):
        gate = load.linear(f"{at}ffn_gate{suffix}", down.cols, width)
        up = load.linear(f"{at}ffn_up{suffix}", down.cols, width)
    elif load.tensor(f"{at}ffn_up{suffix}.weight", -1, width).shape[-2] == 2 * down.cols:
        gate, up = load.parts(f"{at}ffn_up{suffix}", [down.cols, down.cols], width)
    else:
        gate, up = None, load.linear(f"{at}ffn_up{suffix}", down.cols, width)
    share = f"{at}ffn_gate_inp{suffix}"
    return FeedForward(
        gate=gate,
        up=up,
        down=down,
        activation=load.graph.activation,
        sub_norm=None if suffix else load.norm(f"{at}ffn_sub_norm", down.cols),
        share=load.linear(share, 1, width) if suffix and load.has(f"{share}.weight") else None,
    )
