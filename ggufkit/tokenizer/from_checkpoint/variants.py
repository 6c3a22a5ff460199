"""Vocabularies with a family's own additions.

Each is one of the kinds with more tokens named, as the family's releases need it and llama.cpp's converter does it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tokenizer.from_checkpoint.bpe import bpe, fast_tokens
from ggufkit.tokenizer.from_checkpoint.fast import FastTokenizer
from ggufkit.tokenizer.from_checkpoint.special import read_special
from ggufkit.tokenizer.from_checkpoint.spm import (
    added_tokens,
    model_of,
    read_model,
    sentencepiece,
    sentencepiece_tokens,
)
from ggufkit.tokenizer.from_checkpoint.spm_settings import read_settings
from ggufkit.tokenizer.from_checkpoint.tokens import (
    ADDED_SCORE,
    PADDING_SCORE,
    NoTokenizer,
    Tokens,
    TokenType,
    Vocabulary,
    first_of,
)

__all__ = [
    "GEMMA",
    "GEMMA2",
    "GEMMA3",
    "GLM",
    "GLM4",
    "MPT",
    "NEMOTRON",
    "arctic",
    "bpe_with_roles",
    "chatglm3",
    "followed_by",
    "gemma4",
    "internlm2",
    "internlm3",
    "led_by",
    "padded",
    "phi3",
    "with_space_prefix",
]

_NO_SPACE_PREFIX = {"add_space_prefix": False}


def followed_by(vocabulary: Vocabulary, extra: Mapping[str, bool | int]) -> Vocabulary:
    """A vocabulary and further keys (behind ``tokenizer.ggml.``) with fixed values, which win over its own."""

    def extended(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
        yield from vocabulary(checkpoint, config)
        for key, value in extra.items():
            kind = ValueType.BOOL if isinstance(value, bool) else ValueType.UINT32
            yield f"tokenizer.ggml.{key}", Value(kind, value)

    return extended


def led_by(vocabulary: Vocabulary, first: Mapping[str, bool]) -> Vocabulary:
    """A vocabulary behind keys (behind ``tokenizer.ggml.``) that come first, and whose values it may replace."""

    def led(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
        for key, value in first.items():
            yield f"tokenizer.ggml.{key}", Value(ValueType.BOOL, value)
        yield from vocabulary(checkpoint, config)

    return led


def with_space_prefix(vocabulary: Vocabulary) -> Vocabulary:
    """A vocabulary, and tokenizer_config.json's `add_prefix_space` where that is true or false."""

    def extended(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
        yield from vocabulary(checkpoint, config)
        prefix = (checkpoint.json("tokenizer_config.json") or {}).get("add_prefix_space")
        if isinstance(prefix, bool):
            yield "tokenizer.ggml.add_space_prefix", Value(ValueType.BOOL, prefix)

    return extended


def bpe_with_roles(**roles: str) -> Vocabulary:
    """Byte-level BPE whose files leave some roles open; those go to added tokens, by text: ``eot="<|user|>"``."""

    def vocabulary(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
        tokens, pre = fast_tokens(checkpoint, config)
        yield from tokens.pairs("gpt2", pre, scores=False)
        special = read_special(checkpoint, n_vocab=len(tokens), merges=True)
        for kind, text in roles.items():
            if text in tokens.texts:
                special.set(kind, tokens.texts.index(text))
        yield from special.pairs()

    return vocabulary


def padded(vocabulary: Vocabulary, multiple: int) -> Vocabulary:
    """A vocabulary of a model whose embedding has its rows rounded up to `multiple` (or `pad_vocab_size_multiple`)."""

    def rounded(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
        step = config.get("pad_vocab_size_multiple", default=multiple)
        size = -(config.integer("vocab_size") // -step) * step
        yield from vocabulary(checkpoint, Config({"vocab_size": size}))

    return rounded


# Gemma's end of turn has no role in the files of its first generation.
GEMMA = followed_by(sentencepiece, {"eot_token_id": 107, **_NO_SPACE_PREFIX})
GEMMA2 = followed_by(sentencepiece, _NO_SPACE_PREFIX)
GEMMA3 = first_of(GEMMA2, bpe)
GLM4 = bpe_with_roles(eos="<|endoftext|>", eot="<|user|>", unk="<|endoftext|>", bos="<|endoftext|>")
GLM = bpe_with_roles(bos="[gMASK]", eot="<|user|>", unk="<|endoftext|>", eom="<|observation|>")
NEMOTRON = followed_by(sentencepiece, {"padding_token_id": 0, "unknown_token_id": 1})
# SEA-LION is an MPT with a SentencePiece vocabulary.
MPT = first_of(
    bpe,
    followed_by(
        sentencepiece, {"add_bos_token": False, "padding_token_id": 3, "eos_token_id": 1, "unknown_token_id": 0}
    ),
)


# Gemma 4's tokens that a chat's parser must see.
_GEMMA4_SHOWN = frozenset(
    ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>')
)

# transformers gives a tokenizer of Gemma these, whatever its files say of them.
_GEMMA_ROLES = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}


def gemma4(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of a Gemma 4: BPE with byte fallback, whose merges are written.

    Raises
    ------
    NoTokenizer, CheckpointError : see `sentencepiece`.
    """
    model = (checkpoint.json("tokenizer.json") or {}).get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise NoTokenizer(f"{printable(checkpoint.folder)} has no tokenizer.json with a byte-fallback BPE")
    tokenizer = FastTokenizer(checkpoint)
    special = tokenizer.special_ids
    # A text may be a piece and an added token, too, each with an id.
    pieces = {token: text for text, token in model["vocab"].items()}
    added = {token: entry.content for token, entry in tokenizer.added.items() if token >= tokenizer.base_size}
    settings = checkpoint.json("tokenizer_config.json") or {}
    absent = [text for role, text in _GEMMA_ROLES.items() if role not in settings and text not in tokenizer.vocab]
    tokens = Tokens.padding(tokenizer.base_size + len(added) + len(absent))
    for number, text in enumerate(absent):
        tokens.put(tokenizer.base_size + len(added) + number, text, ADDED_SCORE, TokenType.CONTROL)
    for token, text in {**pieces, **added}.items():
        kind = TokenType.USER_DEFINED if token in added else TokenType.NORMAL
        if text in _GEMMA4_SHOWN:
            kind = TokenType.USER_DEFINED
        elif re.fullmatch("<0x[0-9A-Fa-f]{2}>", text):
            kind = TokenType.BYTE
        elif token in special:
            kind = TokenType.CONTROL
        tokens.put(token, text, ADDED_SCORE, kind)
    for key, value in tokens.pairs("gemma4", ""):
        if key != "tokenizer.ggml.pre":
            yield key, value
    yield from read_special(checkpoint, merges=True).pairs()
    yield "tokenizer.ggml.add_space_prefix", Value(ValueType.BOOL, False)
    yield "tokenizer.ggml.add_bos_token", Value(ValueType.BOOL, True)


def xverse(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of an XVERSE: the pieces of a tokenizer.json as those of a SentencePiece model without scores.

    Raises
    ------
    NoTokenizer, CheckpointError : see `sentencepiece`.
    """
    tokenizer = FastTokenizer(checkpoint)
    size, special = config.get("vocab_size", default=len(tokenizer.vocab)), tokenizer.special_ids
    texts = {token: text for text, token in tokenizer.vocab.items()}
    if (missing := next((token for token in range(size) if token not in texts), None)) is not None or len(texts) > size:
        what = f"no token {missing}" if missing is not None else f"{len(texts)} tokens, config.json calls for {size}"
        raise CheckpointError(f"{printable(checkpoint.folder)}: tokenizer.json has {what}")
    tokens = Tokens.padding(size)
    for token, text in texts.items():
        kind = TokenType.NORMAL
        if text == "\0" or re.fullmatch("<0x[0-9A-Fa-f]{2}>", text):
            kind = TokenType.BYTE
        elif token in tokenizer.added:
            kind = TokenType.CONTROL if token in special else TokenType.USER_DEFINED
        # The piece of one NUL would be the empty string to C; llama.cpp shows this instead.
        tokens.put(token, "<b'\\x00'>" if text == "\0" else text, 0.0, kind)
    yield from tokens.pairs("llama", "default", scores=False)
    yield from read_special(checkpoint, n_vocab=len(tokens)).pairs()


def phi3(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of a Phi-3 (SentencePiece) or Phi-4 (byte-level BPE).

    Raises
    ------
    NoTokenizer, CheckpointError : see `sentencepiece`.
    """
    settings = checkpoint.json("tokenizer_config.json") or {}
    if settings.get("tokenizer_class") == "GPT2Tokenizer":
        yield from bpe(checkpoint, config)
        return
    if not (checkpoint.folder / "tokenizer.model").is_file():
        yield from first_of(sentencepiece, bpe)(checkpoint, config)
        return
    tokens = read_model(checkpoint.folder / "tokenizer.model", config.get("vocab_size"))
    for text, token in added_tokens(checkpoint):
        tokens.put(token, text, ADDED_SCORE, TokenType.USER_DEFINED)
    for token, text, special in _declared(checkpoint):
        tokens.put(token, text, ADDED_SCORE, TokenType.CONTROL if special else TokenType.USER_DEFINED)
    yield from tokens.pairs("llama", "default")
    yield from read_special(checkpoint, n_vocab=len(tokens)).pairs()


_CHATGLM3 = (
    *("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
)


def chatglm3(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of a ChatGLM 3: SentencePiece, with the tokens behind it that only its code names.

    Raises
    ------
    NoTokenizer, CheckpointError : see `sentencepiece`.
    """
    path = model_of(checkpoint)
    pieces = len(read_model(path, None))
    tokens = read_model(path, config.get("padded_vocab_size", default=pieces + len(_CHATGLM3)))
    tokens.scores[pieces:] = [0.0] * (len(tokens) - pieces)
    tokens.texts[:3] = ["<unk>", "<bos>", "<eos>"]
    for number, text in enumerate(_CHATGLM3):
        tokens.put(pieces + number, text, 0.0, TokenType.CONTROL)
    yield from tokens.pairs("llama", "chatglm-spm")
    yield from read_special(checkpoint, n_vocab=len(tokens), by_text=False).pairs()


def arctic(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of an Arctic, which gave two pieces of its SentencePiece model another meaning.

    Raises
    ------
    NoTokenizer, CheckpointError : see `sentencepiece`.
    """
    tokens = read_model(model_of(checkpoint), config.get("vocab_size"))
    settings = checkpoint.json("tokenizer_config.json") or {}
    for token, text, special in _declared(checkpoint, tokenizer_json=False):
        unknown = TokenType.UNKNOWN if text == settings.get("unk_token") else TokenType.CONTROL
        tokens.put(token, text, 0.0 if special else PADDING_SCORE, unknown if special else TokenType.USER_DEFINED)
    yield from tokens.pairs("llama", "default")
    yield from read_special(checkpoint, n_vocab=len(tokens)).pairs()


def internlm2(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of an InternLM2; a chat model's texts end with <|im_end|>.

    Raises
    ------
    NoTokenizer, CheckpointError : see `sentencepiece`.
    """
    path = model_of(checkpoint)
    tokens = read_model(path, config.get("vocab_size"))
    for token, text in enumerate(tokens.texts):
        # The piece of one NUL would be the empty string to C; llama.cpp shows this instead.
        if text == "\0":
            tokens.texts[token] = "\U0001f409"
        if text.startswith("[UNUSED"):
            tokens.types[token] = TokenType.UNUSED
    for text, token in added_tokens(checkpoint):
        tokens.put(token, text, ADDED_SCORE, TokenType.USER_DEFINED)
    end = None
    for token, text, special in _declared(checkpoint):
        tokens.put(token, text, ADDED_SCORE, TokenType.CONTROL if special else TokenType.USER_DEFINED)
        if text == "<|im_end|>":
            end = token
    yield from tokens.pairs("llama", "default")
    yield "tokenizer.ggml.add_space_prefix", Value(ValueType.BOOL, read_settings(path).add_dummy_prefix)
    roles = read_special(checkpoint, n_vocab=len(tokens))
    if end is not None:
        roles.ids["eos"] = end
    yield from roles.pairs()


def internlm3(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of an InternLM3.

    Raises
    ------
    NoTokenizer, CheckpointError : see `sentencepiece`.
    """
    tokens = sentencepiece_tokens(checkpoint, config)
    yield from tokens.pairs("llama", "default")
    settings = checkpoint.json("tokenizer_config.json") or {}
    roles = read_special(checkpoint, n_vocab=len(tokens))
    if isinstance(prefix := settings.get("add_prefix_space"), bool):
        yield "tokenizer.ggml.add_space_prefix", Value(ValueType.BOOL, prefix)
    for token, text, special in _declared(checkpoint):
        if special and text == "<|im_end|>" and "eos" in roles.ids:
            roles.ids["eos"] = token
    yield from roles.pairs()


def _declared(checkpoint: Checkpoint, tokenizer_json: bool = True) -> Iterator[tuple[int, str, bool]]:
    """(id, text, special) of the added tokens of tokenizer_config.json, then of tokenizer.json."""
    decoder = (checkpoint.json("tokenizer_config.json") or {}).get("added_tokens_decoder") or {}
    added = (checkpoint.json("tokenizer.json") or {}).get("added_tokens") if tokenizer_json else []
    try:
        entries = [(int(token), entry) for token, entry in decoder.items()]
        entries += [(int(entry["id"]), entry) for entry in added or []]
        for token, entry in entries:
            if token < 0 or not isinstance(entry["content"], str):
                raise ValueError("a negative id or no text")
            yield token, entry["content"], bool(entry.get("special"))
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"{printable(checkpoint.folder)}: added tokens need an id and a content ({printable(e)})"
        ) from None
