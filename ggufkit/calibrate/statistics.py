"""What calibration knows of a model, and its file: a GGUF that llama-quantize reads as an importance matrix.

    blk.0.attn_q.weight.in_sum2    (experts, cols) f32    sums of squared inputs              as llama-imatrix writes
    blk.0.attn_q.weight.counts     (experts, 1)    f32    how many inputs                     as llama-imatrix writes
    blk.0.attn_q.weight.fisher     (experts, rows) f32    sums of squared gradients at the outputs
    blk.0.attn_q.weight.rounding (2,)            f32    what rounded inputs cost, in Q8_0 and Q8_K: see `rounding`
    blk.0.attn_q.weight.moment.0   (n, n)          f32    Σ x xᵀ of its inputs, or of those columns of them
    token_embd.weight.metric       (width, width)  f32    Σ g gᵀ of the gradients at looked up rows
    token_embd.weight.frequency    (rows,)         f32    how often each row was looked up
    calibrate.tokens               (windows, n)    i32    the text

Matrices that read the same inputs share a moment: `calibrate.tensors[i]` finds its own under `calibrate.inputs[i]`.
Everything is a sum, so that statistics of two texts are added.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ggufkit.calibrate.rounding import FORMS, form_of
from ggufkit.errors import GGUFError, UsageError, printable
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.gguf.writer import Writer
from ggufkit.importance.imatrix_file import Imatrix, Sums

__all__ = ["WIDTH", "Statistics", "is_statistics", "merged", "read_statistics", "write_statistics"]

WIDTH = 2048  # columns of a moment; wider inputs have several, of so many columns each

_VERSION = 2
_MARK = "calibrate.version"


@dataclass
class Statistics:
    """Sums over the tokens of a text.

    Attributes
    ----------
    windows : (count, length) int32: the text as the model saw it.
    datasets : names of the texts.
    inputs : tensor name → name of the tensor whose moments are its own.
    moments : name → Σ x xᵀ of consecutive blocks of columns, (n, n) float32 each.
    squares : tensor name → sums of squares and counts, as importance matrices have them.
    fisher : tensor name → (experts, rows) float64.
    rounding : tensor name → (2,) float64, of each form of rounded activations (`FORMS`): squares of gradient × error.
    metrics, frequencies : of looked up tensors, (width, width) and (rows,), float32.
    """

    windows: np.ndarray
    datasets: tuple[str, ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)
    moments: dict[str, list[np.ndarray]] = field(default_factory=dict)
    squares: dict[str, Sums] = field(default_factory=dict)
    fisher: dict[str, np.ndarray] = field(default_factory=dict)
    rounding: dict[str, np.ndarray] = field(default_factory=dict)
    metrics: dict[str, np.ndarray] = field(default_factory=dict)
    frequencies: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return self.windows.size

    def knows(self, name: str) -> bool:
        """Whether they say what an error of a tensor costs."""
        return name in self.metrics or (name in self.inputs and name in self.fisher)

    def moment(self, name: str) -> np.ndarray | None:
        """The mean of x xᵀ of a tensor's inputs, (cols, cols) float32; zeros between blocks of columns."""
        blocks = self.moments.get(self.inputs.get(name, ""))
        if blocks is None:
            return None
        count = max(int(self.squares[name].counts.sum()), 1)
        whole = np.zeros((sum(map(len, blocks)),) * 2, np.float32)
        at = 0
        for block in blocks:
            whole[at : at + len(block), at : at + len(block)] = block / np.float32(count)
            at += len(block)
        return whole

    def metric(self, name: str) -> np.ndarray | None:
        """The mean of g gᵀ at the rows of a tensor that is looked up."""
        return None if name not in self.metrics else self.metrics[name] / np.float32(max(self.tokens, 1))

    def output_gradients(self, name: str) -> np.ndarray | None:
        """The mean of the squared gradient at each row's output, (experts, rows) float32."""
        found = self.fisher.get(name)
        return None if found is None else (found / max(self.tokens, 1)).astype(np.float32)

    def rounding_cost(self, name: str, type_: str) -> float:
        """What it costs that activations are rounded where they meet a tensor of a type, in KL divergence."""
        form = form_of(type_)
        if form is None or name not in self.rounding:
            return 0.0
        return 0.5 * float(self.rounding[name][list(FORMS).index(form)]) / max(self.tokens, 1)

    def imatrix(self, path: str) -> Imatrix:
        """The same as an importance matrix, in which looked up rows have one, too."""
        values = {name: np.ascontiguousarray(np.diagonal(metric)) for name, metric in self.metrics.items()}
        for name, sums in self.squares.items():
            count = sums.counts[:, None].astype(np.float32)
            mean = np.where(count > 0, sums.squares.astype(np.float32) / np.maximum(count, 1), np.float32(1))
            values[name] = mean.astype(np.float32).reshape(-1)
        return Imatrix(path, values, len(self.windows), self.datasets)


