"""Tokens in a header: where one lies, which has a text, and what the special ones are called."""

from __future__ import annotations

import struct

from ggufkit.errors import GGUFError, printable
from ggufkit.gguf.header import Field
from ggufkit.gguf.writer import encode_string

__all__ = ["SPECIAL", "TOKENS", "find_token", "special_key", "token_span"]

TOKENS = "tokenizer.ggml.tokens"

# name → key. The first are gguf-py's names, "seperator" is the key's own spelling; then the usual short ones.
# Source: LLM_KV_TOKENIZER_* in src/llama-arch.cpp of llama.cpp.
SPECIAL = {
    name: f"tokenizer.ggml.{name}_token_id"
    for name in (
        *("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "cls", "mask"),
        *("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle"),
    )
}
SPECIAL |= {
    short: SPECIAL[name]
    for short, name in {"unk": "unknown", "sep": "seperator", "separator": "seperator", "pad": "padding"}.items()
}


def special_key(name: str) -> str:
    """The key that holds the number of a special token.

    Raises
    ------
    GGUFError : no special token is called so.
    """
    if name not in SPECIAL:
        from difflib import get_close_matches

        near = get_close_matches(name, SPECIAL, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join(SPECIAL)}"
        raise GGUFError(f"no special token is called {printable(name)}; {hint}")
    return SPECIAL[name]


def token_span(field: Field, number: int) -> tuple[int, int]:
    """The bytes of a token, its length included: lo:hi of the field's buffer."""
    length = struct.Struct(field._order + field._length)
    at = field.start
    for _ in range(number):
        at += length.size + length.unpack_from(field._buffer, at)[0]
    return at, at + length.size + length.unpack_from(field._buffer, at)[0]


def find_token(field: Field, text: str | bytes) -> list[int]:
    """The numbers of the tokens with a text."""
    # A search for the bytes, length first, is quick; only when it finds some are the tokens walked one by one,
    # because the same bytes may also lie across two tokens.
    wanted = encode_string(text, field._order)
    if field._buffer.find(wanted, field.start, field.end) < 0:
        return []
    raw = wanted[8:]
    return [i for i, token in enumerate(field.strings()) if token == raw]
