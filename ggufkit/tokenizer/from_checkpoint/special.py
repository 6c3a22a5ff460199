"""Special tokens and chat templates, from tokenizer_config.json, tokenizer.json and config.json.

    special = read_special(checkpoint, n_vocab=32000)
    special.set("eot", 107)
    metadata.update(special.pairs())

Source: `SpecialVocab` of llama.cpp's gguf-py, whose findings these are, its guesses at post-processors included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.errors import CheckpointError, os_errors, printable
from ggufkit.gguf.header import Value, ValueType
from ggufkit.storage.regular import read_small
from ggufkit.tokenizer.from_checkpoint.postprocessor import read_post_processor

__all__ = ["SpecialTokens", "read_merges", "read_special", "special_tokens"]

# The kinds that are looked for.
_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

# Kind → its name in GGUF's keys; the other kinds have no key.
_KEYS = {
    "bos": "bos",
    "eos": "eos",
    "eot": "eot",
    "eom": "eom",
    "unk": "unknown",
    "sep": "seperator",  # spelled so in the format
    "pad": "padding",
    "mask": "mask",
}
_ADDED = ("bos", "eos", "sep")

_MAX_TEMPLATE = 16 << 20  # bytes


@dataclass
class SpecialTokens:
    """What is known of a vocabulary beyond its tokens.

    Attributes
    ----------
    n_vocab : ids of this and more have no embedding and are left out; None for no limit.
    merges : BPE merges, ``"left right"``, best first.
    ids : kind (bos, eos, eot, …) → token id.
    add : kind → whether a text gets it.
    templates : named chat templates; the main one is called "default".
    second_end : what ends a turn, if nothing else says so; or None.
    normalizer : ``lowercase`` and ``strip_accents`` where tokenizer.json says so.
    """

    n_vocab: int | None = None
    merges: list[str] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    normalizer: dict[str, bool] = field(default_factory=dict)
    second_end: int | None = None

    def set(self, kind: str, token: Any) -> None:
        """Give a kind its token, unless it has one already or `token` is no id of the vocabulary.

        A model does not run without its begin and ends of text: an id of one that is too large is kept, and what checks
        the header names it.
        """
        if type(token) is not int or not 0 <= token < 1 << 32:
            return
        if self.n_vocab is None or token < self.n_vocab or kind in ("bos", "eos", "eot", "eom"):
            self.ids.setdefault(kind, token)

    def pairs(self) -> Iterator[tuple[str, Value]]:
        """Typed metadata in the order of llama.cpp's converter."""
        if self.merges:
            yield "tokenizer.ggml.merges", Value(ValueType.ARRAY, self.merges, ValueType.STRING)
        if self.second_end is not None:
            self.set("eot", self.second_end)
        for kind, token in self.ids.items():
            if kind in _KEYS:
                yield f"tokenizer.ggml.{_KEYS[kind]}_token_id", Value(ValueType.UINT32, token)
        for kind, add in self.add.items():
            if kind in _ADDED:
                yield f"tokenizer.ggml.add_{kind}_token", Value(ValueType.BOOL, add)
        named = [name for name in self.templates if name != "default"]
        for name in named:
            yield f"tokenizer.chat_template.{name}", Value(ValueType.STRING, self.templates[name])
        if named:
            yield "tokenizer.chat_templates", Value(ValueType.ARRAY, named, ValueType.STRING)
        if "default" in self.templates:
            yield "tokenizer.chat_template", Value(ValueType.STRING, self.templates["default"])
        for name, flag in self.normalizer.items():
            yield f"tokenizer.ggml.normalizer.{name}", Value(ValueType.BOOL, flag)


def special_tokens(checkpoint: Checkpoint, n_vocab: int | None = None) -> Iterator[tuple[str, Value]]:
    """The metadata of `read_special`, for vocabularies that add nothing to it."""
    return read_special(checkpoint, n_vocab).pairs()


def read_special(
    checkpoint: Checkpoint, n_vocab: int | None = None, merges: bool = False, by_text: bool = True
) -> SpecialTokens:
    """Special tokens, whether to add them to a text, chat templates, and with `merges` the BPE merges.

    An id comes from the token's text in tokenizer.json, else from config.json. Without a tokenizer.json
    tokenizer_config.json may have texts and their ids; `by_text` = False ignores them.

    Raises
    ------
    CheckpointError : a file is malformed.
    """
    special = SpecialTokens(n_vocab)
    tokenizer = checkpoint.json("tokenizer.json") or {}
    settings = dict(checkpoint.json("tokenizer_config.json") or {})
    kinds = list(_KINDS)
    if tokenizer:
        if merges:
            special.merges = read_merges(checkpoint, tokenizer)
        special.normalizer = dict(sorted(dict(_normalizer(tokenizer.get("normalizer"))).items()))
        kinds += read_post_processor(tokenizer.get("post_processor"), settings, special.add)
    special.templates = _chat_templates(checkpoint, settings)
    if settings:
        ids = _added_tokens(tokenizer)
        if not ids and by_text:
            ids = _declared_tokens(checkpoint, settings)
            if (checkpoint.folder / "tokenizer.model").is_file():
                # There config.json says the rest, but it may not know the end that fine-tuning added.
                ends = set(_texts(settings, "bos", "eos"))
                ids = {text: token for text, token in ids.items() if text in ends}
            else:
                for kind, other in (("bos", "cls"), ("eos", "sep")):  # as a post-processor would say it
                    settings[f"{kind}_token"] = settings.get(f"{kind}_token") or settings.get(f"{other}_token")
        for kind in kinds:
            if isinstance(add := settings.get(f"add_{kind}_token"), bool):
                special.add.setdefault(kind, add)
            for text in _texts(settings, kind):
                special.set(kind, ids.get(text))
    text_config = checkpoint.config.get("text_config")
    for kind in kinds:
        token = checkpoint.config.get(f"{kind}_token_id")
        if token is None and isinstance(text_config, dict):
            token = text_config.get(f"{kind}_token_id")
        if isinstance(token, list) and kind == "eos" and "eos" not in special.ids:
            # Several ends of text, of which llama.cpp's converter takes none: that of a turn is often the second.
            listed = [one for one in token if type(one) is int][:2]
            special.set("eos", listed[0] if listed else None)
            special.second_end = listed[1] if len(listed) > 1 else None
        special.set(kind, token)
    if merges and not special.merges:
        special.merges = _merges_txt(checkpoint)
    return special


