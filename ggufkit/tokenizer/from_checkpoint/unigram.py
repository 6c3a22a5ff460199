"""Unigram vocabularies: T5's `spiece.model`, XLM-RoBERTa's `sentencepiece.bpe.model` or tokenizer.json."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tokenizer.from_checkpoint.fast import FastTokenizer
from ggufkit.tokenizer.from_checkpoint.special import special_tokens
from ggufkit.tokenizer.from_checkpoint.spm import added_tokens, read_model, sentencepiece
from ggufkit.tokenizer.from_checkpoint.spm_json import prepends_space
from ggufkit.tokenizer.from_checkpoint.spm_settings import BPE, SpmSettings, read_settings
from ggufkit.tokenizer.from_checkpoint.tokens import ADDED_SCORE, NoTokenizer, Tokens, TokenType

__all__ = ["t5", "xlm_roberta"]


def t5(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of a T5: tokenizer.model, spiece.model in older checkpoints, tokenizer.json in newer ones.

    Raises
    ------
    NoTokenizer : there is none of them.
    CheckpointError : it, or a file that adds tokens, is malformed.
    """
    path = next((p for name in ("tokenizer.model", "spiece.model") if (p := checkpoint.folder / name).is_file()), None)
    if path is None:
        tokens, spec = _from_json(checkpoint, config, "neither tokenizer.model nor spiece.model")
    else:
        spec = read_settings(path)
        if spec.model_type == BPE:
            yield from sentencepiece(checkpoint, config)
            return
        tokens = read_model(path, config.get("vocab_size"))
        for text, token in added_tokens(checkpoint):
            tokens.put(token, text, ADDED_SCORE, TokenType.USER_DEFINED)
    yield from tokens.pairs("t5", "default")
    yield "tokenizer.ggml.add_space_prefix", Value(ValueType.BOOL, spec.add_dummy_prefix)
    yield from _spaces_and_charsmap(spec)
    yield from special_tokens(checkpoint, n_vocab=len(tokens))


def xlm_roberta(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of an XLM-RoBERTa.

    Raises
    ------
    NoTokenizer : there is neither a sentencepiece.bpe.model nor a tokenizer.json.
    CheckpointError : it is malformed.
    """
    path = checkpoint.folder / "sentencepiece.bpe.model"
    if path.is_file():
        spec = read_settings(path)
        tokens = _realigned(path, config)
    else:
        tokens, spec = _from_json(checkpoint, config, "neither sentencepiece.bpe.model")
    yield from tokens.pairs("t5", "default")
    yield "tokenizer.ggml.add_space_prefix", Value(ValueType.BOOL, spec.add_dummy_prefix)
    yield "tokenizer.ggml.token_type_count", Value(ValueType.UINT32, config.get("type_vocab_size", default=1))
    yield from _spaces_and_charsmap(spec)
    yield from special_tokens(checkpoint, n_vocab=len(tokens))


def _spaces_and_charsmap(spec: SpmSettings) -> Iterator[tuple[str, Value]]:
    yield "tokenizer.ggml.remove_extra_whitespaces", Value(ValueType.BOOL, spec.remove_extra_whitespaces)
    if spec.precompiled_charsmap:
        charsmap = list(spec.precompiled_charsmap)
        yield "tokenizer.ggml.precompiled_charsmap", Value(ValueType.ARRAY, charsmap, ValueType.UINT8)


def _realigned(path: Path, config: Config) -> Tokens:
    """The pieces of a model file in XLM-RoBERTa's order.

    Fairseq put four tokens of its own in the place of the model's first three, and the last is left to <mask>:

        model    <unk> <s>   </s>  ,     .  …            →  ids shift by one
        tokens   <s>   <pad> </s>  <unk> ,  .  …
    """
    pieces = read_model(path, None)
    size = max(config.count("vocab_size"), len(pieces))
    padding = Tokens.padding(size)
    texts = pieces.texts + padding.texts[len(pieces) :]
    scores = pieces.scores + padding.scores[len(pieces) :]
    types = pieces.types + padding.types[len(pieces) :]
    control, unknown = TokenType.CONTROL, TokenType.UNKNOWN
    return Tokens(
        ["<s>", "<pad>", "</s>", "<unk>", *texts[3:-1]],
        [0.0] * 4 + scores[3:-1],
        [control, control, control, unknown, *types[3:-1]],
    )


def _from_json(checkpoint: Checkpoint, config: Config, lacking: str) -> tuple[Tokens, SpmSettings]:
    """The tokens of a tokenizer.json with a Unigram model; `lacking` says what else there might have been."""
    described = checkpoint.json("tokenizer.json")
    where = f"{printable(checkpoint.folder)}/tokenizer.json"
    if described is None:
        raise NoTokenizer(f"{printable(checkpoint.folder)} has {lacking} nor tokenizer.json")
    model = described.get("model")
    if not isinstance(model, dict) or model.get("type") != "Unigram":
        raise CheckpointError(f"{where} must describe a Unigram model")
    tokenizer = FastTokenizer(checkpoint)
    settings = checkpoint.json("tokenizer_config.json") or {}
    unknown = tokenizer.vocab.get(str(settings.get("unk_token")), model.get("unk_id", 3))
    special = tokenizer.special_ids
    tokens = Tokens.padding(max(config.get("vocab_size", default=len(tokenizer.vocab)), tokenizer.base_size))
    for token, (text, score) in enumerate(model["vocab"]):
        if token == unknown:
            kind = TokenType.UNKNOWN
        elif token in special:
            kind = TokenType.CONTROL
        else:
            kind = TokenType.USER_DEFINED if token in tokenizer.added else TokenType.NORMAL
        tokens.put(token, text, score, kind)
    for token, added in tokenizer.added.items():
        if token >= len(model["vocab"]):
            kind = TokenType.CONTROL if added.special or token in special else TokenType.USER_DEFINED
            tokens.put(token, added.content, ADDED_SCORE, kind)
    prefix = settings.get("add_prefix_space")
    spec = SpmSettings(
        add_dummy_prefix=prefix if isinstance(prefix, bool) else prepends_space(described),
        remove_extra_whitespaces=bool(settings.get("clean_up_tokenization_spaces", False)),
        precompiled_charsmap=_charsmap(where, described.get("normalizer")),
    )
    return tokens, spec


def _charsmap(where: str, normalizer: Any) -> bytes:
    """The character map of a normalizer of tokenizer.json, or of the first part of a sequence that has one."""
    if not isinstance(normalizer, dict):
        return b""
    if isinstance(text := normalizer.get("precompiled_charsmap"), str):
        try:
            return b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise CheckpointError(f"{where}: precompiled_charsmap is not base64") from None
    parts = normalizer.get("normalizers")
    return next((found for part in parts if (found := _charsmap(where, part))), b"") if isinstance(parts, list) else b""
