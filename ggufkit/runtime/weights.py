"""The tensors of a model, sorted: every one must find its place, and every place that is needed its tensor.

Source: `create_tensor` calls in src/models/*.cpp of llama.cpp, names in src/llama-arch.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggufkit.arch.graph import Graph
from ggufkit.arch.hyperparameters import Hyperparameters
from ggufkit.errors import printable
from ggufkit.runtime.block import load_block
from ggufkit.runtime.connections import Connections, load_connections
from ggufkit.runtime.encoder import Encoder, load_decoder, load_encoder
from ggufkit.runtime.loader import Loader
from ggufkit.runtime.loops import Loops, Stacks, again, load_passes
from ggufkit.runtime.lora import Adapters
from ggufkit.runtime.mixers import Remembering
from ggufkit.runtime.ops import Linear, Norm, Ops
from ggufkit.runtime.per_layer import PerLayerTable, load_per_layer_table
from ggufkit.runtime.ranking import Head, load_head
from ggufkit.runtime.streams import Streams, load_streams
from ggufkit.tensors.tensor import Tensor

__all__ = ["Weights", "load_weights"]


_EMBEDDING_NORM = "token_embd_norm"


@dataclass(frozen=True)
class Weights:
    """A model's tensors, ready to compute with.

    Attributes
    ----------
    embedding : matrix of the tokens' vectors.
    position, token_type : what is added to them, or None: a matrix; the row of type 0.
    embedding_norm, output_norm : or None.
    blocks : in order: each a `Block`, or of several streams a `StreamBlock` or `ConnectedBlock`.
    slots : the mixers that remember something, by their slot.
    output : to logits; None for encoders.
    projection : of an encoder's vectors, or None.
    silent : (vocabulary,), added to logits: so little that some tokens are never given; or None.
    factors : rope factors by kind: ``"all"``, ``"short"``, ``"long"``.
    per_layer : what gives tokens a vector of each layer, or None.
    streams : how several streams begin and end, or None where there is one.
    passes : how texts go through the blocks, or None for once.
    embedding_added : layers add the embedding again.
    head : that classifies texts, or None.
    encoder : reads the text that the blocks answer, or None where there is no such.
    """

    embedding: Any
    vocabulary: int
    position: Any
    positions: int
    token_type: Any
    embedding_norm: Norm | None
    blocks: tuple[Any, ...]
    slots: tuple[Remembering, ...]
    output_norm: Norm | None
    output: Linear | None
    projection: Linear | None
    silent: Any
    factors: Mapping[str, np.ndarray]
    per_layer: PerLayerTable | None
    streams: Streams | Connections | None
    passes: Loops | Stacks | None
    embedding_added: bool
    head: Head | None
    encoder: Encoder | None


def load_weights(
    path: str,
    tensors: Mapping[str, Tensor],
    hyper: Hyperparameters,
    graph: Graph,
    ops: Ops,
    adapters: Adapters | None = None,
) -> Weights:
    """Sort a file's tensors into blocks, with what adapters put beside them.

    Raises
    ------
    ArchitectureError : a tensor is missing, has another shape, or is one that this forward pass does not know.
    """
    load = Loader(path, tensors, hyper, graph, ops, adapters)
    tied = graph.embedding_is_output and not load.has("token_embd.weight")
    embedding = load.tensor("output.weight" if tied else "token_embd.weight", -1, hyper.width)
    vocabulary = load.vocabulary = embedding.shape[-2]
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
            most = max(hyper.rope_dimensions, hyper.local_rope_dimensions if graph.full_rope_share != 1 else 0)
            factors[kind] = load.vector(f"{name}.weight", most // 2)[: hyper.rope_dimensions // 2]
            if not ((factors[kind] >= 1e-6) & (factors[kind] <= 1e31)).all():  # NaN, too; 1e30 stands for no turning
                raise load.fail(f"{name}.weight has a divisor that is not from 1e-06 to 1e+31")
    output_norm = load.block_norm(graph.output_norm)
    projection = None
    if graph.projected_embedding:
        output, projection = None, load.linear("output", -1, hyper.width)
    elif load.has("output.weight"):
        output = load.linear("output", vocabulary, hyper.width)
    elif hyper.causal or graph.diffusion:
        output = Linear(matrix, embedding.name, vocabulary, hyper.width)
    else:
        output = None
    slots: list[Remembering] = []
    loaded: dict[int, Any] = {}
    blocks: list[Any] = []
    encoder = load_encoder(load) if graph.encoder else None
    if encoder is not None:
        blocks = list(encoder[0]) if graph.encoder == "only" else list(load_decoder(load, slots))
    for layer in () if encoder is not None else hyper.order:
        if layer in loaded:
            blocks.append(again(loaded[layer], slots))
        else:
            loaded[layer] = load_block(load, layer, slots)
            blocks.append(loaded[layer])
    if (streams := load_streams(load) or load_connections(load)) is not None:
        blocks = [streams.block(load, block, layer, slots) for layer, block in enumerate(blocks)]
    weights = Weights(
        embedding=matrix,
        vocabulary=vocabulary,
        position=position,
        positions=positions,
        token_type=token_type,
        embedding_norm=_embedding_norm(load),
        blocks=tuple(blocks),
        slots=tuple(slots),
        output_norm=output_norm,
        output=output,
        projection=projection,
        silent=_silent(load),
        factors=factors,
        per_layer=load_per_layer_table(load),
        streams=streams,
        passes=load_passes(load),
        embedding_added=graph.embedding_added,
        head=load_head(load),
        encoder=_encoder(load, *encoder) if encoder is not None and graph.encoder == "first" else None,
    )
    spare = tuple(f"blk.{hyper.layers + i}." for i in range(hyper.spare_layers))
    if unknown := [name for name in tensors if name not in load.taken and not name.startswith(spare)]:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise load.fail(
            f"nothing is known about the tensor {printable(unknown[0])}{more} of a {hyper.name} model, "
            "so running it would give wrong text"
        )
    return weights


def _embedding_norm(load: Loader) -> Norm | None:
    if load.graph.embedding_norm:
        return load.plain_norm(load.hyper.width)
    return None if load.graph.output_norm == _EMBEDDING_NORM else load.norm(_EMBEDDING_NORM, load.hyper.width)


def _silent(load: Loader) -> Any:
    """What is added to logits, or None."""
    first, end = load.graph.silent
    if first == end:
        return None
    if load.vocabulary < end:
        raise load.fail(f"there are {load.vocabulary} tokens; the model has {end - first} of images from {first} on")
    row = np.zeros(load.vocabulary, np.float32)
    row[first:end] = np.finfo(np.float32).min
    return load.ops.vector(row)


def _encoder(load: Loader, blocks: tuple[Any, ...], norm: Norm | None) -> Encoder:
    return Encoder(blocks, norm, load.hyper.keys.count("decoder_start_token_id", least=0, most=load.vocabulary - 1))
