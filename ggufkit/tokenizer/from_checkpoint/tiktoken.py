"""Vocabularies in tiktoken's files: Qwen's of its first generation, HunYuan's, Kimi's.

The files have the ordinary tokens. The special ones behind them are in the code that came with each checkpoint, or in
tokenizer_config.json; the text splits as one of llama.cpp's pre-tokenizers does, which the file's name tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.gguf.header import Value
from ggufkit.tokenizer.from_checkpoint.ranks import Ranks, merges_of, read_ranks, spelled
from ggufkit.tokenizer.from_checkpoint.special import SpecialTokens, read_special
from ggufkit.tokenizer.from_checkpoint.tokens import Tokens, TokenType

__all__ = ["hunyuan_ranks", "kimi", "kimi_linear", "qwen"]

_EXTRAS = tuple(f"<|extra_{number}|>" for number in range(205))
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *_EXTRAS)
_HUNYUAN = ("<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>", *_EXTRAS)
_RESERVED = 256  # of Kimi


def qwen(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of a Qwen of the first generation, from qwen.tiktoken.

    Raises
    ------
    NoTokenizer : there is none.
    CheckpointError : it is malformed.
    """
    ranks = read_ranks(checkpoint, "qwen.tiktoken")
    special = _numbered(ranks, _QWEN)
    yield from _tokens(checkpoint, config, ranks, special, "qwen2")
    roles = read_special(checkpoint, by_text=False)
    roles.merges = merges_of(ranks)
    end = special["<|endoftext|>"]
    if not roles.ids:
        roles.ids |= {"bos": end, "eos": end}
    roles.ids.setdefault("unk", end)
    yield from roles.pairs()


def hunyuan_ranks(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of a HunYuan mixture of experts, from hy.tiktoken.

    Raises
    ------
    NoTokenizer, CheckpointError : see `qwen`.
    """
    ranks = read_ranks(checkpoint, "hy.tiktoken")
    special = _numbered(ranks, _HUNYUAN)
    yield from _tokens(checkpoint, config, ranks, special, "hunyuan")
    roles = read_special(checkpoint, by_text=False)
    roles.merges = merges_of(ranks, strict=False)
    roles.ids["bos"] = special["<|bos|>"]  # config.json names another
    yield from roles.pairs()


def kimi(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of a Kimi, from tiktoken.model.

    Raises
    ------
    NoTokenizer, CheckpointError : see `qwen`.
    """
    pairs, roles, _ = _kimi(checkpoint, config)
    yield from pairs
    yield from roles.pairs()


def kimi_linear(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """As `kimi`, where tokenizer_config.json's end of text wins over config.json's.

    Raises
    ------
    NoTokenizer, CheckpointError : see `qwen`.
    """
    pairs, roles, special = _kimi(checkpoint, config)
    yield from pairs
    end = (checkpoint.json("tokenizer_config.json") or {}).get("eos_token")
    text = end.get("content") if isinstance(end, dict) else end
    if isinstance(text, str) and text in special:
        roles.ids["eos"] = special[text]
    yield from roles.pairs()


def _kimi(checkpoint: Checkpoint, config: Config) -> tuple[list[tuple[str, Value]], SpecialTokens, Mapping[str, int]]:
    ranks = read_ranks(checkpoint, "tiktoken.model")
    declared = (checkpoint.json("tokenizer_config.json") or {}).get("added_tokens_decoder") or {}
    texts = {}
    for token in range(len(ranks), len(ranks) + _RESERVED):
        entry = declared.get(str(token)) if isinstance(declared, dict) else None
        text = entry.get("content") if isinstance(entry, dict) else None
        texts[text if isinstance(text, str) else f"<|reserved_token_{token}|>"] = token
    pairs = list(_tokens(checkpoint, config, ranks, texts, "kimi-k2"))
    roles = read_special(checkpoint, by_text=False)
    roles.merges = merges_of(ranks, strict=False)
    return pairs, roles, texts


def _numbered(ranks: Ranks, texts: tuple[str, ...]) -> dict[str, int]:
    """Special tokens, text → id, right behind the ordinary ones."""
    return {text: len(ranks) + number for number, text in enumerate(texts)}


def _tokens(
    checkpoint: Checkpoint, config: Config, ranks: Ranks, special: Mapping[str, int], pre: str
) -> Iterator[tuple[str, Value]]:
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CheckpointError(f"{printable(checkpoint.folder)}: the tokens' ranks are not 0 to {len(ranks) - 1}")
    tokens = Tokens.padding(config.integer("vocab_size"))
    for token, rank in ranks.items():
        tokens.put(rank, spelled(token), 0.0, TokenType.NORMAL)
    for text, number in special.items():
        tokens.put(number, text, 0.0, TokenType.CONTROL)
    yield from tokens.pairs("gpt2", checkpoint.pre_tokenizer or pre, scores=False)
