"""Perplexity, and the KL divergence from another model's predictions, as llama-perplexity measures them.

Of each window the second half is predicted, so that every prediction has at least half a window of context.

    perplexity          e^(mean −ln p(token))
    KL divergence       mean over tokens of Σ p_base ln(p_base / p)

A base file holds the log-probabilities of a model, 16 bits each, so that several others can be compared with it:

    "_logits_"  n_ctx i32  n_vocab i32  n_chunk i32  tokens (n_chunk, n_ctx) i32
    then for each predicted token    scale f4, least f4, levels (n_vocab rounded up to even) u2

where ln p = scale × level + least, and what lies more than 16 below the best is as likely as that.

Source: tools/perplexity/perplexity.cpp of llama.cpp.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ggufkit.errors import GGUFError, UsageError, os_errors, printable
from ggufkit.evaluate.divergence import Divergence, mean_and_error, standard_error
from ggufkit.evaluate.windows import Windows
from ggufkit.kernels.jit import helper, kernel
from ggufkit.kernels.threads import for_ranges
from ggufkit.runtime.sizes import LIMIT
from ggufkit.storage.regular import open_regular

if TYPE_CHECKING:
    from ggufkit.runtime.model import Model

__all__ = [
    "BaseFile",
    "BaseWriter",
    "Estimate",
    "compared",
    "divergence",
    "estimate_of",
    "level_count",
    "packed",
    "perplexity",
    "predictions",
]

_MAGIC = b"_logits_"
_ROWS = 8  # rows of logits a kernel call

Report = Callable[[int, "Estimate"], None]


@dataclass(frozen=True)
class Estimate:
    """A perplexity and its standard error, from so many predicted tokens."""

    perplexity: float
    error: float
    tokens: int


def estimate_of(nll: np.ndarray) -> Estimate:
    """A perplexity from −ln p of each predicted token."""
    return _estimate(*mean_and_error(nll), len(nll))


def _estimate(mean: float, error: float, tokens: int) -> Estimate:
    value = math.exp(mean) if mean < 700 else math.inf
    return Estimate(value, value * error, tokens)


class _SoFar:
    """The estimate while windows come: from sums, as the numbers of all of them would be looked at after each."""

    def __init__(self) -> None:
        self._tokens, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, nll: np.ndarray) -> Estimate:
        """The estimate with another window's −ln p."""
        self._tokens += len(nll)
        self._sum += float(nll.sum())
        self._squares += float((nll**2).sum())
        mean = self._sum / self._tokens
        return _estimate(mean, standard_error(mean, self._squares / self._tokens, self._tokens), self._tokens)


def perplexity(
    model: Model,
    windows: Windows,
    *,
    base: BaseWriter | None = None,
    types: tuple[str, str] = ("F16", "F16"),
    report: Report = lambda tokens, estimate: None,
) -> Estimate:
    """How well a model predicts a text.

    Parameters
    ----------
    base : a base file to fill.
    types : of keys and values in the cache.
    report : called after each pass that predicts with the tokens that were read, and the estimate so far.
    """
    found, so_far = [], _SoFar()
    for logits, targets, read in predictions(model, windows, types):
        if base is None:
            nll = np.empty(len(targets), np.float64)
            for_ranges(lambda lo, hi: score(logits[lo:hi], targets[lo:hi], nll[lo:hi]), len(nll), _ROWS)  # noqa: B023
        else:
            levels = base.rows(len(targets))
            nll = packed(logits, targets, levels)
            base.write(levels)
        found.append(nll)
        report(read, so_far.add(nll))
    return estimate_of(np.concatenate(found))


def divergence(
    model: Model,
    base: BaseFile,
    windows: Windows,
    *,
    types: tuple[str, str] = ("F16", "F16"),
    report: Report = lambda tokens, estimate: None,
) -> Divergence:
    """How far a model's predictions are from those of a base file; `windows` are `base.windows(…)`."""
    if base.vocabulary != model.vocabulary:
        raise UsageError(
            f"{printable(base.path)} is of a model with {base.vocabulary} tokens; this one has {model.vocabulary}"
        )
    found, so_far = [], _SoFar()
    with os_errors(base.path, "read"), open(base.path, "rb") as file:
        file.seek(base.start)
        for logits, targets, read in predictions(model, windows, types):
            found.append(compared(logits, targets, base.read(file, len(targets))))
            report(read, so_far.add(found[-1][:, 0]))
    return Divergence.of(np.concatenate(found))