def merged(parts: list[Statistics]) -> Statistics:
    """The sums of several texts.

    Raises
    ------
    UsageError : they are of different models, or their moments or windows have other sizes.
    """
    first = parts[0]
    for part in parts[1:]:
        others = first.fisher.keys() & part.fisher.keys()
        if _shapes(part) != _shapes(first) or any(part.fisher[n].shape != first.fisher[n].shape for n in others):
            raise UsageError("statistics of different models, widths of moments or lengths of windows cannot be added")

    def added(values: Callable[[Statistics], Mapping[str, Any]]) -> dict[str, Any]:
        """Of each name the sum over the parts that have it: what no gradient reached is not in all."""
        found: dict[str, Any] = {}
        for part in (*parts[1:], first):
            for name, value in values(part).items():
                found[name] = found[name] + value if name in found else value
        return found

    return Statistics(
        windows=np.concatenate([part.windows for part in parts]),
        datasets=tuple(dict.fromkeys(name for part in parts for name in part.datasets)),
        inputs=dict(first.inputs),
        moments={
            name: [sum(p.moments[name][i] for p in parts[1:]) + block for i, block in enumerate(blocks)]
            for name, blocks in first.moments.items()
        },
        squares={
            name: Sums(_summed(p.squares[name].squares for p in parts), _summed(p.squares[name].counts for p in parts))
            for name in first.squares
        },
        fisher=added(lambda part: part.fisher),
        rounding=added(lambda part: part.rounding),
        metrics=added(lambda part: part.metrics),
        frequencies=added(lambda part: part.frequencies),
    )


# ---- Files ------------------------------------------------------------------------------------------------------


def _arrays(found: Statistics) -> dict[str, np.ndarray]:
    """What is written, by name, in order."""
    arrays: dict[str, np.ndarray] = {}
    for name in sorted(found.squares):
        sums = found.squares[name]
        experts, cols = sums.squares.shape
        arrays[f"{name}.in_sum2"] = sums.squares.astype(np.float32).reshape((experts, cols) if experts > 1 else (cols,))
        arrays[f"{name}.counts"] = sums.counts.astype(np.float32).reshape((experts, 1) if experts > 1 else (1,))
    for name in sorted(found.fisher):
        rows = found.fisher[name].astype(np.float32)
        arrays[f"{name}.fisher"] = rows if len(rows) > 1 else rows[0]
    arrays |= {f"{name}.rounding": found.rounding[name].astype(np.float32) for name in sorted(found.rounding)}
    for name in sorted(found.moments):
        arrays |= {f"{name}.moment.{i}": block for i, block in enumerate(found.moments[name])}
    for name in sorted(found.metrics):
        arrays[f"{name}.metric"] = found.metrics[name]
        arrays[f"{name}.frequency"] = found.frequencies[name]
    return arrays


def write_statistics(path: str | os.PathLike[str], found: Statistics, *, force: bool = False) -> None:
    """Write statistics.

    Raises
    ------
    FileError : the file exists without `force`, cannot be written, or the disk is full.
    """
    arrays = _arrays(found)

    def texts(values: list[str]) -> Value:
        return Value(ValueType.ARRAY, values, ValueType.STRING)

    tensors = sorted(found.inputs)
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": texts(list(found.datasets)),
        "imatrix.chunk_count": Value(ValueType.UINT32, len(found.windows)),
        "imatrix.chunk_size": Value(ValueType.UINT32, found.windows.shape[1]),
        _MARK: Value(ValueType.UINT32, _VERSION),
        "calibrate.tensors": texts(tensors),
        "calibrate.inputs": texts([found.inputs[name] for name in tensors]),
    }
    infos = [(name, array.shape, FORMATS["F32"]) for name, array in arrays.items()]
    infos.append(("calibrate.tokens", found.windows.shape, FORMATS["I32"]))
    arrays["calibrate.tokens"] = found.windows
    with Writer(path, metadata, infos, force=force) as writer:
        for name, array in arrays.items():
            rows = np.ascontiguousarray(array).reshape(-1, array.shape[-1])
            writer.write(name, 0, rows.view(np.uint8))


