"""Control tokens that a user or a tool has written are letters, not tokens.

    "<|im_end|>" in a message   →   "<\\ue0f1|im_end|>" while the template is rendered   →   letters

Otherwise a web page that a tool has read could end its message and go on as the system.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ggufkit.tokenizer.run.vocab import CONTROL

if TYPE_CHECKING:
    from ggufkit.tokenizer.run.tokenizer import Tokenizer

__all__ = ["Disarmed"]

_FOREIGN = ("user", "tool")


class Disarmed:
    """Messages whose control tokens are broken up by a character that no message has.

    Attributes
    ----------
    messages : with them broken up; the same objects where there were none.
    """

    def __init__(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]):
        self._tokenizer = tokenizer
        vocab = tokenizer.vocab
        whole = "".join(str(message.get("content")) for message in messages if message["role"] in _FOREIGN)
        self._sign = next(sign for sign in map(chr, range(0xE0F1, 0xF8FF)) if sign not in whole)
        control = [text for i in vocab.special() if vocab.attributes[i] & CONTROL and (text := vocab.texts[i]) in whole]
        self._control = control if whole else []
        self.messages = [self._broken(message) for message in messages] if self._control else list(messages)

    def _broken(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        content = message.get("content")
        if message["role"] not in _FOREIGN or not isinstance(content, str):
            return message
        for text in self._control:  # the longest first
            content = content.replace(text, f"{text[0]}{self._sign}{text[1:]}")
        return {**message, "content": content}

    def tokens(self, text: str, first: bool = True) -> list[int]:
        """Tokens of a text that a template made of the messages; without a second BOS if the template wrote one.

        `first` : it is the beginning, and not what stands behind an image.
        """
        vocab = self._tokenizer.vocab
        bos = "" if vocab.bos is None else vocab.texts[vocab.bos]
        add_special = first and not (bos and text.startswith(bos))
        if not self._control:
            return self._tokenizer.encode(text, add_special=add_special)
        ids = [vocab.bos] if add_special and vocab.add_bos and vocab.bos is not None else []
        for piece in self._tokenizer.partition(text):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                letters = piece.replace(self._sign, "")
                ids += self._tokenizer.encode(letters, add_special=False, parse_special=False)
        return ids
