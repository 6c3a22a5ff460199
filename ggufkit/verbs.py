"""The verbs of the command line that take files by their paths, as functions: each does its work and returns objects.

Those that need no more than one module live there (`gguf.reader.open`, `jobs.quantize.quantize`, …); `ggufkit` itself
has all of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggufkit.errors import FileError, UsageError, printable
from ggufkit.gguf.reader import open as open_gguf

if TYPE_CHECKING:
    from ggufkit.evaluate.compare import Comparison
    from ggufkit.evaluate.perplexity import Estimate
    from ggufkit.evaluate.verify import Verdict
    from ggufkit.evaluate.windows import Windows
    from ggufkit.gguf.diff import FieldDiff, TensorDiff
    from ggufkit.gguf.hashes import Hash
    from ggufkit.gguf.values import Value
    from ggufkit.importance.imatrix_file import Imatrix
    from ggufkit.jobs.plan import Plan
    from ggufkit.policy.recipe import Recipe
    from ggufkit.runtime.model import Model

__all__ = [
    "Difference",
    "compare",
    "diff",
    "explore",
    "hash",
    "imatrix",
    "merge",
    "perplexity",
    "plan",
    "recipe",
    "split",
    "verify",
]

StrPath = str | os.PathLike[str]


def recipe(
    type: str,
    *,
    rules: Sequence[str] = (),
    policy: StrPath | None = None,
    imatrix: StrPath | Imatrix | None = None,
    output: str | None = None,
    token_embd: str | None = None,
    leave_output: bool = False,
    pure: bool = False,
    allow_requantize: bool = False,
    prune_layers: Sequence[int] = (),
    overrides: Mapping[str, Value] | None = None,
) -> Recipe:
    """What to do to a model, for `convert`, `quantize` and `plan`.

    Parameters
    ----------
    type : a preset's name such as ``"Q4_K_M"``; ``"COPY"`` keeps every tensor as it is.
    rules : ``"REGEX=TYPE"`` each, such as ``"attn_v=Q8_0"``; the first that matches a tensor's name decides.
    policy : a policy file, whose rules come after these.
    imatrix : an importance matrix, or its file.
    output, token_embd : names of formats for these tensors, before anything else.
    leave_output : keep `output.weight` as it is.
    pure : the preset's default for everything, without its rules.
    allow_requantize : decode tensors that are quantized already, at the cost of quality.
    prune_layers : numbers of layers to leave out.
    overrides : metadata to set, in order.

    Raises
    ------
    PolicyError : there is no such type, or a rule is malformed.
    FileError, GGUFError : a file cannot be read or is malformed.
    """
    from ggufkit.importance.imatrix_file import Imatrix, read_imatrix
    from ggufkit.policy.custom import target_format, tensor_type_rule
    from ggufkit.policy.policy_file import read_policy
    from ggufkit.policy.recipe import recipe_of

    own = [tensor_type_rule(rule, printable(rule)) for rule in rules]
    return replace(
        recipe_of(type),
        rules=(*own, *(() if policy is None else read_policy(policy).rules)),
        output=None if output is None else target_format(output, "output"),
        token_embd=None if token_embd is None else target_format(token_embd, "token_embd"),
        leave_output=leave_output,
        pure=pure,
        imatrix=imatrix if imatrix is None or isinstance(imatrix, Imatrix) else read_imatrix(imatrix),
        allow_requantize=allow_requantize,
        prune_layers=tuple(prune_layers),
        overrides=tuple((overrides or {}).items()),
    )


def plan(source: StrPath, type: str | Recipe = "auto") -> Plan:
    """Which format each tensor would get, why, and how large the file would be; nothing is written.

    Parameters
    ----------
    source : a checkpoint, as for `convert`, or a GGUF file, as for `quantize`.
    type : a type's name or a `Recipe`; ``"auto"`` keeps a GGUF file's tensors as they are.

    Raises
    ------
    GgufkitError : the source or the type is wrong.
    """
    from ggufkit.checkpoint.folder import is_checkpoint
    from ggufkit.jobs.convert import as_gguf, plan_convert
    from ggufkit.jobs.quantize import plan_quantize
    from ggufkit.policy.recipe import recipe_of

    if is_checkpoint(os.fspath(source)):
        return plan_convert(as_gguf(os.fspath(source), lattices=type == "auto"), type)
    with open_gguf(source) as model:
        wanted = recipe_of("COPY" if type == "auto" else type) if isinstance(type, str) else type
        return plan_quantize(model.fields, model.tensors, wanted)


def verify(
    source: StrPath,
    quantized: StrPath,
    imatrix: StrPath | Imatrix | None = None,
    *,
    sample: bool = False,
    threads: int | None = None,
) -> list[Verdict]:
    """Check that a quantized model is exactly what its source gives.

    Parameters
    ----------
    source : the GGUF file or the checkpoint that it was made from.
    quantized : the GGUF file to check.
    imatrix : the importance matrix that was used, or its file.
    sample : look at a few rows of each tensor only.
    threads : default GGUFKIT_THREADS or all CPUs.

    Returns
    -------
    one verdict a tensor of either model, in the order of `quantized`; then those that only the source has

    Raises
    ------
    FileError, GGUFError, CheckpointError : a file cannot be read or is malformed.
    CodecError : a weight of the source is not finite.
    """
    from ggufkit.checkpoint.folder import is_checkpoint
    from ggufkit.evaluate.verify import verify as verify_tensors
    from ggufkit.importance.imatrix_file import Imatrix, read_imatrix
    from ggufkit.jobs.convert import converted_tensors

    used = imatrix if imatrix is None or isinstance(imatrix, Imatrix) else read_imatrix(imatrix)
    with open_gguf(quantized) as model:
        model.read_once()
        if is_checkpoint(os.fspath(source)):
            ways = converted_tensors(os.fspath(source))
            return verify_tensors(ways, model.tensors, used, sample=sample, threads=threads)
        with open_gguf(source) as original:
            original.read_once()
            return verify_tensors([original.tensors], model.tensors, used, sample=sample, threads=threads)


@dataclass(frozen=True)
class Difference:
    """How two models differ.

    Attributes
    ----------
    metadata : the keys that differ.
    tensors : all tensors of both models.
    """

    metadata: list[FieldDiff]
    tensors: list[TensorDiff]

    def __bool__(self) -> bool:
        """Whether there is any."""
        same = ("identical", "same type")
        return bool(self.metadata) or any(tensor.status not in same for tensor in self.tensors)


def diff(a: StrPath, b: StrPath, *, data: bool = True, threads: int | None = None) -> Difference:
    """Compare two GGUF files: metadata, and the type, shape and contents of each tensor.

    Parameters
    ----------
    data : compare the contents; without, only the headers are read.
    threads : default GGUFKIT_THREADS or all CPUs.

    Raises
    ------
    FileError, GGUFError : a file cannot be read or is malformed.
    """
    from ggufkit.gguf.diff import diff_fields, diff_tensors

    with open_gguf(a) as one, open_gguf(b) as other:
        one.read_once()
        other.read_once()
        fields = diff_fields(one.fields, other.fields)
        return Difference(fields, diff_tensors(one, other, data=data, threads=threads))


def explore(
    output: StrPath,
    model: StrPath,
    other: StrPath | None = None,
    *,
    type: str | None = None,
    results: StrPath | None = None,
    weights: bool = True,
    force: bool = False,
) -> Path:
    """Write a page about a model: one HTML file that a browser opens without a network.

    Parameters
    ----------
    output : the page.
    model : a GGUF file, any of a split model, or an address; with `type` also a checkpoint.
    other : a model to compare it with, such as its source: errors of each tensor, and metadata that differs.
    type : show what the model would be as this type, with the reason for each tensor; nothing is converted.
    results : a file of what ``ggufkit compare --json`` printed, to draw the model among others.
    weights : look at weights: at some rows of each tensor, and at all where there is another model. Of an address only
        the header is read in any case.
    force : replace an existing file.

    Returns
    -------
    `output`

    Raises
    ------
    UsageError : a plan is not a file that could be compared; the results are something else.
    FileError, GGUFError, CheckpointError, PolicyError : a model cannot be read, is malformed, or cannot become `type`;
        the page exists already or cannot be written.
    """
    from ggufkit.gguf.diff import diff_fields, diff_tensors
    from ggufkit.storage.source import is_address
    from ggufkit.web.explore import beside, explorer, model_data, plan_data
    from ggufkit.web.page import write_page

    if type is not None and (other is not None or results is not None):
        raise UsageError("a plan has no weights to compare yet; leave the other model and the results out")

    def make() -> str:
        if type is not None:
            return explorer(plan_data(plan(model, type), os.fspath(model), type))
        with open_gguf(model) as opened:
            data = model_data(opened, weights=weights, results=results)
            if other is not None:
                with open_gguf(other) as second:
                    local = weights and not is_address(opened.path) and not is_address(second.path)
                    found = diff_tensors(second, opened, data=local)
                    data["other"] = beside(second, diff_fields(second.fields, opened.fields), found)
            return explorer(data)

    return write_page(make, output, force=force)


def split(
    source: StrPath,
    target: StrPath,
    *,
    max_tensors: int | None = None,
    max_bytes: int | None = None,
    no_tensor_first_split: bool = False,
    force: bool = False,
) -> list[Path]:
    """Write a model as several files, as llama-gguf-split does. After an error none of them is left.

    Parameters
    ----------
    target : path of the files without ``-00001-of-0000N.gguf``.
    max_tensors, max_bytes : of each file; by default 128 tensors.
    no_tensor_first_split : the first file holds the metadata alone.
    force : replace existing files.

    Returns
    -------
    the paths of the files

    Raises
    ------
    FileError, GGUFError : the source cannot be read or is malformed; a file exists already or cannot be written.
    UsageError : the limits make no sense, or the target is the source.
    """
    from ggufkit.gguf.copy import write_shards
    from ggufkit.gguf.shards import DEFAULT_TENSORS

    if max_tensors is None and max_bytes is None:
        max_tensors = DEFAULT_TENSORS
    with open_gguf(source) as model:
        model.read_once()
        paths = write_shards(
            model,
            target,
            max_tensors=max_tensors,
            max_bytes=max_bytes,
            no_tensor_first_split=no_tensor_first_split,
            force=force,
        )
    return [Path(path) for path in paths]


def merge(source: StrPath, target: StrPath, *, drop_split_keys: bool = False, force: bool = False) -> Path:
    """Write a split model as one file, as llama-gguf-split does.

    Parameters
    ----------
    source : any file of the model.
    drop_split_keys : leave out the `split.*` keys, which llama.cpp keeps: gives the file that was split.
    force : replace an existing file.

    Returns
    -------
    `target`

    Raises
    ------
    UsageError : the model is not split, or the target is one of its files.
    FileError, GGUFError : a file cannot be read, is malformed, or cannot be written.
    """
    from ggufkit.gguf.copy import merge as merge_model

    with open_gguf(source) as model:
        model.read_once()
        merge_model(model, target, drop_split_keys=drop_split_keys, force=force)
    return Path(target)


def hash(
    path: StrPath,
    kinds: Sequence[str] = ("xxh64",),
    *,
    tensors: bool = True,
    layers: bool = False,
    threads: int | None = None,
) -> list[Hash]:
    """Hash a GGUF file's tensors, layers and all of it, as llama-gguf-hash does.

    Parameters
    ----------
    kinds : some of ``"xxh64"``, ``"sha1"``, ``"sha256"`` and ``"uuid"``, which is of the model alone.
    tensors, layers : give the hashes of each tensor, and of each layer, too.

    Returns
    -------
    of the tensors in file order, the layers, the model

    Raises
    ------
    FileError, GGUFError : the file cannot be read or is malformed.
    """
    from ggufkit.gguf.hashes import hash_model

    with open_gguf(path) as model:
        model.read_once()
        return list(hash_model(model, kinds, tensors=tensors, layers=layers, threads=threads))


def perplexity(
    model: Model,
    text: str,
    *,
    context: int = 512,
    chunks: int | None = None,
    keys: str = "F16",
    values: str = "F16",
) -> Estimate:
    """Measure how well a model predicts a text, as llama-perplexity does: of each window the second half is predicted.

    Parameters
    ----------
    model : of `load`.
    context : tokens per window.
    chunks : look at so many windows; None for all that are full.
    keys, values : types of the cache, such as ``"Q8_0"``.

    Raises
    ------
    UsageError : the text fills no two windows, or the numbers are out of range.
    """
    from ggufkit.evaluate.perplexity import perplexity as measure

    return measure(model, _windows(model, text, context, chunks), types=(keys, values))


def compare(
    models: Sequence[StrPath],
    base: StrPath,
    text: str,
    *,
    context: int = 512,
    chunks: int | None = None,
    keys: str = "F16",
    values: str = "F16",
    backend: str = "auto",
    threads: int | None = None,
) -> Comparison:
    """Compare models with the one that they were made from: bytes, KL divergence, perplexity; it reads the text once.

    Parameters
    ----------
    models : GGUF files.
    base : the file that they were made from.
    context, chunks, keys, values : see `perplexity`.
    backend, threads : see `load`.

    Raises
    ------
    GgufkitError : a model cannot be run, or the text is too short.
    UsageError : a model has another vocabulary than the base.
    """
    from contextlib import ExitStack

    from ggufkit.evaluate.compare import compare as measure
    from ggufkit.runtime.model import load

    with ExitStack() as stack:
        source, *others = (
            stack.enter_context(load(path, backend=backend, threads=threads)) for path in (base, *models)
        )
        return measure(source, others, _windows(source, text, context, chunks), types=(keys, values))


def imatrix(
    model: StrPath,
    text: str,
    target: StrPath,
    *,
    context: int = 512,
    chunks: int | None = None,
    output: bool = False,
    dataset: str = "text",
    backend: str = "auto",
    threads: int | None = None,
    force: bool = False,
) -> Imatrix:
    """Make an importance matrix, as llama-imatrix does: which columns of its matrices a model uses to read a text.

    Parameters
    ----------
    model : the GGUF file.
    target : the file to write; in the old format where it is called ``*.dat``.
    context, chunks : see `perplexity`.
    output : also collect for the output matrix.
    dataset : what the text is called in the file.
    backend, threads : see `load`.
    force : replace an existing file.

    Returns
    -------
    what was written

    Raises
    ------
    GgufkitError : the model cannot be run, the text is too short, or the file cannot be written.
    """
    from ggufkit.calibrate.imatrix import collect
    from ggufkit.importance.imatrix_file import read_imatrix, write_imatrix
    from ggufkit.runtime.model import load

    if os.path.exists(target) and not force:
        raise FileError(f"{printable(os.fspath(target))} exists already", "give {force=True} to replace it")
    with load(model, backend=backend, threads=threads, as_ggml=True) as loaded:
        windows = _windows(loaded, text, context, chunks)
        sums = collect(loaded, windows, output=output)
    legacy = os.fspath(target).endswith(".dat")
    write_imatrix(target, sums, [dataset], len(windows), context, legacy=legacy, force=force)
    return read_imatrix(target)


def _windows(model: Model, text: str, context: int, chunks: int | None) -> Windows:
    from ggufkit.evaluate.windows import text_windows

    return text_windows(model.tokenizer, text, context, chunks)
