"""`ggufkit simulate`: a page on which one changes a block of weights and sees what each method makes of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufkit.errors import UsageError, printable
from ggufkit.web.page import assemble, write_page
from ggufkit.web.samples import decoded_rows

if TYPE_CHECKING:
    from ggufkit.tensors.tensor import Tensor

__all__ = ["simulate", "simulator", "tensor_block"]

_BLOCK, _SUPER = 32, 256


def simulate(
    output: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    *,
    tensor: str | None = None,
    block: int = 0,
    force: bool = False,
) -> Path:
    """Write the block simulator: one HTML file that a browser opens without a network.

    Parameters
    ----------
    output : the page.
    model, tensor, block : begin with a block of 32 weights of this tensor, counted along its rows.
    force : replace an existing file.

    Returns
    -------
    `output`

    Raises
    ------
    UsageError : there is no such tensor or block.
    FileError, GGUFError : the model cannot be read or is malformed; the page exists already or cannot be written.
    """
    from ggufkit.gguf.reader import open as open_gguf

    def make() -> str:
        if model is None:
            return simulator()
        with open_gguf(model) as opened:
            if tensor is None or tensor not in opened.tensors:
                raise UsageError(f"{printable(os.fspath(model))} has no tensor {printable(tensor)}")
            return simulator(tensor_block(opened.tensors[tensor], block, model))

    return write_page(make, output, force=force)


def simulator(block: dict[str, Any] | None = None) -> str:
    """The page.

    Parameters
    ----------
    block : a block of a tensor as `tensor_block` gives it, to begin with.
    """
    return assemble(
        "Block simulator",
        "simulate.html",
        styles=["page.css", "chart.css", "simulate.css"],
        scripts=["page.js", "floats.js", "searches.js", "codecs.js", "methods.js", "chart.js", "simulate.js"],
        data={} if block is None else {"block": block},
    )


def tensor_block(tensor: Tensor, block: int, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Block `block` of 32 weights of a tensor, counted along its rows, and what follows it.

    Raises
    ------
    UsageError : there is no such block, or its weights are not numbers that a block format can hold.
    """
    import numpy as np

    blocks = tensor.cols // _BLOCK
    count = blocks * tensor.rows
    name = printable(tensor.name)
    if not tensor.format.is_quantized and tensor.format.name not in ("F32", "F16", "BF16"):
        raise UsageError(f"{name} is {tensor.format.name}: only floats and quantized weights can be shown as blocks")
    if not count:
        raise UsageError(f"{name} has rows of {tensor.cols} weights; a block needs {_BLOCK}")
    if not 0 <= block < count:
        raise UsageError(f"{name} has {count} blocks of {_BLOCK} weights, 0 to {count - 1}; there is no block {block}")
    row, column = divmod(block, blocks)
    # The blocks of the format from the one that holds the first weight on, as far as they are needed.
    first = _BLOCK * column // tensor.format.block_size
    stored = tensor.read(row, row + 1)[:, first * tensor.format.type_size :]
    needed = -(-2 * _SUPER // tensor.format.block_size) * tensor.format.type_size
    whole = decoded_rows(stored[:, :needed], tensor.format).reshape(-1)
    after = whole[_BLOCK * column - first * tensor.format.block_size :]
    weights = np.resize(after, _SUPER)  # where a row ends before that, what there is is repeated
    if not np.isfinite(weights).all() or np.abs(weights).max() > 1000:
        raise UsageError(f"block {block} of {name} has weights that are not finite or beyond ±1000")
    where = f"row {row}, columns {_BLOCK * column} to {_BLOCK * column + _BLOCK - 1}"
    kind = f"{tensor.format.name} in {os.path.basename(os.fspath(path))}"
    return {
        "title": f"{tensor.name} {block}",
        "about": f"Block {block} of {tensor.name} ({where}), {kind}.",
        "weights": [float(v) for v in weights],
    }
