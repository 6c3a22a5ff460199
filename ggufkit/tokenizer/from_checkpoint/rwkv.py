"""RWKV's World vocabulary: `rwkv_vocab_v20230424.txt`, a line a token.

    261 '\\n\\n' 2          id, a Python literal of text or of bytes, length in bytes
    65525 b'\\xff\\xfe' 2

A GGUF has each token's bytes as Python prints them, ``\\xff`` for those that are no ASCII, which the reader undoes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import resources

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, printable
from ggufkit.gguf.header import Value
from ggufkit.tokenizer.from_checkpoint.special import read_special
from ggufkit.tokenizer.from_checkpoint.tokens import NoTokenizer, Tokens, TokenType

__all__ = ["rwkv_world"]

_FILE = "rwkv_vocab_v20230424.txt"
_BLANK_LINE = 261  # "\n\n", at which the turn of a chat ends


def rwkv_world(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of an RWKV.

    Raises
    ------
    NoTokenizer : there is no rwkv_vocab_v20230424.txt.
    CheckpointError : it is malformed.
    """
    text = checkpoint.text(_FILE)
    if text is None:
        raise NoTokenizer(f"{printable(checkpoint.folder)} has no {_FILE}")
    texts = ["<s>", *(_shown(checkpoint, number, line) for number, line in enumerate(text.split("\n"), 1) if line)]
    size = config.get("vocab_size", default=1 << 16)
    tokens = Tokens.padding(size)
    if len(texts) > size:
        raise CheckpointError(
            f"{printable(checkpoint.folder)}/{_FILE} has {len(texts) - 1} tokens, config.json calls for {size}"
        )
    for token, shown in enumerate(texts):
        tokens.put(token, shown, 0.0, TokenType.NORMAL if token else TokenType.CONTROL)
    for key, value in tokens.pairs("rwkv", "", scores=False):
        if key != "tokenizer.ggml.pre":
            yield key, value
    special = read_special(checkpoint)
    special.templates.setdefault("default", _template())
    special.set("eot", _BLANK_LINE)
    special.ids |= {"bos": 0, "eos": 0}
    yield from special.pairs()


def _shown(checkpoint: Checkpoint, number: int, line: str) -> str:
    """A line's token as a GGUF has it."""
    where = f"{printable(checkpoint.folder)}/{_FILE}, line {number}"
    _, _, rest = line.partition(" ")
    literal, _, length = rest.rpartition(" ")
    try:
        value = ast.literal_eval(literal)
        data = value.encode() if isinstance(value, str) else value
        good = isinstance(data, bytes) and len(data) == int(length)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        good = False
    if not good:
        raise CheckpointError(f"{where}: {printable(line, 60)} is not a number, a text or bytes, and their length")
    return repr(data)[2:-1]


def _template() -> str:
    """llama.cpp's template for chats with a World model, which checkpoints come without.

    Source: models/templates/llama-cpp-rwkv-world.jinja of llama.cpp, MIT licence.
    """
    return (resources.files(__package__ or "") / "rwkv_world.jinja").read_text(encoding="utf-8")
