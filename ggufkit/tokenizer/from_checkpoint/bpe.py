"""Vocabularies of the `tokenizers` package: byte-level BPE and WordPiece."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, UsageError, printable
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tokenizer.from_checkpoint.fast import FastTokenizer
from ggufkit.tokenizer.from_checkpoint.pre import CHECK_TEXT, NAMES, pre_tokenizer
from ggufkit.tokenizer.from_checkpoint.special import read_special
from ggufkit.tokenizer.from_checkpoint.tokens import (
    Tokens,
    TokenType,
    looks_special,
    word_start_to_space,
)

__all__ = ["bpe", "fast_tokens", "wordpiece"]


def bpe(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of a checkpoint with byte-level BPE, as GPT-2, Llama 3 and Qwen have it.

    Raises
    ------
    NoTokenizer : there is neither a tokenizer.json nor a vocab.json with merges.txt.
    CheckpointError : a file is malformed, or the pre-tokenizer is not known.
    """
    tokens, pre = fast_tokens(checkpoint, config)
    yield from tokens.pairs("gpt2", pre, scores=False)
    yield from read_special(checkpoint, n_vocab=len(tokens), merges=True).pairs()


def wordpiece(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of a BERT.

    WordPiece marks the pieces inside a word, GGUF the starts of words: ``play ##ing`` becomes ``▁play ing``.

    Raises
    ------
    NoTokenizer, CheckpointError : see `bpe`.
    """
    tokens, pre = fast_tokens(checkpoint, config)
    tokens.texts = [
        text if kind is TokenType.CONTROL else text[2:] if text.startswith("##") else "\u2581" + text
        for text, kind in zip(tokens.texts, tokens.types, strict=True)
    ]
    yield "tokenizer.ggml.token_type_count", Value(ValueType.UINT32, config.get("type_vocab_size", default=1))
    yield from tokens.pairs("bert", pre, scores=False)
    yield from read_special(checkpoint, n_vocab=len(tokens)).pairs()


def fast_tokens(checkpoint: Checkpoint, config: Config) -> tuple[Tokens, str]:
    """The tokens of a tokenizer.json, and llama.cpp's name of its pre-tokenizer.

    Raises
    ------
    NoTokenizer, CheckpointError : see `bpe`.
    """
    tokenizer = FastTokenizer(checkpoint)
    tokens = Tokens.padding(config.get("vocab_size", default=len(tokenizer.vocab)))
    special = tokenizer.special_ids
    for text, token in tokenizer.vocab.items():
        added = tokenizer.added.get(token)
        if added is None or added.content != text:
            tokens.put(token, text, 0.0, TokenType.NORMAL)
            continue
        # llama.cpp looks for these in text that is not normalized.
        shown = text if added.normalized else tokenizer.round_trip(text)
        if added.special or token in special or looks_special(shown):
            tokens.put(token, shown, 0.0, TokenType.CONTROL)
        else:
            tokens.put(token, word_start_to_space(shown), 0.0, TokenType.USER_DEFINED)
    return tokens, _pre_tokenizer(checkpoint, tokenizer)


def _pre_tokenizer(checkpoint: Checkpoint, tokenizer: FastTokenizer) -> str:
    if (given := checkpoint.pre_tokenizer) is not None:
        if given not in NAMES:
            near = get_close_matches(given, NAMES, n=3) or sorted(NAMES)
            raise UsageError(f"llama.cpp has no pre-tokenizer {printable(given)}; there is {', '.join(near)}")
        return given
    first = None
    for ids in tokenizer.check_ids(CHECK_TEXT):
        name, digest = pre_tokenizer(ids)
        if name is not None:
            return name
        first = first or digest
    raise CheckpointError(
        f"{printable(checkpoint.folder)}: the pre-tokenizer of tokenizer.json is none that llama.cpp is known to have "
        f"(hash {first})",
        "name the one that splits text as this model does, e.g. {pre=qwen2}",
    )
