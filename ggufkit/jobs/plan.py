"""Everything about the output before a weight is read: the plan that is shown by `plan` and written by the others.

plan.size                                # bytes of the file to come, exactly
plan = plan.split(max_size=4_000_000_000)
write_plan("model.gguf", plan)           # model-00001-of-00003.gguf, …
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ggufkit.errors import UsageError
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.shards import MAX_SHARDS, SPLIT_KEYS, split_names
from ggufkit.gguf.writer import Plan
from ggufkit.jobs.stream import MEMORY, OutputFile, Planned, Reporter, silent, write_models
from ggufkit.storage.files import refuse_same_file

__all__ = ["Job", "OutputPlan", "sharded"]

# Metadata and tensors of one file, in file order.
Shard = tuple[dict[str, Any], list[Planned]]


@dataclass(frozen=True)
class OutputPlan:
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
    def tensors(self) -> list[Planned]:
        return [p for _, planned in self.shards for p in planned]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Exact bytes of each file."""
        return tuple(
            Plan(metadata, [(p.tensor.name, p.tensor.shape, p.format) for p in planned]).size
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

    def split(self, max_size: int = 0, max_tensors: int = 0) -> OutputPlan:
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


def sharded(metadata: dict[str, Any], planned: Sequence[Planned], shards: Sequence[int]) -> tuple[Shard, ...]:
    """Distribute tensors over files; only the first has the model's metadata.

    Parameters
    ----------
    shards : for each tensor the number of its file, from 0.
    """
    count = max(shards, default=0) + 1
    if count > MAX_SHARDS:
        raise UsageError(f"the model would be split into {count} files, the limit is {MAX_SHARDS}; allow more in each")
    files: list[Shard] = [({} if i else dict(metadata), []) for i in range(count)]
    for p, shard in zip(planned, shards, strict=True):
        files[shard][1].append(p)
    if count > 1:
        for i, (pairs, _) in enumerate(files):
            values = (Value(ValueType.UINT16, i), Value(ValueType.UINT16, count), Value(ValueType.INT32, len(planned)))
            pairs.update(zip(SPLIT_KEYS, values, strict=True))
    return tuple(files)


@dataclass(frozen=True)
class Job:
    """A plan and where it goes.

    Attributes
    ----------
    target : the path of the output; of a split one without the number.
    plan : its contents.
    resume_key : the identity of the source; see `write_models`.
    doing : what this is called while it runs: "converting".
    """

    target: Path
    plan: OutputPlan
    resume_key: bytes
    doing: str

    @property
    def paths(self) -> list[Path]:
        return [Path(name) for name in self.plan.names(self.target)]

    def spare(self, inputs: Iterable[str | os.PathLike[str]]) -> None:
        """Refuse to write over one of the inputs, also with ``force``.

        Raises
        ------
        UsageError : a path of the output leads to one of them.
        """
        for source in inputs:
            for path in self.paths:
                refuse_same_file(source, path)

    def write(
        self,
        *,
        force: bool = False,
        threads: int | None = None,
        memory: int = MEMORY,
        report: Reporter = silent,
    ) -> list[Path]:
        """Do it.

        Parameters
        ----------
        force : replace existing files.
        threads, memory : see `pipeline.stream`.
        report : shows the progress, e.g. `cli.progress.progress_bar`.

        Returns
        -------
        the paths of the files

        Raises
        ------
        FileError, CodecError, Interrupted : see `pipeline.write_models`. No file appears.
        """
        files = [OutputFile(path, *shard) for path, shard in zip(self.paths, self.plan.shards, strict=True)]
        with report(self.plan.tensors, self.doing) as progress:
            write_models(
                files, force=force, threads=threads, memory=memory, progress=progress, resume_key=self.resume_key
            )
        return self.paths
