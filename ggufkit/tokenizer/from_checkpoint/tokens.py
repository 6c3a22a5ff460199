"""What the kinds of vocabularies share: token types, the lists over token ids, the choice among kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, FileError, printable
from ggufkit.gguf.header import Value, ValueType

__all__ = [
    "ADDED_SCORE",
    "PADDING_SCORE",
    "NoTokenizer",
    "TokenType",
    "Tokens",
    "Vocabulary",
    "first_of",
    "looks_special",
    "none",
    "word_start_to_space",
]

# A checkpoint's `tokenizer.*` metadata.
Vocabulary = Callable[[Checkpoint, Config], Iterable[tuple[str, Value]]]


class NoTokenizer(FileError):
    """The checkpoint has no tokenizer of the kind."""


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`. Source: `enum llama_token_type`, llama.h."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Dozens of times those of the largest vocabularies.
_MAX_TOKENS = 1 << 24

# Scores that llama.cpp's converter gives to tokens without one.
PADDING_SCORE, ADDED_SCORE = -10000.0, -1000.0


@dataclass
class Tokens:
    """A vocabulary under construction: parallel lists over the token ids."""

    texts: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[TokenType] = field(default_factory=list)

    @classmethod
    def padding(cls, size: int) -> Tokens:
        if type(size) is not int or not 0 <= size <= _MAX_TOKENS:
            raise CheckpointError(
                f"config.json: 'vocab_size' must be a number of at most {_MAX_TOKENS}, not {printable(repr(size))}"
            )
        return cls([f"[PAD{i}]" for i in range(size)], [PADDING_SCORE] * size, [TokenType.UNUSED] * size)

    def __len__(self) -> int:
        return len(self.texts)

    def put(self, token: int, text: str, score: float, kind: TokenType) -> None:
        """Set a token; ids beyond the model's vocabulary have no embedding and are left out."""
        if token < len(self.texts):
            self.texts[token], self.scores[token], self.types[token] = text, score, kind

    def pairs(self, model: str, pre: str, scores: bool = True) -> Iterator[tuple[str, Value]]:
        """Typed metadata; vocabularies with merges do without scores."""
        yield "tokenizer.ggml.model", Value(ValueType.STRING, model)
        yield "tokenizer.ggml.pre", Value(ValueType.STRING, pre)
        yield "tokenizer.ggml.tokens", Value(ValueType.ARRAY, self.texts, ValueType.STRING)
        if scores:
            yield "tokenizer.ggml.scores", Value(ValueType.ARRAY, self.scores, ValueType.FLOAT32)
        yield "tokenizer.ggml.token_type", Value(ValueType.ARRAY, [int(t) for t in self.types], ValueType.INT32)


def first_of(*vocabularies: Vocabulary) -> Vocabulary:
    """The first of several kinds whose files a checkpoint has."""

    def first(checkpoint: Checkpoint, config: Config) -> Iterable[tuple[str, Value]]:
        reasons = []
        for vocabulary in vocabularies:
            try:
                return list(vocabulary(checkpoint, config))
            except NoTokenizer as e:
                reasons.append(str(e))
        folder = f"{printable(checkpoint.folder)} "
        raise NoTokenizer(folder + ", and ".join(reason.removeprefix(folder) for reason in reasons))

    return first


def none(checkpoint: Checkpoint, config: Config) -> Iterable[tuple[str, Value]]:
    """The vocabulary of a model without one."""
    return [("tokenizer.ggml.model", Value(ValueType.STRING, "none"))]


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
