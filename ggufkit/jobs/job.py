"""A plan and where it goes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ggufkit.jobs.plan import Plan, PlannedFile
from ggufkit.jobs.stream import MEMORY, Fill, Reporter, silent, write_models
from ggufkit.storage.files import refuse_same_file

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """A plan and where it goes.

    Attributes
    ----------
    target : the path of the output; of a split one without the number.
    plan : its contents.
    resume_key : the identity of the source; see `write_models`.
    doing : what this is called while it runs: "converting".
    fill : what writes the tensors; see `write_models`.
    within : takes what the source keeps out of the memory that is allowed, and returns what is left for buffers.
    """

    target: Path
    plan: Plan
    resume_key: bytes
    doing: str
    fill: Fill | None = None
    within: Callable[[int], int] = lambda memory: memory

    @property
    def paths(self) -> list[Path]:
        return [Path(name) for name in self.plan.names(self.target)]

    def protect(self, inputs: Iterable[str | os.PathLike[str]]) -> None:
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
        threads, memory : see `stream.stream`.
        report : shows the progress, e.g. `cli.progress.progress_bar`.

        Returns
        -------
        the paths of the files

        Raises
        ------
        FileError, CodecError, Interrupted : see `stream.write_models`. No file appears.
        """
        files = [PlannedFile(path, *shard) for path, shard in zip(self.paths, self.plan.shards, strict=True)]
        with report(self.plan.tensors, self.doing) as progress:
            write_models(
                files,
                force=force,
                threads=threads,
                memory=self.within(memory),
                progress=progress,
                resume_key=self.resume_key,
                fill=self.fill,
            )
        return self.paths
