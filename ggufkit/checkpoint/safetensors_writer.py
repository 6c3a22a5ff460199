"""Write one safetensors file: names and shapes first, then rows in any order.

with SafetensorsWriter("model.safetensors", {"w": ("F16", (8, 32))}) as file:
    file.write("w", 0, rows)
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from ggufkit.storage.sink import FileSink

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DTYPE_BYTES", "SafetensorsWriter"]

DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U32": 4, "U8": 1}


class SafetensorsWriter:
    """A safetensors file that appears whole or not at all. Use as a context manager.

    Parameters
    ----------
    path : the file to write.
    tensors : name → (dtype, shape); the data follow in this order.
    metadata : the header's ``__metadata__``.
    force : replace an existing file.

    Raises
    ------
    FileError : see `FileSink`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tensors: Mapping[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
        force: bool = False,
    ):
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self._rows: dict[str, tuple[int, int]] = {}  # name → (byte of the data, bytes per row)
        at = 0
        for name, (dtype, shape) in tensors.items():
            size = prod(shape) * DTYPE_BYTES[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
            self._rows[name] = at, (shape[-1] if shape else 1) * DTYPE_BYTES[dtype]
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data start at a multiple of 8 bytes
        self._data = 8 + len(text)
        self.size = self._data + at
        self._sink = FileSink(path, self.size, force=force)
        try:
            self._sink.write(0, struct.pack("<Q", len(text)) + text)
        except BaseException:
            self._sink.discard()
            raise

    def write(self, name: str, row: int, rows: np.ndarray) -> None:
        """Write rows of a tensor from `row` on: array of shape (…, cols) in the tensor's dtype, C-contiguous."""
        start, row_bytes = self._rows[name]
        self._sink.write(self._data + start + row * row_bytes, rows.data.cast("B") if rows.size else b"")

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        self._sink.__exit__(kind, value, trace)
