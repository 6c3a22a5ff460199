"""The GGML block formats, one row each.

A format packs `block_size` consecutive weights of a row into `type_size` bytes. The bytes, and the NumPy record type
of a block, come from the row's layout string: fields in file order, `name:` then an optional count and a NumPy type
code (`f2` half, `u1` byte, …), little-endian and without padding.

    Q4_K   12   256   "d:f2 dmin:f2 scales:12u1 qs:128u1"
    name   id   weights per block, and the 144 bytes that hold them

This module needs nothing but the standard library, so that looking into a file stays quick. The code that
encodes and decodes a format lives in its family's file beside this one and is reached through `codec`.

Source: ggml/include/ggml.h (ids), ggml/src/ggml-common.h (layouts) of llama.cpp.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ggufkit.errors import CodecError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BY_ID", "FORMATS", "Format", "format_by_id", "format_by_name", "formats"]


_BY_NAME: dict[str, Format] = {}


@dataclass(frozen=True, eq=False)
class Format:
    """One GGML tensor type: one object for each name, pickled ones included, so that they are compared, and found in
    caches, by identity.

    Attributes
    ----------
    name : GGML's spelling, e.g. ``"Q4_K"``.
    id : the number in the file (`enum ggml_type`).
    block_size : weights per block.
    layout : the block's fields.
    family : the file in `ggufkit.formats` with its kernels.
    fallback : the format for rows whose length is not a multiple of `block_size`, or None.
    needs_importance : cannot be encoded without importance weights.
    encodable : False for types that only live in memory (activations).
    swap : the numbers that a big-endian file stores the other way round, where C code reads several bytes of
        `layout` as one number; None: those of `layout`.
    """

    name: str
    id: int
    block_size: int
    layout: str
    family: str
    fallback: str | None = None
    needs_importance: bool = False
    encodable: bool = True
    swap: str | None = None

    def __new__(cls, name: str, *fields: object, **named: object) -> Format:
        return _BY_NAME.setdefault(name, super().__new__(cls))

    def __reduce__(self) -> tuple[type[Format], tuple[object, ...]]:
        return Format, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    @cached_property
    def fields(self) -> tuple[tuple[str, int, str], ...]:
        """The block's fields in order: (name, count, NumPy type code)."""
        return _parsed(self.layout)

    @cached_property
    def type_size(self) -> int:
        """Bytes per block."""
        return sum(count * int(code[1]) for _, count, code in self.fields)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.type_size / self.block_size

    @property
    def is_quantized(self) -> bool:
        """True for block formats, False for plain numbers."""
        return self.family != "scalar"

    @cached_property
    def dtype(self) -> np.dtype:
        """NumPy record type of one block, `type_size` bytes."""
        return _dtype(self.fields)

    @cached_property
    def swap_dtype(self) -> np.dtype:
        """NumPy record type whose numbers change between the byte orders, `type_size` bytes."""
        return self.dtype if self.swap is None else _dtype(_parsed(self.swap))

    def row_bytes(self, cols: int, what: str = "") -> int:
        """Bytes of a row of `cols` weights. what: how an error begins.

        Raises
        ------
        CodecError : `cols` is not a multiple of the block size.
        """
        blocks, rest = divmod(cols, self.block_size)
        if rest:
            fits = self.fallback is not None and cols % FORMATS[self.fallback].block_size == 0
            raise CodecError(
                f"{what}a row of {cols} weights cannot be {self.name}: the length must be a multiple of "
                f"{self.block_size}; use {self.fallback if fits else 'F16'}"
            )
        return blocks * self.type_size

    def __repr__(self) -> str:
        return f"<Format {self.name}>"


# Of each 8 bytes the first four are indices, the others one number of signs and scale.
_IQ2_XXS = "d:f2 " + " ".join(f"grid{i}:4u1 gas{i}:u4" for i in range(8))


def _parsed(layout: str) -> tuple[tuple[str, int, str], ...]:
    parsed = []
    for field in layout.split():
        name, code = field.split(":")
        parsed.append((name, int(code[:-2] or 1), code[-2:]))
    return tuple(parsed)


def _dtype(fields: tuple[tuple[str, int, str], ...]) -> np.dtype:
    import numpy as np

    return np.dtype([(name, "<" + code, (n,)) if n > 1 else (name, "<" + code) for name, n, code in fields])


