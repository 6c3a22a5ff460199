"""Random rotations: whatever a vector was, its coordinates become about Gaussian.

    Hadamard    d = m · 2ᵏ:   (C ⊗ H) · signs / √d      H: Walsh–Hadamard of 2ᵏ, the largest power of two that divides d
                                                        C: m × m, cos + sin of 2π i j / m (Hartley's); 1 where m is 1
    Dense       Q of a Gaussian matrix, uniform over all rotations: to compare with

H alone would leave d's m parts apart, so that a vector of one large coordinate stayed in one of them. Signs are not
optional: without them a constant vector becomes one large coordinate. They come from a fixed generator of 64-bit
numbers, so that a seed means the same signs everywhere and for ever.

Source: Ailon and Chazelle, the fast Johnson–Lindenstrauss transform, 2006; splitmix64 of Steele, Lea and Flood, 2014.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Protocol

from ggufkit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MIXED", "SMALLEST", "Dense", "Hadamard", "Rotation", "hartley", "part_of", "signs_of"]

SMALLEST = 16  # coordinates that are transformed together at least: those of a vector register
MIXED = 64  # parts of a vector that are mixed at most


class Rotation(Protocol):
    """An orthogonal map of vectors."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(…, d) float32 → (…, d)."""

    def back(self, y: np.ndarray) -> np.ndarray:
        """The inverse of `forward`."""


class Hadamard:
    """Signs, then a Walsh–Hadamard transform, as the codes of `vectors` are made.

    Parameters
    ----------
    length : d, a multiple of 16.
    seed : of the signs.

    Raises
    ------
    UsageError : the length has no power of two of at least 16 in it, or more than 64 times that.
    """

    def __init__(self, length: int, seed: int = 0):
        self.length = length
        self.part = part_of(length)
        self.signs = signs_of(length, seed)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(…, d) float32 → (…, d), of the same norms."""
        return self._turn(x, before=True)

    def back(self, y: np.ndarray) -> np.ndarray:
        """The inverse of `forward`."""
        return self._turn(y, before=False)

    def _turn(self, x: np.ndarray, before: bool) -> np.ndarray:
        import numpy as np

        from ggufkit.turboquant.kernels import turn

        rows = np.array(x, np.float32, order="C").reshape(-1, self.length)
        turn(rows, self.signs, hartley(self.length // self.part), self.part, before)
        return rows.reshape(np.shape(x))


class Dense:
    """A random rotation of all d × d numbers, for comparison: it costs d times as much and does the same.

    Parameters
    ----------
    length : d.
    seed : of the matrix.
    """

    def __init__(self, length: int, seed: int = 0):
        import numpy as np

        q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((length, length)))
        self.matrix = (q * np.sign(np.diag(r))).astype(np.float32)  # the signs make it uniform

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(…, d) float32 → (…, d), of the same norms."""
        return x @ self.matrix.T

    def back(self, y: np.ndarray) -> np.ndarray:
        """The inverse of `forward`."""
        return y @ self.matrix


def part_of(length: int) -> int:
    """The largest power of two that divides a length.

    Raises
    ------
    UsageError : see `Hadamard`.
    """
    part = length & -length
    if length < 1 or part < SMALLEST or length // part > MIXED:
        raise UsageError(
            f"vectors of {length} coordinates cannot be rotated: the length must be a power of two of at least "
            f"{SMALLEST}, or 2 to {MIXED} times one"
        )
    return part


@cache
def signs_of(length: int, seed: int) -> np.ndarray:
    """Random signs: array of shape (length,), float32 of 1 and -1."""
    import numpy as np

    with np.errstate(over="ignore"):
        state = np.uint64(seed) + np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    signs = np.where(state >> np.uint64(63), np.float32(-1), np.float32(1))
    signs.flags.writeable = False
    return signs


@cache
def hartley(parts: int) -> np.ndarray:
    """cos + sin of 2π i j / m, an array of shape (m, m), float32: symmetric, √m times an orthogonal one."""
    import numpy as np

    turns = [[2 * math.pi * (i * j % parts) / parts for j in range(parts)] for i in range(parts)]
    matrix = np.array([[math.cos(t) + math.sin(t) for t in row] for row in turns], np.float32)
    matrix.flags.writeable = False
    return matrix
