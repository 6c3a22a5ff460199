"""Hyperparameters: those that llama.cpp requires, and whether they fit each other and the tensors."""

from __future__ import annotations

from collections.abc import Iterator

from ggufkit.errors import printable
from ggufkit.gguf.checks.finding import Checkable, Finding, warning
from ggufkit.gguf.header import Field
from ggufkit.gguf.required import required_keys
from ggufkit.gguf.summary import layer_of

__all__ = ["check_hyperparameters"]

ARCHITECTURE = "general.architecture"

# Keys with one value for all layers, or an array with one for each.
_PER_LAYER = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")


def check_hyperparameters(model: Checkable) -> Iterator[Finding]:
    field = model.fields.get(ARCHITECTURE)
    if field is None or not isinstance(arch := model.metadata[ARCHITECTURE], str):
        yield warning(f"{ARCHITECTURE} (str) is missing: llama.cpp loads no model without it")
        return
    if model.metadata.get("general.type", "model") != "model":
        return  # adapters, importance matrices and projectors have keys of their own
    required = required_keys(arch)
    if required is None:
        shown = printable(arch)
        yield warning(f"the architecture {shown} is not known here: its hyperparameters are not checked", field.offset)
        return
    missing = [f"{arch}.{key} ({kind})" for key, kind in required.items() if f"{arch}.{key}" not in model.fields]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        yield warning(f"{', '.join(missing)} {verb} missing: llama.cpp does not load the model", fatal=True)
    for key, kind in required.items():
        yield from _check_type(model, f"{arch}.{key}", kind)
    yield from _check_layers(model, arch)
    yield from _check_heads(model, arch)


def _check_type(model: Checkable, key: str, kind: str) -> Iterator[Finding]:
    field = model.fields.get(key)
    if field is not None and field.type.short != kind:
        yield warning(
            f"{key} should be of type {kind}, but is {field.describe()}: llama.cpp does not load the model",
            field.offset,
        )


def _number(model: Checkable, key: str) -> int | None:
    value = model.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _check_layers(model: Checkable, arch: str) -> Iterator[Finding]:
    key = f"{arch}.block_count"
    layers = _number(model, key)
    if layers is None:
        return
    present = {layer for name in model.info if (layer := layer_of(name)) is not None}
    if present and max(present) >= layers:
        yield warning(f"{key} is {layers}, but there are tensors of layer {max(present)}", model.fields[key].offset)
    # Layers are missing when a file is incomplete; some architectures have layers without own tensors.
    missing = [layer for layer in range(min(layers, max(present, default=-1) + 1)) if layer not in present]
    if missing:
        yield warning(f"{key} is {layers}, but layer {missing[0]} has no tensors", model.fields[key].offset)
    elif present and max(present) + 1 < layers:
        yield warning(f"{key} is {layers}, but the last tensors are of layer {max(present)}", model.fields[key].offset)
    for name in _PER_LAYER:
        field = model.fields.get(f"{arch}.{name}")
        if field is not None and field.item_type is not None and len(field) != layers:
            yield warning(f"{printable(field.key)} has {len(field)} items for {layers} layers", field.offset)


def _check_heads(model: Checkable, arch: str) -> Iterator[Finding]:
    heads, kv_heads = (_number(model, f"{arch}.attention.head_count{suffix}") for suffix in ("", "_kv"))
    width = _number(model, f"{arch}.embedding_length")
    if width == 0:
        yield warning(f"{arch}.embedding_length is 0", _offset(model, f"{arch}.embedding_length"))
    recurrent = any(key.startswith((f"{arch}.ssm.", f"{arch}.wkv.")) for key in model.fields)
    if heads == 0 and not recurrent:
        yield warning(f"{arch}.attention.head_count is 0", _offset(model, f"{arch}.attention.head_count"))
    if heads and kv_heads and heads % kv_heads:
        yield warning(
            f"{heads} attention heads cannot share {kv_heads} key-value heads evenly",
            _offset(model, f"{arch}.attention.head_count_kv"),
        )
    if heads and width and f"{arch}.attention.key_length" not in model.fields and width % heads:
        yield warning(
            f"{arch}.embedding_length is {width}, which {heads} heads do not divide, and "
            f"{arch}.attention.key_length is missing",
            _offset(model, f"{arch}.attention.head_count"),
        )
    yield from _check_sizes(model, arch)
    embedding = model.info.get("token_embd.weight")
    if width is not None and embedding is not None and embedding.shape and embedding.shape[-1] != width:
        yield warning(
            f"token_embd.weight has rows of {embedding.shape[-1]} weights, but {arch}.embedding_length is {width}",
            _offset(model, f"{arch}.embedding_length"),
        )


def _check_sizes(model: Checkable, arch: str) -> Iterator[Finding]:
    """The heads and the feed-forward network of the first layer have the sizes that the keys say."""
    width, heads, kv_heads = (
        _number(model, f"{arch}.{key}")
        for key in ("embedding_length", "attention.head_count", "attention.head_count_kv")
    )
    length = _number(model, f"{arch}.attention.key_length") or (width // heads if width and heads else None)
    ffn = _number(model, f"{arch}.feed_forward_length")
    several = f"{arch}.attention.key_length_swa" in model.fields
    for name, dimension, wanted, key in (
        ("blk.0.attn_k.weight", -2, kv_heads and length and kv_heads * length, "attention.head_count_kv"),
        ("blk.0.attn_q.weight", -2, heads and length and heads * length, "attention.head_count"),
        ("blk.0.ffn_down.weight", -1, ffn, "feed_forward_length"),
    ):
        info = model.info.get(name)
        if info is None or not wanted or len(info.shape) < 2 or (several and "attn" in name):
            continue
        if info.shape[dimension] != wanted:
            what = "rows" if dimension == -2 else "columns"
            yield warning(
                f"{name} has {info.shape[dimension]} {what}, but {arch}.{key} calls for {wanted}",
                _offset(model, f"{arch}.{key}"),
            )


def _offset(model: Checkable, key: str) -> int | None:
    field: Field | None = model.fields.get(key)
    return None if field is None else field.offset
