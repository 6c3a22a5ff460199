"""Look for everything that is wrong with a model: the file, its numbers, its tokenizer, its hyperparameters.

    for finding in validate("model.gguf"):
        print(finding.level, finding)

An ``error`` is what makes `ggufkit.open` refuse the file; there is at most one, since nothing can be read behind it.
A ``warning`` is for a valid file whose model llama.cpp would not load or not run well.
"""

from __future__ import annotations

import os

from ggufkit.errors import GGUFError
from ggufkit.gguf.checks.data import check_data
from ggufkit.gguf.checks.finding import Finding
from ggufkit.gguf.checks.hyperparameters import check_hyperparameters
from ggufkit.gguf.checks.structure import check_structure
from ggufkit.gguf.checks.template import check_templates
from ggufkit.gguf.checks.tokenizer import check_tokenizer
from ggufkit.gguf.copy import Advance, nothing
from ggufkit.gguf.header import Limits
from ggufkit.gguf.reader import GGUF
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.gguf.shards import SPLIT_KEYS

__all__ = ["Finding", "check_model", "refused", "validate"]


def validate(
    path: str | os.PathLike[str],
    *,
    offset: int = 0,
    shards: bool = True,
    limits: Limits | None = None,
    data: bool = True,
    threads: int | None = None,
    advance: Advance = nothing,
) -> list[Finding]:
    """Open a model and check everything.

    Parameters
    ----------
    path, offset, shards, limits : see `ggufkit.open`.
    data : read all tensors and look for numbers that are not finite; False looks at the header alone.

    Raises
    ------
    FileError : the file is missing or unreadable. What is wrong inside of it is in the findings.
    """
    try:
        with open_gguf(path, offset=offset, shards=shards, limits=limits) as model:
            return check_model(model, data=data, threads=threads, advance=advance)
    except GGUFError as e:
        return [refused(e)]


def refused(error: GGUFError) -> Finding:
    """What `ggufkit.open` said, as a finding."""
    return Finding("error", error.reason, error.offset)


def check_model(
    model: GGUF, *, data: bool = True, threads: int | None = None, advance: Advance = nothing
) -> list[Finding]:
    """The warnings for an open model; see `validate`."""
    findings = list(check_structure(model))
    number = model.metadata.get(SPLIT_KEYS[0], 0)
    if len(model.parts) > 1 or number == 0 or not isinstance(number, int):  # the other shards have no metadata
        findings += [*check_hyperparameters(model), *check_tokenizer(model), *check_templates(model)]
    if data:
        findings += check_data(model, threads, advance)
    return findings
