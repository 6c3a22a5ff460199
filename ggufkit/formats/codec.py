"""Rows ↔ blocks: the only door to the encoders and decoders.

    blocks = encode(rows, "Q4_K")              # (…, rows, cols) float32 → (…, rows, row_bytes) uint8
    rows = decode(blocks, "Q4_K")              # and back

The bytes are llama.cpp's (`ggml_quantize_chunk`) for any number of threads and on any CPU. Kernels are found by
name in the family's file: `q4_k_encode(x, out)`, `q4_k_encode_weighted(x, importance, out)`, `q4_k_decode(blocks,
out)` with

    x           (rows, cols) float32           blocks  (n, type_size) uint8
    importance  (cols,) float32                out     (rows, row_bytes) uint8, or (n, block_size) float32

all C-contiguous and aligned, inputs read-only (so that each kernel is compiled for one signature). Kernels see
finite weights only. A format without `…_encode_weighted` does not use importance.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ggufkit.errors import CodecError
from ggufkit.formats.table import Format, format_by_name
from ggufkit.kernels.threads import for_ranges, thread_count

if TYPE_CHECKING:
    from ggufkit.arrays import ByteArray, FloatArray

__all__ = ["CHUNK", "decode", "decoder", "encode", "frozen", "recode", "validate"]

# Weights that are decoded, checked and encoded in turn: as float32 they stay in a core's L2 cache meanwhile.
CHUNK = 1 << 17

# Bytes of float32 that are written past the caches, because they do not stay there anyway.
_PAST_CACHES = 1 << 25

# Blocks tested at a time.
_VALIDATED = 1 << 14

# Bits of float32. Up to 65504 no scale of any format overflows float16.
_HALF_MAX = 0x477FE000

_BYTE, _FLOAT = np.dtype(np.uint8), np.dtype(np.float32)

# Arrays like those that kernels are compiled for; and what stands for none.
_FLOATS, _OUT = np.empty((0, 0), np.float32), np.empty((0, 0), np.uint8)
_ROWS, _NO_IMPORTANCE, _BLOCKS = np.empty((0, 0), np.float32), np.empty(0, np.float32), np.empty((0, 0), np.uint8)
_ROWS.flags.writeable = _NO_IMPORTANCE.flags.writeable = _BLOCKS.flags.writeable = False

# Formats whose blocks are NumPy numbers, encoded exactly.
_NUMBERS = {
    "F64": np.float64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
}


def encode(
    rows: ArrayLike,
    format: Format | str,
    importance: ArrayLike | None = None,
    *,
    out: ByteArray | None = None,
    threads: int | None = None,
    name: str = "",
    first_row: int = 0,
) -> ByteArray:
    """Encode rows of weights as `ggml_quantize_chunk` does.

    Parameters
    ----------
    rows : array of shape (…, cols). Converted to float32 first, except for F64 and integer formats, which take
        any numbers that they can hold exactly.
    format : target format or its name.
    importance : array of shape (cols,), float32, non-negative; how much an error in each column matters.
        Formats that do not use it ignore it.
    out : array of shape (…, row_bytes), uint8, C-contiguous, to write to.
    threads : how many; default GGUFKIT_THREADS or all CPUs.
    name, first_row : what to call the tensor, and the number of the first of these rows in it, in errors.

    Returns
    -------
    array of shape (…, row_bytes), uint8

    Raises
    ------
    CodecError : a row's length is not a multiple of the block size; a weight is not finite (named by row and
        column) or too large for the format; importance is missing, negative or of the wrong length.

    Notes
    -----
    Bit-exact with llama.cpp's x86-64 reference build.
    """
    format = _format(format)
    what = f"{name}: " if name else ""
    if not format.encodable:
        raise CodecError(f"{what}{format.name} only holds activations in memory; weights cannot be encoded to it")
    if format.name in _NUMBERS:
        return _encode_numbers(np.asarray(rows), format, out, what)
    with np.errstate(over="ignore"):  # a double beyond float32 is refused below
        x = np.asarray(rows, dtype=np.float32)
    if x.ndim == 0:
        raise CodecError(f"{what}cannot encode a scalar; give an array of shape (rows, cols)")
    shape = (*x.shape[:-1], format.row_bytes(x.shape[-1], what))
    out = _output(out, shape, _BYTE, what)
    if x.size == 0:
        return out
    weights = _importance(importance, format, x.shape[-1], what)
    x = frozen(x.reshape(-1, x.shape[-1]))
    blocks = out.reshape(-1, shape[-1])
    encoder = _Encoder(format, weights, x.shape[1])

    def write_rows(lo: int, hi: int) -> None:
        largest = encoder.encode(x[lo:hi], blocks[lo:hi])
        _check(largest, lambda i, j: x[lo + i : lo + j], blocks[lo:hi], first_row + lo, format, what)

    for_ranges(write_rows, x.shape[0], CHUNK // x.shape[1], threads)
    return out


def recode(
    blocks: np.ndarray,
    source: Format,
    target: Format,
    importance: ArrayLike | None = None,
    *,
    out: np.ndarray,
    name: str = "",
    first_row: int = 0,
) -> None:
    """Decode rows and encode them to another format, in the calling thread.

    The weights go through a buffer that stays in the core's L2 cache.

    Parameters
    ----------
    blocks : array of shape (rows, row_bytes), uint8, C-contiguous.
    source : its format.
    target : F32, F16, BF16 or a block format.
    importance, name, first_row : see `encode`.
    out : array of shape (rows, row_bytes of `target`), uint8, C-contiguous, to write to.

    Raises
    ------
    CodecError : as `encode` and `decode`.
    """
    what = f"{name}: " if name else ""
    cols = blocks.shape[1] // source.type_size * source.block_size
    _output(out, (len(blocks), target.row_bytes(cols, what)), _BYTE, what)
    weights = _importance(importance, target, cols, what)
    if out.size == 0:
        return
    encoder = _Encoder(target, weights, cols)
    if source.name == "F32" and blocks.ctypes.data % 4 == 0:
        largest = encoder.encode(frozen(blocks.view(np.float32)), out)
    else:
        largest = encoder.recode(frozen(blocks.reshape(-1, source.type_size)), source, out)
    _check(largest, lambda i, j: decode(blocks[i:j], source, threads=1), out, first_row, target, what)


def decode(
    blocks: ArrayLike,
    format: Format | str,
    *,
    out: FloatArray | None = None,
    threads: int | None = None,
) -> FloatArray:
    """Decode blocks to float32, bit-exact with GGML's `to_float`; any bytes decode to something.

    Parameters
    ----------
    blocks : array of shape (…, row_bytes), uint8.
    format : their format or its name.
    out : array of shape (…, cols), float32, C-contiguous, to write to.
    threads : how many; default GGUFKIT_THREADS or all CPUs.

    Returns
    -------
    array of shape (…, cols), float32

    Raises
    ------
    CodecError : the last dimension is not a multiple of the format's block of `type_size` bytes.
    """
    format = _format(format)
    data = np.asarray(blocks, order="C")
    shape, size, cols = data.shape, format.type_size, format.block_size
    if data.dtype != _BYTE or not shape:
        raise CodecError(f"blocks must be an array of bytes of shape (rows, row_bytes), not {data.dtype} {shape}")
    if shape[-1] % size:
        raise CodecError(f"{shape[-1]} bytes per row are not a multiple of {format.name}'s {size}-byte block")
    out = _output(out, shape[:-1] + (shape[-1] // size * cols,), _FLOAT, "")  # noqa: RUF005
    threads = thread_count(threads)
    if data.size == 0:
        return out
    if out.nbytes < _PAST_CACHES and (threads == 1 or out.size <= CHUNK):
        _whole_decoder(format)(data, out)
        return out
    flat, values = frozen(data.reshape(-1, size)), out.reshape(-1, cols)
    read = decoder(format)
    if out.nbytes >= _PAST_CACHES and out.ctypes.data % 16 == 0:
        read = _past_caches(read)
    if threads == 1:
        read(flat, values)
    else:
        for_ranges(lambda lo, hi: read(flat[lo:hi], values[lo:hi]), len(flat), CHUNK // cols, threads)
    return out


def validate(blocks: ArrayLike, format: Format | str) -> int | None:
    """Index of the first block that `ggml_validate_row_data` refuses (a scale or number not finite), or None.

    `blocks` is an array of bytes, a whole number of blocks; the index counts blocks over the flattened array.
    """
    format = _format(format)
    records = np.ascontiguousarray(blocks, dtype=np.uint8).reshape(-1, format.type_size).view(format.dtype)[:, 0]
    # A few blocks at a time: what is between the steps of the test stays in the cache.
    for lo in range(0, len(records), _VALIDATED):
        bad = _not_finite(records[lo : lo + _VALIDATED], format)
        if bad.any():
            return lo + int(bad.argmax())
    return None


def _not_finite(records: np.ndarray, format: Format) -> np.ndarray:
    """Array of shape (n,), bool: which of the blocks `validate` refuses."""
    if format.name == "BF16":
        return records["x"] & 0x7F80 == 0x7F80
    if format.name == "MXFP4":
        return records["e"] == 0xFF
    if format.name == "IQ1_M":
        # The float16 scale lies in the top four bits of the four uint16 in `scales`.
        scales = records["scales"].view("<u2")
        return (scales[:, 3] & 0x7000 == 0x7000) & (scales[:, 2] & 0xC000 == 0xC000)
    if format.name == "F64":
        with np.errstate(over="ignore", invalid="ignore"):  # it looks at doubles as floats
            return ~np.isfinite(records["x"].astype(np.float32))
    bad = np.zeros(records.shape, bool)
    for field, _, code in format.fields:
        if code == "f2" and field != "s":
            bad |= records[field].view("<u2") & 0x7C00 == 0x7C00
        elif code[0] == "f" and field != "s":
            bad |= ~np.isfinite(records[field])
    return bad


def _format(format: Format | str) -> Format:
    return format if isinstance(format, Format) else format_by_name(format)


def _family(format: Format) -> ModuleType:
    return importlib.import_module(f"ggufkit.formats.{format.family}")


class _Encoder:
    """Encodes rows in the calling thread, a chunk at a time; finds the bits of the largest magnitude.

    It stops at a chunk with a weight that is not finite.
    """

    def __init__(self, format: Format, importance: np.ndarray | None, cols: int):
        from ggufkit.formats import chunks

        self._chunks = chunks
        self._step = max(1, CHUNK // cols)
        self._kernel, self._address, weighted = _encoder(format, importance is not None)
        self._importance = importance if weighted and importance is not None else _NO_IMPORTANCE

    def encode(self, x: np.ndarray, out: np.ndarray) -> int:
        """x : (rows, cols) float32, frozen; out : (rows, row_bytes) uint8."""
        if self._address:
            return self._run(x, out)
        largest = 0
        for lo in range(0, len(x), self._step):
            part, to = x[lo : lo + self._step], out[lo : lo + self._step]
            largest = max(largest, self._run(part, to))  # without an encoder
            if largest >= self._chunks.INFINITY:
                break
            importance = (self._importance,) if self._importance.size else ()
            self._kernel(part, *importance, to)
        return largest

    def recode(self, blocks: np.ndarray, source: Format, out: np.ndarray) -> int:
        """blocks : (n, type_size) uint8 of another format, frozen."""
        step = min(len(out), self._step)
        per_row = len(blocks) // len(out)
        floats = np.empty((step * per_row, source.block_size), np.float32)
        x = frozen(floats.reshape(step, -1))
        if self._address and (address := _decoder_address(source)):
            return self._run(x, out, address, blocks, floats)
        largest = 0
        for lo in range(0, len(out), step):
            part = out[lo : lo + step]
            decoder(source)(blocks[lo * per_row : (lo + step) * per_row], floats[: len(part) * per_row])
            largest = max(largest, self.encode(x[: len(part)], part))
            if largest >= self._chunks.INFINITY:
                break
        return largest

    def _run(
        self,
        x: np.ndarray,
        out: np.ndarray,
        decode: int = 0,
        blocks: np.ndarray = _BLOCKS,
        floats: np.ndarray = _FLOATS,
    ) -> int:
        return self._chunks.encode_chunks(
            self._address, x, self._importance, out, min(self._step, len(out)), decode, blocks, floats
        )


@cache
def _encoder(format: Format, weighted: bool) -> tuple[Callable[..., Any], int, bool]:
    """(the encoder, its address or 0, whether it uses importance)"""
    family, name = _family(format), f"{format.name.lower()}_encode"
    if weighted and (kernel := getattr(family, f"{name}_weighted", None)) is not None:
        return kernel, _address(kernel, _ROWS, _NO_IMPORTANCE, _OUT), True
    kernel = getattr(family, name)
    return kernel, _address(kernel, _ROWS, _OUT), False


@cache
def _decoder_address(format: Format) -> int:
    return _address(decoder(format), _BLOCKS, _FLOATS)


def _address(function: Callable[..., Any], *arguments: np.ndarray) -> int:
    """The address of a kernel; 0 for what is none because it takes tables along."""
    if not hasattr(function, "py_func"):
        return 0
    from ggufkit.kernels.addresses import address

    return address(function, *arguments)


@cache
def decoder(format: Format) -> Callable[[np.ndarray, np.ndarray], Any]:
    """The kernel behind `decode`: frozen (n, type_size) uint8 → (n, block_size) float32, in the calling thread."""
    return getattr(_family(format), f"{format.name.lower()}_decode")


@cache
def _whole_decoder(format: Format) -> Callable[[np.ndarray, np.ndarray], Any]:
    """(blocks, floats), C-contiguous and of any shape → nothing. A kernel takes a few µs: what Python adds is seen."""
    size, cols = format.type_size, format.block_size
    if address := _decoder_address(format):
        from ggufkit.formats.chunks import decode_blocks

        return lambda blocks, out: decode_blocks(address, blocks, size, out, cols)
    read = decoder(format)
    return lambda blocks, out: read(frozen(blocks.reshape(-1, size)), out.reshape(-1, cols))


@cache
def _past_caches(read: Callable[[np.ndarray, np.ndarray], Any]) -> Callable[[np.ndarray, np.ndarray], Any]:
    """A decoder for outputs that no cache holds: the kernel `read` with another `store_out`, if it has that."""
    function = getattr(read, "py_func", None)
    if function is None or "store_out" not in function.__code__.co_names:
        return read
    from ggufkit.kernels.jit import specialised
    from ggufkit.kernels.lanes import store_past

    source = function.__code__.co_filename
    return specialised(function, f"{function.__name__}_past_caches", source, store_out=store_past)


def _encode_numbers(values: np.ndarray, format: Format, out: np.ndarray | None, what: str) -> np.ndarray:
    number = _NUMBERS[format.name]
    with np.errstate(invalid="ignore"):
        exact = values.astype(number)
    if not np.array_equal(exact, values) or (values.dtype.kind == "f" and not np.isfinite(values).all()):
        raise CodecError(f"{what}the {values.dtype} values cannot be held exactly by {format.name}")
    exact = np.ascontiguousarray(exact)
    if format.name == "F64" and validate(exact.view(np.uint8), format) is not None:
        raise CodecError(f"{what}{np.abs(exact).max():g} is beyond float32, which llama.cpp demands of F64, too")
    blocks = exact.view(np.uint8).reshape(*exact.shape[:-1], exact.shape[-1] * format.type_size)
    if out is None:
        return blocks
    np.copyto(_output(out, blocks.shape, _BYTE, what), blocks)
    return out


def frozen(array: np.ndarray) -> np.ndarray:
    """A C-contiguous, aligned, read-only view (or copy) of `array`."""
    suits = array.flags.c_contiguous and array.flags.aligned
    view = array[:] if suits else np.require(array, requirements=["C", "A"])
    view.flags.writeable = False
    return view


def _output(out: np.ndarray | None, shape: tuple[int, ...], dtype: np.dtype, what: str) -> np.ndarray:
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.carray:
        raise CodecError(
            f"{what}out must be a writable, aligned, C-contiguous {dtype} array of shape {shape}, "
            f"not {out.dtype} {out.shape}"
        )
    return out


def _importance(importance: ArrayLike | None, format: Format, cols: int, what: str) -> np.ndarray | None:
    if importance is None:
        if format.needs_importance:
            raise CodecError(f"{what}{format.name} needs importance weights; make an importance matrix first")
        return None
    weights = np.asarray(importance, dtype=np.float32)
    if weights.shape != (cols,):
        raise CodecError(f"{what}importance must have one value a column, shape ({cols},), not {weights.shape}")
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        at = int(bad.argmax())
        raise CodecError(f"{what}importance must be finite and not negative; column {at} is {weights[at]}")
    return frozen(weights)


def _check(
    largest: int,
    weights: Callable[[int, int], np.ndarray],
    blocks: np.ndarray,
    first_row: int,
    format: Format,
    what: str,
) -> None:
    """Raise where a weight is not finite, or made a number or a scale infinite.

    Parameters
    ----------
    largest : bits of the largest magnitude of the weights.
    weights : rows of them, float32, given the first and the one after the last.
    blocks : what they were encoded to, array of shape (rows, row_bytes); of no use after a weight that is not finite.
    first_row : the number of the first of these rows in the tensor.
    """
    if largest <= _HALF_MAX:
        return
    from ggufkit.formats.chunks import INFINITY

    if largest >= INFINITY:
        step = max(1, CHUNK // blocks.shape[1])
        for lo in range(0, len(blocks), step):
            x = weights(lo, min(lo + step, len(blocks)))
            for row, col in np.argwhere(~np.isfinite(x)):
                raise CodecError(
                    f"{what}row {first_row + lo + row}, column {col} is {x[row, col]}, which {format.name} cannot hold"
                )
    if (bad := validate(blocks, format)) is None:
        return
    row, block = divmod(bad, blocks.shape[1] // format.type_size)
    lo = block * format.block_size
    worst = np.abs(weights(row, row + 1)[0, lo : lo + format.block_size]).max()
    columns = f"columns {lo} to {lo + format.block_size - 1}" if format.block_size > 1 else f"column {lo}"
    raise CodecError(
        f"{what}row {first_row + row}, {columns}: ±{worst:g} is too large for {format.name}; "
        "use F32 or BF16 for this tensor"
    )
