"""Check a quantized model against its source: is each tensor what llama.cpp's algorithm makes of it?

    source rows ──► encode to the type that the quantized tensor has ──► blocks ─┐
    quantized rows ──────────────────────────────────────────────────► blocks ──┴─► equal?

A type's bytes are defined, so there is no tolerance: a tensor is exact, or some of its blocks are not. Other blocks
come from other algorithms, an importance matrix, an edited or another source, or a damaged file. How much they differ
is told in the weights that both sets of blocks stand for.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ggufkit.errors import PolicyError
from ggufkit.formats.codec import decode
from ggufkit.importance.imatrix_file import Imatrix
from ggufkit.jobs.plan import PlannedTensor, planned_tensor
from ggufkit.jobs.stream import Reporter, silent
from ggufkit.kernels.threads import for_each, thread_count
from ggufkit.policy.decision import Decision
from ggufkit.policy.roles import trimmed
from ggufkit.tensors.tensor import Tensor

__all__ = ["Verdict", "verify"]

_FLOATS = ("F32", "F16", "BF16")

# Weights compared at a time.
_PIECE = 1 << 19

# Of each tensor, for a quick answer: this many pieces of this many weights, evenly spread.
_SAMPLES, _SAMPLE = 4, 1 << 15


@dataclass
class Verdict:
    """What was found about one tensor of the quantized model.

    Attributes
    ----------
    name : its name.
    source, format : its types, "" where it is missing.
    problem : why it could not be compared, or "".
    blocks, different : how many blocks were compared, and how many are not as they should be.
    weights : how many weights were compared.
    squares : Σ w² of the source.
    distance : Σ (w' - w'')² between the weights that are there and those that should be.
    error, best_error : Σ (w' - w)² of those that are there, and of those that should be.
    largest : the largest |w' - w''|.
    """

    name: str
    source: str = ""
    format: str = ""
    problem: str = ""
    blocks: int = 0
    different: int = 0
    weights: int = 0
    squares: float = 0.0
    distance: float = 0.0
    error: float = 0.0
    best_error: float = 0.0
    largest: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def exact(self) -> bool:
        return not self.problem and self.different == 0

    def relative(self, squared: float) -> float:
        """One of the sums over Σ w², as the root of both: rms error over rms weight."""
        return math.sqrt(squared / self.squares) if self.squares else math.sqrt(squared)

    def add(self, planned: PlannedTensor, quantized: Tensor, lo: int, hi: int) -> None:
        """Compare rows `lo:hi`."""
        source = planned.tensor.read(lo, hi)
        wanted, found = planned.encode_blocks(source, lo), quantized.read(lo, hi)  # (rows, row_bytes)
        blocks = wanted.size // planned.format.type_size
        different = _different(wanted, found, planned.format.type_size)
        weights = (hi - lo) * planned.tensor.cols
        sums = np.zeros(4)
        largest = 0.0
        if different:
            w, best, there = (
                decode(b, f, threads=1).astype(np.float64)
                for b, f in ((source, planned.tensor.format), (wanted, planned.format), (found, planned.format))
            )
            sums = np.array([np.square(d).sum() for d in (w, there - best, there - w, best - w)])
            largest = float(np.abs(there - best).max())
        with self._lock:
            self.blocks += blocks
            self.different += different
            if different:
                self.weights += weights
                self.squares, self.distance, self.error, self.best_error = (
                    np.array([self.squares, self.distance, self.error, self.best_error]) + sums
                ).tolist()
                self.largest = max(self.largest, largest)


def _different(a: np.ndarray, b: np.ndarray, type_size: int) -> int:
    if np.array_equal(a, b):
        return 0
    return int(np.count_nonzero((a.reshape(-1, type_size) != b.reshape(-1, type_size)).any(axis=1)))


def verify(
    sources: Sequence[Mapping[str, Tensor]],
    quantized: Mapping[str, Tensor],
    imatrix: Imatrix | None = None,
    *,
    sample: bool = False,
    threads: int | None = None,
    report: Reporter = silent,
) -> list[Verdict]:
    """Compare every tensor of a quantized model with what its source gives.

    Parameters
    ----------
    sources : the tensors of the source by name; several where a tensor may have come by several ways. The best
        match counts.
    quantized : the tensors to check.
    imatrix : the importance matrix that was used.
    sample : look at a few rows of each tensor only.
    threads : default GGUFKIT_THREADS or all CPUs.
    report : shows the progress.

    Returns
    -------
    one verdict a tensor of either model, in the order of `quantized`; then those that only the source has

    Raises
    ------
    CodecError : a weight of the source is not finite.
    """
    best: dict[str, Verdict] = {}
    for source in sources:
        open_questions = {n: t for n, t in quantized.items() if n not in best or not best[n].exact}
        for verdict in _verify(source, open_questions, imatrix, sample, threads, report):
            known = best.get(verdict.name)
            if known is None or (not verdict.problem and (known.problem or verdict.different < known.different)):
                best[verdict.name] = verdict
    missing = [Verdict(t.name, t.format.name, problem="missing") for n, t in sources[0].items() if n not in quantized]
    return [*best.values(), *missing]


def _verify(
    source: Mapping[str, Tensor],
    quantized: Mapping[str, Tensor],
    imatrix: Imatrix | None,
    sample: bool,
    threads: int | None,
    report: Reporter,
) -> list[Verdict]:
    verdicts, work = [], []
    for name, tensor in quantized.items():
        verdict = Verdict(name, source[name].format.name if name in source else "", tensor.format.name)
        verdicts.append(verdict)
        planned = _made_from(source.get(name), tensor, imatrix)
        if isinstance(planned, str):
            verdict.problem = planned
        else:
            work.append((verdict, planned, tensor))
    lock = threading.Lock()
    with report([planned for _, planned, _ in work], "verifying") as progress:

        def compare(piece: tuple[Verdict, PlannedTensor, Tensor, int, int, int]) -> None:
            verdict, planned, tensor, lo, hi, stands_for = piece
            verdict.add(planned, tensor, lo, hi)
            if progress is not None:
                with lock:
                    progress(planned, stands_for)

        pieces = ((*w, *rows) for w in work for rows in _pieces(w[2], sample))
        for_each(compare, pieces, thread_count(threads))
    return verdicts


def _made_from(source: Tensor | None, tensor: Tensor, imatrix: Imatrix | None) -> PlannedTensor | str:
    """How the tensor comes from its source, or why it does not."""
    if source is None:
        return "the source has no such tensor"
    if trimmed(source.shape) != trimmed(tensor.shape):
        shapes = [" × ".join(map(str, reversed(t.shape))) for t in (source, tensor)]
        return f"the source has the shape {shapes[0]}, this one {shapes[1]}"
    source = replace(source, shape=trimmed(source.shape))
    target = tensor.format
    if source.format != target and not (target.encodable and (target.is_quantized or target.name in _FLOATS)):
        return f"the source is {source.format.name}, and nothing turns that into {target.name}"
    try:
        planned = planned_tensor(source, Decision(target, "that of the quantized model"), imatrix, tensor.name)
    except PolicyError as e:
        return e.message
    if target.needs_importance and planned.importance is None and not planned.copied:
        return f"{target.name} needs the importance matrix that was used"
    return planned


def _pieces(tensor: Tensor, sample: bool) -> Iterator[tuple[int, int, int]]:
    """(from row, to row, rows that it stands for in the progress)."""
    step = max(1, (_SAMPLE if sample else _PIECE) // max(tensor.cols, 1))
    if not sample or tensor.rows <= _SAMPLES * step:
        yield from (
            (lo, min(lo + step, tensor.rows), min(step, tensor.rows - lo)) for lo in range(0, tensor.rows, step)
        )
        return
    starts = np.linspace(0, tensor.rows - step, _SAMPLES).astype(int).tolist()
    ends = [*starts[1:], tensor.rows]
    yield from ((lo, lo + step, end - lo) for lo, end in zip(starts, ends, strict=True))
