"""GGUF files as libggml itself reads them, from the library inside `xllamacpp`: the oracle for reader and writer.

ggml_file.read("model.gguf")  →  {"version": 3, "metadata": {key: (type, item type, value)}, "tensors": {…}, …}
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any

import ggml

STRING, ARRAY = 8, 9
_NUMBERS = {
    0: ctypes.c_uint8,
    1: ctypes.c_int8,
    2: ctypes.c_uint16,
    3: ctypes.c_int16,
    4: ctypes.c_uint32,
    5: ctypes.c_int32,
    6: ctypes.c_float,
    7: ctypes.c_bool,
    10: ctypes.c_uint64,
    11: ctypes.c_int64,
    12: ctypes.c_double,
}


class _InitParams(ctypes.Structure):
    """`struct gguf_init_params`."""

    _fields_ = (("no_alloc", c_bool), ("ctx", c_void_p))


@functools.cache
def _library() -> ctypes.CDLL:
    lib = ggml.library()
    signatures = {
        "gguf_init_from_file": (c_void_p, c_char_p, _InitParams),
        "gguf_free": (None, c_void_p),
        "gguf_get_version": (c_uint32, c_void_p),
        "gguf_get_alignment": (c_size_t, c_void_p),
        "gguf_get_data_offset": (c_size_t, c_void_p),
        "gguf_get_n_kv": (c_int64, c_void_p),
        "gguf_get_key": (c_char_p, c_void_p, c_int64),
        "gguf_get_kv_type": (c_int, c_void_p, c_int64),
        "gguf_get_arr_type": (c_int, c_void_p, c_int64),
        "gguf_get_arr_n": (c_size_t, c_void_p, c_int64),
        "gguf_get_arr_data": (c_void_p, c_void_p, c_int64),
        "gguf_get_arr_str": (c_char_p, c_void_p, c_int64, c_size_t),
        "gguf_get_val_str": (c_char_p, c_void_p, c_int64),
        "gguf_get_val_data": (c_void_p, c_void_p, c_int64),
        "gguf_get_n_tensors": (c_int64, c_void_p),
        "gguf_get_tensor_name": (c_char_p, c_void_p, c_int64),
        "gguf_get_tensor_type": (c_int, c_void_p, c_int64),
        "gguf_get_tensor_offset": (c_size_t, c_void_p, c_int64),
        "gguf_get_tensor_size": (c_size_t, c_void_p, c_int64),
    }
    for name, (result, *arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def read(path: str) -> dict[str, Any] | None:
    """The header of a file, None if libggml refuses it. Strings are bytes, up to their first NUL."""
    lib = _library()
    handle = lib.gguf_init_from_file(str(path).encode(), _InitParams(True, None))
    if not handle:
        return None
    try:
        return {
            "version": lib.gguf_get_version(handle),
            "alignment": lib.gguf_get_alignment(handle),
            "data_offset": lib.gguf_get_data_offset(handle),
            "metadata": {lib.gguf_get_key(handle, i): _value(handle, i) for i in range(lib.gguf_get_n_kv(handle))},
            "tensors": {
                lib.gguf_get_tensor_name(handle, i): (
                    lib.gguf_get_tensor_type(handle, i),
                    lib.gguf_get_tensor_offset(handle, i),
                    lib.gguf_get_tensor_size(handle, i),
                )
                for i in range(lib.gguf_get_n_tensors(handle))
            },
        }
    finally:
        lib.gguf_free(handle)


def _value(handle: int, i: int) -> tuple[int, int | None, Any]:
    lib = _library()
    kind = lib.gguf_get_kv_type(handle, i)
    if kind == STRING:
        return kind, None, lib.gguf_get_val_str(handle, i)
    if kind != ARRAY:
        return kind, None, _numbers(lib.gguf_get_val_data(handle, i), kind, 1)
    item, n = lib.gguf_get_arr_type(handle, i), lib.gguf_get_arr_n(handle, i)
    if item == STRING:
        return kind, item, [lib.gguf_get_arr_str(handle, i, j) for j in range(n)]
    return kind, item, _numbers(lib.gguf_get_arr_data(handle, i), item, n) if n else b""


def _numbers(address: int, kind: int, n: int) -> bytes:
    """`n` numbers as their bytes: NaN compares equal."""
    return ctypes.string_at(ctypes.cast(address, POINTER(ctypes.c_char)), n * ctypes.sizeof(_NUMBERS[kind]))