def _added_tokens(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Text → id of tokenizer.json's added tokens, the first of a text."""
    by_text: dict[str, int] = {}
    added = tokenizer.get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and type(entry.get("id")) is int:
            by_text.setdefault(entry["content"], entry["id"])
    return by_text


def _texts(settings: dict[str, Any], *kinds: str) -> Iterator[str]:
    """The texts of tokens with a role, where tokenizer_config.json has them."""
    for kind in kinds:
        entry = settings.get(f"{kind}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(text, str):
            yield text


def _declared_tokens(checkpoint: Checkpoint, settings: dict[str, Any]) -> dict[str, int]:
    """Text → id of what is added to a tokenizer without tokenizer.json."""
    by_text: dict[str, int] = {}
    decoder = settings.get("added_tokens_decoder")
    for token, entry in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and re.fullmatch("[0-9]{1,10}", token):
            by_text.setdefault(entry["content"], int(token))
    for text, token in (checkpoint.json("added_tokens.json") or {}).items():
        by_text.setdefault(text, token)
    return by_text


def read_merges(checkpoint: Checkpoint, tokenizer: dict[str, Any]) -> list[str]:
    """The merges of tokenizer.json, each a string of two parts or a pair of strings."""
    model = tokenizer.get("model")
    merges = model.get("merges") if isinstance(model, dict) else None
    if not merges:
        return []
    if isinstance(merges, list):
        if all(isinstance(merge, str) for merge in merges):
            return merges
        if all(isinstance(merge, list) and [type(part) for part in merge] == [str, str] for merge in merges):
            # In a string the space separates the parts, so that one inside a part is spelled as ByteLevel spells it.
            return [" ".join(part.replace(" ", "\u0120") for part in merge) for merge in merges]
    raise CheckpointError(f"{printable(checkpoint.folder)}/tokenizer.json: merges must be strings or pairs of strings")


def _merges_txt(checkpoint: Checkpoint) -> list[str]:
    """The merges of merges.txt: a line of two parts each, below an optional line "#version"."""
    lines = (checkpoint.text("merges.txt") or "").split("\n")
    if lines[0].startswith("#"):
        del lines[0]
    parts = (line.split() for line in lines)
    return [" ".join(pair) for pair in parts if len(pair) == 2]


def _normalizer(normalizer: Any) -> Iterator[tuple[str, bool]]:
    """("lowercase" or "strip_accents", flag) of a normalizer of tokenizer.json."""
    if not isinstance(normalizer, dict):
        return
    kind = normalizer.get("type")
    if kind == "Lowercase":
        yield "lowercase", True
    elif kind == "StripAccents":
        yield "strip_accents", True
    elif kind == "BertNormalizer":
        for name in ("lowercase", "strip_accents"):
            if isinstance(flag := normalizer.get(name), bool):
                yield name, flag
    elif kind == "Sequence" and isinstance(parts := normalizer.get("normalizers"), list):
        for part in parts:
            yield from _normalizer(part)


def _chat_templates(checkpoint: Checkpoint, settings: dict[str, Any]) -> dict[str, str]:
    """Name → chat template; names as GGUF's keys have them."""
    template = settings.get("chat_template", _template_files(checkpoint))
    if isinstance(template, str):
        return {"default": template}
    templates = {}
    for entry in template if isinstance(template, list) else ():
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in ("name", "template")):
            raise CheckpointError(
                f"{printable(checkpoint.folder)}/tokenizer_config.json: a chat template needs a name and a template"
            )
        name = "".join(c if c.isascii() and c.isalnum() else "_" for c in entry["name"])
        templates[name] = entry["template"]
    return templates


def _template_text(path: Path) -> str:
    try:
        return read_small(path, _MAX_TEMPLATE).decode()
    except UnicodeDecodeError as e:
        raise CheckpointError(f"{printable(path)} is not valid UTF-8 (byte {e.start})") from None


def _template_files(checkpoint: Checkpoint) -> Any:
    """A template that lies in a file of its own: text, or a list of {name, template}, or None."""
    if (text := checkpoint.text("chat_template.jinja")) is not None:
        more = checkpoint.folder / "additional_chat_templates"
        with os_errors(more, "read"):
            paths = sorted(more.glob("*.jinja"))
        if not paths:
            return text
        named = [{"name": path.stem, "template": _template_text(path)} for path in paths]
        return [{"name": "default", "template": text}, *named]
    return (checkpoint.json("chat_template.json") or {}).get("chat_template")
