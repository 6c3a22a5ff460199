"""Matrices of four-bit floats in GGML's own blocks: MXFP4 and NVFP4, whoever wrote them.

    level   SEEM    E2M1: 0 0.5 1 1.5 2 3 4 6 and their negatives
    MXFP4   32 weights, a scale EEEEEEEE: 2 to the (e - 127)
    NVFP4   16 weights, a scale 0EEEEMMM; and one float32 for the whole matrix, which GGUF keeps as a tensor `….scale`

The weights keep their bits: only their places in a block change, of byte j from (2j, 2j + 1) to (j, j + half).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufkit.checkpoint.packed.matrix import Numbers, Reader, Steps, chunks
from ggufkit.checkpoint.packed.small_floats import levels_of
from ggufkit.errors import CheckpointError, printable
from ggufkit.formats.table import FORMATS, Format
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["E2M1", "Fp4", "pairs"]

# The value of each of the 16 codes.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)

# Weights that share a scale.
_GROUP = {"MXFP4": 32, "NVFP4": 16}


def pairs(tensor: Tensor) -> Reader:
    """The codes of bytes that hold weights 2j (low half) and 2j + 1: (n, bytes) → (n, 2 · bytes)."""

    def codes(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        data = tensor.read(lo, hi)
        found = np.empty((len(data), 2 * data.shape[1]), np.uint8)
        found[:, 0::2], found[:, 1::2] = data & 15, data >> 4
        return found

    return codes


@dataclass(frozen=True)
class Fp4(Numbers):
    """E2M1 · scale of its group · factor.

    Attributes
    ----------
    codes : (n, cols), uint8, 0 to 15.
    bits : of the scales: (n, groups), uint8, as the format has them.
    format : MXFP4 or NVFP4.
    times, over : for the whole matrix, what its tool multiplies or divides the scales with first. Where the file keeps
        `factor` apart, that is multiplied last: within 2 ulp of the same.
    """

    codes: Reader
    bits: Reader
    format: Format
    times: float = 1.0
    over: float = 1.0

    @property
    def factor(self) -> float:
        import numpy as np

        return float(np.float32(1) / np.float32(self.over)) if self.over != 1 else self.times

    def apart(self, format: Format) -> bool:
        return format == self.format

    def floats(self, lo: int, hi: int) -> np.ndarray:
        import numpy as np

        levels = np.array(E2M1, np.float32)[self.codes(lo, hi)]
        scales = self._scales(lo, hi) * np.float32(self.times) / np.float32(self.over)
        return levels * np.repeat(scales, _GROUP[self.format.name], axis=1)

    def _scales(self, lo: int, hi: int) -> np.ndarray:
        import numpy as np

        bits = self.bits(lo, hi)
        if self.format.name == "MXFP4":
            return np.ldexp(np.float32(1), bits.astype(np.int32) - 127)
        return levels_of("F8_E4M3")[bits]

    def holding(self, name: str) -> list[Format]:
        import numpy as np

        mx = self.format.name == "MXFP4"
        negative = False
        for lo, hi in chunks(self.rows, self.cols // _GROUP[self.format.name]):
            bits = self.bits(lo, hi)
            if (bits == 255).any() if mx else ((bits & 127) == 127).any():
                raise CheckpointError(f"{printable(name)}: a scale is not a number, and no weight can be made of it")
            negative = negative or (not mx and bool((bits & 128).any()))
        if not (np.isfinite(self.factor) and self.factor > 0):
            raise CheckpointError(f"{printable(name)}: the scale of the matrix is {self.factor}, which is not positive")
        fits = self.cols % self.format.block_size == 0 and not negative
        exact = [self.format] * fits
        if self.factor == 1 and not mx:
            exact += [FORMATS["BF16"], FORMATS["F16"]]
        return [*exact, FORMATS["F32"]]

    def blocks(self, format: Format, lo: int, hi: int) -> np.ndarray:
        if format != self.format:
            return super().blocks(format, lo, hi)
        import numpy as np

        half = _GROUP[format.name] // 2
        codes = self.codes(lo, hi).reshape(hi - lo, -1, 2, half)
        pairs = codes[:, :, 0] | codes[:, :, 1] << 4  # byte i holds weights i and i + half
        records = np.empty((hi - lo, self.cols // format.block_size), format.dtype)
        bits = self.bits(lo, hi)
        if format.name == "MXFP4":
            records["e"], records["qs"] = bits, pairs
        else:
            records["d"], records["qs"] = bits.reshape(hi - lo, -1, 4), pairs.reshape(hi - lo, -1, 32)
        return records.view(np.uint8)

    def steps(self) -> Steps:
        import numpy as np

        smallest, largest = np.inf, 0.0
        for lo, hi in chunks(self.rows, self.cols // _GROUP[self.format.name]):
            scales = np.abs(self._scales(lo, hi))
            smallest = min(smallest, float(scales[scales > 0].min(initial=np.inf)))
            largest = max(largest, float(scales.max(initial=0)))
        ratio = largest / smallest if np.isfinite(smallest) else 1.0
        return Steps(12 * ratio, 4.0, 0.5 * smallest * self.factor, 6 * largest * self.factor)
