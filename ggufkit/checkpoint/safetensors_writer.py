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

from ggufkit.errors import os_errors
from ggufkit.storage.files import AtomicFile

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DTYPE_BYTES", "SafetensorsWriter"]

DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1}


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
    FileError : see `AtomicFile`.
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
        self._output = AtomicFile(path, force)
        try:
            with os_errors(path, "write"):
                self._output.file.truncate(self.size)
                self._put(struct.pack("<Q", len(text)) + text, 0)
        except BaseException:
            self._output.discard()
            raise

    def write(self, name: str, row: int, rows: np.ndarray) -> None:
        """Write rows of a tensor from `row` on: array of shape (…, cols) in the tensor's dtype, C-contiguous."""
        start, row_bytes = self._rows[name]
        with os_errors(self._output.path, "write"):
            self._put(rows.data.cast("B") if rows.size else b"", self._data + start + row * row_bytes)

    def _put(self, data: bytes | memoryview, at: int) -> None:
        view = memoryview(data)
        while view:
            n = os.pwrite(self._output.file.fileno(), view[: 1 << 30], at)
            view, at = view[n:], at + n

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        self._output.__exit__(kind, value, trace)
