"""Models that were trained for a block format keep the scales that they were trained with.

A checkpoint of quantization-aware training has weights that blocks of Q4_0, say, hold but for the rounding to
bfloat16. An encoder that chooses scales of its own moves them off. So the plan looks at some blocks of each tensor that
becomes such a format, and where nine in ten lie on its lattice, all are encoded with the scales found in them.

Weights of one step all over, as of tests and of a matrix of zeros and ones, lie on a lattice that nobody trained for:
the scales must differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ggufkit.errors import UsageError, printable
from ggufkit.formats.table import FORMATS, Format
from ggufkit.jobs.plan import PlannedTensor
from ggufkit.tensors.tensor import Origin, Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LATTICE", "keeping_lattices", "lattice_notes", "on_lattices", "origin_notes"]

# What may be asked for: where most blocks lie on the lattice, everywhere, nowhere.
LATTICE = ("auto", "on", "off")

# Formats with a lattice, as `formats.lattice` has them; MXFP4's and the ternary ones' encoders keep theirs anyway.
_FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")

# What they may be rounded to.
_PLAIN = ("BF16", "F16", "F32")

# How many numbers a block of 32 can have, where that is fewer.
_LEVELS = {"Q4_0": 16, "Q4_1": 16}

# Sizes of numbers that one scale makes: there must be more, or all weights are of one step.
_OF_ONE_SCALE = {"Q4_0": 8, "Q4_1": 16, "Q5_0": 16, "Q5_1": 32, "Q8_0": 128}

# Blocks looked at: first some of one row, of which half must lie on the lattice, then more of others.
_FIRST, _MORE, _ROWS = 8, 16, 8

# Blocks of so few sizes of numbers say nothing.
_FEW = 4

# The share of blocks that must lie on it.
_SHARE = 0.9

_REASON = "on the lattice that it was trained for"


def keeping_lattices(planned: Sequence[PlannedTensor], mode: str = "auto") -> list[PlannedTensor]:
    """The plan with those tensors encoded by the scales of their lattice that lie on one.

    Raises
    ------
    UsageError : `mode` is none of `LATTICE`.
    """
    if mode not in LATTICE:
        raise UsageError(f"there is no lattice {printable(mode)!r}; there are {', '.join(LATTICE)}")
    return list(planned) if mode == "off" else [_kept(p, mode) for p in planned]


def lattice_notes(planned: Sequence[PlannedTensor]) -> list[str]:
    """How many tensors keep a lattice, in a sentence for each format."""
    kept = Counter(p.format.name for p in planned if _REASON in p.reason)
    return [f"{count} tensors lie on the lattice of {name} and keep their scales" for name, count in kept.items()]


def origin_notes(found: Mapping[str, Tensor]) -> list[str]:
    """How many matrices `on_lattices` found, in a sentence for each format."""
    counted = Counter(tensor.format.name for tensor in found.values())
    return [f"{_matrices(count)} on the lattice of {name}, trained for it" for name, count in counted.items()]


def _matrices(count: int) -> str:
    return "1 matrix lies" if count == 1 else f"{count} matrices lie"


def on_lattices(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors that lie on a lattice, in blocks of the smallest such format: name → tensor.

    Reads a few rows of each matrix.
    """
    found = {}
    for name, tensor in tensors.items():
        if len(tensor.shape) > 1 and tensor.cols % 32 == 0 and tensor.origin is None:
            for format in (FORMATS[name] for name in _FORMATS):
                if (seen := _on(tensor, format)) is not None:
                    note = f"{format.name}, {_REASON}: {seen[0]} of {seen[1]} blocks seen"
                    found[name] = replace(_encoded(tensor, format), origin=Origin(note, exact=False))
                    break
    return found


def _kept(p: PlannedTensor, mode: str) -> PlannedTensor:
    tensor = p.tensor
    if p.format.name not in _FORMATS or tensor.format.name not in _PLAIN or not tensor.size:
        return p
    seen = _on(tensor, p.format)
    if mode == "auto" and seen is None:
        return p
    share = f"{seen[0]} of {seen[1]} blocks seen" if seen else "as was asked for"
    return replace(p, tensor=_encoded(tensor, p.format), reason=f"{p.reason}; {_REASON}: {share}", importance=None)


def _on(tensor: Tensor, format: Format) -> tuple[int, int] | None:
    """How many of some blocks lie on the lattice of a format, and how many were seen; None where it is not its own."""
    if tensor.format.name not in _PLAIN or not tensor.size:
        return None
    import numpy as np

    found = looked = 0
    sizes: set[float] = set()
    for number, row in enumerate(np.unique(np.linspace(0, tensor.rows - 1, _ROWS).astype(np.int64))):
        blocks = tensor.floats(int(row), int(row) + 1).reshape(-1, 32)
        if not np.isfinite(blocks).all():
            return None
        blocks = _telling(blocks, _MORE if number else _FIRST)
        looked += len(blocks)
        sizes.update(np.abs(blocks).reshape(-1).tolist())
        if len(blocks) and _may_lie(blocks, format):
            from ggufkit.formats.lattice import on_lattice

            found += on_lattice(blocks, format, _precision(blocks, tensor))
        if 2 * found < looked:
            return None
    enough = looked and found >= _SHARE * looked and len(sizes) > 2 * _OF_ONE_SCALE[format.name]
    return (found, looked) if enough else None


def _telling(blocks: np.ndarray, count: int) -> np.ndarray:
    """Of the first blocks so many that have several numbers: a few lie on every lattice."""
    import numpy as np

    some = blocks[: 4 * count]
    return some[_distinct(np.abs(some)) > _FEW][:count]


def _may_lie(blocks: np.ndarray, format: Format) -> bool:
    """Whether half of the blocks have as few numbers as the format has levels: which needs no compiled kernel."""
    levels = _LEVELS.get(format.name, 32)
    return levels >= 32 or bool(2 * (_distinct(blocks) <= levels).sum() >= len(blocks))


def _distinct(blocks: np.ndarray) -> np.ndarray:
    """How many different numbers each block has: (n,) of (n, 32) without NaN."""
    import numpy as np

    ordered = np.sort(blocks, axis=1)
    distinct: np.ndarray = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)
    return distinct


def _precision(values: np.ndarray, tensor: Tensor) -> str:
    """What the weights were rounded to: numbers in F32 may be those of fewer digits."""
    import numpy as np

    if tensor.format.name != "F32":
        return tensor.format.name
    if not (np.ascontiguousarray(values).view(np.uint32) & 0xFFFF).any():
        return "BF16"
    with np.errstate(over="ignore"):
        return "F16" if np.array_equal(values.astype(np.float16).astype(np.float32), values) else "F32"


def _encoded(tensor: Tensor, format: Format) -> Tensor:
    """The tensor in a format, encoded when it is read."""
    precision = _precision(tensor.floats(0, min(8, tensor.rows)), tensor)

    def read(lo: int, hi: int) -> np.ndarray:
        from ggufkit.formats.lattice import encode_lattice

        return encode_lattice(tensor.floats(lo, hi), format, precision)[0]

    return Tensor(tensor.name, tensor.shape, format, read)
