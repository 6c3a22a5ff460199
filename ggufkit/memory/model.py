"""What memory depends on in a model: its tensors' sizes, and what each layer remembers of a conversation.

Read from the header of a GGUF, or from a plan of one that is not written yet; no weight is touched, and NumPy is not
needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from ggufkit.arch.graph import Graph
from ggufkit.arch.hyperparameters import Hyperparameters, Keys, read_hyperparameters
from ggufkit.arch.registry import graph_of, traits_of
from ggufkit.arch.uncached import UNCACHED
from ggufkit.errors import ArchitectureError, GGUFError
from ggufkit.formats.table import FORMATS, Format
from ggufkit.gguf.kind import other_kind
from ggufkit.policy.hyperparameters import Hyperparameters as Deciding
from ggufkit.policy.hyperparameters import hyperparameters_of

if TYPE_CHECKING:
    from ggufkit.gguf.reader import GGUF
    from ggufkit.jobs.plan import Plan

__all__ = ["Layer", "Matrix", "Model", "model_of", "model_of_plan", "model_of_shapes"]


@dataclass(frozen=True)
class Matrix:
    """A tensor's name, shape (NumPy order) and format."""

    name: str
    shape: tuple[int, ...]
    format: Format

    @property
    def size(self) -> int:
        """Weights."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes, without padding."""
        cols = self.shape[-1] if self.shape else 1
        return self.size // max(cols, 1) * self.format.row_bytes(cols)

    @property
    def rows(self) -> int:
        """Rows of the matrix, or of each of a stack."""
        return self.shape[-2] if len(self.shape) > 1 else 1


@dataclass(frozen=True)
class Layer:
    """What one layer keeps for a conversation, and the widths of what it computes.

    Attributes
    ----------
    kind : of its attention: ``"full"``, ``"window"``, ``"latent"`` (MLA: all heads share a vector of each token),
        ``"shared"`` (it reads another layer's keys and values), or ``""`` for none.
    heads, kv_heads, head_k, head_v : of attention; of latent attention one key head, whose values are a part of it.
    window : tokens that it sees back; 0 for all.
    convolution, state : numbers of its recurrent state: the last inputs of a convolution, and the rest; 0 for none.
    indexer : numbers per token of the key that a sparse attention chooses by; 0 for none.
    chosen : of attention that chooses its keys, numbers per token of all that it keeps; 0 elsewhere.
    inner : the widest row of its feed-forward network.
    gated : its feed-forward network has a gate.
    experts, used : of a mixture: how many, and how many a token goes through; 0 for a dense network.
    expert_inner : width of an expert.
    query, projected : numbers per token of all queries, and of all that the layer's input is projected to at once.
    """

    kind: str = ""
    heads: int = 0
    kv_heads: int = 0
    head_k: int = 0
    head_v: int = 0
    window: int = 0
    convolution: int = 0
    state: int = 0
    indexer: int = 0
    chosen: int = 0
    inner: int = 0
    gated: bool = False
    experts: int = 0
    used: int = 0
    expert_inner: int = 0
    query: int = 0
    projected: int = 0


@dataclass(frozen=True)
class Model:
    """A model as memory sees it.

    Attributes
    ----------
    path : where it is, or would be.
    architecture : `general.architecture`.
    context_length : tokens that it was trained on.
    width, vocabulary : numbers per token between layers; tokens that it knows.
    layers : in order.
    matrices : its tensors, those of unused layers included.
    unused : tensors of layers that draft further tokens, which a plain run leaves out.
    cached : llama.cpp keeps keys and values for it; False of most encoders.
    causal : tokens see only those before them.
    positions : numbers that say where a token is: 1, or 4 in an image, too.
    deciding : what llama-quantize's presets look at.
    origin : of a checkpoint, its class and how it is stored, in one line; "" of a file.
    known : whether the runtime of this package knows the architecture; else windows are as metadata lists them.
    """

    path: str
    architecture: str
    context_length: int
    width: int
    vocabulary: int
    layers: tuple[Layer, ...]
    matrices: tuple[Matrix, ...]
    unused: frozenset[str]
    cached: bool
    causal: bool
    positions: int
    deciding: Deciding
    known: bool
    origin: str = ""

    @property
    def used(self) -> tuple[Matrix, ...]:
        """The tensors that a run reads."""
        return tuple(matrix for matrix in self.matrices if matrix.name not in self.unused)

    @property
    def tied(self) -> bool:
        """The token embeddings are the output matrix, too."""
        return self.causal and not any(matrix.name == "output.weight" for matrix in self.matrices)

    @property
    def window(self) -> int:
        """The window of the layers that have one; 0 where none has."""
        return max((layer.window for layer in self.layers), default=0)


@dataclass(frozen=True)
class _Header:
    path: str
    metadata: Mapping[str, Any]


