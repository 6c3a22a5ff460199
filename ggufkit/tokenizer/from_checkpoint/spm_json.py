"""SentencePiece BPE that is published as tokenizer.json alone, as transformers 5 saves Llama's and Gemma's.

    model      BPE with byte_fallback: the pieces, and as merges what SentencePiece has as scores
    decoder    ▁ → space, <0x0A> → bytes

SentencePiece merges the pair whose piece has the best score, so the scores are the places of the pieces among the
merges: 0, -1, -2, …, which is what its trainer gives them, too.
"""

from __future__ import annotations

import re
from typing import Any

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import printable
from ggufkit.tokenizer.from_checkpoint.fast import FastTokenizer
from ggufkit.tokenizer.from_checkpoint.special import read_merges
from ggufkit.tokenizer.from_checkpoint.tokens import (
    ADDED_SCORE,
    NoTokenizer,
    Tokens,
    TokenType,
    looks_special,
    word_start_to_space,
)

__all__ = ["prepends_space", "spm_json_tokens"]

_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


def spm_json_tokens(checkpoint: Checkpoint, config: Config) -> Tokens:
    """The tokens of a byte-fallback BPE, as those of the SentencePiece model that it was made from.

    Raises
    ------
    NoTokenizer : there is no tokenizer.json, or it is of another kind.
    CheckpointError : it is malformed.
    """
    described = checkpoint.json("tokenizer.json") or {}
    model, decoder = described.get("model"), described.get("decoder")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise NoTokenizer(f"{printable(checkpoint.folder)} has no tokenizer.json with a byte-fallback BPE")
    if not isinstance(decoder, dict) or decoder.get("type") != "Sequence":
        raise NoTokenizer(f"{printable(checkpoint.folder)} has a tokenizer.json whose decoder is not Llama's")
    tokenizer = FastTokenizer(checkpoint)
    special = tokenizer.special_ids
    tokens = Tokens.padding(config.get("vocab_size", default=len(tokenizer.vocab)))
    scores = _scores(tokenizer, read_merges(checkpoint, described))
    for text, token in tokenizer.vocab.items():
        if (added := tokenizer.added.get(token)) is not None:
            if added.special or token in special or looks_special(text):
                tokens.put(token, text, ADDED_SCORE, TokenType.CONTROL)
            else:
                tokens.put(token, word_start_to_space(text), ADDED_SCORE, TokenType.USER_DEFINED)
        elif token in special:
            tokens.put(token, text, ADDED_SCORE, TokenType.CONTROL)
        elif _BYTE.fullmatch(text):
            tokens.put(token, text, 0.0, TokenType.BYTE)
        else:
            tokens.put(token, text, scores.get(text, 0.0), TokenType.NORMAL)
    return tokens


def _scores(tokenizer: FastTokenizer, merges: list[str]) -> dict[str, float]:
    """Piece → score: merged ones by their first merge, then those that nothing is merged to, by their ids."""
    pieces = dict.fromkeys(merge.replace(" ", "", 1) for merge in merges)
    by_id = sorted(tokenizer.vocab.items(), key=lambda item: item[1])
    for text, token in by_id:
        if token not in tokenizer.added and not _BYTE.fullmatch(text):
            pieces.setdefault(text)
    return {text: -float(place) for place, text in enumerate(pieces)}


def prepends_space(described: dict[str, Any]) -> bool:
    """Whether a tokenizer.json puts a space before a text, by a normalizer or by a Metaspace."""
    return _finds_prefix(described.get("normalizer")) or _finds_prefix(described.get("pre_tokenizer"))


def _finds_prefix(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    kind = part.get("type")
    if kind == "Prepend":
        return True
    if kind == "Metaspace":
        return part.get("prepend_scheme", "always") != "never" and part.get("add_prefix_space", True) is not False
    inner = part.get("normalizers", part.get("pretokenizers"))
    return isinstance(inner, list) and any(map(_finds_prefix, inner))
