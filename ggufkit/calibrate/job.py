"""A quantizing job that rounds with GPTQ: the same plan and the same file, other blocks.

    job = with_gptq(quantization(model, "small.gguf", recipe), model, statistics)
    job = with_tuned_norms(job, model, statistics)      # and then the norms
    job.write()

What has no grid, or is kept, is encoded as ever. Each matrix is written, and noted in the log, when it is done; a
run that was stopped goes through the text again and takes from its file what is there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ggufkit.calibrate.consistency import check_model
from ggufkit.calibrate.costs import combined, output_of, shares_of
from ggufkit.calibrate.equivalent import computed
from ggufkit.calibrate.gptq import SWEEPS, damp_for, rounded
from ggufkit.calibrate.products import Factor
from ggufkit.calibrate.statistics import Statistics
from ggufkit.calibrate.streams import quantize_on_the_way
from ggufkit.calibrate.tune import STEPS, tuned
from ggufkit.errors import GgufkitError, PolicyError, UsageError, printable
from ggufkit.formats.grids import GRIDS
from ggufkit.gguf.reader import GGUF
from ggufkit.gguf.writer import Writer
from ggufkit.jobs.job import Job
from ggufkit.jobs.plan import PlannedTensor
from ggufkit.jobs.resume import ResumeLog
from ggufkit.jobs.stream import Fill, Progress, stream

__all__ = ["with_gptq", "with_tuned_norms"]


def with_gptq(
    job: Job,
    model: GGUF,
    statistics: Statistics,
    *,
    streams: bool = True,
    sweeps: int = SWEEPS,
    warn: Callable[[str], None] = lambda text: None,
) -> Job:
    """The job, with GPTQ for every tensor that has statistics and a type with a grid.

    Parameters
    ----------
    job : of `jobs.quantize.quantization`.
    statistics : of this model, see `statistics`.
    streams : run the text through the quantized and the original model side by side; else each matrix is rounded for
        itself, with the moments of the statistics.
    sweeps : of descent.
    warn : called with a sentence about a matrix that is encoded plainly.

    Raises
    ------
    UsageError : the output is split.
    PolicyError : the statistics are of another model.
    """
    if len(job.plan.shards) > 1:
        raise UsageError("GPTQ writes one file; split it afterwards")
    planned = [p for p in job.plan.tensors if _rounds(p)]
    if planned and not any(p.tensor.name in statistics.fisher for p in planned):
        raise PolicyError(
            f"the statistics are of another model: they name none of the {len(planned)} tensors to quantize, but "
            f"{printable(next(iter(statistics.fisher), 'nothing'))}"
        )
    check_model(statistics, model.tensors)
    digest = hashlib.sha256(job.resume_key)
    digest.update(f"gptq 1 {streams} {sweeps} ".encode() + statistics.windows.tobytes())
    for name in sorted(statistics.metrics):
        digest.update(statistics.metrics[name].tobytes())
    fill = _Rounding(model, statistics, streams, sweeps, warn)
    return replace(job, fill=fill, resume_key=digest.digest())


def _rounds(p: PlannedTensor) -> bool:
    return not p.copied and p.format.name in GRIDS


@dataclass
class _Rounding:
    """Writes the tensors of a file; see `jobs.stream.Fill`."""

    model: GGUF
    statistics: Statistics
    streams: bool
    sweeps: int
    warn: Callable[[str], None]

    def __call__(
        self,
        planned: Sequence[PlannedTensor],
        writer: Writer,
        *,
        threads: int | None = None,
        memory: int,
        progress: Progress | None = None,
        log: ResumeLog | None = None,
    ) -> None:
        known = self.statistics.fisher.keys() | self.statistics.metrics.keys()
        ours = {p.tensor.name: p for p in planned if _rounds(p) and p.tensor.name in known}
        others = [p for p in planned if p.tensor.name not in ours]
        stream(others, writer, threads=threads, memory=memory, progress=progress, log=log)

        def made(name: str, row: int, blocks: np.ndarray) -> None:
            writer.write(name, row, blocks)
            if log is not None:
                log.record(name, row, blocks.nbytes)
            if progress is not None:
                progress(ours[name], len(blocks))

        def earlier(name: str, row: int, rows: int) -> np.ndarray | None:
            p = ours[name]
            nbytes = rows * p.row_bytes
            if log is None or not log.has(name, row, nbytes):
                return None
            at = writer.layout.file_offset(name) + row * p.row_bytes
            blocks = np.frombuffer(os.pread(writer.fileno(), nbytes, at), np.uint8).reshape(rows, p.row_bytes)
            writer.wrote(name, nbytes)
            if progress is not None:
                progress(p, rows)
            return blocks

        if not ours:
            return
        if self.streams:
            quantize_on_the_way(
                self.model,
                ours,
                self.statistics,
                made,
                earlier,
                sweeps=self.sweeps,
                threads=threads,
                warn=self.warn,
            )
            return
        for p in ours.values():
            if earlier(p.tensor.name, 0, p.tensor.rows) is None:
                made(p.tensor.name, 0, self._alone(p, threads))

    def _alone(self, p: PlannedTensor, threads: int | None) -> np.ndarray:
        """A tensor rounded with the moments of the statistics."""
        name = p.tensor.name
        shares = shares_of(name, self.statistics, output_of(self.model))
        try:
            H = combined(shares)
            factor = Factor(H, damp_for(self.statistics.tokens, len(H)), threads)
            return rounded(p.tensor.floats(), factor, p.format.name, self.sweeps, threads)
        except GgufkitError as e:
            self.warn(f"{printable(name)} is encoded without the text: {e}")
            return p.encode(0, p.tensor.rows)


def with_tuned_norms(
    job: Job,
    model: GGUF,
    statistics: Statistics,
    *,
    steps: int = STEPS,
    tell: Callable[[str], None] = lambda text: None,
) -> Job:
    """The job, with norm weights that are tuned to the original's predictions once all else is written.

    Parameters
    ----------
    job : of `jobs.quantize.quantization`, or of `with_gptq`.
    statistics : of this model, with the text.
    steps : of Adam.
    tell : called with a sentence about the divergence before and after.

    Raises
    ------
    UsageError : the output is split.
    PolicyError : the statistics are of another model.
    """
    if len(job.plan.shards) > 1:
        raise UsageError("norms are tuned in one file; split it afterwards")
    check_model(statistics, model.tensors)
    digest = hashlib.sha256(job.resume_key + f"norms 1 {steps} ".encode() + statistics.windows.tobytes())
    return replace(job, fill=_Tuning(job.fill or stream, model, statistics, steps, tell), resume_key=digest.digest())


@dataclass
class _Tuning:
    """Writes the norms of a file last; see `jobs.stream.Fill`."""

    fill: Fill
    model: GGUF
    statistics: Statistics
    steps: int
    tell: Callable[[str], None]

    def __call__(
        self,
        planned: Sequence[PlannedTensor],
        writer: Writer,
        *,
        threads: int | None = None,
        memory: int,
        progress: Progress | None = None,
        log: ResumeLog | None = None,
    ) -> None:
        norms = {p.tensor.name: p for p in planned if _is_norm(p)}
        others = [p for p in planned if p.tensor.name not in norms]
        options: dict[str, Any] = {"threads": threads, "memory": memory, "progress": progress, "log": log}
        self.fill(others, writer, **options)
        written = {p.tensor.name: replace(p.tensor, format=p.format, read=_reading(p, writer)) for p in others}
        quantized = self.model.with_tensors(written)
        seen: list[float] = []
        found = tuned(
            quantized,
            self.model,
            self.statistics.windows,
            steps=self.steps,
            threads=threads,
            report=lambda step, kld: seen.append(kld),
        )
        self.tell(f"norms: KL divergence {seen[0]:.5f} → {min(seen):.5f} on the windows that are held out")
        stream([_with_values(p, found.get(name)) for name, p in norms.items()], writer, **{**options, "log": None})


def _is_norm(p: PlannedTensor) -> bool:
    return p.format.name == "F32" and len(p.tensor.shape) == 1 and p.tensor.name.endswith("norm.weight")


def _reading(p: PlannedTensor, writer: Writer) -> Callable[[int, int], np.ndarray]:
    """Rows of a tensor that was written."""
    start = writer.layout.file_offset(p.tensor.name)

    def read(lo: int, hi: int) -> np.ndarray:
        data = os.pread(writer.fileno(), (hi - lo) * p.row_bytes, start + lo * p.row_bytes)
        return np.frombuffer(data, np.uint8).reshape(hi - lo, p.row_bytes)

    return read


def _with_values(p: PlannedTensor, values: np.ndarray | None) -> PlannedTensor:
    return p if values is None else replace(p, tensor=computed(p.tensor, values.reshape(p.tensor.rows, -1)))
