"""The tokenizer: arrays of one length, ids inside them, byte tokens that are bytes, merges of tokens that exist.

Source: `llama_vocab::impl::load` in src/llama-vocab.cpp of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ggufkit.errors import printable
from ggufkit.gguf.checks.finding import Checkable, Finding, warning
from ggufkit.gguf.header import Field, ValueType
from ggufkit.gguf.required import known_pre_tokenizers

__all__ = ["check_tokenizer"]

PREFIX = "tokenizer.ggml."
MODELS = (
    "llama",
    "bert",
    "gpt2",
    "gemma4",
    "t5",
    "rwkv",
    "plamo2",
    "plamo3",
    "whitespace",
    "hybriddna",
    "none",
    "no_vocab",
)

# `enum llama_token_type`
_UNDEFINED, _BYTE = 0, 6

# What a vocabulary of a kind has where no key says so. Source: `llama_vocab::impl::load`.
_DEFAULTS: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2},
    "bert": {"bos": 101, "eos": 102},
    "gpt2": {"bos": 11, "eos": 11},
    "t5": {"eos": 1},
    "plamo2": {"bos": 1, "eos": 2},
    "plamo3": {"bos": 1, "eos": 2},
}

_BYTE_TOKEN = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


def check_tokenizer(model: Checkable) -> Iterator[Finding]:
    if not any(key.startswith(PREFIX) for key in model.fields):
        return
    kind = model.fields.get(f"{PREFIX}model")
    name = None if kind is None else kind.value
    if kind is None:
        yield warning(f"{PREFIX}model (str) is missing: llama.cpp loads no tokenizer without it")
    elif name not in MODELS:
        yield warning(f"{PREFIX}model is {printable(name)}, known are {', '.join(MODELS)}", kind.offset)
    if name in ("none", "no_vocab"):
        return
    field = model.fields.get(f"{PREFIX}tokens")
    if field is None or field.item_type is not ValueType.STRING:
        yield warning(f"{PREFIX}tokens (arr[str]) is missing: llama.cpp does not load the model", fatal=True)
        return
    tokens = list(field.strings())
    yield from _check_tokens(field, tokens)
    yield from _check_lengths(model, len(tokens))
    yield from _check_ids(model, len(tokens))
    yield from _check_ends(model, name, len(tokens))
    yield from _check_types(model, name, tokens)
    if name == "gpt2":
        yield from _check_merges(model, set(tokens))
        yield from _check_pre(model)
    yield from _check_embedding(model, len(tokens))


def _check_tokens(field: Field, tokens: list[bytes]) -> Iterator[Finding]:
    if not tokens:
        yield warning(f"{field.key} is empty", field.offset)
    first: dict[bytes, int] = {}
    twice = [i for i, token in enumerate(tokens) if first.setdefault(token, i) != i]
    if twice:
        i = twice[0]
        yield warning(
            f"{len(twice)} tokens occur twice: token {i}, {_shown(tokens[i])}, is also token {first[tokens[i]]}",
            field.offset,
        )
    empty = [i for i, token in enumerate(tokens) if not token]
    if empty:
        yield warning(f"{len(empty)} tokens are empty, the first is token {empty[0]}", field.offset)


def _check_lengths(model: Checkable, n: int) -> Iterator[Finding]:
    for name, kind in (("scores", ValueType.FLOAT32), ("token_type", ValueType.INT32)):
        field = model.fields.get(PREFIX + name)
        if field is None:
            continue
        if field.item_type is not kind:
            yield warning(f"{field.key} should be of type arr[{kind.short}], but is {field.describe()}", field.offset)
        elif len(field) != n:
            yield warning(f"{field.key} has {len(field)} items for {n} tokens", field.offset, fatal=True)


def _check_ids(model: Checkable, n: int) -> Iterator[Finding]:
    for key, field in model.fields.items():
        if not key.startswith(PREFIX) or not key.endswith("_token_id"):
            continue
        shown = printable(key)
        if field.type is not ValueType.UINT32:
            yield warning(f"{shown} should be of type u32, but is {field.describe()}", field.offset)
        elif not 0 <= field.value < n:
            yield warning(f"{shown} is {field.value}, but the tokens are 0 to {n - 1}", field.offset, fatal=True)


def _check_ends(model: Checkable, name: str | None, n: int) -> Iterator[Finding]:
    """A text that is to begin or end with a token needs one."""
    for end in ("bos", "eos"):
        wanted = model.fields.get(f"{PREFIX}add_{end}_token")
        if wanted is None or wanted.value is not True or f"{PREFIX}{end}_token_id" in model.fields:
            continue
        default = _DEFAULTS.get(str(name), {}).get(end)
        if default is None or default >= n:
            what = "has none" if default is None else f"takes token {default} then, of {n}"
            yield warning(f"{wanted.key} is true, but there is no {PREFIX}{end}_token_id: llama.cpp {what}", fatal=True)
        elif name == "gpt2":
            yield warning(
                f"{wanted.key} is true, but there is no {PREFIX}{end}_token_id: llama.cpp puts token {default}, "
                f"GPT-2's own, around texts",
                wanted.offset,
                fatal=True,
            )


def _check_types(model: Checkable, name: str | None, tokens: list[bytes]) -> Iterator[Finding]:
    field = model.fields.get(f"{PREFIX}token_type")
    if field is None or field.item_type is not ValueType.INT32 or len(field) != len(tokens):
        return
    types = list(field.items())
    odd = [i for i, kind in enumerate(types) if not _UNDEFINED <= kind <= _BYTE]
    if odd:
        i = odd[0]
        yield warning(
            f"{len(odd)} tokens have an unknown type, the first is token {i} with type {types[i]}", field.offset
        )
    owner: dict[int, int] = {}  # byte → its token
    for i, kind in enumerate(types):
        if kind != _BYTE:
            continue
        match = _BYTE_TOKEN.fullmatch(tokens[i])
        if match is None:
            yield warning(f"token {i} is of type byte, but {_shown(tokens[i])} is not like <0x0A>", field.offset)
            return
        if owner.setdefault(value := int(match[1], 16), i) != i:
            yield warning(f"the byte {value:#04x} is both token {owner[value]} and token {i}", field.offset)
            return
    if name == "llama" and 0 < len(owner) < 256:
        lacking = min(set(range(256)) - set(owner))
        yield warning(
            f"{256 - len(owner)} of 256 byte tokens are missing, the first is <0x{lacking:02X}>", field.offset
        )


def _check_merges(model: Checkable, tokens: set[bytes]) -> Iterator[Finding]:
    field = model.fields.get(f"{PREFIX}merges")
    if field is None or field.item_type is not ValueType.STRING:
        yield warning(f"{PREFIX}merges (arr[str]) is missing: llama.cpp cannot tokenize without it")
        return
    bad: list[tuple[int, str]] = []
    for i, merge in enumerate(field.strings()):
        at = merge.find(b" ", 1)  # the first character may be a blank itself
        left, right = merge[:at], merge[at + 1 :]
        if at < 0:
            bad.append((i, f"{_shown(merge)} has no blank between two tokens"))
        elif any(part not in tokens for part in (left, right, left + right)):
            bad.append((i, f"{_shown(merge)}: a token is not in the vocabulary"))
    if bad:
        i, what = bad[0]
        yield warning(f"{len(bad)} merges are of no use, the first is merge {i}, {what}", field.offset)


def _check_pre(model: Checkable) -> Iterator[Finding]:
    field = model.fields.get(f"{PREFIX}pre")
    if field is None:
        yield warning(f"{PREFIX}pre (str) is missing: llama.cpp splits words as its default does")
    elif field.value not in known_pre_tokenizers():
        shown = printable(field.value)
        yield warning(f"the pre-tokenizer {shown} is not known here: llama.cpp may not load the model", field.offset)


def _check_embedding(model: Checkable, n: int) -> Iterator[Finding]:
    # A model that drafts may do so with some of the tokens, which d2t lists.
    for name in ("token_embd.weight",) if "d2t" in model.info else ("token_embd.weight", "output.weight"):
        info = model.info.get(name)
        if info is not None and len(info.shape) >= 2 and info.shape[-2] != n:
            yield warning(
                f"{name} has {info.shape[-2]} rows for {n} tokens: llama.cpp does not load the model", fatal=True
            )


def _shown(token: bytes) -> str:
    return printable(repr(token.decode("utf-8", "surrogateescape")), 60)
