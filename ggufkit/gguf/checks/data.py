"""Tensor data: numbers and scales must be finite, as `ggml_validate_row_data` wants them."""

from __future__ import annotations

from collections.abc import Iterator

from ggufkit.errors import printable
from ggufkit.gguf.checks.finding import Finding, warning
from ggufkit.gguf.copy import Advance
from ggufkit.gguf.reader import GGUF
from ggufkit.kernels.threads import for_each, thread_count
from ggufkit.tensors.tensor import Tensor

__all__ = ["check_data"]

# Bytes that are read and looked at in one go.
_STEP = 8 << 20


def check_data(model: GGUF, threads: int | None, advance: Advance) -> Iterator[Finding]:
    """The first bad block of each tensor that has one."""
    bad: dict[str, int] = {}  # tensor → index of its first bad block

    def look(piece: tuple[Tensor, int, int]) -> None:
        from ggufkit.formats.codec import validate

        tensor, lo, hi = piece
        blocks = tensor.read(lo, hi)
        found = validate(blocks, tensor.format)
        if found is not None:
            index = lo * (tensor.cols // tensor.format.block_size) + found
            bad[tensor.name] = min(index, bad.get(tensor.name, index))
        advance(blocks.nbytes, tensor.name)

    for_each(look, _pieces(model), thread_count(threads))
    for name in model.tensors:
        if name in bad:
            yield warning(_message(model.tensors[name], bad[name]), _offset(model, name, bad[name]))


def _pieces(model: GGUF) -> Iterator[tuple[Tensor, int, int]]:
    for tensor in model.tensors.values():
        if tensor.nbytes:
            step = max(1, _STEP // tensor.row_bytes)
            for lo in range(0, tensor.rows, step):
                yield tensor, lo, min(lo + step, tensor.rows)


def _message(tensor: Tensor, index: int) -> str:
    row, block = divmod(index, tensor.cols // tensor.format.block_size)
    what = "the scale of the block" if tensor.format.is_quantized else "the value"
    where = f"row {row}, column {block * tensor.format.block_size}"
    return f"{printable(tensor.name)}: {what} at {where} is not finite"


def _offset(model: GGUF, name: str, index: int) -> int:
    return model.file_offset(name) + index * model.tensors[name].format.type_size
