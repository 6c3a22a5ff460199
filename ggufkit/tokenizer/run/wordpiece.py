"""BERT's WordPiece: words at white space and punctuation, then the longest tokens from the left.

    "Häuser."  →  hauser .  →  ▁hauser ▁.  →  ▁haus er ▁.     one part without a token: the word is unknown

GGUF files write a word's start as U+2581 and the parts that follow as they are, without BERT's ##.

Source: `llm_tokenizer_wpm_session` of llama-vocab.cpp.
"""

from __future__ import annotations

from itertools import chain

from ggufkit.tokenizer.run.bpe import without_escapes
from ggufkit.tokenizer.run.merge import remembered
from ggufkit.tokenizer.run.spm import SPACE, sentencepiece_piece
from ggufkit.tokenizer.run.unicode import category, first_decomposed, is_space, lower
from ggufkit.tokenizer.run.vocab import Vocab

__all__ = ["WordPiece"]

# Ideographs are words of their own. 0x2B920 should be 0x2B820, but Hugging Face's tokenizers have it, too.
_IDEOGRAPHS = (
    range(0x3400, 0x4DC0),
    range(0x4E00, 0xA000),
    range(0xF900, 0xFB00),
    range(0x20000, 0x2A6E0),
    range(0x2A700, 0x2B740),
    range(0x2B740, 0x2B820),
    range(0x2B920, 0x2CEB0),
    range(0x2F800, 0x2FA20),
)


class WordPiece:
    """The tokenizer of a WordPiece vocabulary."""

    def __init__(self, vocab: Vocab):
        self.vocab = vocab
        self.ids = vocab.ids
        self.longest = max(map(len, vocab.texts))
        self.word = remembered(self._word)
        self.normal = _Normal(vocab.lowercase, vocab.strip_accents)

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Token ids of a text without special tokens."""
        if not text.isascii():
            text = without_escapes(text)
        words = text.translate(self.normal).split(" ")
        return list(chain.from_iterable(map(self.word, filter(None, words))))

    def _word(self, word: str) -> tuple[int, ...]:
        word, at, tokens = SPACE + word, 0, []
        while at < len(word):
            for end in range(min(len(word), at + self.longest), at, -1):
                if (token := self.ids.get(word[at:end])) is not None:
                    break
            else:
                return () if self.vocab.unk is None else (self.vocab.unk,)
            tokens.append(token)
            at = end
        return tuple(tokens)

    def piece(self, token: int) -> bytes:
        return sentencepiece_piece(self.vocab, token)


class _Normal(dict[int, str]):
    """Characters normalized, for `str.translate`, found when first asked for.

    White space is " ", and there are spaces around what is a word of its own.
    """

    def __init__(self, lowercase: bool, strip_accents: bool):
        self.lowercase, self.strip_accents = lowercase, strip_accents

    def __missing__(self, character: int) -> str:
        text = self[character] = self._normal(character)
        return text

    def _normal(self, code: int) -> str:
        if self.strip_accents:
            code = first_decomposed(code)
        if is_space(code):
            return " "
        kind = category(code)
        if code in (0, 0xFFFD) or kind == "C" or (self.strip_accents and kind == "M"):
            return ""
        alone = kind == "P" or (code < 0x7F and kind == "S") or any(code in block for block in _IDEOGRAPHS)
        text = chr(lower(code) if self.lowercase else code)
        return f" {text} " if alone else text