def model_of(gguf: GGUF) -> Model:
    """What memory depends on in an open GGUF.

    Raises
    ------
    GGUFError : it is not a model.
    ArchitectureError : a hyperparameter that memory depends on is missing or out of range.
    """
    if (other := other_kind(gguf)) is not None:
        raise GGUFError(f"this is {other[0]}, not a model", gguf.path, hint=other[1])
    matrices = (Matrix(info.name, info.shape, info.format) for info in gguf.info.values())
    return _model(_Header(gguf.path, gguf.metadata), matrices)


def model_of_plan(plan: Plan, path: str | os.PathLike[str], origin: str = "") -> Model:
    """The same of a model that is only planned.

    Parameters
    ----------
    path : a name for messages.
    origin : see `Model`.
    """
    metadata: dict[str, Any] = {}
    for pairs, _ in plan.shards:
        metadata |= {key: getattr(value, "value", value) for key, value in pairs.items()}
    matrices = (Matrix(p.tensor.name, p.tensor.shape, p.format) for p in plan.tensors)
    return replace(_model(_Header(os.fspath(path), metadata), matrices), origin=origin)


def model_of_shapes(path: str, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Model:
    """The same of a model of which there are only names and shapes, in F16."""
    matrices = (Matrix(name, shape, FORMATS["F16" if len(shape) > 1 else "F32"]) for name, shape in shapes.items())
    return _model(_Header(path, metadata), matrices)


def _model(header: _Header, tensors: Iterable[Matrix]) -> Model:
    matrices = tuple(tensors)
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not matrices:
        raise GGUFError("this is not a model: it has no general.architecture, or no tensors", header.path)
    try:
        graph, known = graph_of(architecture), True
    except ArchitectureError:
        # Where metadata lists the layers with a window, they are known all the same.
        pattern = header.metadata.get(f"{architecture}.attention.sliding_window_pattern")
        graph, known = Graph(window_period=1 if isinstance(pattern, list) else 0), False
    hyper = read_hyperparameters(header, architecture, graph)
    shapes = {matrix.name: matrix.shape for matrix in matrices}
    spare = tuple(f"blk.{hyper.layers + i}." for i in range(hyper.spare_layers))
    embedding = shapes.get("token_embd.weight", (0, 0))
    return Model(
        path=header.path,
        architecture=architecture,
        context_length=hyper.context_length,
        width=hyper.width,
        vocabulary=embedding[-2] if len(embedding) > 1 else 0,
        layers=tuple(_layer(hyper, shapes, number) for number in hyper.order),
        matrices=matrices,
        unused=frozenset(name for name in shapes if spare and name.startswith(spare)),
        cached=architecture not in UNCACHED,
        causal=hyper.causal,
        positions=4 if hyper.keys.get("rope.dimension_sections") is not None else 1,
        deciding=hyperparameters_of(header.metadata, shapes, traits_of(architecture)),
        known=known,
    )


def _layer(hyper: Hyperparameters, shapes: Mapping[str, tuple[int, ...]], number: int) -> Layer:
    at, keys = f"blk.{number}.", hyper.keys

    def rows(*names: str) -> int:
        """Rows of the matrices of this layer that are there, in all."""
        found = (shapes.get(f"{at}{name}.weight", (0, 0)) for name in names)
        return sum(shape[-2] if len(shape) > 1 else 0 for shape in found)

    kind = _attention_kind(hyper, shapes, number)
    latent = kind == "latent"
    if latent and not hyper.heads[number]:
        raise keys.fail("attention.head_count", f"is 0 in layer {number}, which has attention")
    convolution, state = _states(hyper, shapes, at)
    experts = keys.count("expert_count", 0, least=0) if f"{at}ffn_gate_inp.weight" in shapes else 0
    stacked = rows("ffn_up_exps") or rows("ffn_gate_up_exps") // 2
    dense = rows("ffn_up") or rows("ffn_gate_up") // 2
    gated = bool(rows("ffn_gate"))
    if not gated and dense and dense != _columns(shapes, f"{at}ffn_down.weight"):
        dense, gated = dense // 2, True  # gate and up in one matrix
    head = keys.count("attention.key_length_mla", 0, least=0) if latent else hyper.head_k[number]
    kv_heads = (1 if latent else hyper.kv_heads[number]) if kind else 0
    head_k = _latent_row(hyper, number) if latent else hyper.head_k[number] if kind else 0
    head_v = _rank(hyper, number) if latent else hyper.head_v[number] if kind else 0
    indexer = _indexer(keys, number) if rows("indexer.attn_k", "indexer.k_proj") else 0
    chosen = 0
    if latent and not hyper.windows[number] and keys.count("attention.indexer.top_k", 0, least=0):
        chosen = head_k + indexer
    elif kind and rows("indexer.k_proj"):
        pooled = _pooled(keys, number)
        dense = not pooled and keys.get("attention.compress_ratios") is not None
        # Where keys are pooled, a token's place on each of four axes is kept, too.
        chosen = 0 if dense else kv_heads * (head_k + head_v) + indexer + 4 * pooled
    return Layer(
        kind=kind,
        heads=hyper.heads[number] if kind else 0,
        kv_heads=kv_heads,
        head_k=head_k,
        head_v=head_v,
        window=hyper.windows[number] if kind else 0,
        convolution=convolution,
        state=state,
        indexer=indexer,
        chosen=chosen,
        inner=max(dense, rows("ffn_up_shexp")),
        gated=gated,
        experts=experts,
        used=keys.count("expert_used_count", 0, least=0) if experts else 0,
        expert_inner=stacked,
        query=hyper.heads[number] * head if kind else 0,
        projected=rows("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_gate", "ssm_in", "attn_kv_a_mqa", "attn_q_b"),
    )


def _indexer(keys: Keys, number: int) -> int:
    """Numbers of a layer's keys to choose by; where they are pooled, the pooled ones lie beside them."""
    return keys.count("attention.indexer.key_length") * (2 if _pooled(keys, number) else 1)


def _pooled(keys: Keys, number: int) -> bool:
    ratios = keys.get("attention.compress_ratios")
    return isinstance(ratios, list) and number < len(ratios) and bool(ratios[number])


def _columns(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    shape = shapes.get(name, ())
    return shape[-1] if shape else 0


def _rank(hyper: Hyperparameters, number: int) -> int:
    """Numbers of the vector that latent attention's keys and values share; layers with a window may have others."""
    key = "attention.kv_lora_rank"
    windowed = hyper.windows[number] > 0 and hyper.keys.get(f"{key}_swa") is not None
    return hyper.keys.count(f"{key}_swa" if windowed else key)


def _latent_row(hyper: Hyperparameters, number: int) -> int:
    return _rank(hyper, number) + hyper.rope_dimensions


def _attention_kind(hyper: Hyperparameters, shapes: Mapping[str, tuple[int, ...]], number: int) -> str:
    at = f"blk.{number}."
    if f"{at}attn_kv_a_mqa.weight" in shapes:
        return "full" if f"{at}attn_kv_b.weight" in shapes else "latent"
    fused = f"{at}attn_qkv.weight" in shapes and f"{at}ssm_out.weight" not in shapes
    if f"{at}attn_q.weight" not in shapes and (not fused or _is_lightning(shapes, at)):
        return ""
    shared = hyper.keys.count("attention.shared_kv_layers", 0, least=0, most=hyper.layers - 1)
    if number >= hyper.layers - shared:
        return "shared"
    return "window" if hyper.windows[number] else "full"


def _states(hyper: Hyperparameters, shapes: Mapping[str, tuple[int, ...]], at: str) -> tuple[int, int]:
    """Numbers of a layer's convolution and of its other recurrent state.

    Source: `llama_hparams::n_embd_r` and `n_embd_s` in src/llama-hparams.cpp of llama.cpp.
    """
    keys = hyper.keys
    if (taps := _columns(shapes, f"{at}shortconv.conv.weight")) > 0:
        return shapes[f"{at}shortconv.conv.weight"][0] * (taps - 1), 0
    if (taps := _columns(shapes, f"{at}ssm_conv1d.weight")) > 0:
        state, more = keys.count("ssm.inner_size") * keys.count("ssm.state_size"), 0
        if (apart := _columns(shapes, f"{at}ple_conv1d.weight")) > 0:
            more = shapes[f"{at}ple_conv1d.weight"][0] * (apart - 1) * keys.count("ple.ngram_size")
        return shapes[f"{at}ssm_conv1d.weight"][0] * (taps - 1) + more, state
    if f"{at}ssm_conv1d_q.weight" in shapes:
        inner, taps = _kda(keys, hyper.heads), keys.count("ssm.conv_kernel", most=64)
        return 3 * (taps - 1) * inner, keys.count("kda.head_dim") * inner
    if _is_lightning(shapes, at):
        return 0, shapes[f"{at}attn_gate.weight"][0] * keys.count("attention.key_length")
    if f"{at}time_mix_output.weight" in shapes:
        moved = keys.count("token_shift_count", 2)
        return moved * hyper.width, hyper.width * keys.count("wkv.head_size")
    return 0, 0


def _is_lightning(shapes: Mapping[str, tuple[int, ...]], at: str) -> bool:
    """Linear attention, whose state is a matrix of each head."""
    return all(f"{at}{name}.weight" in shapes for name in ("attn_qkv", "attn_gate", "attn_norm_2"))


def _kda(keys: Keys, heads: tuple[int, ...]) -> int:
    return max(heads) * keys.count("kda.head_dim")
