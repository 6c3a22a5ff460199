"""The types of keys and values in the cache, one row a type, for all backends.

A head of a token is kept as numbers, or as codes of a few bits and a scale (and a minimum) for each block of it:

    x = scale · (code − zero)                zero = 2^(bits − 1)        rules "absolute" and "largest"
    x = scale · code + minimum                                          rule "range"

How codes are found (`rule`), x a block:

    absolute   scale = max |x| / (2^(bits − 1) − 1), codes rounded, ties away from zero           Q8_0
    largest    scale = the x farthest from 0 / −2^(bits − 1), so that it is met exactly            Q4_0 Q5_0
    range      scale = (max x − min x) / (2^bits − 1), minimum = min x                             Q4_1 Q5_1

Quantized keys and values are rotated by a Walsh–Hadamard transform first: outliers spread over the head. The transform
is its own inverse and keeps products, so queries are rotated too, and what attention finds is rotated back.

Source: ggml/src/ggml-quants.c, and `llama_kv_cache` in src/llama-kv-cache.cpp of llama.cpp (when it rotates, by which
sizes).
"""

from __future__ import annotations

from dataclasses import dataclass

from ggufkit.errors import UsageError, printable

__all__ = ["TYPES", "CacheType", "cache_type"]

# Where a row does not say otherwise, the whole of a head is rotated as far as powers of two go.
_WHOLE = 1 << 30


@dataclass(frozen=True)
class CacheType:
    """A row of the table.

    Attributes
    ----------
    name : GGML's.
    bits : of a code, 8, 6, 5, 4, 3 or 2; of a number, 32 or 16.
    block : numbers that share a scale, a multiple of 32; 0 where numbers stay numbers.
    rule : how scales and codes are found; see above.
    key_run, value_run : numbers of a head that are rotated together at most; 0 for no rotation.
    least_run : a power of two that must divide the head, or it is not rotated.
    """

    name: str
    bits: int
    block: int = 0
    rule: str = ""
    key_run: int = _WHOLE
    value_run: int = 64
    least_run: int = 64

    @property
    def quantized(self) -> bool:
        return self.block > 0

    @property
    def minimum(self) -> bool:
        """Whether a block has a minimum; else code `zero` stands for 0."""
        return self.rule == "range"

    @property
    def zero(self) -> int:
        return 0 if self.minimum else 1 << (self.bits - 1)

    @property
    def planes(self) -> tuple[int, int]:
        """Bits of a code that lie together in bytes, the low ones first; 8 = 8, 6 = 4 + 2, 5 = 4 + 1, 3 = 2 + 1."""
        low = max(width for width in (8, 4, 2, 1) if width <= self.bits)
        return low, self.bits - low

    def rotation(self, head: int, values: bool) -> int:
        """How many numbers of a head are rotated together: a power of two, or 0 for none."""
        size = head & -head
        if not self.quantized or size < self.least_run:
            return 0
        return min(size, self.value_run if values else self.key_run)


TYPES = {row.name: row for row in (
    #         name   bits block  rule
    CacheType("F32",  32),
    CacheType("F16",  16),
    CacheType("Q8_0",  8,  32,  "absolute"),
    CacheType("Q5_1",  5,  32,  "range"),
    CacheType("Q5_0",  5,  32,  "largest"),
    CacheType("Q4_1",  4,  32,  "range"),
    CacheType("Q4_0",  4,  32,  "largest"),
)}  # fmt: skip

_NAMES = {name.lower(): name for name in TYPES}


def cache_type(name: str, head: int) -> CacheType:
    """The type of keys or values called `name`, in either case, for heads of `head` numbers.

    Raises
    ------
    UsageError : there is no such type, or the heads do not divide into its blocks.
    """
    if (found := _NAMES.get(name.lower())) is None:
        raise UsageError(f"the cache can be {', '.join(TYPES)}, not {printable(name)}")
    kind = TYPES[found]
    if kind.quantized and head % kind.block:
        raise UsageError(
            f"the cache cannot be {found}: heads of {head} numbers are not a multiple of {kind.block}; take F16"
        )
    return kind
