"""What users ask for on the command line: types, rules such as ``attn_q=Q8_0``, layers, metadata.

Every text comes with its `source`, the option or the place in a file that it stands in, for errors and reasons.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ggufkit.errors import CodecError, PolicyError, os_errors, printable
from ggufkit.formats.table import Format, format_by_name
from ggufkit.gguf.header import Value, ValueType
from ggufkit.policy.pattern import Pattern
from ggufkit.policy.recipe import UserRule
from ggufkit.policy.rules import Condition, Rule

__all__ = [
    "layer_numbers",
    "metadata_override",
    "name_condition",
    "target_format",
    "tensor_type_file",
    "tensor_type_rule",
    "text_of",
]

# Bytes. A list of a rule for each tensor of the largest models is far below.
_MAX_FILE = 4 << 20

# llama.cpp holds the text of an override in 128 bytes, the last of them NUL.
_MAX_TEXT = 127


def target_format(name: str, source: str) -> Format:
    """The format called `name`, one that weights can be encoded to.

    Raises
    ------
    PolicyError : there is none, or it is not for weights.
    """
    try:
        format = format_by_name(name)
    except CodecError as e:
        raise PolicyError(f"{source}: {e.message}") from None
    if not format.encodable or not (format.is_quantized or format.name in ("F32", "F16", "BF16")):
        raise PolicyError(f"{source}: weights cannot become {format.name}; see `ggufkit formats`")
    return format


def name_condition(pattern: str, source: str) -> Condition:
    """That a tensor's name contains what the regular expression `pattern` describes, in upper or lower case.

    Raises
    ------
    PolicyError : it is no regular expression.
    """
    try:
        regex = Pattern(pattern)
    except (re.error, RecursionError, OverflowError) as e:
        raise PolicyError(f"{source}: {printable(repr(pattern))} is no regular expression: {e}") from None
    except PolicyError as e:
        raise PolicyError(f"{source}: {printable(repr(pattern))}: {e}") from None
    return Condition("", lambda t, m: regex.search(t.name))


def tensor_type_rule(text: str, source: str) -> UserRule:
    """A rule written as ``REGEX=TYPE``.

    Raises
    ------
    PolicyError : it is malformed.
    """
    pattern, equals, name = text.partition("=")
    if not equals or not pattern or not name:
        raise PolicyError(f"{source}: {printable(repr(text))} is no REGEX=TYPE, such as attn_q=Q8_0")
    format = target_format(name, source)
    return UserRule(Rule(format.name, when=(name_condition(pattern, source),), why=source), source)


def tensor_type_file(path: str | os.PathLike[str]) -> Iterator[UserRule]:
    """The rules of a file of ``REGEX=TYPE``, separated by spaces or line ends.

    Raises
    ------
    FileError : it cannot be read.
    PolicyError : a rule is malformed.
    """
    for number, line in enumerate(text_of(path).splitlines(), 1):
        for text in line.split():
            yield tensor_type_rule(text, f"{printable(os.fspath(path))}:{number}: {printable(text)}")


def text_of(path: str | os.PathLike[str]) -> str:
    """The text of a small file of rules.

    Raises
    ------
    FileError : it cannot be read.
    PolicyError : it is no text, or far too large.
    """
    with os_errors(path, "read"), Path(path).open("rb") as file:
        data = file.read(_MAX_FILE + 1)
    shown = printable(os.fspath(path))
    if len(data) > _MAX_FILE:
        raise PolicyError(f"{shown} has more than {_MAX_FILE} bytes: no file of rules")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise PolicyError(f"{shown}:{line}: no UTF-8 text: byte {data[e.start]:#04x} (byte {e.start})") from None


def layer_numbers(text: str, source: str) -> tuple[int, ...]:
    """Numbers of layers, written as ``3,4,5``.

    Raises
    ------
    PolicyError : one is not a number.
    """
    numbers = set()
    for part in text.split(","):
        if not (part.strip().isascii() and part.strip().isdigit()):
            raise PolicyError(f"{source}: {printable(repr(part))} is not a number of a layer; write 3,4,5")
        numbers.add(int(part))
    return tuple(sorted(numbers))


def metadata_override(text: str, source: str) -> tuple[str, Value]:
    """A metadata pair written as ``KEY=TYPE:VALUE``, where TYPE is int, float, bool or str.

    An int is stored as uint32, as llama-quantize does.

    Raises
    ------
    PolicyError : it is malformed, or the value does not fit.

    Source: `string_parse_kv_override` in common/common.cpp of llama.cpp.
    """
    key, equals, rest = text.partition("=")
    kind, colon, value = rest.partition(":")
    if not (key and equals and colon):
        raise PolicyError(
            f"{source}: {printable(repr(text))} is no KEY=TYPE:VALUE, such as llama.context_length=int:8192"
        )
    try:
        if kind == "int" and 0 <= int(value) < 1 << 32:
            return key, Value(ValueType.UINT32, int(value))
        if kind == "float" and math.isfinite(float(value)):
            return key, Value(ValueType.FLOAT32, float(value))
    except (ValueError, OverflowError):
        pass
    if kind == "bool" and value in ("true", "false"):
        return key, Value(ValueType.BOOL, value == "true")
    if kind == "str" and len(value.encode("utf-8", "surrogateescape")) <= _MAX_TEXT:
        return key, Value(ValueType.STRING, value)
    limits = {
        "int": f"a whole number from 0 to {(1 << 32) - 1}",
        "float": "a finite number",
        "bool": "true or false",
        "str": f"a text of at most {_MAX_TEXT} bytes",
    }
    if kind not in limits:
        raise PolicyError(f"{source}: the type {printable(repr(kind))} is none of {', '.join(limits)}")
    raise PolicyError(f"{source}: {printable(repr(value))} is not {limits[kind]}")
