r"""Pre-tokenizers: how a text is cut into the words that byte-pair merges may not leave.

A GGUF file names its pre-tokenizer (`tokenizer.ggml.pre`); llama.cpp has the patterns as code, and so has this table.
A pre-tokenizer is a row of patterns. Each cuts every piece that the one before left, and what it does not match is a
piece as well:

    "ab 1234"  --  \p{N}{1,3}  -->  "ab " "123" "4"  --  | ?[\p{L}]+ …  -->  "ab" " " "123" "4"

Patterns with \p{…} see the text collapsed (see `unicode`), the others see it as it is.

Source: `llm_tokenizer_bpe` and the choice by name in llama-vocab.cpp, `unicode_regex_split` in unicode.cpp.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

from ggufkit.tokenizer.run.unicode import collapse, expand, widen

__all__ = ["PRE_TOKENIZERS", "PreTokenizer", "Splitter"]

# -- what the patterns are made of ---------------------------------------------------------------------------

SUFFIX = r"'(?:s|t|re|ve|m|ll|d)"  # of English: 's, 't, 're, …
ANY_SUFFIX = rf"(?i:{SUFFIX})"
LINES = r"\s*[\r\n]+"
SPACES = r"\s+(?!\S)|\s+"  # the last space of a run goes with the word that follows
WORD = r"[^\r\n\p{L}\p{N}]?[\p{L}]+"
OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"

GPT2 = rf"{SUFFIX}| ?[\p{{L}}]+| ?[\p{{N}}]+| ?[^\s\p{{L}}\p{{N}}]+|{SPACES}"
DIGIT, DIGITS3 = r"[\p{N}]", r"[\p{N}]{1,3}"
LLAMA3 = rf"{ANY_SUFFIX}|{WORD}|{DIGITS3}|{OTHERS}|{LINES}|{SPACES}"
QWEN2 = rf"{ANY_SUFFIX}|{WORD}|{DIGIT}|{OTHERS}|{LINES}|{SPACES}"

# Words in which a lower-case letter is not followed by a capital: "camelCase" → "camel" "Case". To llama.cpp each
# letter beyond ASCII is both.
UPPER, LOWER = expand(r"[\p{L}]").replace("a-z", ""), expand(r"[\p{L}]").replace("A-Z", "")
UPPER_MARK, LOWER_MARK = UPPER[:-1] + r"\p{M}]", LOWER[:-1] + r"\p{M}]"


def cased(upper: str, lower: str, suffix: str = f"(?:{ANY_SUFFIX})?") -> str:
    first = r"[^\r\n\p{L}\p{N}]?"
    return f"{first}{upper}*{lower}+{suffix}|{first}{upper}+{lower}*{suffix}"


OTHERS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
GPT4O_REST = f"{OTHERS_SLASH}|{LINES}|{SPACES}"
ANY_CASE = cased(r"[\p{L}\p{M}]", r"[\p{L}\p{M}]")

DEEPSEEK_CJK = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
DEEPSEEK_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
DEEPSEEK3 = rf"{DEEPSEEK_WORD}[\r\n]*|{LINES}|{SPACES}"
# Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee, … letters with case.
DEEPSEEK_LETTERS = (
    r"\s?[A-Za-z"
    r"\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    r"\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    r"\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    r"\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    r"\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    r"\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    r"\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    r"\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    r"\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    r"\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
    r"]+"
)
DEEPSEEK_OLD_CJK = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
AFMOE_ASIAN = (
    r"[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff"
    r"\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
YOUTU_CJK = (
    r"[\uac00-\ud7a3\u3131-\u318e]+"
    r"|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    r"|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
)
# Runs of anything but white space and sentence punctuation, of several scripts.
BLOOM = r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
# Groups of three digits from the right; what precedes a number stays with its first group. A match starts where the
# last one ended or at the beginning, which spares the search from every other character.
GROUPED_DIGITS = r"(?<=[\p{N}])[\p{N}]{3}|(?:\A|(?<=[\p{N}]))[^\p{N}]*[\p{N}]{1,3}(?=(?:[\p{N}]{3})*(?![\p{N}]))"
# Before every third digit, counted from a number's end. It is cut by `_thousands`, for as a pattern it looks through
# the rest of the number at each digit.
THOUSANDS = r"(?=(?:\d{3})+(?!\d))"
KIMI_LETTER = expand(r"(?:(?![\p{Han}])[\p{L}])")
FALCON_PUNCTUATION = r"[\p{P}$+<=>\^~|`]+"
NEWLINES = r"[^\n]+|\n+"


@dataclass(frozen=True)
class PreTokenizer:
    """A row of patterns, and what the name decides besides.

    Attributes
    ----------
    patterns : regular expressions, applied one after the other.
    byte_encode : the vocabulary is over bytes in GPT-2's alphabet; else over UTF-8 with byte tokens.
    ignore_merges : a word that is a token is that token, whatever the merges say.
    add_bos, add_sep, clean_spaces : defaults for a file that does not say.
    escape_spaces : spaces become U+2581 first.
    gemma : a run of newlines that is a token is that token, and BOS is added whatever the file says.
    no_default_bos : there is no BOS unless the file names one.
    """

    patterns: tuple[str, ...]
    byte_encode: bool = True
    ignore_merges: bool = False
    add_bos: bool = False
    add_sep: bool = False
    clean_spaces: bool = False
    escape_spaces: bool = False
    gemma: bool = False
    no_default_bos: bool = False


def _table() -> dict[str, PreTokenizer]:
    rows: dict[str, PreTokenizer] = {}

    def row(names: str, *patterns: str, **settings: bool) -> None:
        for name in names.split():
            rows[name] = PreTokenizer(patterns, **settings)

    row(
        "default",
        r"[\p{P}$+<=>\^~|]+",
        GPT2,
        r"[\p{N}]+",
        "[0-9][0-9][0-9]",
        clean_spaces=True,
    )
    row(
        "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert mpt olmo jais exaone4",
        GPT2,
        clean_spaces=True,
    )
    row("jina-v1-en jina-v2-code roberta-bpe", GPT2, clean_spaces=True, add_sep=True)
    row("trillion granite-docling", GPT2)
    row("starcoder refact codeshell exaone minerva-7b mellum2", DIGIT, GPT2, clean_spaces=True)
    row("command-r smollm", DIGIT, GPT2)
    row("falcon", FALCON_PUNCTUATION, GPT2, "[0-9][0-9][0-9]", clean_spaces=True)
    row(
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        LLAMA3,
        ignore_merges=True,
        add_bos=True,
        clean_spaces=True,
    )
    row("dbrx smaug-bpe", LLAMA3, clean_spaces=True)
    row("glm4 chatglm-bpe", LLAMA3, clean_spaces=True, no_default_bos=True)
    row(
        "jais-2",
        rf"{ANY_SUFFIX}|{WORD}|{DIGITS3}|{OTHERS}|{LINES}|"
        + "|".join(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
        + r"|\s",
        clean_spaces=True,
    )
    row("qwen2 deepseek-r1-qwen kormo f2llmv2 hunyuan solar-open grok-2", QWEN2)
    row("stablelm2 megrez", QWEN2, clean_spaces=True)
    row(
        "qwen35",
        rf"{ANY_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|{DIGIT}"
        rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{LINES}|{SPACES}",
    )
    row("ufakzeka", rf"{WORD}|{DIGIT}|{OTHERS}|{LINES}|{SPACES}")
    row("laguna", NEWLINES, QWEN2)
    row("seed-coder", rf"{ANY_SUFFIX}|{WORD}|{DIGIT}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{LINES}|{SPACES}")
    row("bailingmoe bailingmoe2 llada-moe", rf"{ANY_SUFFIX}|{WORD}|{DIGIT}|{OTHERS}|\s*[\r\n]|{SPACES}")
    row("minicpm5", DIGITS3, LLAMA3.replace(DIGITS3, r"[\p{N}]+"), ignore_merges=True, clean_spaces=True)
    row(
        "exaone-moe",
        rf"{ANY_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?(?:[\p{{L}}][\p{{M}}]*(?: [\p{{L}}][\p{{M}}]*)*)+|{DIGIT}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{SPACES}",
        clean_spaces=True,
    )
    row(
        "k2-horizon",
        rf"{ANY_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}\p{{Joiner}}]+|{DIGITS3}|{OTHERS}|{LINES}|{SPACES}",
    )
    row("tekken", rf"{cased(UPPER, LOWER, '')}|{DIGIT}|{GPT4O_REST}", ignore_merges=True, add_bos=True)
    row("gpt-4o llama4 kanana2 talkie minimax-m2", rf"{cased(UPPER, LOWER)}|{DIGITS3}|{GPT4O_REST}")
    row("granite-embed-multi-97m", rf"{cased(UPPER_MARK, LOWER_MARK)}|{DIGITS3}|{GPT4O_REST}", ignore_merges=True)
    row("tiny_aya cohere2moe", GROUPED_DIGITS, rf"{ANY_CASE}|{DIGITS3}|{GPT4O_REST}")
    row("youtu", YOUTU_CJK, rf"{ANY_CASE}|{DIGIT}|{GPT4O_REST}", ignore_merges=True)
    row(
        "kimi-k2",
        rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}\p{{Han}}]?{KIMI_LETTER}+(?:{ANY_SUFFIX})?"
        rf"|{DIGITS3}|{OTHERS}|{LINES}|{SPACES}",
    )
    row("superbpe", r"[\p{N}]+", THOUSANDS)
    row("deepseek-v3 hunyuan-dense joyai-llm hy_v4", DIGITS3, DEEPSEEK_CJK, DEEPSEEK3)
    row("spark2_5", DIGITS3, DEEPSEEK_CJK, rf"{DEEPSEEK_WORD}|[\r\n]|{SPACES}", DIGIT)
    row(
        "deepseek-llm",
        r"[\r\n]",
        DEEPSEEK_LETTERS,
        r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"(?<!\s)\s+\Z",
        DEEPSEEK_OLD_CJK,
        r"[\p{N}]+",
    )
    row("deepseek-coder", r"[\r\n]", r"\s?[\p{L}]+", r"\s?[\p{P}]+", DEEPSEEK_OLD_CJK, DIGIT)
    row("poro-chat", BLOOM)
    row("bloom gpt3-finnish", BLOOM, clean_spaces=True)
    row("viking", BLOOM, DIGIT)
    row(
        "chameleon",
        "<sentinel:[0-9]+>",
        "IMGIMG[A-I]{1,4}Z",
        r"[\t\n]|    |  ",
        DIGIT,
        r"[\p{P}!-/:-@\[-`{-~]",
        GPT2,
        add_bos=True,
    )
    row("afmoe", GROUPED_DIGITS, AFMOE_ASIAN, DEEPSEEK3)
    row(
        "gemma4 granite-embed-multi-311m",
        NEWLINES,
        byte_encode=False,
        escape_spaces=True,
        gemma=True,
        clean_spaces=True,
    )
    row("sarvam-moe", NEWLINES, byte_encode=False, escape_spaces=True)
    return rows


# name in `tokenizer.ggml.pre` → its patterns.
PRE_TOKENIZERS = _table()


class Splitter:
    """Cuts texts as a pre-tokenizer does: `Splitter(PRE_TOKENIZERS["gpt-2"])("Hello world")`."""

    def __init__(self, pre: PreTokenizer):
        self._steps = [_compiled(pattern) for pattern in pre.patterns]

    def __call__(self, text: str) -> list[str]:
        if text.isascii():  # both views are the text itself
            words = [text]
            for _, pieces in self._steps:
                words = [word for part in words for word in pieces(part) if word]
            return words
        lengths = [len(text)]
        for view, pieces in self._steps:
            lengths = [n for part in _cut(view(text), lengths) for n in map(len, pieces(part)) if n]
        return _cut(text, lengths)


@functools.cache
def _compiled(pattern: str) -> tuple[Callable[[str], str], Callable[[str], list[str]]]:
    """(how the pattern sees a text, what cuts a text into matches and what is between them)."""
    if pattern == THOUSANDS:
        return widen, _thousands
    collapsed = expand(pattern)
    # The one group makes `split` return the matches as well.
    return (widen if collapsed == pattern and "\\p" not in pattern else collapse), re.compile(
        f"({collapsed})", re.ASCII
    ).split


def _thousands(text: str) -> list[str]:
    places = [at for run in re.finditer("[0-9]+", text) for at in range(run.start() + len(run[0]) % 3, run.end(), 3)]
    return [text[start:end] for start, end in pairwise((0, *places, len(text)))]


def _cut(text: str, lengths: Iterable[int]) -> list[str]:
    ends = accumulate(lengths)
    return [text[at : at + n] for at, n in zip(chain((0,), ends), lengths, strict=False)]
