"""New files from the tensors of open ones: copies, shards, merged files, the other byte order.

The tensor data goes from file to file inside the kernel where it can (`copy_range`), in steps of bounded memory
where it cannot: from a server, or when the byte order changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ggufkit.errors import UsageError, os_errors, printable
from ggufkit.gguf.reader import GGUF
from ggufkit.gguf.sharded import ShardedWriter
from ggufkit.gguf.shards import SPLIT_KEYS, merged_fields
from ggufkit.gguf.writer import Writer
from ggufkit.storage.files import copy_range, refuse_same_file
from ggufkit.storage.source import FileSource, is_address

__all__ = ["Advance", "copy_model", "merge", "nothing", "write_shards"]

# Called with a number of bytes that are done and the name of their tensor.
Advance = Callable[[int, str], object]

# Bytes that are held when the data passes through this process.
_STEP = 8 << 20


def nothing(nbytes: int, name: str) -> None:
    """The `Advance` that shows nothing."""


def copy_model(
    model: GGUF,
    target: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    *,
    names: Iterable[str] | None = None,
    byteorder: str | None = None,
    force: bool = False,
    advance: Advance = nothing,
) -> None:
    """Write one file with tensors of `model`.

    Parameters
    ----------
    target : the file to write.
    metadata : its metadata, in file order.
    names : the tensors, in file order; default all.
    byteorder : ``"little"`` or ``"big"``; default the model's.
    force : replace an existing file.

    Raises
    ------
    FileError : the file exists, cannot be written, the disk is full.
    UsageError : the target is one of the model's files.
    GGUFError : the metadata is not valid, or the model's file ends early.
    """
    _refuse_inputs(model, target)
    infos = [model.info[name] for name in (model.info if names is None else names)]
    tensors = [(info.name, info.shape, info.format) for info in infos]
    with Writer(target, metadata, tensors, byteorder=byteorder or model.byteorder, force=force) as out:
        for info in infos:
            _copy_tensor(model, info.name, out, advance)


def _refuse_inputs(model: GGUF, target: str | os.PathLike[str]) -> None:
    for part in model.parts:
        if not is_address(part.source.name):
            refuse_same_file(part.source.name, target)


def _copy_tensor(model: GGUF, name: str, out: Writer, advance: Advance) -> None:
    part, info = model.part_of(name), model.info[name]
    same_order = part.header.byteorder == ("little" if out.layout.order == "<" else "big")
    if same_order and isinstance(part.source, FileSource) and not part.source.overlay:
        source, at = part.source, part.file_offset(info)
        with os_errors(out.path, "write"):
            copy_range(
                source.fileno(),
                at,
                out.fileno(),
                out.layout.file_offset(name),
                info.nbytes,
                sparse=True,
                advance=lambda n: advance(n, name),
            )
        out.wrote(name, info.nbytes)
    elif same_order:
        for at in range(0, info.nbytes, _STEP):
            data = part.source.read(part.file_offset(info) + at, min(_STEP, info.nbytes - at))
            out.write_at(out.layout.file_offset(name) + at, data)
            advance(len(data), name)
        out.wrote(name, info.nbytes)
    else:
        _copy_swapped(model, name, out, advance)


def _copy_swapped(model: GGUF, name: str, out: Writer, advance: Advance) -> None:
    from ggufkit.gguf.reader import swapped

    tensor = model.tensors[name]
    if not tensor.nbytes:
        return
    step = max(1, _STEP // tensor.row_bytes)
    for lo in range(0, tensor.rows, step):
        blocks = tensor.read(lo, min(lo + step, tensor.rows))  # little-endian, whatever the file is
        out.write(name, lo, swapped(blocks, tensor.format) if out.layout.order == ">" else blocks)
        advance(blocks.nbytes, name)


def write_shards(
    model: GGUF,
    target: str | os.PathLike[str],
    *,
    max_tensors: int | None = None,
    max_bytes: int | None = None,
    no_tensor_first_split: bool = False,
    force: bool = False,
    advance: Advance = nothing,
) -> list[str]:
    """Write a model as several files, as llama-gguf-split does. After an error none of them is left.

    Parameters
    ----------
    target : path of the files without ``-00001-of-0000N.gguf``.
    max_tensors, max_bytes, no_tensor_first_split : see `split_tensors`.

    Returns
    -------
    the paths of the files

    Raises
    ------
    FileError, UsageError, GGUFError : see `ShardedWriter`.
    """
    out = ShardedWriter(
        target,
        model.fields,
        [(info.name, info.shape, info.format) for info in model.info.values()],
        max_tensors=max_tensors,
        max_bytes=max_bytes,
        no_tensor_first_split=no_tensor_first_split,
        byteorder=model.byteorder,
        force=force,
    )
    for path in out.paths:
        _refuse_inputs(model, path)
    with out:
        for name in model.info:
            _copy_tensor(model, name, out.writer_of(name), advance)
            out.finish(name)
    return out.paths


def merge(
    model: GGUF,
    target: str | os.PathLike[str],
    *,
    drop_split_keys: bool = False,
    force: bool = False,
    advance: Advance = nothing,
) -> None:
    """Write a split model as one file, as llama-gguf-split does.

    Parameters
    ----------
    model : opened by any of its shards.
    drop_split_keys : leave out the `split.*` keys, which llama.cpp keeps: gives the file that was split.

    Raises
    ------
    UsageError : the model is not split.
    FileError, UsageError, GGUFError : see `copy_model`.
    """
    if SPLIT_KEYS[1] not in model.fields:
        raise UsageError(f"{printable(model.path)} is no part of a split model: it has no {SPLIT_KEYS[1]}")
    fields = {key: value for key, value in model.fields.items() if key not in SPLIT_KEYS}
    metadata = fields if drop_split_keys else merged_fields(model.fields)
    copy_model(model, target, metadata, force=force, advance=advance)