def predictions(model: Model, windows: Windows, types: tuple[str, str]) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """What is said of the second half of each window, but its last token: logits, tokens to come, how many were read.

    Logits (n, vocabulary) are those of a pass, as all of a long window would take much memory; tokens (n,).
    """
    first, last = windows.length // 2, windows.length - 1  # the positions that predict
    cache = model.new_cache(windows.length, *types)
    for seen, text in windows:
        cache.truncate(0)
        read = 0
        for lo in range(0, len(seen), LIMIT):
            hi = min(lo + LIMIT, len(seen))
            start, end = max(lo, first), min(hi, last)
            logits = model.forward(seen[lo:hi], cache, hi - start if end > start else None)
            read += hi - lo
            if end > start:
                yield logits[: end - start], np.ascontiguousarray(text[start + 1 : end + 1]), read
                read = 0


def level_count(vocabulary: int) -> int:
    """Numbers that a row of log-probabilities takes in a base file."""
    return (vocabulary + 1) // 2 * 2 + 4


def packed(logits: np.ndarray, targets: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """−ln p of each row's target, (n,) float64; `levels` gets the rows of log-probabilities, as base files have them.

    Parameters
    ----------
    logits : (n, vocabulary).
    levels : (n, level_count) uint16, zeros.
    """
    nll = np.empty(len(targets), np.float64)
    for_ranges(lambda lo, hi: pack(logits[lo:hi], targets[lo:hi], nll[lo:hi], levels[lo:hi]), len(nll), _ROWS)
    return nll


def compared(logits: np.ndarray, targets: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """What each row of logits (n, vocabulary) and the base's `levels` of it say: (n, 4), see `compare`."""
    facts = np.empty((len(targets), 4), np.float64)
    for_ranges(lambda lo, hi: compare(logits[lo:hi], targets[lo:hi], levels[lo:hi], facts[lo:hi]), len(targets), _ROWS)
    return facts


class BaseWriter:
    """A base file that is written window by window.

    Parameters
    ----------
    file : open for writing, empty.
    windows : what will be predicted.
    vocabulary : tokens of the model.
    """

    def __init__(self, file: BinaryIO, windows: Windows, vocabulary: int):
        self.file, self.vocabulary = file, vocabulary
        self.levels = level_count(vocabulary)
        header = np.array([windows.length, vocabulary, windows.count], "<i4")
        _write(file, _MAGIC + header.tobytes() + windows.tokens.astype("<i4").tobytes())

    def rows(self, n: int) -> np.ndarray:
        """Room for the log-probabilities of `n` predicted tokens."""
        return np.zeros((n, self.levels), np.uint16)

    def write(self, levels: np.ndarray) -> None:
        _write(self.file, levels.tobytes())


def _write(file: BinaryIO, data: bytes) -> None:
    """All of `data`, also to an unbuffered file, which may take less at a time."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


class BaseFile:
    """The head of a base file.

    Attributes
    ----------
    path : of the file.
    length, count : tokens per window, and windows.
    vocabulary : tokens of the model that it is of.
    tokens : array of shape (count, length), int32.
    start : byte where the log-probabilities begin.

    Raises
    ------
    FileError : it cannot be read.
    GGUFError : it is no base file, or cut.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        with os_errors(path, "read"), os.fdopen(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(20)
            if len(head) < 20 or head[:8] != _MAGIC:
                raise GGUFError("no base of llama-perplexity: it does not begin with _logits_", path, 0)
            length, vocabulary, count = np.frombuffer(head, "<i4", offset=8).tolist()
            if length < 2 or vocabulary < 1 or count < 1:
                raise GGUFError(
                    f"no base of llama-perplexity: {count} windows of {length} tokens, {vocabulary} in the vocabulary",
                    path,
                    8,
                )
            self.length, self.vocabulary, self.count = length, vocabulary, count
            self.start = 20 + 4 * length * count
            self.levels = level_count(vocabulary)
            needed = self.start + 2 * self.levels * count * (length - 1 - length // 2)
            if size < needed:
                raise GGUFError(f"the file is cut: {size} bytes of {needed}", path)
            self.tokens = np.frombuffer(file.read(4 * length * count), "<i4").reshape(count, length)

    def windows(self, count: int | None = None, bos: int | None = None) -> Windows:
        """Its windows, or the first `count` of them."""
        tokens = self.tokens.reshape(-1)
        if self.count == 1:  # a text of one window is enough here
            tokens = np.concatenate([tokens, tokens])
        return Windows(tokens, self.length, min(count or self.count, self.count), bos)

    def read(self, file: BinaryIO, rows: int) -> np.ndarray:
        """The next rows of log-probabilities: (rows, levels) uint16."""
        levels = np.frombuffer(file.read(2 * self.levels * rows), "<u2")
        if levels.size != rows * self.levels:
            raise GGUFError("the file was cut while it was read", self.path)
        return levels.reshape(rows, self.levels)


# ---- Kernels ----------------------------------------------------------------------------------------------------
#
# A row's first four levels hold two float32: scale and least.


@helper
def _log_sum(row: np.ndarray) -> tuple[np.float32, np.float32]:
    """The greatest of a row of logits, and the log of the sum of e^(logit − greatest)."""
    most = row[0]
    for i in range(1, row.shape[0]):
        most = max(most, row[i])
    total = 0.0
    for i in range(row.shape[0]):
        total += np.exp(row[i] - most)
    return most, np.float32(np.log(total))


@kernel
def score(logits: np.ndarray, targets: np.ndarray, nll: np.ndarray) -> None:
    """−ln p of each row's target."""
    for r in range(logits.shape[0]):
        most, log_sum = _log_sum(logits[r])
        nll[r] = most + log_sum - logits[r, targets[r]]


@kernel
def pack(logits: np.ndarray, targets: np.ndarray, nll: np.ndarray, levels: np.ndarray) -> None:
    """The same, and the row as 16-bit levels."""
    for r in range(logits.shape[0]):
        row = logits[r]
        most, log_sum = _log_sum(row)
        nll[r] = most + log_sum - row[targets[r]]
        least = row[0]
        for i in range(1, row.shape[0]):
            least = min(least, row[i])
        least = max(least, most - np.float32(16))
        scale = (most - least) / np.float32(65535)
        head = levels[r, :4].view(np.float32)
        head[0], head[1] = scale, least - most - log_sum
        if scale > np.float32(0):
            inverse = np.float32(1) / scale
            for i in range(row.shape[0]):
                if row[i] > least:
                    levels[r, 4 + i] = np.uint16(np.rint(inverse * (row[i] - least)))


@kernel
def compare(logits: np.ndarray, targets: np.ndarray, levels: np.ndarray, facts: np.ndarray) -> None:
    """(−ln p, −ln p_base, KL divergence, 1 where the most likely token is the same) of each row."""
    for r in range(logits.shape[0]):
        row = logits[r]
        most, log_sum = _log_sum(row)
        head = levels[r, :4].view(np.float32)
        scale, least = head[0], head[1]
        facts[r, 0] = most + log_sum - row[targets[r]]
        facts[r, 1] = -(scale * np.float32(levels[r, 4 + targets[r]]) + least)
        shift = most + log_sum
        total, top, base_top = 0.0, 0, 0
        for i in range(row.shape[0]):
            if row[i] > row[top]:
                top = i
            if levels[r, 4 + i] > levels[r, 4 + base_top]:
                base_top = i
            log_base = scale * np.float32(levels[r, 4 + i]) + least
            if log_base > np.float32(-16):
                total += np.exp(log_base) * (log_base - row[i] + shift)
        facts[r, 2] = total
        facts[r, 3] = 1.0 if top == base_top else 0.0
