"""A look at the weights of each tensor: a few rows, evenly spread, so that a page of 40 GB is made in seconds.

histogram   of the weights, and of the blocks' scales where the type has one
heat map    rows downwards, columns in equal parts: mean |scale|, or rms of the weights where there is none
blocks      the first ones of the sample, as stored and as decoded
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

    from ggufkit.formats.table import Format

__all__ = ["decoded_rows", "samples_of"]

_WEIGHTS = 24 << 20  # that are decoded of a model
_WIDEST = 1 << 20  # weights of a row: rows are read as a whole
_CELLS = 1 << 20  # of all heat maps
_ROWS, _COLUMNS = 48, 64  # of a heat map
_SHOWN = 256  # weights of a run of opened blocks
_OPENED = 512 << 10  # bytes of all opened blocks
_BINS = 60


def samples_of(
    tensors: Sequence[Tensor], advance: Callable[[int, str], object] = lambda count, name: None
) -> list[dict[str, Any] | None]:
    """A sample of each tensor; None of those that hold no weights, or in rows of millions.

    Parameters
    ----------
    advance : called after each tensor with 1 and its name.

    Raises
    ------
    FileError, GGUFError : a tensor cannot be read.
    """
    count = max(len(tensors), 1)
    cells = max(64, min(_ROWS * _COLUMNS, _CELLS // count))
    runs = max(1, min(16, _OPENED // count // (_SHOWN * 5)))
    found = []
    for tensor in tensors:
        found.append(_sample(tensor, _WEIGHTS // count, cells, runs))
        advance(1, tensor.name)
    return found


def _sample(tensor: Tensor, weights: int, cells: int, runs: int) -> dict[str, Any] | None:
    import numpy as np

    if not 0 < tensor.cols <= _WIDEST or not tensor.rows:
        return None
    if not (tensor.format.is_quantized or tensor.format.name in ("F32", "F16", "BF16")):
        return None
    wanted = min(tensor.rows, _ROWS, max(4, weights // tensor.cols))
    rows = sorted({int(i) for i in np.linspace(0, tensor.rows - 1, wanted)})
    blocks = np.concatenate([tensor.read(row, row + 1) for row in rows])  # (rows, row bytes)
    x = decoded_rows(blocks, tensor.format)  # (rows, cols)
    finite = x[np.isfinite(x)]
    if not finite.size:
        return {"rows": rows, "broken": int(x.size)}
    scales = _scales(tensor, blocks)
    size = float(np.sqrt(np.square(finite, dtype=np.float64).mean()))
    largest = float(np.abs(finite).max())
    return {
        "rows": rows,
        "broken": int(x.size - finite.size),
        "mean": float(finite.mean(dtype=np.float64)),
        "rms": size,
        "least": float(finite.min()),
        "largest": float(finite.max()),
        "zeros": float(np.mean(finite == 0)),
        "outlier": largest / size if size else 0.0,
        "histogram": _histogram(finite),
        "scales": None if scales is None else _histogram(np.abs(scales[np.isfinite(scales)])),
        "heat": _heat(x, scales, cells),
        "blocks": _opened(tensor, blocks[0], x[0], runs),
    }


def decoded_rows(blocks: np.ndarray, form: Format) -> np.ndarray:
    """Rows of blocks as numbers, (rows, cols) float32.

    By gguf's decoders, which are plain NumPy and give the same bits: for a few rows it does not pay to load a compiler,
    nor on a new machine to compile. The types that they lack are decoded by the codec.
    """
    import numpy as np

    if form.name in ("F32", "F16"):
        return np.ascontiguousarray(blocks).view(f"<{form.fields[0][2]}").astype(np.float32)
    try:
        import gguf
        from gguf.quants import dequantize

        kind = gguf.GGMLQuantizationType[form.name]
        with np.errstate(all="ignore"):
            x: np.ndarray = dequantize(np.ascontiguousarray(blocks), kind)
    except (KeyError, NotImplementedError):
        from ggufkit.formats.codec import decode

        return decode(blocks, form)
    return x.astype(np.float32, copy=False)


def _scales(tensor: Tensor, blocks: np.ndarray) -> np.ndarray | None:
    """The field `d` of each block, (rows, blocks per row) float32; None where the type has none of float16."""
    import numpy as np

    form = tensor.format
    if ("d", 1, "f2") not in form.fields:
        return None
    records = np.ascontiguousarray(blocks).view(form.dtype)
    scales: np.ndarray = records["d"].astype(np.float32).reshape(len(blocks), -1)
    return scales


def _histogram(values: np.ndarray) -> dict[str, Any] | None:
    """Counts between the least and the largest value."""
    import numpy as np

    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    if low == high:
        return {"low": low, "high": high, "counts": [int(values.size)]}
    counts, _ = np.histogram(values.astype(np.float64), _BINS, (low, high))
    return {"low": low, "high": high, "counts": counts.tolist()}


def _heat(x: np.ndarray, scales: np.ndarray | None, cells: int) -> dict[str, Any]:
    """Magnitudes in cells, a byte each, logarithmic: 0 is nothing, 1 to 255 lie between the least and the largest."""
    import numpy as np

    values = np.abs(scales) if scales is not None and scales.shape[1] >= 8 else np.abs(x)
    columns = max(1, min(_COLUMNS, values.shape[1], cells // len(values)))
    edges = np.linspace(0, values.shape[1], columns + 1).astype(int)[:-1]
    widths = np.diff([*edges, values.shape[1]])
    with np.errstate(invalid="ignore", over="ignore"):
        means = np.add.reduceat(np.where(np.isfinite(values), values, 0).astype(np.float64), edges, axis=1) / widths
    positive = means[means > 0]
    grid = np.zeros(means.shape, np.uint8)
    low = high = 0.0
    if positive.size:
        low, high = float(positive.min()), float(positive.max())
        span = np.log(high / low) or 1.0
        with np.errstate(divide="ignore"):
            grid = np.where(means > 0, 1 + np.round(254 * np.log(means / low) / span), 0).astype(np.uint8)
    return {
        "what": "scale" if values is not x and scales is not None and scales.shape[1] >= 8 else "magnitude",
        "columns": columns,
        "low": low,
        "high": high,
        "cells": base64.b64encode(grid.tobytes()).decode(),
    }


def _opened(tensor: Tensor, blocks: np.ndarray, x: np.ndarray, runs: int) -> dict[str, Any]:
    """The first weights of the sample's first row: whole blocks, as they are stored and what they mean."""
    import numpy as np

    form = tensor.format
    weights = min(tensor.cols, max(_SHOWN * runs // form.block_size, 1) * form.block_size)
    weights -= weights % form.block_size
    stored = blocks[: weights // form.block_size * form.type_size]
    values = np.ascontiguousarray(x[:weights], "<f4")
    return {
        "stored": base64.b64encode(stored.tobytes()).decode(),
        "values": base64.b64encode(values.tobytes()).decode(),
    }
