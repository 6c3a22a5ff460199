"""PLaMo 2's and 3's vocabularies: `tokenizer.jsonl`, a line a token: ``["text", score, "TYPE", …]``."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tokenizer.from_checkpoint.tokens import ADDED_SCORE, NoTokenizer, Tokens, TokenType, Vocabulary

__all__ = ["plamo2", "plamo3"]

_FILE = "tokenizer.jsonl"
_MODELS = {"Plamo2Tokenizer": "plamo2", "Plamo3Tokenizer": "plamo3"}
_TYPES = {"UNKNOWN": TokenType.UNKNOWN, "CONTROL": TokenType.CONTROL, "BYTE": TokenType.BYTE}

# Roles in tokenizer_config.json, and their names in GGUF's keys, in file order.
_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "sep": "seperator", "unk": "unknown"}


def _vocabulary(end_of_turn: str, normal: Collection[str] = ()) -> Vocabulary:
    """A vocabulary whose chats' turns end with `end_of_turn`, and whose tokens `normal` only look special."""

    def vocabulary(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
        settings = checkpoint.json("tokenizer_config.json") or {}
        name = settings.get("tokenizer_class")
        if not isinstance(name, str) or name not in _MODELS:
            raise CheckpointError(
                f"{printable(checkpoint.folder)}/tokenizer_config.json: 'tokenizer_class' is {printable(repr(name))}, "
                f"not {' or '.join(_MODELS)}"
            )
        tokens = _tokens(checkpoint, normal)
        missing = config.integer("vocab_size") - len(tokens)
        for number in range(1, len(Tokens.padding(max(missing, 0))) + 1):
            tokens.texts.append(f"[PAD{number}]")
            tokens.scores.append(ADDED_SCORE)
            tokens.types.append(TokenType.UNUSED)
        yield from tokens.pairs(_MODELS[name], "default")
        ids: dict[str, int] = {}
        for token, text in enumerate(tokens.texts):
            ids.setdefault(text, token)
        roles = {key: settings.get(f"{role}_token") for role, key in _ROLES.items()} | {"eot": end_of_turn}
        for key, role_text in roles.items():
            if role_text is not None:
                yield f"tokenizer.ggml.{key}_token_id", Value(ValueType.UINT32, _id(checkpoint, ids, key, role_text))
        yield "tokenizer.ggml.add_space_prefix", Value(ValueType.BOOL, False)
        for role in ("bos", "eos"):
            if isinstance(add := settings.get(f"add_{role}_token"), bool):
                yield f"tokenizer.ggml.add_{role}_token", Value(ValueType.BOOL, add)

    return vocabulary


def _id(checkpoint: Checkpoint, ids: dict[str, int], role: str, text: Any) -> int:
    if not isinstance(text, str) or text not in ids:
        raise CheckpointError(
            f"{printable(checkpoint.folder)}/{_FILE} has no token {printable(repr(text))}, which is the {role} token"
        )
    return ids[text]


def _tokens(checkpoint: Checkpoint, normal: Collection[str]) -> Tokens:
    text = checkpoint.text(_FILE)
    if text is None:
        raise NoTokenizer(f"{printable(checkpoint.folder)} has no {_FILE}")
    tokens = Tokens()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            piece, score, *more = json.loads(line)
            kind = _TYPES.get(more[0] if more else "NORMAL", TokenType.NORMAL)
            tokens.scores.append(float(score))
            special = piece.startswith("<|plamo:") and piece.endswith("|>")
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise CheckpointError(
                f"{printable(checkpoint.folder)}/{_FILE}, line {number}: {printable(line, 60)} is not a list of text, "
                "score and type"
            ) from None
        if piece in normal:
            kind = TokenType.NORMAL
        elif kind is TokenType.NORMAL and special:
            kind = TokenType.CONTROL
        tokens.texts.append(piece)
        tokens.types.append(kind)
    return tokens


plamo2 = _vocabulary("<|plamo:op|>")
_plamo3 = _vocabulary("<|plamo:tag|>", ("<|plamo:begin_", "<|plamo:end_", ":plamo|>"))


def plamo3(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of a PLaMo 3, with its chat template.

    Raises
    ------
    NoTokenizer : there is no tokenizer.jsonl.
    CheckpointError : it or tokenizer_config.json is malformed.
    """
    yield from _plamo3(checkpoint, config)
    settings = checkpoint.json("tokenizer_config.json") or {}
    template = checkpoint.text("chat_template.jinja") or settings.get("chat_template")
    if isinstance(template, str) and template:
        yield "tokenizer.chat_template", Value(ValueType.STRING, template)
