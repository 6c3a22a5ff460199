"""The types of keys and values in the cache, one row a type, for all backends.

A head of a token is kept as numbers, or as codes of a few bits and a scale (and a minimum) for each block of it:

    x = scale · (code − zero)                zero = 2^(bits − 1)        rules "absolute" and "largest"
    x = scale · code + minimum                                          rule "range"
    x = scale · level[code]                  a table of levels          rules "fitted" and "turbo"

How codes are found (`rule`), x a block:

    absolute   scale = max |x| / (2^(bits − 1) − 1), codes rounded, ties away from zero           Q8_0
    largest    scale = the x farthest from 0 / −2^(bits − 1), so that it is met exactly            Q4_0 Q5_0
    range      scale = (max x − min x) / (2^bits − 1), minimum = min x                             Q4_1 Q5_1
    fitted     codes for the scale at which the x farthest from 0 meets its level, then the scale
               of least error for these codes, squares weighing as x² does                         IQ4_NL
    turbo      TurboQuant: levels of a Gaussian, the scale keeps the norm; a whole head is a block  tq2 … tq8

Quantized keys and values are rotated first: outliers spread over the head. A rotation keeps products, so queries are
rotated too, and what attention finds is rotated back. GGML's types have a Walsh–Hadamard transform; TurboQuant's have
random signs before it, the same for all layers, and mix the parts of heads that are no power of two.

llama.cpp multiplies keys in blocks of 32 as integers, so queries that meet GGML's quantized keys are rounded to Q8_0
first, as it does (`CacheType.rounds_queries`).

A bit more is worth seven times as much to keys as to values: `PRESETS` give them two bits more.

Keys can be centred, "tq4-centred": what is kept is how far they are from the mean key of the conversation's first run
of tokens. A query meets the same mean in every key, and softmax does not see what all scores have in common. For models
whose keys have a large bias.

Source: ggml/src/ggml-quants.c, and `llama_kv_cache` in src/llama-kv-cache.cpp of llama.cpp (when it rotates, by which
sizes).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ggufkit.errors import UsageError, printable
from ggufkit.turboquant.rotation import part_of

__all__ = [
    "CENTRED",
    "FEW",
    "PRESETS",
    "TYPES",
    "UNLIKE",
    "WHOLE",
    "CacheType",
    "Rotation",
    "cache_type",
    "key_types",
    "type_named",
]

CENTRED = "-centred"  # what the names of centred types end with

# Of the first run of tokens the first are unlike all others, and do not count for the mean key; a mean is of so many.
UNLIKE, FEW = 4, 16

# Of a head, all of it: as far as powers of two go where it is rotated.
WHOLE = 1 << 30


@dataclass(frozen=True)
class Rotation:
    """A rotation of each `size` consecutive numbers, of which the largest power of two goes through the transform.

    Attributes
    ----------
    size : numbers that are rotated together.
    random : with signs in front, see `turboquant.rotation`; else the size is a power of two.
    """

    size: int
    random: bool


@dataclass(frozen=True)
class CacheType:
    """A row of the table.

    Attributes
    ----------
    name : GGML's.
    bits : of a code, 8, 6, 5, 4, 3 or 2; of a number, 32 or 16.
    block : numbers that share a scale, a multiple of 32, or `WHOLE` for a head; 0 where numbers stay numbers.
    rule : how scales and codes are found, see above; of numbers "bfloat" for BF16.
    key_run, value_run : numbers of a head that are rotated together at most; 0 for no rotation.
    least_run : a power of two that must divide the head, or it is not rotated.
    centred : keys are kept as their distance from a mean.
    """

    name: str
    bits: int
    block: int = 0
    rule: str = ""
    key_run: int = WHOLE
    value_run: int = 64
    least_run: int = 64
    centred: bool = False

    @property
    def quantized(self) -> bool:
        return self.block > 0

    @property
    def minimum(self) -> bool:
        """Whether a block has a minimum; else code `zero` stands for 0."""
        return self.rule == "range"

    @property
    def leveled(self) -> bool:
        """Whether codes are numbers of levels in a table."""
        return self.rule in ("fitted", "turbo")

    @property
    def zero(self) -> int:
        return 0 if self.minimum or self.leveled else 1 << (self.bits - 1)

    @property
    def rounds_queries(self) -> bool:
        """Whether queries are rounded to Q8_0 before they meet keys of this type."""
        return self.quantized and self.rule != "turbo"

    def blocks(self, head: int) -> int:
        """How many scales a head has."""
        return max(head // self.block, 1)

    def nbytes(self, head: int) -> int:
        """Bytes of a head of one token."""
        if not self.quantized:
            return head * self.bits // 8
        return head * self.bits // 8 + self.blocks(head) * (4 if self.minimum else 2)

    @property
    def planes(self) -> tuple[int, int]:
        """Bits of a code that lie together in bytes, the low ones first; 8 = 8, 6 = 4 + 2, 5 = 4 + 1, 3 = 2 + 1."""
        low = max(width for width in (8, 4, 2, 1) if width <= self.bits)
        return low, self.bits - low

    def rotation(self, head: int, values: bool) -> Rotation | None:
        """How heads are rotated, or None."""
        if self.rule == "turbo":
            return Rotation(head, random=True)
        size = head & -head
        if not self.quantized or size < self.least_run:
            return None
        return Rotation(min(size, self.value_run if values else self.key_run), random=False)


TYPES = {row.name: row for row in (
    #         name   bits block  rule
    CacheType("F32",  32),
    CacheType("F16",  16),
    CacheType("BF16", 16,   0,  "bfloat"),
    CacheType("Q8_0",  8,  32,  "absolute"),
    CacheType("Q5_1",  5,  32,  "range"),
    CacheType("Q5_0",  5,  32,  "largest"),
    CacheType("Q4_1",  4,  32,  "range"),
    CacheType("Q4_0",  4,  32,  "largest"),
    CacheType("IQ4_NL", 4, 32,  "fitted"),
    CacheType("tq8",   8, WHOLE, "turbo"),
    CacheType("tq6",   6, WHOLE, "turbo"),
    CacheType("tq5",   5, WHOLE, "turbo"),
    CacheType("tq4",   4, WHOLE, "turbo"),
    CacheType("tq3",   3, WHOLE, "turbo"),
    CacheType("tq2",   2, WHOLE, "turbo"),
)}  # fmt: skip

# Types of keys and values that are worth choosing, by what one wants.
PRESETS = {"exact": ("F32", "F32"), "small": ("tq6", "tq4"), "smallest": ("tq5", "tq3")}

_NAMES = {name.lower(): name for name in TYPES}


def key_types() -> list[str]:
    """The names that keys can have."""
    return [*TYPES, *(f"{name}{CENTRED}" for name, kind in TYPES.items() if kind.quantized)]


def type_named(name: str, *, values: bool = False) -> CacheType:
    """The type of keys, or of values, called `name`, in either case.

    Raises
    ------
    UsageError : there is no such type.
    """
    plain = name.lower().removesuffix(CENTRED)
    centred = plain != name.lower()
    if (found := _NAMES.get(plain)) is None:
        raise UsageError(f"the cache can be {', '.join(TYPES)}, not {printable(name)}")
    kind = TYPES[found]
    if centred and (values or not kind.quantized):
        what = "values" if values else f"keys of type {found}"
        raise UsageError(f"{what} are not centred, only quantized keys are; take {found}")
    return replace(kind, centred=True) if centred else kind


def cache_type(name: str, head: int, *, values: bool = False) -> CacheType:
    """The type of keys, or of values, called `name`, in either case, for heads of `head` numbers.

    Raises
    ------
    UsageError : there is no such type, or the heads do not divide into its blocks or cannot be rotated.
    """
    kind = type_named(name, values=values)
    if kind.rule == "turbo":
        part_of(head)
    elif kind.quantized and head % kind.block:
        raise UsageError(
            f"the cache cannot be {kind.name}: heads of {head} numbers are not a multiple of {kind.block}; take F16"
        )
    return kind
