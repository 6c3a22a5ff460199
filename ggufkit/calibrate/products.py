"""Matrix products and factors whose bits depend on nothing but their operands.

Sums are taken in an order of their own, chains of fused multiply-adds over every 32nd column, whatever the number of
threads and the width of the CPU's vectors (see `runtime.cpu.products.floats`). BLAS promises neither.

    product(x, w)          x wᵀ            (n, k), (rows, k) → (n, rows)
    second_moment(x)       xᵀ x            (n, k) → (k, k)
    Factor(H)              H = R Rᵀ with R upper; what GPTQ feeds errors on with, and solves with
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ggufkit.errors import GgufkitError
from ggufkit.kernels.jit import kernel
from ggufkit.kernels.threads import for_ranges, in_all_threads, thread_count, unshared
from ggufkit.runtime.cpu.forms import by_column
from ggufkit.runtime.cpu.products import floats

__all__ = ["CHUNK", "Factor", "Multiply", "product", "second_moment", "transposed"]

# x (n, k) and w (rows, k), float32, to x wᵀ.
Multiply = Callable[[np.ndarray, np.ndarray], np.ndarray]

CHUNK = 256  # columns that are rounded between two products
_BLOCK = 64  # columns of a step of the factorisation
_TILE = 256  # rows of such a block, 128 KB, that are multiplied with others while they are in a core's cache
_TURNED = 128  # rows that become columns together: a row of them is a few lines of the cache


def product(x: np.ndarray, w: np.ndarray, threads: int | None = None) -> np.ndarray:
    """x wᵀ.

    Parameters
    ----------
    x : (n, k) float32.
    w : (rows, k) float32.
    threads : how many.

    Returns
    -------
    array of shape (n, rows), float32
    """
    out = np.zeros((len(x), len(w)), np.float32)
    if not out.size or not x.shape[1]:
        return out
    data = _frozen(np.ascontiguousarray(w, np.float32).reshape(-1).view(np.uint8))
    rows = by_column(x)

    def work(shares: Sequence[np.ndarray]) -> None:
        floats.F32.matrix(shares[0], data, len(w), rows, out)

    if thread_count(threads) == 1:
        work(unshared())
    else:
        in_all_threads(work, threads)
    return out


def _frozen(x: np.ndarray) -> np.ndarray:
    x = x.view()
    x.flags.writeable = False
    return x


def transposed(x: np.ndarray, threads: int | None = None) -> np.ndarray:
    """xᵀ of x (n, k), contiguous: (k, n)."""
    out = np.empty(x.shape[::-1], x.dtype)

    def turn(lo: int, hi: int) -> None:
        out[:, lo:hi] = x[lo:hi].T

    for_ranges(turn, len(x), _TURNED, threads)
    return out


def second_moment(x: np.ndarray, threads: int | None = None, multiply: Multiply | None = None) -> np.ndarray:
    """xᵀ x of rows x (n, k): (k, k) float32."""
    columns = transposed(x, threads)
    return product(columns, columns, threads) if multiply is None else multiply(columns, columns)


# ---- Factors ----------------------------------------------------------------------------------------------------


class Factor:
    """H + damp · mean diag H · I = R Rᵀ, R upper triangular.

    Parameters
    ----------
    H : (n, n) float32, symmetric.
    damp : what is added to the diagonal, of its mean.
    owned : H may be used up.

    Attributes
    ----------
    weight : (n,) float32: R_jj², what an error in column j costs once later columns have made good what they can.
    H : the damped matrix, float32.

    Raises
    ------
    GgufkitError : H is not finite, or not positive definite in spite of the damping.

    Notes
    -----
    Of an error e of a row, the loss e H eᵀ is |e R|²; number j of e R knows errors up to column j only. GPTQ makes one
    after the other as small as it can. In its own terms, H⁻¹ = Uᵀ U with U = R⁻¹.
    """

    def __init__(self, H: np.ndarray, damp: float, threads: int | None = None, *, owned: bool = False):
        n = len(H)
        self.threads = threads
        diagonal = np.diagonal(H)
        mean = float(np.add.reduce(diagonal, dtype=np.float64)) / max(n, 1)
        if not np.isfinite(mean) or mean <= 0:
            raise GgufkitError("the second moment of the inputs is not finite, or zero")
        self.H = np.ascontiguousarray(H, np.float32)
        if not owned:
            self.H = self.H.copy()
        self.H[np.diag_indices(n)] += np.float32(damp * mean)
        # A 4096 × 14336 layer's factor is 1.6 GB while it is made, and that array is the only one of float64.
        self.R = _reversed_lower(_cholesky(self.H[::-1, ::-1].astype(np.float64), threads))
        pivots = np.diagonal(self.R)
        if not (np.isfinite(pivots).all() and (pivots > 0).all()):
            raise GgufkitError("the second moment of the inputs is not positive definite")
        self.weight = pivots * pivots
        self.chunks = [(lo, min(lo + CHUNK, n)) for lo in range(0, n, CHUNK)]
        self.inverses = [_inverse_upper(self.R[lo:hi, lo:hi]) for lo, hi in self.chunks]

    def above(self, i: int) -> np.ndarray:
        """R above a chunk's square on the diagonal, transposed: (columns, lo). Kept, all of them would be half of R."""
        lo, hi = self.chunks[i]
        return transposed(self.R[:lo, lo:hi], self.threads)

    def solve(self, rows: np.ndarray) -> np.ndarray:
        """X with X H = rows; (m, n) float32."""
        Q = np.zeros(rows.shape, np.float32)
        for (lo, hi), inverse in zip(reversed(self.chunks), reversed(self.inverses), strict=True):
            right = rows[:, lo:hi] - product(Q[:, hi:], self.R[lo:hi, hi:], self.threads)
            Q[:, lo:hi] = product(right, inverse, self.threads)
        X = np.zeros(rows.shape, np.float32)
        for i, ((lo, hi), inverse) in enumerate(zip(self.chunks, self.inverses, strict=True)):
            right = Q[:, lo:hi] - product(X[:, :lo], self.above(i), self.threads)
            X[:, lo:hi] = product(right, transposed(inverse), self.threads)
        return X


