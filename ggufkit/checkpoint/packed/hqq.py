"""HQQ: half-quadratic quantization, a float for a zero point.

    …q_proj.W_q     the weights in groups, (n / group, group) for axis 1 and (group, n / group) for axis 0, packed from
                    parts of their rows: the first part in the highest bits
    …q_proj.scale, .zero     one for each group          w = (code - zero) · scale
    …q_proj.shape, .nbits, .group_size, .axis, .packing  as tensors

    packing     W_q    parts, and the bits of each
    8bit_u8     U8     one
    4bit_u8     U8     aaaabbbb
    2bit_u8     U8     aabbccdd
    1bit_u8     U8     abcdefgh
    3bit_32     I32    00aaabbbcccddd…: ten, rows of zeros fill the last

Groups of axis 1 are neighbours in a row; of axis 0 they go down, so that each column has its own.
Source: hqq/core/bitpack.py and quantize.py of mobiusml/hqq.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

from ggufkit.checkpoint.packed.integers import Integers
from ggufkit.checkpoint.packed.matrix import Groups, Reader
from ggufkit.checkpoint.packed.stored import Matrix, Reading, Source, parts_of, require
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["read"]

# Codes lo:hi of all weights in a row, array of shape (hi - lo,), uint8.
Flat = Callable[[int, int], "np.ndarray"]

# Packing → bytes of a word, bits of a field, place of each part's field.
_PACKINGS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "8bit_u8": (1, 8, (0,)),
    "4bit_u8": (1, 4, (4, 0)),
    "2bit_u8": (1, 2, (6, 4, 2, 0)),
    "1bit_u8": (1, 1, (7, 6, 5, 4, 3, 2, 1, 0)),
    "3bit_32": (4, 3, tuple(range(27, -1, -3))),
}


def read(source: Source) -> Reading | None:
    """Modules with `W_q`."""
    reading = Reading("HQQ")
    for module in parts_of(source.tensors, ".W_q"):
        names = (name for name in source.tensors if name.rpartition(".")[0] == module and not name.endswith(".bias"))
        reading.add(f"{module}.W_q", _matrix(source, module), names)
    return reading if reading.matrices else None


def _matrix(source: Source, module: str) -> Matrix:
    tensors, shown = source.tensors, printable(module)
    shape = tuple(int(n) for n in source.whole(require(tensors, f"{module}.shape", ("I64", "I32"), (2,))))
    bits, axis = _number(source, module, "nbits"), _number(source, module, "axis")
    packing = source.whole(require(tensors, f"{module}.packing", "U8", (-1,))).tobytes().decode("ascii", "replace")
    if f"{module}.quant_scale" in tensors and _number(source, module, "quant_scale"):
        raise CheckpointError(f"{shown}: its scales are quantized, too, which is not known")
    if packing not in _PACKINGS or not 1 <= bits <= 8 or axis not in (0, 1) or min(shape) < 1:
        raise CheckpointError(
            f"{shown}: {printable(packing)} with {bits} bits along axis {axis} of {list(shape)} is not known"
        )
    scale = require(tensors, f"{module}.scale", ("F32", "F16", "BF16"), (-1, -1))
    zero = require(tensors, f"{module}.zero", ("F32", "F16", "BF16"), scale.shape)
    rows, cols = shape
    size, rest = divmod(prod(shape), scale.size)
    codes = _codes(tensors[f"{module}.W_q"], packing, prod(shape), size if axis else scale.size)
    if rest or scale.size != max(scale.shape) or codes is None:
        raise CheckpointError(f"{shown}: W_q, {scale.size} scales and the shape {list(shape)} do not belong together")
    numbers = _by_row if axis else _by_column
    what = f"HQQ, {bits} bits in groups of {size}" + (" down the outputs" if axis == 0 else "")
    return Matrix(f"{module}.weight", what, numbers(source, (rows, cols), codes, bits, scale, zero))


def _number(source: Source, module: str, part: str) -> int:
    tensor = require(source.tensors, f"{module}.{part}", ("I32", "I64", "U8", "BOOL", "I8"), ())
    return int(source.whole(tensor).reshape(-1)[0])


def _codes(packed: Tensor, packing: str, count: int, width: int) -> Flat | None:
    """A reader of codes lo:hi of all weights; None where the bytes are not of so many."""
    import numpy as np

    size, bits, places = _PACKINGS[packing]
    words = packed.nbytes // size
    row_bytes = max(packed.row_bytes, 1)
    if packed.nbytes % size or words % max(width, 1) or not words - width < -(count // -len(places)) <= words:
        return None

    def part(lo: int, hi: int) -> np.ndarray:
        """Words lo:hi."""
        begin, end = lo * size, hi * size
        data = packed.read(begin // row_bytes, -(end // -row_bytes)).reshape(-1)
        return data[begin % row_bytes :][: end - begin].view(f"<u{size}")

    def codes(lo: int, hi: int) -> np.ndarray:
        found = np.empty(hi - lo, np.uint8)
        at = lo
        while at < hi:
            number, begin = divmod(at, words)
            n = min(hi - at, words - begin)
            found[at - lo : at - lo + n] = part(begin, begin + n) >> places[number] & (1 << bits) - 1
            at += n
        return found

    return codes


def _by_row(source: Source, shape: tuple[int, int], codes: Flat, bits: int, scale: Tensor, zero: Tensor) -> Integers:
    rows, cols = shape
    size = rows * cols // scale.size
    if cols % size:
        raise CheckpointError(f"{printable(scale.name)}: groups of {size} do not divide rows of {cols}")
    count = cols // size

    def per_row(tensor: Tensor) -> Reader:
        return lambda lo, hi: tensor.floats(lo * count, hi * count).reshape(hi - lo, count)

    return Integers(
        shape,
        lambda lo, hi: codes(lo * cols, hi * cols).reshape(hi - lo, cols),
        bits,
        per_row(scale),
        per_row(zero),
        Groups.even(cols, size),
    )


def _by_column(source: Source, shape: tuple[int, int], codes: Flat, bits: int, scale: Tensor, zero: Tensor) -> Integers:
    cols, period = shape[1], scale.size

    def of_weights(tensor: Tensor) -> Reader:
        def read(lo: int, hi: int) -> np.ndarray:
            import numpy as np

            values = source.derived(f"{tensor.name} in float32", lambda: tensor.floats().reshape(-1))
            return values[np.arange(lo * cols, hi * cols) % period].reshape(hi - lo, cols)

        return read

    return Integers(
        shape,
        lambda lo, hi: codes(lo * cols, hi * cols).reshape(hi - lo, cols),
        bits,
        of_weights(scale),
        of_weights(zero),
        Groups.even(cols, 1),
    )
