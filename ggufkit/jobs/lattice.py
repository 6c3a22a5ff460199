"""Models that were trained for a block format keep the scales that they were trained with.

A checkpoint of quantization-aware training has weights that blocks of Q4_0, say, hold but for the rounding to
bfloat16. An encoder that chooses scales of its own moves them off. So the plan looks at some blocks of each tensor that
becomes such a format, and where nine in ten lie on its lattice, all are encoded with the scales found in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ggufkit.errors import UsageError, printable
from ggufkit.jobs.plan import PlannedTensor
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LATTICE", "keeping_lattices", "lattice_notes"]

# What may be asked for: where most blocks lie on the lattice, everywhere, nowhere.
LATTICE = ("auto", "on", "off")

# Formats with a lattice, as `formats.lattice` has them; MXFP4's and the ternary ones' encoders keep theirs anyway.
_FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")

# Blocks looked at: first some of one row, of which half must lie on the lattice, then more of others.
_FIRST, _MORE, _ROWS = 8, 16, 8

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


def _kept(p: PlannedTensor, mode: str) -> PlannedTensor:
    tensor = p.tensor
    if p.format.name not in _FORMATS or tensor.format.name not in ("BF16", "F16", "F32") or not tensor.size:
        return p
    found, looked = _sample(p)
    if mode == "auto" and (looked == 0 or found < _SHARE * looked):
        return p
    share = f"{found} of {looked} blocks seen" if looked else "no block seen"
    return replace(p, tensor=_encoded(p), reason=f"{p.reason}; {_REASON}: {share}", importance=None)


def _sample(p: PlannedTensor) -> tuple[int, int]:
    """How many of the blocks looked at lie on the lattice, and how many there were; blocks of zeros are none."""
    import numpy as np

    from ggufkit.formats.lattice import on_lattice

    tensor = p.tensor
    found = looked = 0
    for number, row in enumerate(np.unique(np.linspace(0, tensor.rows - 1, _ROWS).astype(np.int64))):
        blocks = tensor.floats(int(row), int(row) + 1).reshape(-1, 32)
        blocks = blocks[blocks.any(axis=1)][: _MORE if number else _FIRST]
        if not np.isfinite(blocks).all():
            return 0, 0
        looked += len(blocks)
        found += on_lattice(blocks, p.format, _precision(blocks, tensor)) if len(blocks) else 0
        if 2 * found < looked:
            break
    return found, looked


def _precision(values: np.ndarray, tensor: Tensor) -> str:
    """What the weights were rounded to: numbers in F32 may be those of fewer digits."""
    import numpy as np

    if tensor.format.name != "F32":
        return tensor.format.name
    if not (np.ascontiguousarray(values).view(np.uint32) & 0xFFFF).any():
        return "BF16"
    with np.errstate(over="ignore"):
        return "F16" if np.array_equal(values.astype(np.float16).astype(np.float32), values) else "F32"


def _encoded(p: PlannedTensor) -> Tensor:
    """The tensor in its format, encoded when it is read."""
    tensor, format = p.tensor, p.format
    precision = _precision(tensor.floats(0, min(8, tensor.rows)), tensor)

    def read(lo: int, hi: int) -> np.ndarray:
        from ggufkit.formats.lattice import encode_lattice

        return encode_lattice(tensor.floats(lo, hi), format, precision)[0]

    return Tensor(tensor.name, tensor.shape, format, read)
