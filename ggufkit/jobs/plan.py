"""Everything about the output before a weight is read: what each tensor, each file and the whole model become.

plan.size                                # bytes of the file to come, exactly
plan = plan.split(max_size=4_000_000_000)
Job(Path("model.gguf"), plan, …).write()    # model-00001-of-00003.gguf, …
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ggufkit.errors import CodecError, PolicyError, UsageError, printable
from ggufkit.formats.table import Format
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.shards import MAX_SHARDS, SPLIT_KEYS, split_names
from ggufkit.gguf.writer import FileLayout
from ggufkit.policy.decision import Decision
from ggufkit.policy.roles import Role, role_of
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

    from ggufkit.arrays import FloatArray
    from ggufkit.importance.imatrix_file import Imatrix

__all__ = ["Plan", "PlannedFile", "PlannedTensor", "importance_of", "planned_tensor", "sharded"]


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor and what becomes of it.

    Attributes
    ----------
    tensor : the tensor, under the name that it has in the output.
    format : its format in the output.
    reason : why that one, for people.
    importance : array of shape (cols,), or (experts, cols) for a stack of experts; float32. How much an error in
        each column matters.
    """

    tensor: Tensor
    format: Format
    reason: str = ""
    importance: FloatArray | None = None

    @property
    def copied(self) -> bool:
        return self.tensor.format == self.format

    @cached_property
    def row_bytes(self) -> int:
        return self.format.row_bytes(self.tensor.cols)

    @cached_property
    def nbytes(self) -> int:
        """Bytes in the output, without padding."""
        return self.tensor.rows * self.row_bytes

    @cached_property
    def _known(self) -> bool:
        """Whether all scales were looked at when the format was chosen for them."""
        return self.format.is_quantized and self.tensor.origin is not None and self.tensor.origin.exact

    @property
    def result(self) -> Tensor:
        """The tensor as it will be in the output, encoded when it is read: the source of a next step."""
        return Tensor(self.tensor.name, self.tensor.shape, self.format, self.encode)

    def encode(self, lo: int, hi: int) -> np.ndarray:
        """Rows `lo:hi` as they are in the output: array of shape (hi - lo, row_bytes), uint8.

        Raises
        ------
        CodecError : a weight is not finite, or the format cannot hold it.
        """
        return self.encode_blocks(self.tensor.read(lo, hi), lo)

    def encode_blocks(self, source: np.ndarray, lo: int) -> np.ndarray:
        """As `encode`, from the source's blocks of the rows from `lo` on."""
        if self.copied:
            if not self._known:
                self._check(source, lo)
            return source
        import numpy as np

        from ggufkit.formats.codec import recode

        out = np.empty((len(source), self.row_bytes), np.uint8)
        for at, end, importance in self._parts(lo, lo + len(source)):
            part, name = slice(at - lo, end - lo), printable(self.tensor.name)
            recode(source[part], self.tensor.format, self.format, importance, out=out[part], name=name, first_row=at)
        return out

    def _parts(self, lo: int, hi: int) -> Iterator[tuple[int, int, np.ndarray | None]]:
        """Rows `lo:hi` expert by expert: (from, to, importance)."""
        if self.importance is None:
            yield lo, hi, None
            return
        experts = self.importance.reshape(-1, self.tensor.cols)  # (experts, cols)
        rows = self.tensor.rows // len(experts)
        while lo < hi:
            end = min(hi, lo - lo % rows + rows)
            yield lo, end, experts[lo // rows]
            lo = end

    def _check(self, blocks: np.ndarray, lo: int) -> None:
        from ggufkit.formats.codec import validate

        if (bad := validate(blocks, self.format)) is not None:
            row, block = divmod(bad, self.tensor.cols // self.format.block_size)
            column = block * self.format.block_size
            what = "the block's scale" if self.format.is_quantized else "the value"
            raise CodecError(
                f"{printable(self.tensor.name)}: row {lo + row}, column {column}: {what} is not finite; "
                f"the source is damaged or overflowed {self.format.name}"
            )


def planned_tensor(
    tensor: Tensor, decision: Decision, imatrix: Imatrix | None = None, name: str | None = None
) -> PlannedTensor:
    """What becomes of a tensor that is to have the format that was decided.

    Parameters
    ----------
    imatrix : where to look for the importance of its columns.
    name : its name there, which a model with fewer layers may have renumbered.

    Raises
    ------
    PolicyError : it holds no floats, so that nothing can be encoded; or the matrix is another model's.
    """
    source, target = tensor.format, decision.format
    if source == target:
        return PlannedTensor(tensor, target, decision.reason)
    if not (source.is_quantized or source.name in ("F32", "F16", "BF16")):
        raise PolicyError(f"{printable(tensor.name)} is {source.name}: only floats can become {target.name}")
    importance = None if imatrix is None else importance_of(name or tensor.name, tensor, imatrix)
    return PlannedTensor(tensor, target, decision.reason, importance)


def importance_of(name: str, tensor: Tensor, imatrix: Imatrix) -> FloatArray | None:
    """The importance of a tensor's columns: array of shape (experts, cols), float32; None if the matrix has none.

    Parameters
    ----------
    name : its name in the matrix, which a model with fewer layers may have renumbered.

    Raises
    ------
    PolicyError : it has another number of values.
    """
    values = imatrix.values.get(name)
    if values is None:
        return None
    matrices = tensor.shape[-3] if len(tensor.shape) >= 3 else 1
    if values.size == matrices * tensor.cols:
        return values.reshape(matrices, tensor.cols)
    if role_of(name) is Role.TOKEN_EMBD:
        return None  # llama-imatrix counts tokens there
    raise PolicyError(
        f"the importance matrix {printable(imatrix.path)} belongs to another model: it has {values.size} values for "
        f"{printable(name)}, which needs {matrices * tensor.cols}"
    )


@dataclass(frozen=True)
class PlannedFile:
    """One GGUF file to write: where, and its contents in file order."""

    path: str | os.PathLike[str]
    metadata: Mapping[str, object]
    planned: Sequence[PlannedTensor]

    @property
    def tensors(self) -> list[tuple[str, tuple[int, ...], Format]]:
        return [(p.tensor.name, p.tensor.shape, p.format) for p in self.planned]

    @cached_property
    def layout(self) -> FileLayout:
        return FileLayout(self.metadata, self.tensors)

    @property
    def partial(self) -> Path:
        return Path(f"{os.path.realpath(self.path)}.partial")


# Metadata and tensors of one file, in file order.
Shard = tuple[Mapping[str, object], list[PlannedTensor]]


@dataclass(frozen=True)
class Plan:
    """A model to write, in one file or several.

    Attributes
    ----------
    shards : metadata and tensors of each file, in file order.
    notes : what the user should know, a sentence each.
    numbered : the names of the files say which of how many they are.
    """

    shards: tuple[Shard, ...]
    notes: tuple[str, ...] = ()
    numbered: bool = False

    @property
    def tensors(self) -> list[PlannedTensor]:
        return [p for _, planned in self.shards for p in planned]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Exact bytes of each file."""
        return tuple(
            FileLayout(metadata, [(p.tensor.name, p.tensor.shape, p.format) for p in planned]).size
            for metadata, planned in self.shards
        )

    @property
    def size(self) -> int:
        """Exact bytes of all files."""
        return sum(self.sizes)

    @property
    def weights(self) -> int:
        return sum(p.tensor.size for p in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights alone."""
        return sum(p.nbytes for p in self.tensors)

    def names(self, target: str | os.PathLike[str]) -> list[str]:
        """The paths of the files of a model that is called `target` as a whole."""
        target = os.fspath(target)
        return split_names(target, len(self.shards)) if self.numbered else [target]

    def split(self, max_size: int = 0, max_tensors: int = 0) -> Plan:
        """The same model in files of at most `max_size` bytes of weights and `max_tensors` tensors; 0 for any number.

        A tensor is never divided. Source: `add_tensor_info` in gguf-py/gguf/gguf_writer.py of llama.cpp.
        """
        if len(self.shards) > 1:
            raise UsageError("the model is split already; keep its parts, or merge them first")
        ((metadata, planned),) = self.shards
        numbers: list[int] = []
        shard = nbytes = tensors = 0
        for p in planned:
            full = (max_size and nbytes + p.nbytes > max_size) or (max_tensors and tensors >= max_tensors)
            if full and tensors:
                shard, nbytes, tensors = shard + 1, 0, 0
            numbers.append(shard)
            nbytes, tensors = nbytes + p.nbytes, tensors + 1
        return replace(self, shards=sharded(metadata, planned, numbers), numbered=shard > 0)


def sharded(
    metadata: Mapping[str, object], planned: Sequence[PlannedTensor], shards: Sequence[int]
) -> tuple[Shard, ...]:
    """Distribute tensors over files; only the first has the model's metadata.

    Parameters
    ----------
    shards : for each tensor the number of its file, from 0.
    """
    count = max(shards, default=0) + 1
    if count > MAX_SHARDS:
        raise UsageError(f"the model would be split into {count} files, the limit is {MAX_SHARDS}; allow more in each")
    files: list[tuple[dict[str, object], list[PlannedTensor]]] = [
        ({} if i else dict(metadata), []) for i in range(count)
    ]
    for p, shard in zip(planned, shards, strict=True):
        files[shard][1].append(p)
    if count > 1:
        for i, (pairs, _) in enumerate(files):
            values = (Value(ValueType.UINT16, i), Value(ValueType.UINT16, count), Value(ValueType.INT32, len(planned)))
            pairs.update(zip(SPLIT_KEYS, values, strict=True))
    return tuple(files)
