"""The arrays that flow through the program, as a type checker knows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    ByteArray = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int32]]
