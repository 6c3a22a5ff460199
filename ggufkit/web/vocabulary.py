"""A vocabulary for a page that lists its tokens, and cuts texts into them as one types.

Merges are a third of a header. Nearly all make a token out of two others, so of each only the token's number and where
it is cut are kept, as differences: of a vocabulary of 262,144 that is a megabyte.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from ggufkit.tokenizer.run.pre import ANY_SUFFIX, THOUSANDS
from ggufkit.tokenizer.run.unicode import expand
from ggufkit.tokenizer.run.vocab import CONTROL, LSTRIP, RSTRIP, UNKNOWN, USER_DEFINED, Vocab

__all__ = ["javascript_patterns", "vocabulary_of"]

_CHARACTERS = 12 << 20  # of all tokens: beyond it they are cut, and texts are not tokenized
_TOKEN = 200  # of one token, then
_NAMES = ("bos", "eos", "eot", "eom", "unk", "sep", "pad", "mask")


def vocabulary_of(vocab: Vocab) -> dict[str, Any]:
    """Tokens, their kinds and scores, special ones, and what it takes to tokenize."""
    specials = {name: token for name in (*_NAMES, *vocab.fill_in) if (token := _special(vocab, name)) is not None}
    found: dict[str, Any] = {
        "kind": vocab.kind,
        "texts": vocab.texts,
        "attributes": [a & (CONTROL | UNKNOWN | USER_DEFINED | LSTRIP | RSTRIP | 2 | 4 | 32) for a in vocab.attributes],
        "specials": specials,
        "ends": sorted(vocab.ends),
    }
    if sum(map(len, vocab.texts)) > _CHARACTERS:
        return {**found, "texts": [text[:_TOKEN] for text in vocab.texts], "untokenized": "its tokens are too long"}
    before = [vocab.bos] if vocab.bos is not None and (vocab.add_bos or vocab.kind == "wordpiece") else []
    last = vocab.sep if vocab.kind == "wordpiece" else vocab.eos if vocab.add_eos else None
    found |= {"before": before, "after": [] if last is None else [last]}
    if vocab.kind == "wordpiece":
        return {**found, "lowercase": vocab.lowercase, "strip_accents": vocab.strip_accents}
    if vocab.kind in ("spm", "unigram"):
        return {
            **found,
            "scores": list(vocab.scores),
            "prefix": vocab.add_space_prefix,
            "spaces": vocab.escape_spaces,
            "squeeze": vocab.remove_extra_spaces,
            "rules": base64.b64encode(vocab.charsmap).decode(),
        }
    if vocab.kind != "bpe":
        return {**found, "untokenized": "the page has no tokenizer of this kind"}
    pre = vocab.pre
    return {
        **found,
        **_merges(vocab),
        "patterns": javascript_patterns(pre.patterns),
        "letters": pre.byte_encode,
        "whole": pre.ignore_merges,
        "newlines": pre.gemma,
        "spaces": vocab.escape_spaces,
    }


def _special(vocab: Vocab, name: str) -> int | None:
    token: int | None = vocab.fill_in[name] if name in vocab.fill_in else getattr(vocab, name, None)
    return token


def _merges(vocab: Vocab) -> dict[str, Any]:
    """Of each merge, in their order, the token that it makes (as a difference) and the characters of its left part.

    What makes no token, or has a space of its own, is kept as it is: rank → pair.
    """
    tokens: list[int] = []
    cuts: list[int] = []
    odd: dict[int, str] = {}
    last = 0
    for rank, pair in enumerate(vocab.merges):
        left, glue, right = pair.partition(" ")
        token = vocab.ids.get(left + right)
        if not glue or " " in right or token is None:
            odd[rank] = pair
            token, left = last, ""
        tokens.append(token - last)
        cuts.append(len(left))
        last = token
    return {"merged": tokens, "cuts": cuts, "odd": odd}


# Python's patterns, over signs for categories, in JavaScript's words.
_ESCAPES = {r"\A": "^", r"\Z": "$"}
_ESCAPE = re.compile(r"\\(U([0-9a-fA-F]{8})|.)", re.DOTALL)


def javascript_patterns(patterns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Each pattern as a regular expression of JavaScript (flags "gu"), and how it sees a text: see `pre`."""
    found = []
    for pattern in patterns:
        if pattern == THOUSANDS:
            found.append({"source": "", "view": "thousands"})
            continue
        expanded = expand(pattern)
        view = "wide" if expanded == pattern and "\\p" not in pattern else "signs"
        source = expanded.replace(ANY_SUFFIX, r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])")
        found.append({"source": _ESCAPE.sub(_escape, _ascii_classes(source)), "view": view})
    return found


def _escape(match: re.Match[str]) -> str:
    if match[2]:
        return f"\\u{{{int(match[2], 16):x}}}"
    if match[0] in _ESCAPES:
        return _ESCAPES[match[0]]
    kept = match[1] in "^$\\.*+?()[]{}|/-" or match[1].isalnum()
    return match[0] if kept else match[1]


def _ascii_classes(source: str) -> str:
    r"""\s, \S and \d as Python's re.ASCII has them."""
    blank = r" \t\n\r\f\v"
    words = {r"\s": (f"[{blank}]", blank), r"\S": (f"[^{blank}]", r"\S"), r"\d": ("[0-9]", "0-9")}
    inside = False
    out = []
    for piece in re.findall(r"\\.|.", source, re.DOTALL):
        if piece in ("[", "]"):
            inside = piece == "[" or (inside and piece != "]")
        out.append(words[piece][inside] if piece in words else piece)
    return "".join(out)
