"""Special tokens and chat templates, from tokenizer_config.json, tokenizer.json and config.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggufkit.checkpoint.folder import Checkpoint
from ggufkit.errors import CheckpointError, os_errors, printable
from ggufkit.gguf.header import Value, ValueType

__all__ = ["special_tokens"]

# Kind in Hugging Face's files → in GGUF's keys.
_KINDS = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",  # spelled so in the format
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
}


def special_tokens(checkpoint: Checkpoint, n_vocab: int) -> Iterator[tuple[str, Value]]:
    """Ids of the special tokens, whether to add them to a text, and the chat template.

    An id comes from the token's text in tokenizer.json, else from config.json; ids of `n_vocab` and more, which
    have no embedding, are left out.
    """
    settings = checkpoint.json("tokenizer_config.json") or {}
    ids: dict[str, int] = {}
    for kind, token in [*_ids_by_text(checkpoint, settings), *_ids_by_number(checkpoint.config)]:
        if 0 <= token < n_vocab:
            ids.setdefault(kind, token)
    for kind, token in ids.items():
        yield f"tokenizer.ggml.{_KINDS[kind]}_token_id", Value(ValueType.UINT32, token)
    for kind in ("bos", "eos", "sep"):
        if isinstance(add := settings.get(f"add_{kind}_token"), bool):
            yield f"tokenizer.ggml.add_{kind}_token", Value(ValueType.BOOL, add)
    yield from _chat_templates(checkpoint, settings)


def _ids_by_text(checkpoint: Checkpoint, settings: dict[str, Any]) -> Iterator[tuple[str, int]]:
    added = (checkpoint.json("tokenizer.json") or {}).get("added_tokens") or []
    by_text: dict[str, int] = {}
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and type(entry.get("id")) is int:
            by_text.setdefault(entry["content"], entry["id"])
    for kind in _KINDS:
        entry = settings.get(f"{kind}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(text, str) and text in by_text:
            yield kind, by_text[text]


def _ids_by_number(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    text_config = config.get("text_config")
    for kind in _KINDS:
        token = config.get(f"{kind}_token_id")
        if token is None and isinstance(text_config, dict):
            token = text_config.get(f"{kind}_token_id")
        if type(token) is int:
            yield kind, token


def _chat_templates(checkpoint: Checkpoint, settings: dict[str, Any]) -> Iterator[tuple[str, Value]]:
    """The default template, and named ones under keys of their own with a list of their names."""
    template = settings.get("chat_template", _template_files(checkpoint))
    named = {}
    if isinstance(template, list):
        for entry in template:
            if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in ("name", "template")):
                raise CheckpointError(
                    f"{printable(checkpoint.folder)}/tokenizer_config.json: a chat template needs a name and a template"
                )
            named[entry["name"]] = entry["template"]
        template = named.pop("default", None)
    safe = {"".join(c if c.isascii() and c.isalnum() else "_" for c in name): text for name, text in named.items()}
    for name, text in safe.items():
        yield f"tokenizer.chat_template.{name}", Value(ValueType.STRING, text)
    if safe:
        yield "tokenizer.chat_templates", Value(ValueType.ARRAY, list(safe), ValueType.STRING)
    if isinstance(template, str):
        yield "tokenizer.chat_template", Value(ValueType.STRING, template)


def _template_files(checkpoint: Checkpoint) -> Any:
    """A template that lies in a file of its own: text, or a list of {name, template}, or None."""
    if (text := checkpoint.text("chat_template.jinja")) is not None:
        more = checkpoint.folder / "additional_chat_templates"
        with os_errors(more, "read"):
            paths = sorted(more.glob("*.jinja"))
        if not paths:
            return text
        named = [{"name": path.stem, "template": path.read_text(encoding="utf-8")} for path in paths]
        return [{"name": "default", "template": text}, *named]
    return (checkpoint.json("chat_template.json") or {}).get("chat_template")
