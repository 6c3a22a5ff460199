r"""Characters as llama.cpp's tokenizers see them.

Pre-tokenizers are regular expressions over Unicode categories, which Python's `re` does not have. llama.cpp writes
the text anew with one sign for each category and the pattern to match, and so does this module:

    text       H e l l o ,   Ä p f e l   數 字   １ ２ ³
    collapsed  H e l l o ,   À p f e l   Á Á   Â Â Â         \p{L} → A-Za-zÀÁ   \p{N} → 0-9Â   …

ASCII stays what it is. White space beyond ASCII becomes a vertical tab, which `\s` matches.

Source: unicode.cpp and unicode-data.cpp of llama.cpp; the categories are Unicode 15.1's.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from bisect import bisect_right
from itertools import accumulate

from ggufkit.tokenizer.run.unicode_data import RUNS

__all__ = ["category", "collapse", "expand", "first_decomposed", "is_space", "lower", "utf8", "widen"]

# One sign for each category. Han letters and joiners are apart because two pre-tokenizers look at them.
LETTER, HAN_LETTER, NUMBER, MARK, PUNCTUATION, SYMBOL, JOINER, HAN_OTHER, OTHER = "ÀÁÂÃÄÅÆÇÈ"
_SIGNS = {"L": LETTER, "N": NUMBER, "M": MARK, "P": PUNCTUATION, "S": SYMBOL}

# \p{…} inside a bracket.
_CLASSES = {
    r"\p{L}": "A-Za-z" + LETTER + HAN_LETTER,
    r"\p{N}": "0-9" + NUMBER,
    r"\p{M}": MARK,
    r"\p{P}": r"!-#%-*,\-./:;?@\[\\\]_{}" + PUNCTUATION,
    r"\p{S}": r"$+<=>\^`|~" + SYMBOL,
    r"\p{Han}": HAN_LETTER + HAN_OTHER,
    r"\p{Joiner}": JOINER,
}

_SPACES = frozenset(
    [*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
)
# CJK ideographs, the extensions A to F and the compatibility ideographs: `unicode_cpt_is_han`.
_HAN = (
    range(0x3400, 0x4DC0),
    range(0x4E00, 0xA000),
    range(0xF900, 0xFB00),
    range(0x20000, 0x2A6E0),
    range(0x2A700, 0x2B740),
    range(0x2B740, 0x2EBF0),
    range(0x2F800, 0x2FA20),
)


@functools.cache
def _table() -> tuple[list[int], str]:
    """(first characters of the runs, their categories)."""
    runs = re.findall(r"([A-Z])([0-9a-f]*)", RUNS)
    starts = list(accumulate((int(n or "1", 16) for _, n in runs), initial=0))
    return starts[:-1], "".join(letter for letter, _ in runs)


def category(character: int) -> str:
    """L, N, M, P, S, Z, C or X (unassigned)."""
    starts, letters = _table()
    return letters[bisect_right(starts, character) - 1]


def is_space(character: int) -> bool:
    return character in _SPACES


def _sign(character: int) -> str:
    if character < 0x80:
        return chr(character)
    if character in _SPACES:
        return "\v"
    if character in (0x200C, 0x200D):
        return JOINER
    kind = category(character)
    if any(character in block for block in _HAN):
        return HAN_LETTER if kind == "L" else HAN_OTHER
    return _SIGNS.get(kind, OTHER)


class _Signs(dict[int, str]):
    """Signs for `str.translate`, found when first asked for."""

    def __missing__(self, character: int) -> str:
        sign = self[character] = _sign(character)
        return sign


_signs = _Signs()
_wide_spaces = {character: "\v" for character in _SPACES if character > 0x7F}


def collapse(text: str) -> str:
    """The text with one sign for each category; as long as the text."""
    return text if text.isascii() else text.translate(_signs)


def widen(text: str) -> str:
    """The text with vertical tabs for white space beyond ASCII: for patterns that name characters."""
    return text if text.isascii() else text.translate(_wide_spaces)


def expand(pattern: str) -> str:
    r"""A pattern over collapsed text: each \p{…}, which must be in a bracket, as the signs that it stands for."""
    for name, signs in _CLASSES.items():
        pattern = pattern.replace(name, signs)
    return pattern


def lower(character: int) -> int:
    """The lower-case character; itself where there is none, or none of one character."""
    if character == 0x130:  # LATIN CAPITAL LETTER I WITH DOT ABOVE
        return 0x69
    text = chr(character).lower()
    return ord(text) if len(text) == 1 and category(character) != "X" else character


def first_decomposed(character: int) -> int:
    """The first character of the canonical decomposition: the letter without its accents."""
    return ord(unicodedata.normalize("NFD", chr(character))[0]) if category(character) != "X" else character


def utf8(text: str) -> bytes:
    """The bytes of a text; those that were no UTF-8 when it was read (surrogate escapes) come back as they were."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return b"".join(
            c.encode("utf-8", "surrogateescape" if "\udc80" <= c <= "\udcff" else "surrogatepass") for c in text
        )