def _rows() -> Iterator[Format]:
    scalar, legacy, kquants, iquants = "scalar", "legacy", "kquants", "iquants"
    ternary, microscale = "ternary", "microscale"

    yield Format("F32", 0, 1, "x:f4", scalar)
    yield Format("F16", 1, 1, "x:f2", scalar)
    yield Format("Q4_0", 2, 32, "d:f2 qs:16u1", legacy)
    yield Format("Q4_1", 3, 32, "d:f2 m:f2 qs:16u1", legacy)
    yield Format("Q5_0", 6, 32, "d:f2 qh:4u1 qs:16u1", legacy, swap="d:f2 qh:u4 qs:16u1")
    yield Format("Q5_1", 7, 32, "d:f2 m:f2 qh:4u1 qs:16u1", legacy, swap="d:f2 m:f2 qh:u4 qs:16u1")
    yield Format("Q8_0", 8, 32, "d:f2 qs:32i1", legacy)
    yield Format("Q8_1", 9, 32, "d:f2 s:f2 qs:32i1", legacy, encodable=False)
    yield Format("Q2_K", 10, 256, "scales:16u1 qs:64u1 d:f2 dmin:f2", kquants, "Q4_0")
    yield Format("Q3_K", 11, 256, "hmask:32u1 qs:64u1 scales:12u1 d:f2", kquants, "Q4_0")
    yield Format("Q4_K", 12, 256, "d:f2 dmin:f2 scales:12u1 qs:128u1", kquants, "Q5_0")
    yield Format("Q5_K", 13, 256, "d:f2 dmin:f2 scales:12u1 qh:32u1 qs:128u1", kquants, "Q5_1")
    yield Format("Q6_K", 14, 256, "ql:128u1 qh:64u1 scales:16i1 d:f2", kquants, "Q8_0")
    yield Format("Q8_K", 15, 256, "d:f4 qs:256i1 bsums:16i2", kquants, encodable=False)
    yield Format("IQ2_XXS", 16, 256, "d:f2 qs:32u2", iquants, "IQ4_NL", needs_importance=True, swap=_IQ2_XXS)
    yield Format("IQ2_XS", 17, 256, "d:f2 qs:32u2 scales:8u1", iquants, "IQ4_NL", needs_importance=True)
    yield Format("IQ3_XXS", 18, 256, "d:f2 qs:96u1", iquants, "IQ4_NL", swap="d:f2 qs:64u1 gas:8u4")
    yield Format("IQ1_S", 19, 256, "d:f2 qs:32u1 qh:8u2", iquants, "IQ4_NL", needs_importance=True)
    yield Format("IQ4_NL", 20, 32, "d:f2 qs:16u1", iquants)
    yield Format("IQ3_S", 21, 256, "d:f2 qs:64u1 qh:8u1 signs:32u1 scales:4u1", iquants, "IQ4_NL")
    yield Format("IQ2_S", 22, 256, "d:f2 qs:64u1 qh:8u1 scales:8u1", iquants, "IQ4_NL")
    yield Format("IQ4_XS", 23, 256, "d:f2 scales_h:u2 scales_l:4u1 qs:128u1", iquants, "IQ4_NL")
    yield Format("I8", 24, 1, "x:i1", scalar)
    yield Format("I16", 25, 1, "x:i2", scalar)
    yield Format("I32", 26, 1, "x:i4", scalar)
    yield Format("I64", 27, 1, "x:i8", scalar)
    yield Format("F64", 28, 1, "x:f8", scalar)
    yield Format("IQ1_M", 29, 256, "qs:32u1 qh:16u1 scales:8u1", iquants, "IQ4_NL", swap="qs:32u1 qh:16u1 scales:4u2")
    yield Format("BF16", 30, 1, "x:u2", scalar)
    yield Format("TQ1_0", 34, 256, "qs:48u1 qh:4u1 d:f2", ternary, "Q4_0")
    yield Format("TQ2_0", 35, 256, "qs:64u1 d:f2", ternary, "Q4_0")
    yield Format("MXFP4", 39, 32, "e:u1 qs:16u1", microscale)
    yield Format("NVFP4", 40, 64, "d:4u1 qs:32u1", microscale)
    yield Format("Q1_0", 41, 128, "d:f2 qs:16u1", ternary)
    yield Format("Q2_0", 42, 64, "d:f2 qs:16u1", ternary, "Q4_0")


FORMATS: dict[str, Format] = {format.name: format for format in _rows()}
BY_ID: dict[int, Format] = {format.id: format for format in FORMATS.values()}


def formats() -> list[Format]:
    """All formats, in the order of their ids."""
    return list(FORMATS.values())


def format_by_name(name: str) -> Format:
    """The format called `name`, upper or lower case (`Q4_K`, `q4_k`).

    Raises
    ------
    CodecError : there is none; the message names the nearest.
    """
    if (format := FORMATS.get(name.upper())) is not None:
        return format
    from difflib import get_close_matches

    near = get_close_matches(name.upper(), FORMATS, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else f"; known: {', '.join(FORMATS)}"
    raise CodecError(f"no tensor type is called {name!r}{hint}")


def format_by_id(number: int) -> Format | None:
    """The format with the id `number` of `enum ggml_type`, or None (removed and unknown ids)."""
    return BY_ID.get(number)
