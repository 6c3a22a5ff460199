"""SentencePiece vocabularies: `tokenizer.model` with the tokens that other files add, or tokenizer.json alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tokenizer.from_checkpoint.fast import saved_by_transformers_5
from ggufkit.tokenizer.from_checkpoint.special import special_tokens
from ggufkit.tokenizer.from_checkpoint.spm_json import prepends_space, spm_json_tokens
from ggufkit.tokenizer.from_checkpoint.tokens import (
    ADDED_SCORE,
    NoTokenizer,
    Tokens,
    TokenType,
    looks_special,
    word_start_to_space,
)

__all__ = ["added_tokens", "model_of", "read_model", "sentencepiece", "sentencepiece_tokens"]


def sentencepiece(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of a checkpoint with a `tokenizer.model`, or with a tokenizer.json made of one.

    Raises
    ------
    NoTokenizer : there is neither.
    CheckpointError : it, or a file that adds tokens, is malformed.
    """
    tokens = sentencepiece_tokens(checkpoint, config)
    yield from tokens.pairs("llama", "default")
    if not (checkpoint.folder / "tokenizer.model").is_file():
        settings = checkpoint.json("tokenizer_config.json") or {}
        prefix = prepends_space(checkpoint.json("tokenizer.json") or {})
        if not prefix and not isinstance(settings.get("add_prefix_space"), bool):
            yield "tokenizer.ggml.add_space_prefix", Value(ValueType.BOOL, False)
    yield from special_tokens(checkpoint, n_vocab=len(tokens))


def sentencepiece_tokens(checkpoint: Checkpoint, config: Config) -> Tokens:
    """The tokens of `tokenizer.model`, with what added_tokens.json, tokenizer_config.json and tokenizer.json add.

    Raises
    ------
    NoTokenizer, CheckpointError : see `sentencepiece`.
    """
    path = checkpoint.folder / "tokenizer.model"
    if not path.is_file():
        try:
            return spm_json_tokens(checkpoint, config)
        except NoTokenizer as e:
            folder = printable(checkpoint.folder)
            reason = str(e).removeprefix(f"{folder} ")
            raise NoTokenizer(f"{folder} has no tokenizer.model, and {reason}") from None
    tokens = read_model(path, config.get("vocab_size"))
    for text, token in added_tokens(checkpoint):
        tokens.put(token, text, ADDED_SCORE, TokenType.USER_DEFINED)
    for token, text, special in _declared(checkpoint, tokens):
        if special or looks_special(text):
            tokens.put(token, text, ADDED_SCORE, TokenType.CONTROL)
        else:
            tokens.put(token, word_start_to_space(text), ADDED_SCORE, TokenType.USER_DEFINED)
    return tokens


def model_of(checkpoint: Checkpoint) -> Path:
    """Its `tokenizer.model`.

    Raises
    ------
    NoTokenizer : there is none.
    """
    path = checkpoint.folder / "tokenizer.model"
    if not path.is_file():
        raise NoTokenizer(f"{printable(checkpoint.folder)} has no tokenizer.model")
    return path


def read_model(path: Path, size: int | None) -> Tokens:
    """The pieces of a model file, padded or cut to `size` tokens.

    Raises
    ------
    CheckpointError : it is no SentencePiece model.
    """
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromFile(str(path))
    except (RuntimeError, OSError) as e:
        raise CheckpointError(f"{printable(path)} is no SentencePiece model: {printable(e)}") from None
    tokens = Tokens.padding(size or processor.vocab_size())
    for token in range(processor.vocab_size()):
        tokens.put(token, processor.IdToPiece(token), processor.GetScore(token), _piece_type(processor, token))
    return tokens


def _piece_type(processor: Any, token: int) -> TokenType:
    """The type of a SentencePiece token."""
    if processor.IsUnknown(token):
        return TokenType.UNKNOWN
    if processor.IsControl(token):
        return TokenType.CONTROL
    if processor.IsUnused(token):
        return TokenType.UNUSED
    return TokenType.BYTE if processor.IsByte(token) else TokenType.NORMAL


def added_tokens(checkpoint: Checkpoint) -> Iterator[tuple[str, int]]:
    """(text, id) of `added_tokens.json`."""
    for text, token in (checkpoint.json("added_tokens.json") or {}).items():
        yield text, _token_id(checkpoint, "added_tokens.json", token)


def _declared(checkpoint: Checkpoint, tokens: Tokens) -> Iterator[tuple[int, str, bool]]:
    """(id, text, special) of what tokenizer_config.json declares, or else tokenizer.json.

    transformers 5 leaves added tokens to tokenizer.json. Of an older one beside a tokenizer.model only what that lacks.
    """
    settings = checkpoint.json("tokenizer_config.json") or {}
    if settings.get("added_tokens_decoder"):
        yield from _added_decoder(checkpoint)
        return
    everything = saved_by_transformers_5(settings)
    for token, text, special in _added_in_json(checkpoint):
        if everything or (token < len(tokens) and tokens.texts[token] != text):
            yield token, text, special


def _added_in_json(checkpoint: Checkpoint) -> Iterator[tuple[int, str, bool]]:
    """(id, text, special) of tokenizer.json's `added_tokens`."""
    added = (checkpoint.json("tokenizer.json") or {}).get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise CheckpointError(f"{printable(checkpoint.folder)}/tokenizer.json: an added token has no content")
        yield _token_id(checkpoint, "tokenizer.json", entry.get("id")), entry["content"], bool(entry.get("special"))


def _added_decoder(checkpoint: Checkpoint) -> Iterator[tuple[int, str, bool]]:
    """(id, text, special) of tokenizer_config.json's `added_tokens_decoder`."""
    decoder = (checkpoint.json("tokenizer_config.json") or {}).get("added_tokens_decoder") or {}
    for token, entry in decoder.items() if isinstance(decoder, dict) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise CheckpointError(
                f"{printable(checkpoint.folder)}/tokenizer_config.json: added token {printable(token)} has no content"
            )
        number = int(token) if token.isascii() and token.isdigit() and len(token) < 12 else token
        yield _token_id(checkpoint, "tokenizer_config.json", number), entry["content"], bool(entry.get("special"))


def _token_id(checkpoint: Checkpoint, file: str, token: Any) -> int:
    if type(token) is not int or not 0 <= token < 1 << 31:
        raise CheckpointError(f"{printable(checkpoint.folder)}/{file}: {printable(repr(token))} is no token id")
    return token
