"""Where a changed header fits: over the old one, or in a new file.

    │ pairs … │ ggufkit.pad "room …" │ pairs … │ tensors │ 0…0 │ data
                                                         ↑     ↑
                                              header.end ┘     └ limit: the old header's room ends here

In place the new header ends in the same last step before the limit, a step being the alignment: `gguf_init` expects the
data at the next multiple of it. Best is an end at the same byte, made by a filler that gives or takes the difference:
then what follows the filler stays as it is, and little is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ggufkit.errors import UsageError
from ggufkit.gguf.edit.draft import PAD, Draft, is_pad, new_field
from ggufkit.gguf.edit.undo import Move
from ggufkit.gguf.header import Field, Limits, Value, ValueType, padded

__all__ = ["Layout", "changed_ranges", "lay_out"]

_OVERHEAD = 8 + len(PAD) + 4 + 8  # bytes of an empty filler
_MAX_SPARE = 16 << 20
_CONTENT = b"room for later edits"  # then spaces: what people find who look into it with other tools
# A second filler goes before the first pair of this size: then a longer `general.name` does not move the vocabulary.
_LARGE = 16 << 10
_FRONT = PAD + ".front"
# Blocks of the file systems that can share them between files (reflink).
_BLOCK = 4096


@dataclass(frozen=True)
class Layout:
    """How an edited file looks.

    Attributes
    ----------
    header : its bytes up to the data section.
    size : bytes of the whole file.
    moves : the data that it takes from the old file, as (from, to, bytes); None when all stays in its place.
    ranges : in place, what changes of the header, as (start, end).
    whole : the moves take everything that the old file has, so that they can be turned round.
    """

    header: bytes
    size: int
    moves: list[Move] | None
    ranges: tuple[tuple[int, int], ...] = ()
    whole: bool = True


def lay_out(draft: Draft, size: int, spare: int | None, rewrite: bool = False) -> Layout:
    """Find the place of a changed header.

    Parameters
    ----------
    size : bytes of the old file.
    spare : bytes of room that the file shall have for later edits; None keeps what there is.
    rewrite : the file is written anew anyway.

    Raises
    ------
    UsageError : `spare` is too large.
    GGUFError : the header would be larger than readers allow.
    """
    if spare is not None and not 0 <= spare <= _MAX_SPARE:
        raise UsageError(f"the spare room is {spare} bytes, the limit is {_MAX_SPARE}")
    if (length := draft.length() + 2 * (spare or 0)) > Limits().header:
        raise draft.fail(f"the header would have {length} bytes, the limit is {Limits().header}")
    limit, step = room(draft, size)
    if draft.same_layout():
        fields = _in_place(draft, limit, step)
        if fields is not None and _has_spare(fields, spare):
            header = draft.encode(fields, limit)
            if rewrite:
                return Layout(header, size, [(limit, limit, size - limit)])
            return Layout(header, size, None, tuple(changed_ranges(draft.raw, header)))
    return _new_file(draft, size, limit, step, spare)


def room(draft: Draft, size: int) -> tuple[int, int]:
    """(limit, step) of the old header: it must end in `limit - step < end <= limit`.

    A file without tensors ends with its header, padded by llama.cpp and not by gguf-py.
    """
    header = draft.header
    if header.tensors:
        return header.data_offset, header.alignment
    if size == padded(header.end, header.alignment):
        return size, header.alignment
    return header.end, 1


def _in_place(draft: Draft, limit: int, step: int) -> Mapping[str, Field] | None:
    """The pairs so that the changed header fits where the old one was; None when it does not."""
    pads = _pads(draft.fields)
    length = draft.length()
    grown = length - draft.header.end
    if grown == 0:
        return draft.fields
    if givers := [key for key, n in pads.items() if n >= grown]:
        # Of several fillers the one that lets the most bytes stay where they are.
        best = min(givers, key=lambda key: _moved(draft, key))
        return _with_pads(draft, {best: pads[best] - grown})
    if limit - step < length <= limit:
        return draft.fields
    return _one_filler(draft, limit, step)


def _moved(draft: Draft, pad: str) -> int:
    """Bytes that change, or move, when a filler gives or takes room: from the first change or filler to the last."""
    old = draft.header.fields
    touched = [i for i, (key, f) in enumerate(draft.fields.items()) if key == pad or f is not old.get(key)]
    return sum(len(field.encoded) for field in list(draft.fields.values())[touched[0] : touched[-1]])


def _one_filler(draft: Draft, limit: int, step: int) -> Mapping[str, Field] | None:
    """All fillers made one, which takes what the pairs leave; before the pairs that are as they were."""
    rest = {key: field for key, field in draft.fields.items() if not is_pad(key)}
    length = draft.length(rest)
    if limit - step < length <= limit:
        return rest
    for end in (draft.header.end, limit):
        if end - length >= _OVERHEAD:
            tail = _common_tail(list(draft.header.fields.values()), list(rest.values()))
            return _insert(draft, rest, len(rest) - tail, PAD, end - length - _OVERHEAD)
    return None


def _new_file(draft: Draft, size: int, limit: int, step: int, spare: int | None) -> Layout:
    alignment = draft.alignment()
    fields = _with_rooms(draft, spare)
    end = draft.length(fields)
    same = draft.same_layout()
    if same and _pads(fields) and draft.tensors:
        # A distance of whole blocks lets the file system share the data instead of copying it.
        last = list(_pads(fields))[-1]
        more = (limit - padded(end, alignment)) % _BLOCK
        fields = _with_pads(draft, {last: _pads(fields)[last] + more}, fields)
    header = draft.encode(fields, padded(draft.length(fields), alignment if draft.tensors or step > 1 else 1))
    if same:
        return Layout(header, len(header) + size - limit, [(limit, len(header), size - limit)])
    moves, data_size = [], 0
    for info, offset in zip(draft.tensors.values(), draft.offsets(), strict=True):
        if info.nbytes:
            moves.append((limit + info.offset, len(header) + offset, info.nbytes))
        data_size = padded(offset + info.nbytes, alignment)
    if rest := max(0, size - draft.header.data_end):
        moves.append((draft.header.data_end, len(header) + data_size, rest))
    whole = len(draft.tensors) == len(draft.header.tensors)
    return Layout(header, len(header) + data_size + rest, moves, whole=whole)


# -- fillers ----------------------------------------------------------------------------------------------


def _pads(fields: Mapping[str, Field]) -> dict[str, int]:
    """Filler → bytes of room in it."""
    return {key: f.end - f.start - 8 for key, f in fields.items() if is_pad(key) and f.type is ValueType.STRING}


def _has_spare(fields: Mapping[str, Field], spare: int | None) -> bool:
    pads = _pads(fields)
    if spare is None:
        return True
    return bool(pads) and min(pads.values()) >= spare if spare else not pads


def _pad(draft: Draft, key: str, n: int) -> Field:
    return new_field(key, Value(ValueType.STRING, _CONTENT.ljust(n)[:n]), draft.order)


def _with_pads(draft: Draft, pads: Mapping[str, int], fields: Mapping[str, Field] | None = None) -> dict[str, Field]:
    """The pairs with other sizes of fillers."""
    fields = draft.fields if fields is None else fields
    return {key: _pad(draft, key, pads[key]) if key in pads else field for key, field in fields.items()}


def _insert(draft: Draft, fields: Mapping[str, Field], at: int, key: str, n: int) -> dict[str, Field]:
    pairs = list(fields.items())
    return dict([*pairs[:at], (key, _pad(draft, key, n)), *pairs[at:]])


def _with_rooms(draft: Draft, spare: int | None) -> dict[str, Field]:
    """The pairs with the fillers of a new file: what is asked for, or what the old file had."""
    if spare is None:
        return _with_pads(draft, _pads(draft.header.fields))
    fields = {key: field for key, field in draft.fields.items() if not is_pad(key)}
    if not spare:
        return fields
    large = [i for i, field in enumerate(fields.values()) if len(field.encoded) > _LARGE]
    fields = _insert(draft, fields, len(fields), PAD, spare)
    return _insert(draft, fields, large[0], _FRONT, spare) if large and large[0] else fields


def _common_tail(old: list[Field], new: list[Field]) -> int:
    """How many pairs at the end are the same ones."""
    n = 0
    while n < min(len(old), len(new)) and old[-1 - n] is new[-1 - n]:
        n += 1
    return n


# -- what changed -----------------------------------------------------------------------------------------


def changed_ranges(old: bytes, new: bytes) -> list[tuple[int, int]]:
    """Where two headers of one length differ, as (start, end): the ends exact, small gaps bridged."""
    found: list[tuple[int, int]] = []
    for at in range(0, len(new), _BLOCK):
        a, b = old[at : at + _BLOCK], new[at : at + _BLOCK]
        if a == b:
            continue
        lo = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        hi = next(i for i in range(len(b), 0, -1) if a[i - 1] != b[i - 1])
        if found and at + lo - found[-1][1] < _BLOCK // 4:
            found[-1] = (found[-1][0], at + hi)
        else:
            found.append((at + lo, at + hi))
    return found