def is_statistics(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of statistics, and not only an importance matrix."""
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"GGUF":
                return False
    except OSError:
        return False
    with open_gguf(path) as gguf:
        return _MARK in gguf.fields


def read_statistics(path: str | os.PathLike[str]) -> Statistics:
    """Read statistics.

    Raises
    ------
    FileError : the file cannot be read.
    GGUFError : it is not such a file, or a part is missing or not finite.
    """
    with open_gguf(path) as gguf:
        if _MARK not in gguf.fields:
            raise GGUFError("not a file of calibrate: the key calibrate.version is missing", path)
        if (version := gguf.get(_MARK, int)) != _VERSION:
            raise GGUFError(f"written by another version: {version}, not {_VERSION}", path)

        def array(name: str) -> np.ndarray:
            if (tensor := gguf.tensors.get(name)) is None:
                raise GGUFError(f"the tensor {printable(name)} is missing", path)
            values = tensor.floats().reshape(tensor.shape)
            if not np.isfinite(values).all():
                raise GGUFError(f"{printable(name)} is not finite", path)
            return values

        def names(suffix: str) -> list[str]:
            return [name.removesuffix(suffix) for name in gguf.tensors if name.endswith(suffix)]

        if "calibrate.tokens" not in gguf.tensors:
            raise GGUFError("the tensor calibrate.tokens is missing", path)
        tokens = gguf.tensors["calibrate.tokens"]
        if tokens.format.name != "I32" or len(tokens.shape) != 2:
            raise GGUFError("calibrate.tokens must be I32 of two dimensions", path)
        found = Statistics(
            windows=tokens.read(0, tokens.rows).view(np.int32).reshape(tokens.shape).copy(),
            datasets=tuple(map(str, gguf.get("imatrix.datasets", list))),
        )
        tensors, inputs = gguf.get("calibrate.tensors", list), gguf.get("calibrate.inputs", list)
        if len(tensors) != len(inputs):
            raise GGUFError(f"{len(tensors)} tensors and {len(inputs)} inputs", path)
        found.inputs = dict(zip(map(str, tensors), map(str, inputs), strict=True))
        for name in names(".in_sum2"):
            counts = np.rint(array(f"{name}.counts")).astype(np.int64).reshape(-1)
            squares = array(f"{name}.in_sum2").astype(np.float64).reshape(max(len(counts), 1), -1)
            found.squares[name] = Sums(squares, counts)
        for name in names(".fisher"):
            rows = array(f"{name}.fisher").astype(np.float64)
            found.fisher[name] = rows.reshape(-1, rows.shape[-1])
        for name in names(".rounding"):
            found.rounding[name] = array(f"{name}.rounding").astype(np.float64)
            if found.rounding[name].shape != (len(FORMS),):
                raise GGUFError(f"{printable(name)}.rounding must have {len(FORMS)} numbers", path)
        for name in sorted(set(found.inputs.values())):
            count = sum(1 for other in gguf.tensors if other.startswith(f"{name}.moment."))
            found.moments[name] = [array(f"{name}.moment.{i}") for i in range(count)]
        for name in names(".metric"):
            found.metrics[name], found.frequencies[name] = array(f"{name}.metric"), array(f"{name}.frequency")
    if (fault := _fault(found)) is not None:
        raise GGUFError(f"statistics that do not fit together: {fault}", path)
    return found


def _fault(found: Statistics) -> str | None:
    """What does not fit together, as a sentence; None if all does."""
    if found.windows.ndim != 2 or not found.windows.size:
        return "there is no text"
    if found.squares.keys() != found.inputs.keys():
        return f"{_one(found.squares.keys() ^ found.inputs.keys())} has either no sums of squares or no input"
    for name, key in found.inputs.items():
        blocks, sums = found.moments.get(key, []), found.squares[name]
        if any(block.ndim != 2 or len(block) != block.shape[1] for block in blocks):
            return f"a moment of {printable(key)} is not square"
        if sum(map(len, blocks)) != sums.squares.shape[1] or len(sums.counts) != len(sums.squares):
            return f"{printable(name)} has moments of {sum(map(len, blocks))} of {sums.squares.shape[1]} columns"
    if found.metrics.keys() != found.frequencies.keys():
        return f"{_one(found.metrics.keys() ^ found.frequencies.keys())} has no metric or no frequencies"
    for name, metric in found.metrics.items():
        if metric.ndim != 2 or len(metric) != metric.shape[1] or found.frequencies[name].ndim != 1:
            return f"the metric of {printable(name)} is not square, or its frequencies are no vector"
    for name, values in _squares(found):
        if (values < 0).any():
            return f"a sum of squares of {printable(name)} is negative"
    return None


def _squares(found: Statistics) -> Iterator[tuple[str, np.ndarray]]:
    """All that cannot be negative, by tensor."""
    yield from found.fisher.items()
    yield from found.rounding.items()
    yield from found.frequencies.items()
    for name, sums in found.squares.items():
        yield name, sums.squares
        yield name, sums.counts
    for name, blocks in found.moments.items():
        yield from ((name, np.diagonal(block)) for block in blocks)
    yield from ((name, np.diagonal(metric)) for name, metric in found.metrics.items())


def _one(names: Iterable[str]) -> str:
    return printable(min(names))


def _shapes(found: Statistics) -> tuple[object, ...]:
    """What two of them must have in common to be added."""
    return (
        found.windows.shape[1],
        found.inputs,
        {name: [block.shape for block in blocks] for name, blocks in found.moments.items()},
        {name: sums.squares.shape for name, sums in found.squares.items()},
        {name: (metric.shape, found.frequencies[name].shape) for name, metric in found.metrics.items()},
    )


def _summed(arrays: Iterable[np.ndarray]) -> np.ndarray:
    result: np.ndarray = sum(arrays)  # type: ignore[assignment]  # there is one at least
    return result
