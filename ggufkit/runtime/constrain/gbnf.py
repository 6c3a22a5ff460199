r"""GBNF, llama.cpp's language of grammars, in llguidance's dialect of Lark.

    root  ::= "yes" | no+ [.!]?        start: "y" "e" "s" | r0+ /[.!]/?
    no    ::= "no" ws                  r0: "n" "o" r1
    ws    ::= " "*                     r1: " "*

GBNF knows characters only, so each one becomes a terminal of its own: a terminal of several would be matched greedily,
and `[a-z]* "abc"` could then never be left.

Source: grammars/README.md and src/llama-grammar.cpp (`llama_grammar_parser`) of llama.cpp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ggufkit.errors import UsageError, printable

__all__ = ["MAX_REPETITIONS", "is_gbnf", "lark_of"]

MAX_REPETITIONS = 2000  # llama.cpp's, of an item
_DEPTH = 100  # of parentheses

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_ESCAPE = re.compile(r"""\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([nrt\\"\[\]-]))""")
_SIMPLE = {"n": "\n", "r": "\r", "t": "\t"}
_TOKEN = re.compile(r"(!?)<(\[[0-9]{1,9}\]|[^<>\[\]\s]{1,100})>")
_REPEAT = re.compile(r"\{[ \t]*([0-9]{1,9})[ \t]*(,?)[ \t]*([0-9]{0,9})[ \t]*\}")


def is_gbnf(text: str) -> bool:
    """Whether a grammar is GBNF, and not Lark."""
    return re.search(r"^[ \t]*[A-Za-z0-9_-]+[ \t]*::=", text, re.MULTILINE) is not None


def lark_of(text: str) -> str:
    """A GBNF grammar as Lark.

    Raises
    ------
    UsageError : it is no GBNF; the message says in which line.
    """
    return _Parser(text).grammar()


@dataclass
class _Parser:
    text: str
    at: int = 0
    rules: dict[str, str] = field(default_factory=dict)  # name → what it is in Lark
    used: dict[str, int] = field(default_factory=dict)  # name → where it was used first

    def grammar(self) -> str:
        self.skip(lines=True)
        while self.at < len(self.text):
            self.rule()
            self.skip(lines=True)
        if "root" not in self.rules:
            raise UsageError("the grammar has no rule called root, with which it would begin")
        for name, at in self.used.items():
            if name not in self.rules:
                raise self.fail(f"there is no rule called {printable(name)}", at)
        return "".join(f"{self.named(name)}: {body}\n" for name, body in self.rules.items())

    def named(self, name: str) -> str:
        """A rule's name in Lark, where it may have letters and underscores only."""
        return "start" if name == "root" else f"r_{name.encode().hex()}"

    def rule(self) -> None:
        start = self.at
        name = self.name()
        self.skip()
        if not self.text.startswith("::=", self.at):
            raise self.fail(f"::= should follow the name {printable(name)}")
        self.at += 3
        self.skip(lines=True)
        if name in self.rules:
            raise self.fail(f"there are two rules called {printable(name)}", start)
        self.rules[name] = self.alternatives(0)
        self.skip()
        if self.at < len(self.text) and self.text[self.at] not in "\r\n":
            raise self.fail("a rule should end here")

    def name(self) -> str:
        match = _NAME.match(self.text, self.at)
        if match is None:
            raise self.fail("the name of a rule should be here")
        self.at = match.end()
        return match[0]

    def alternatives(self, depth: int) -> str:
        found = [self.sequence(depth)]
        while self.text.startswith("|", self.at):
            self.at += 1
            self.skip(lines=True)
            found.append(self.sequence(depth))
        return " | ".join(found)

    def sequence(self, depth: int) -> str:
        items: list[str] = []
        while self.at < len(self.text):
            sign = self.text[self.at]
            if sign == '"':
                item = self.literal()
            elif sign == "[":
                item = self.characters()
            elif sign == "(":
                item = self.group(depth)
            elif sign == ".":
                self.at += 1
                item = r"/(?s:.)/"
            elif sign in "!<":
                item = self.token()
            elif _NAME.match(sign):
                at = self.at
                name = self.name()
                self.used.setdefault(name, at)
                item = self.named(name)
            else:
                break
            self.skip(lines=depth > 0)
            items.append(self.repeated(item))
            self.skip(lines=depth > 0)
        return " ".join(items) or '""'

    def group(self, depth: int) -> str:
        if depth == _DEPTH:
            raise self.fail(f"there are more than {_DEPTH} parentheses in each other")
        start = self.at
        self.at += 1
        self.skip(lines=True)
        inner = self.alternatives(depth + 1)
        if not self.text.startswith(")", self.at):
            raise self.fail("this parenthesis is not closed", start)
        self.at += 1
        return f"({inner})"

    def repeated(self, item: str) -> str:
        sign = self.text[self.at : self.at + 1]
        if sign and sign in "*+?":
            self.at += 1
            return f"({item}){sign}"
        if sign != "{":
            return item
        match = _REPEAT.match(self.text, self.at)
        if match is None:
            raise self.fail("a repetition is {n}, {n,} or {n,m}")
        least = int(match[1])
        most = int(match[3]) if match[3] else None if match[2] else least
        if max(least, most or 0) > MAX_REPETITIONS or (most is not None and most < least):
            raise self.fail(f"a repetition goes from the smaller number to the greater, at most {MAX_REPETITIONS}")
        self.at = match.end()
        return f"({item}){{{least},{'' if most is None else most}}}"

    def literal(self) -> str:
        start = self.at
        self.at += 1
        signs: list[str] = []
        while not self.text.startswith('"', self.at):
            signs.append(_regex(self.character(start)))
        self.at += 1
        return " ".join(f"/{sign}/" for sign in signs) or '""'

    def token(self) -> str:
        """``<[1000]>``, ``!<[1000]>`` or ``<think>``: a token by its number or its text, or any other."""
        match = _TOKEN.match(self.text, self.at)
        if match is None:
            raise self.fail("a token is <[its number]> or <its text>")
        if match[1] and not match[2].startswith("["):
            raise self.fail("a token that may not come is given by its number: !<[1000]>")
        self.at = match.end()
        return f"<[^{match[2][1:]}>" if match[1] else f"<{match[2]}>"

    def characters(self) -> str:
        """``[^a-z\\]]`` as a regular expression."""
        start = self.at
        self.at += 1
        negated = self.text.startswith("^", self.at)
        self.at += negated
        ranges: list[str] = []
        while not self.text.startswith("]", self.at):
            first = last = self.character(start)
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                last = self.character(start)
            if last < first:
                raise self.fail("a range of characters goes backwards", start)
            ranges.append(f"{_regex(first)}-{_regex(last)}")
        self.at += 1
        if not ranges:
            raise self.fail("there is no character in these brackets", start)
        return f"/[{'^' if negated else ''}{''.join(ranges)}]/"

    def character(self, start: int) -> int:
        """The code of the next character of what began at `start`."""
        if self.at >= len(self.text) or self.text[self.at] in "\r\n":
            raise self.fail("this is not closed in its line", start)
        if self.text[self.at] != "\\":
            self.at += 1
            return ord(self.text[self.at - 1])
        match = _ESCAPE.match(self.text, self.at)
        if match is None:
            raise self.fail("this is no escape of GBNF")
        self.at = match.end()
        digits = match[1] or match[2] or match[3]
        if digits is None:
            return ord(_SIMPLE.get(match[4], match[4]))
        code = int(digits, 16)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise self.fail(f"U+{code:X} is no character", match.start())
        return code

    def skip(self, lines: bool = False) -> None:
        match = (_SPACE_AND_LINES if lines else _SPACE).match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def fail(self, what: str, at: int | None = None) -> UsageError:
        at = self.at if at is None else at
        line = self.text.count("\n", 0, at) + 1
        column = at - self.text.rfind("\n", 0, at)
        near = printable(self.text[at : at + 20] or "the end")
        return UsageError(f"the grammar cannot be read at line {line}, column {column} ({near}): {what}")


def _regex(code: int) -> str:
    """A character as a regular expression between slashes has it."""
    sign = chr(code)
    return sign if sign.isascii() and sign.isalnum() else f"\\x{{{code:x}}}"