def _cholesky(A: np.ndarray, threads: int | None) -> np.ndarray:
    """The lower factor L of A = L Lᵀ, in place; (n, n) float64. Above the diagonal A stays."""
    n = len(A)
    for lo in range(0, n, _BLOCK):
        hi = min(lo + _BLOCK, n)
        _factor_diagonal(A, lo, hi)
        for_ranges(lambda i, j: _solve_panel(A, lo, hi, hi + i, hi + j), n - hi, 64, threads)  # noqa: B023
        panel = np.ascontiguousarray(A[hi:, lo:hi].T)  # (block, n − hi)
        for_ranges(lambda i, j: _update(A, panel, hi, hi + i, hi + j), n - hi, 64, threads)  # noqa: B023
    return A


def _reversed_lower(A: np.ndarray) -> np.ndarray:
    """The lower triangle with rows and columns in the other order: upper, (n, n) float32.

    A is used up: what was read is given back on the way, since both together would be the most memory of all.
    """
    n = len(A)
    out = np.zeros((n, n), np.float32)
    for hi in range(n, 0, -_BLOCK):
        lo = max(0, hi - _BLOCK)
        for i in range(hi - 1, lo - 1, -1):
            out[n - 1 - i, n - 1 - i :] = A[i, i::-1]
        A.resize((lo, n), refcheck=False)  # nobody else has it
    return out


@kernel
def _factor_diagonal(A, lo, hi):
    for j in range(lo, hi):
        total = A[j, j]
        for k in range(lo, j):
            total -= A[j, k] * A[j, k]
        root = np.sqrt(total)
        A[j, j] = root
        for i in range(j + 1, hi):
            total = A[i, j]
            for k in range(lo, j):
                total -= A[i, k] * A[j, k]
            A[i, j] = total / root


@kernel
def _solve_panel(A, lo, hi, first, last):
    """Rows first:last of the columns lo:hi, given the factor on the diagonal."""
    for i in range(first, last):
        for j in range(lo, hi):
            total = A[i, j]
            for k in range(lo, j):
                total -= A[i, k] * A[j, k]
            A[i, j] = total / A[j, j]


@kernel
def _update(A, panel, start, first, last):
    """A[i, start: i + 1] −= the panel's row i times its other rows. panel: (columns, rows from `start` on)

    So many of its rows at a time that they stay in a core's cache while rows of A pass by.
    """
    columns = panel.shape[0]
    whole = columns // 4 * 4
    for lo in range(0, last - start, _TILE):
        for i in range(max(first, start + lo), last):
            row = i - start
            hi = min(lo + _TILE, row + 1)
            part = A[i, start + lo : start + hi]  # indices from 0 on: others are not vectorised
            for k in range(0, whole, 4):
                a, b, c, d = panel[k, row], panel[k + 1, row], panel[k + 2, row], panel[k + 3, row]
                p, q, r, s = panel[k, lo:hi], panel[k + 1, lo:hi], panel[k + 2, lo:hi], panel[k + 3, lo:hi]
                for j in range(part.size):
                    v = part[j] - a * p[j]
                    v = v - b * q[j]
                    v = v - c * r[j]
                    part[j] = v - d * s[j]
            for k in range(whole, columns):
                a, p = panel[k, row], panel[k, lo:hi]
                for j in range(part.size):
                    part[j] -= a * p[j]


def _inverse_upper(R: np.ndarray) -> np.ndarray:
    """The inverse of an upper triangular matrix, (n, n) float32."""
    out = np.zeros(R.shape, np.float64)
    _invert(np.ascontiguousarray(R, np.float64), out)
    return out.astype(np.float32)


@kernel
def _invert(R, out):
    """Rows from the last on: row i is (I − R[i, i+1:] · those below) / R[i, i]."""
    n = R.shape[0]
    for i in range(n - 1, -1, -1):
        out[i, i] = 1.0
        for k in range(i + 1, n):
            factor = R[i, k]
            for j in range(k, n):
                out[i, j] -= factor * out[k, j]
        for j in range(i, n):
            out[i, j] /= R[i, i]
