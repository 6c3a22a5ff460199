"""`Tokenizer`: texts to token ids and back, whatever the kind of the vocabulary."""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from ggufkit.errors import UsageError
from ggufkit.tokenizer.run.special import Specials
from ggufkit.tokenizer.run.unicode import utf8
from ggufkit.tokenizer.run.vocab import CONTROL, UNKNOWN, USER_DEFINED, Vocab, read_vocab

if TYPE_CHECKING:
    from ggufkit.gguf.reader import GGUF

__all__ = ["Stream", "Tokenizer", "load_tokenizer"]


class Kind(Protocol):
    """What the kinds of tokenizers do: texts without special tokens, and the bytes of ordinary tokens."""

    def encode(self, text: str, first: bool = True) -> list[int]: ...

    def piece(self, token: int) -> bytes: ...


def load_tokenizer(model: GGUF) -> Tokenizer:
    """The tokenizer of an open GGUF file.

    Raises
    ------
    GGUFError : the file has none, or one that is not supported.
    """
    return Tokenizer(read_vocab(model))


def _kind(vocab: Vocab) -> Kind:
    if vocab.kind == "bpe":
        from ggufkit.tokenizer.run.bpe import BytePairs

        return BytePairs(vocab)
    if vocab.kind == "wordpiece":
        from ggufkit.tokenizer.run.wordpiece import WordPiece

        return WordPiece(vocab)
    if vocab.kind == "unigram":
        from ggufkit.tokenizer.run.unigram import Unigram

        return Unigram(vocab)
    if vocab.kind == "rwkv":
        from ggufkit.tokenizer.run.rwkv import Rwkv

        return Rwkv(vocab)
    if vocab.kind in ("plamo2", "plamo3"):
        from ggufkit.tokenizer.run.plamo import Plamo

        return Plamo(vocab)
    from ggufkit.tokenizer.run.spm import SentencePiece

    return SentencePiece(vocab)


class Tokenizer:
    """Texts to token ids and back, as `llama_tokenize` and `llama_detokenize` do.

    Attributes
    ----------
    vocab : tokens, special ids and settings.
    """

    def __init__(self, vocab: Vocab):
        self.vocab = vocab
        self._kind = _kind(vocab)
        self._specials = Specials(vocab)

    def __len__(self) -> int:
        return len(self.vocab)

    @functools.cached_property
    def breakers(self) -> frozenset[int]:
        """Tokens over which DRY looks for no repetition: with llama.cpp's line end, colon, quote or star in them."""
        sign = re.compile('[\n\u010a:"*]|<0x0A>')  # \u010a: the line end of byte-level BPE
        return frozenset(i for i, text in enumerate(self.vocab.texts) if sign.search(text))

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True, first: bool = True) -> list[int]:
        """Token ids of a text.

        Parameters
        ----------
        text : bytes that are no UTF-8 may be in it as surrogate escapes.
        add_special : put BOS, EOS and separator where the vocabulary wants them.
        parse_special : read control tokens in the text (``<|im_start|>``) as what they are, not as letters.
        first : the text begins here, and does not go on with another: SentencePiece puts a space before it then.
        """
        vocab = self.vocab
        ids: list[int] = []
        if add_special and vocab.bos is not None and (vocab.add_bos or vocab.kind == "wordpiece"):
            ids.append(vocab.bos)
        for part in self._specials.partition(text, parse_special):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._kind.encode(part, first)
            first = isinstance(part, int)
        if add_special:
            if vocab.kind == "wordpiece":
                ids += [] if vocab.sep is None else [vocab.sep]
            elif vocab.add_eos and vocab.eos is not None:
                ids.append(vocab.eos)
        return ids

    def partition(self, text: str) -> list[str | int]:
        """A text as pieces without special tokens, none empty, and ids of those between them."""
        return self._specials.partition(text, True)

    def piece(self, token: int, special: bool | Collection[int] = False) -> bytes:
        """The bytes of one token, maybe a part of a character; of control tokens none unless `special`, or in it."""
        if not 0 <= token < len(self.vocab):
            raise UsageError(f"token {token} is not in the vocabulary of {len(self.vocab)} tokens")
        attribute = self.vocab.attributes[token]
        if attribute & (UNKNOWN | CONTROL):
            shown = special if isinstance(special, bool) else token in special
            return utf8(self.vocab.texts[token]) if shown else b""
        if attribute & USER_DEFINED:
            return utf8(self.vocab.texts[token])
        return self._kind.piece(token)

    def decode_bytes(self, ids: Sequence[int], remove_special: bool = False, special: bool = False) -> bytes:
        """The bytes of a sequence of tokens.

        Parameters
        ----------
        remove_special : leave out the BOS and EOS that `encode` added.
        special : show control tokens.
        """
        vocab = self.vocab
        ids = list(ids)
        strip = vocab.add_space_prefix  # `encode` put that space there
        if remove_special and vocab.add_bos and ids and ids[0] == vocab.bos:
            strip = False
            del ids[0]
        if remove_special and vocab.add_eos and ids and ids[-1] == vocab.eos:
            del ids[-1]
        pieces = [self.piece(token, special) for token in ids]
        if strip and pieces:
            pieces[0] = pieces[0].removeprefix(b" ")
        data = b"".join(pieces)
        return clean_spaces(data) if vocab.clean_spaces else data

    def decode(self, ids: Sequence[int], remove_special: bool = True, special: bool = False) -> str:
        """The text of a sequence of tokens; bytes that make no character become U+FFFD."""
        data = self.decode_bytes(ids, remove_special, special)
        if remove_special and self.vocab.add_space_prefix and ids and ids[0] == self.vocab.bos:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def stream(self, special: bool | Collection[int] = False) -> Stream:
        """A decoder for tokens that come one after the other."""
        return Stream(self, special)


class Stream:
    """Tokens to text as they come. A character whose bytes are spread over tokens is held back until it is whole."""

    def __init__(self, tokenizer: Tokenizer, special: bool | Collection[int] = False):
        self._tokenizer, self._special = tokenizer, special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, tokens: Iterable[int]) -> str:
        """The text that the tokens complete."""
        return "".join(self._decoder.decode(self._tokenizer.piece(token, self._special)) for token in tokens)

    def close(self) -> str:
        """What is left: U+FFFD if a character was never completed."""
        return self._decoder.decode(b"", final=True)


def clean_spaces(data: bytes) -> bytes:
    """Without the spaces that tokenizers put before punctuation, around a lone apostrophe and before 's, 'm, 're, 've.

    Source: `llama_vocab::impl::detokenize`.
    """
    data = re.sub(rb" (?=[?!.,])", b"", data)
    data = re.sub(rb" ' ", b"'", data)
    return re.sub(rb" (?='(?:s|m|re|ve))", b"", data)
