"""Shapes that every model has, whatever its architecture: what llama.cpp would refuse is never written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ggufkit.errors import CheckpointError, printable
from ggufkit.gguf.header import Value
from ggufkit.tensors.tensor import Tensor

__all__ = ["check_shapes"]

# Name → its last dimensions: "width", "ffn", "vocab" or "inside", what experts work on; None for any number.
_SHAPES: tuple[tuple[re.Pattern[str], tuple[str | None, ...]], ...] = tuple(
    (re.compile(pattern), shape)
    for pattern, shape in (
        (r"(token_embd|output)\.weight", ("vocab", "width")),
        (r"(token_embd_norm|output_norm)\.(weight|bias)", ("width",)),
        (r"blk\.\d+\.(attn_norm|ffn_norm)\.(weight|bias)", ("width",)),
        (r"blk\.\d+\.attn_(q|k|v|qkv)\.weight", (None, "width")),
        (r"blk\.\d+\.(attn_output|ffn_down)\.bias", ("width",)),
        (r"blk\.\d+\.attn_output\.weight", ("width", None)),
        (r"blk\.\d+\.ffn_down\.weight", ("width", "ffn")),
        (r"blk\.\d+\.ffn_(gate|up)\.weight", (None, "width")),
        (r"blk\.\d+\.ffn_down_exps\.weight", ("inside", None)),
        (r"blk\.\d+\.ffn_(gate|up)_exps\.weight", (None, "inside")),
        (r"blk\.\d+\.ffn_gate_inp\.weight", (None, "width")),
    )
)


def check_shapes(architecture: str, metadata: Mapping[str, Value], tensors: Mapping[str, Tensor]) -> None:
    """Compare tensors with the metadata that comes from config.json and the tokenizer.

    Raises
    ------
    CheckpointError : a tensor has another shape than they say, or a layer has no tensors.
    """
    sizes = dict(_sizes(architecture, metadata))
    for name, tensor in tensors.items():
        for pattern, wanted in _SHAPES:
            if pattern.fullmatch(name):
                _check(tensor, [sizes.get(size) if size else None for size in wanted])
    layers = metadata.get(f"{architecture}.block_count")
    named = {int(match[1]) for name in tensors if (match := re.match(r"blk\.(\d+)\.", name))}
    # Blocks that predict further tokens may be announced and absent.
    further = metadata.get(f"{architecture}.nextn_predict_layers")
    needed = range(layers.value - further.value if further else layers.value) if layers is not None else range(0)
    if (stack := metadata.get(f"{architecture}.hrm.layers_per_stack")) is not None:
        needed = range(2 * stack.value)  # gone through several times
    if layers is not None and named and (missing := set(needed) - named):
        raise CheckpointError(f"layer {min(missing)} of {layers.value} has no tensors; is a part of the model missing?")


def _sizes(architecture: str, metadata: Mapping[str, Value]) -> Iterator[tuple[str, int]]:
    for size, key in (("width", "embedding_length"), ("ffn", "feed_forward_length")):
        value = metadata.get(f"{architecture}.{key}")
        if value is not None and isinstance(value.value, int) and value.value:
            yield size, value.value
    inside = metadata.get(f"{architecture}.moe_latent_size") or metadata.get(f"{architecture}.embedding_length")
    if inside is not None:
        yield "inside", inside.value
    if (tokens := metadata.get("tokenizer.ggml.tokens")) is not None:
        yield "vocab", len(tokens.value)


def _check(tensor: Tensor, wanted: list[int | None]) -> None:
    last = tensor.shape[-len(wanted) :]
    if len(last) < len(wanted) or any(want not in (None, size) for size, want in zip(last, wanted, strict=True)):
        expected = " × ".join("any" if want is None else str(want) for want in wanted)
        raise CheckpointError(
            f"{printable(tensor.name)} has the shape {' × '.join(map(str, tensor.shape))}, config.json and tokenizer "
            f"call for {expected}; do they belong to these weights?"
        )
