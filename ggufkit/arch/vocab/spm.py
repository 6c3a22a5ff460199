"""SentencePiece vocabularies: `tokenizer.model` with the tokens that other files add."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from ggufkit.arch.config import Config
from ggufkit.arch.vocab.special import special_tokens
from ggufkit.checkpoint.folder import Checkpoint
from ggufkit.errors import CheckpointError, FileError, printable
from ggufkit.gguf.header import Value, ValueType

__all__ = ["TokenType", "sentencepiece", "word_start_to_space"]

# Scores that llama.cpp's converter gives to tokens without one.
_PADDING_SCORE, _ADDED_SCORE = -10000.0, -1000.0


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`. Source: `enum llama_token_type`, llama.h."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass
class _Tokens:
    """A vocabulary under construction: parallel lists over the token ids."""

    texts: list[str]
    scores: list[float]
    types: list[TokenType]

    @classmethod
    def padding(cls, size: int) -> _Tokens:
        return cls([f"[PAD{i}]" for i in range(size)], [_PADDING_SCORE] * size, [TokenType.UNUSED] * size)

    def put(self, token: int, text: str, score: float, kind: TokenType) -> None:
        """Set a token; ids beyond the model's vocabulary have no embedding and are left out."""
        if token < len(self.texts):
            self.texts[token], self.scores[token], self.types[token] = text, score, kind


def sentencepiece(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of a checkpoint with a `tokenizer.model`.

    Raises
    ------
    FileError : there is no `tokenizer.model`.
    CheckpointError : it, or a file that adds tokens, is malformed.
    """
    settings = checkpoint.json("tokenizer_config.json") or {}
    path = checkpoint.folder / "tokenizer.model"
    if not path.is_file():
        raise FileError(f"{printable(checkpoint.folder)} has no tokenizer.model")
    if isinstance(prefix := settings.get("add_prefix_space"), bool):
        yield "tokenizer.ggml.add_space_prefix", Value(ValueType.BOOL, prefix)
    tokens = _tokens(path, config)
    for text, token in _added_tokens(checkpoint):
        tokens.put(token, text, _ADDED_SCORE, TokenType.USER_DEFINED)
    for token, text, special in _added_decoder(checkpoint, settings):
        if special or looks_special(text):
            tokens.put(token, text, _ADDED_SCORE, TokenType.CONTROL)
        else:
            tokens.put(token, word_start_to_space(text), _ADDED_SCORE, TokenType.USER_DEFINED)
    yield "tokenizer.ggml.model", Value(ValueType.STRING, "llama")
    yield "tokenizer.ggml.pre", Value(ValueType.STRING, "default")
    yield "tokenizer.ggml.tokens", Value(ValueType.ARRAY, tokens.texts, ValueType.STRING)
    yield "tokenizer.ggml.scores", Value(ValueType.ARRAY, tokens.scores, ValueType.FLOAT32)
    yield "tokenizer.ggml.token_type", Value(ValueType.ARRAY, [int(t) for t in tokens.types], ValueType.INT32)
    yield from special_tokens(checkpoint, n_vocab=len(tokens.texts))


def _tokens(path: Path, config: Config) -> _Tokens:
    """The pieces of a model file, padded or cut to the model's vocabulary."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromFile(str(path))
    except (RuntimeError, OSError) as e:
        raise CheckpointError(f"{printable(path)} is no SentencePiece model: {printable(e)}") from None
    tokens = _Tokens.padding(config.get("vocab_size") or processor.vocab_size())
    for token in range(processor.vocab_size()):
        kind = TokenType.NORMAL
        if processor.IsUnknown(token):
            kind = TokenType.UNKNOWN
        elif processor.IsControl(token):
            kind = TokenType.CONTROL
        elif processor.IsUnused(token):
            kind = TokenType.UNUSED
        elif processor.IsByte(token):
            kind = TokenType.BYTE
        tokens.put(token, processor.IdToPiece(token), processor.GetScore(token), kind)
    return tokens


def _added_tokens(checkpoint: Checkpoint) -> Iterator[tuple[str, int]]:
    """(text, id) of `added_tokens.json`."""
    for text, token in (checkpoint.json("added_tokens.json") or {}).items():
        yield text, _token_id(checkpoint, "added_tokens.json", token)


def _added_decoder(checkpoint: Checkpoint, settings: dict[str, Any]) -> Iterator[tuple[int, str, bool]]:
    """(id, text, special) of tokenizer_config.json's `added_tokens_decoder`."""
    decoder = settings.get("added_tokens_decoder") or {}
    for token, entry in decoder.items() if isinstance(decoder, dict) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise CheckpointError(
                f"{printable(checkpoint.folder)}/tokenizer_config.json: added token {printable(token)} has no content"
            )
        number = int(token) if token.isascii() and token.isdigit() else token
        yield _token_id(checkpoint, "tokenizer_config.json", number), entry["content"], bool(entry.get("special"))


def _token_id(checkpoint: Checkpoint, file: str, token: Any) -> int:
    if type(token) is not int or not 0 <= token < 1 << 31:
        raise CheckpointError(f"{printable(checkpoint.folder)}/{file}: {printable(repr(token))} is no token id")
    return token


def word_start_to_space(text: str) -> str:
    """SentencePiece's word start U+2581 as the space that it stands for."""
    return text.replace("\u2581", " ")


def looks_special(text: str) -> bool:
    """True for added tokens that are control tokens in all but their `special` flag.

    Several releases (command-r, deepseek-coder, gemma) forgot it. Source: `does_token_look_special` of
    llama.cpp's converter.
    """
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )
