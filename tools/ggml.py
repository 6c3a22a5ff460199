"""llama.cpp's own GGML, from the library inside `xllamacpp`: the oracle for every byte.

ggml.quantize(rows, 12)        # ggml_quantize_chunk → (rows, row_bytes) uint8
ggml.to_float(blocks, 12, n)   # ggml_get_type_traits(12)->to_float
ggml.read_gguf(path)           # gguf_init_from_file → metadata, tensors; None when it refuses
"""

from __future__ import annotations

import ctypes
import functools
import glob
import os

import numpy as np
import xllamacpp


class _TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    """The shared library, with the signatures used below."""
    (path,) = glob.glob(os.path.dirname(xllamacpp.__file__) + "/*.so")
    lib = ctypes.CDLL(path)
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    lib.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    lib.ggml_row_size.restype = ctypes.c_size_t
    lib.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    lib.ggml_validate_row_data.restype = ctypes.c_bool
    lib.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    return lib


def traits(type_id: int) -> _TypeTraits:
    return library().ggml_get_type_traits(type_id).contents


def quantize(rows: np.ndarray, type_id: int, importance: np.ndarray | None = None) -> np.ndarray:
    """(rows, cols) float32 → (rows, row_bytes) uint8."""
    lib = library()
    rows = np.ascontiguousarray(rows, np.float32)
    n, cols = rows.shape
    # Zeros, not garbage: where the reference leaves a byte unwritten, the difference shows.
    out = np.zeros((n, lib.ggml_row_size(type_id, cols)), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32).ctypes.data
    lib.ggml_quantize_chunk(type_id, rows.ctypes.data, out.ctypes.data, 0, n, cols, weights)
    return out


def to_float(blocks: np.ndarray, type_id: int) -> np.ndarray:
    """(n, type_size) uint8 → (n, block_size) float32."""
    t = traits(type_id)
    blocks = np.ascontiguousarray(blocks)
    out = np.empty((len(blocks), t.blck_size), np.float32)
    t.to_float(blocks.ctypes.data, out.ctypes.data, out.size)
    return out


def valid(blocks: np.ndarray, type_id: int) -> bool:
    """`ggml_validate_row_data`."""
    blocks = np.ascontiguousarray(blocks)
    return bool(library().ggml_validate_row_data(type_id, blocks.ctypes.data, blocks.nbytes))


class _InitParams(ctypes.Structure):
    """`struct gguf_init_params` of gguf.h."""

    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


# enum gguf_type → its number in C; 8 is a string, 9 an array.
_NUMBERS = {
    **dict(enumerate([ctypes.c_uint8, ctypes.c_int8, ctypes.c_uint16, ctypes.c_int16, ctypes.c_uint32])),
    5: ctypes.c_int32,
    6: ctypes.c_float,
    7: ctypes.c_bool,
    10: ctypes.c_uint64,
    11: ctypes.c_int64,
    12: ctypes.c_double,
}


def read_gguf(path: str | os.PathLike[str]) -> tuple[dict[str, object], dict[str, tuple[int, int, int]]] | None:
    """A GGUF file as llama.cpp's loader sees it; None when it refuses the file.

    Returns
    -------
    metadata : key → value, strings as bytes, arrays as lists.
    tensors : name → (type's id, byte of the file where the data starts, bytes).
    """
    lib = library()
    lib.gguf_init_from_file.restype = ctypes.c_void_p
    lib.gguf_init_from_file.argtypes = [ctypes.c_char_p, _InitParams]
    context = lib.gguf_init_from_file(os.fsencode(path), _InitParams(True, None))
    if not context:
        return None

    def call(name: str, result: type, *numbers: int) -> object:
        function = getattr(lib, name)
        function.restype, function.argtypes = result, [ctypes.c_void_p, *[ctypes.c_int64] * len(numbers)]
        return function(context, *numbers)

    def value(i: int) -> object:
        kind = call("gguf_get_kv_type", ctypes.c_int, i)
        if kind == 8:
            return call("gguf_get_val_str", ctypes.c_char_p, i)
        if kind != 9:
            return _NUMBERS[kind].from_address(call("gguf_get_val_data", ctypes.c_void_p, i)).value
        n, item = call("gguf_get_arr_n", ctypes.c_size_t, i), call("gguf_get_arr_type", ctypes.c_int, i)
        if item == 8:
            return [call("gguf_get_arr_str", ctypes.c_char_p, i, k) for k in range(n)]
        return list((_NUMBERS[item] * n).from_address(call("gguf_get_arr_data", ctypes.c_void_p, i))) if n else []

    try:
        start = call("gguf_get_data_offset", ctypes.c_size_t)
        n_pairs, n_tensors = call("gguf_get_n_kv", ctypes.c_int64), call("gguf_get_n_tensors", ctypes.c_int64)
        metadata = {call("gguf_get_key", ctypes.c_char_p, i).decode(): value(i) for i in range(n_pairs)}
        tensors = {
            call("gguf_get_tensor_name", ctypes.c_char_p, i).decode(): (
                call("gguf_get_tensor_type", ctypes.c_int, i),
                start + call("gguf_get_tensor_offset", ctypes.c_size_t, i),
                call("gguf_get_tensor_size", ctypes.c_size_t, i),
            )
            for i in range(n_tensors)
        }
        return metadata, tensors
    finally:
        lib.gguf_free.argtypes = [ctypes.c_void_p]
        lib.gguf_free(context)
