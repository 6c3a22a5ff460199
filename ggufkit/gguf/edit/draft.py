"""The header of a file as an edit changes it: keys, tensors, tokens. Nothing here touches the disk."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from ggufkit.errors import GGUFError, Hint, printable
from ggufkit.gguf.edit.tokens import TOKENS, find_token, special_key, token_span
from ggufkit.gguf.header import (
    MAX_NAME,
    Field,
    Header,
    TensorInfo,
    Value,
    ValueType,
    padded,
)
from ggufkit.gguf.shards import SPLIT_KEYS, SPLIT_NO, shard_count, sibling_names
from ggufkit.gguf.writer import as_value, check_name, encode_info, encode_pair, encode_string, with_alignment

__all__ = ["PAD", "Draft", "is_pad", "new_field"]

ARCHITECTURE = "general.architecture"

# The filler key. With this name an empty filler takes 31 bytes, less than an alignment of 32: a header that has become
# shorter can always be filled up to where it ended.
PAD = "ggufkit.pad"


def is_pad(key: str) -> bool:
    """Whether a key is spare room: `ggufkit.pad`, or a second one before large arrays."""
    return key == PAD or key.startswith(PAD + ".")


def new_field(key: str, value: Any, order: str = "<") -> Field:
    """A metadata pair that lies in bytes of its own.

    Raises
    ------
    GGUFError : the key is illegal, or the value does not fit its type.
    """
    data = encode_pair(key, value, order)
    kind, item_type, count = _typed(value)
    start = 8 + len(key.encode()) + 4 + (0 if item_type is None else 12)
    if item_type is not None:
        (count,) = struct.unpack_from(order + "Q", data, start - 8)
    return Field(key, kind, item_type, count, 0, start, len(data), data, order, "Q")


def _typed(value: Any) -> tuple[ValueType, ValueType | None, int]:
    typed = value if isinstance(value, Field) else as_value(value)
    return typed.type, typed.item_type, 1


class Draft:
    """A header that is being changed.

    Parameters
    ----------
    header : the header as it is.
    raw : its bytes, at least up to the end of the tensors' entries.
    name : the file, for messages.
    force : allow what most likely breaks the model: another type for a key, split.* keys, an architecture whose keys
        are missing, a token twice.

    Attributes
    ----------
    fields : the metadata pairs, in file order.
    tensors : name → the tensor's entry in the old header, in file order.
    """

    def __init__(self, header: Header, raw: bytes, name: str, force: bool = False):
        self.header, self.raw, self.name, self.force = header, raw, name, force
        self.order = "<" if header.byteorder == "little" else ">"
        self.fields: dict[str, Field] = dict(header.fields)
        self.tensors: dict[str, TensorInfo] = dict(header.tensors)

    def fail(self, message: str, hint: Hint | str | None = None) -> GGUFError:
        return GGUFError(message, self.name, hint=hint)

    # -- keys ---------------------------------------------------------------------------------------------

    def field(self, key: str) -> Field:
        """The pair of a key.

        Raises
        ------
        GGUFError : there is none; the message names similar keys.
        """
        if key not in self.fields:
            raise self.fail(f"there is no key {printable(key)}{similar(key, self.fields)}")
        return self.fields[key]

    def set(self, key: str, value: Any) -> None:
        """Give a key a value; a new key goes to the end.

        Parameters
        ----------
        value : a `Value`; or plain Python, which takes the type that the key has, a new key one as for `Writer`.

        Raises
        ------
        GGUFError : the value is not of the key's type, or does not fit it.
        """
        self._check_key(key)
        old = self.fields.get(key)
        if old is not None:
            value = self._as(old, value)
        self.fields[key] = new_field(key, value, self.order)

    def _as(self, old: Field, value: Any) -> Value | Field:
        if not isinstance(value, (Value, Field)):
            several = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0
            if (old.item_type is not None) != several:
                raise self.fail(
                    f"{printable(old.key)} is {old.describe()}, which {printable(repr(value), 60)} does not fit"
                )
            return Value(old.type, value, old.item_type)
        if (value.type, value.item_type) != (old.type, old.item_type) and not self.force:
            given = value.type.short if value.item_type is None else f"arr[{value.item_type.short}]"
            raise self.fail(
                f"{printable(old.key)} is of type {old.describe()}, not {given}; programs that read it expect that "
                "type",
                "{force=True} changes it",
            )
        return value

    def remove(self, key: str) -> None:
        """Remove a key."""
        self._check_key(key)
        self.field(key)
        if key == ARCHITECTURE and not self.force:
            raise self.fail(f"without {ARCHITECTURE} no program can load the model", "{force=True} removes it")
        del self.fields[key]

    def rename(self, old: str, new: str) -> None:
        """Give a key another name; it keeps its place and its value."""
        self._check_key(old)
        self._check_key(new)
        field = self.field(old)
        if new in self.fields:
            raise self.fail(f"there is a key {printable(new)} already")
        renamed = new_field(new, field, self.order)
        self.fields = {new if key == old else key: renamed if key == old else f for key, f in self.fields.items()}

    def _check_key(self, key: str) -> None:
        if is_pad(key):
            raise self.fail(
                f"{printable(key)} is spare room that edits use", "{spare=0} removes it, another number sets it"
            )
        if self.force or shard_count(self.header.fields) == 1:
            return
        if key in SPLIT_KEYS:
            raise self.fail(
                f"{printable(key)} says how the model is split",
                Hint("use split and merge", "go ahead with {force=True}"),
            )
        number = self.header.fields.get(SPLIT_NO)
        if number is not None and number.value:
            first = printable(sibling_names(self.name, self.header)[0])
            raise self.fail(
                "the metadata of a split model is in its first file",
                Hint(f"edit {first}", "go ahead with {force=True}"),
            )

    # -- tensors ------------------------------------------------------------------------------------------

    def tensor(self, name: str) -> TensorInfo:
        """The old entry of a tensor.

        Raises
        ------
        GGUFError : there is none; the message names similar tensors.
        """
        if name not in self.tensors:
            raise self.fail(f"there is no tensor {printable(name)}{similar(name, self.tensors)}")
        return self.tensors[name]

    def remove_tensor(self, name: str) -> None:
        """Remove a tensor and its data."""
        self.tensor(name)
        if shard_count(self.fields) > 1 and not self.force:
            raise self.fail(
                "this is a file of a split model, which counts its tensors",
                Hint("merge it first", "go ahead with {force=True}"),
            )
        del self.tensors[name]

    def rename_tensor(self, old: str, new: str) -> None:
        """Give a tensor another name."""
        self.tensor(old)
        check_name(new.encode("utf-8", "surrogatepass"), "the tensor name", MAX_NAME - 1)
        if new in self.tensors:
            raise self.fail(f"there is a tensor {printable(new)} already")
        self.tensors = {new if name == old else name: info for name, info in self.tensors.items()}

    # -- tokens -------------------------------------------------------------------------------------------

    def set_token(self, number: int, text: str | bytes) -> None:
        """Change the text of a token.

        Raises
        ------
        GGUFError : there is no such token, or another one has this text.
        """
        self._check_key(TOKENS)
        field = self._vocabulary()
        if not 0 <= number < field.count:
            raise self.fail(f"there is no token {number}: the vocabulary has {field.count}, the first is 0")
        twins = [twin for twin in find_token(field, text) if twin != number]
        if twins and not self.force:
            raise self.fail(
                f"the text {printable(repr(text), 60)} is that of token {twins[0]} already: llama.cpp does not load a "
                "vocabulary with twins",
                "{force=True} writes it",
            )
        lo, hi = token_span(field, number)
        before, after = field._buffer[field.offset : lo], field._buffer[hi : field.end]
        data = b"".join([before, encode_string(text, self.order), after])
        self.fields[TOKENS] = dataclasses.replace(
            field, offset=0, start=field.start - field.offset, end=len(data), _buffer=data
        )

    def set_special(self, name: str, token: int | str) -> None:
        """Say which token is the beginning, the end, …

        Parameters
        ----------
        name : ``bos``, ``eos``, ``eot``, ``pad``, ``unk``, ``fim_pre``, … (see `tokens.SPECIAL`)
        token : its number, or its text.

        Raises
        ------
        GGUFError : there is no such name or token, or several tokens have this text.
        """
        key = special_key(name)
        field = self._vocabulary()
        if isinstance(token, str):
            found = find_token(field, token)
            if len(found) != 1:
                which = f"tokens {', '.join(map(str, found[:5]))} have" if found else "no token has"
                raise self.fail(f"{which} the text {printable(repr(token), 60)}; give the number of one")
            (token,) = found
        if not 0 <= token < field.count:
            raise self.fail(f"there is no token {token}: the vocabulary has {field.count}, the first is 0")
        old = self.fields.get(key)
        self.set(key, token if old is not None else Value(ValueType.UINT32, token))

    def _vocabulary(self) -> Field:
        field = self.field(TOKENS)
        if field.item_type is not ValueType.STRING:
            raise self.fail(f"{TOKENS} is {field.describe()}, not an array of strings")
        return field

    # -- the result ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse a result that no program would load.

        Raises
        ------
        GGUFError : see `Draft.force`; a `general.alignment` that is none.
        """
        self.alignment()
        if self.force:
            return
        if shard_count(self.fields) != shard_count(self.header.fields):
            raise self.fail("the model would be one of several files, which are not there", "{force=True} writes it")
        architecture = self.fields.get(ARCHITECTURE)
        if architecture is None or architecture is self.header.fields.get(ARCHITECTURE):
            return
        if architecture.type is not ValueType.STRING:
            raise self.fail(f"{ARCHITECTURE} must be of type str, not {architecture.describe()}")
        prefix = architecture.value + "."
        before = self.header.fields.get(ARCHITECTURE)
        had = before is not None and any(key.startswith(f"{before.value}.") for key in self.header.fields)
        if had and not any(key.startswith(prefix) for key in self.fields):
            raise self.fail(
                f"{ARCHITECTURE} would be {printable(architecture.value)}, but there is no key that starts with "
                f"{printable(prefix)}: no program would load the model",
                "{force=True} writes it",
            )

    def alignment(self) -> int:
        """The alignment of the data."""
        return with_alignment(self.fields, None)[0]

    def same_layout(self) -> bool:
        """Whether each tensor's data stays where it is in the data section."""
        same_tensors = list(self.tensors.values()) == list(self.header.tensors.values())
        return same_tensors and self.alignment() == self.header.alignment

    def offsets(self) -> list[int]:
        """Where each tensor's data starts in the data section."""
        found, offset, alignment = [], 0, self.alignment()
        for info in self.tensors.values():
            found.append(offset)
            offset += padded(info.nbytes, alignment)
        return found

    def encode(self, fields: Mapping[str, Field] | None = None, size: int = 0) -> bytes:
        """The header's bytes with other `fields` than the draft's, and zeros at the end up to `size` bytes."""
        fields = self.fields if fields is None else fields
        counts = struct.pack(self.order + "QQ", len(self.tensors), len(fields))
        pairs = (field.encoded for field in fields.values())
        parts: list[bytes | memoryview] = [self.raw[:8], counts, *pairs, *self._infos()]
        return b"".join([*parts, bytes(max(0, size - sum(map(len, parts))))])

    def length(self, fields: Mapping[str, Field] | None = None) -> int:
        """Bytes of the header without zeros at the end."""
        fields = self.fields if fields is None else fields
        return 8 + 16 + sum(len(field.encoded) for field in fields.values()) + sum(map(len, self._infos()))

    def _infos(self) -> list[bytes]:
        if not self.tensors:
            return []
        if list(self.tensors) == list(self.header.tensors) and self.same_layout():
            first = next(iter(self.tensors.values()))
            return [self.raw[first.at : self.header.end]]
        return [
            encode_info(dataclasses.replace(info, name=name, offset=offset), self.order)
            for (name, info), offset in zip(self.tensors.items(), self.offsets(), strict=True)
        ]


def similar(name: str, names: Iterable[str]) -> str:
    """A hint at the names that look like a wrong one: "; did you mean …?", or nothing."""
    from difflib import get_close_matches

    near = get_close_matches(name, names, n=3)
    if not near:  # general.nam finds general.name above; "template" finds the key that holds it
        near = [other for other in names if name and name.lower() in other.lower()][:3]
    return f"; did you mean {' or '.join(map(printable, near))}?" if near else ""
