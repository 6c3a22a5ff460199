"""llama.cpp's own GGML, from the library inside `xllamacpp`: the oracle for every byte.

ggml.quantize(rows, 12)        # ggml_quantize_chunk → (rows, row_bytes) uint8
ggml.to_float(blocks, 12, n)   # ggml_get_type_traits(12)->to_float
"""

from __future__ import annotations

import ctypes
import functools
import glob
import os
from collections.abc import Callable

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


_DOT = ctypes.CFUNCTYPE(
    None,
    ctypes.c_int,
    *[ctypes.c_void_p, ctypes.c_size_t] * 3,
    ctypes.c_int,
)


class _CpuTraits(ctypes.Structure):
    """`struct ggml_type_traits_cpu` of ggml-cpu.h."""

    _fields_ = [
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("vec_dot", _DOT),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
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
    lib.ggml_get_type_traits_cpu.restype = ctypes.POINTER(_CpuTraits)
    lib.ggml_cpu_init()
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


def cpu_traits(type_id: int) -> _CpuTraits:
    return library().ggml_get_type_traits_cpu(type_id).contents


def from_float(rows: np.ndarray, type_id: int) -> np.ndarray:
    """(rows, cols) float32 → (rows, row_bytes) uint8, as the CPU backend rounds caches and activations."""
    rows = np.ascontiguousarray(rows, np.float32)
    out = np.zeros((len(rows), library().ggml_row_size(type_id, rows.shape[1])), np.uint8)
    for row, to in zip(rows, out, strict=True):
        cpu_traits(type_id).from_float(row.ctypes.data, to.ctypes.data, row.size)
    return out


def vec_dots(blocks: np.ndarray, type_id: int, x: np.ndarray) -> Callable[[], np.ndarray]:
    """A call that gives `vec_dot` of each row of blocks with x, as llama.cpp quantizes it: (rows,) float32.

    The loop over rows is compiled, so that it costs next to nothing.
    """
    import numba

    traits = cpu_traits(type_id)
    n, row_bytes, other = x.size, blocks.shape[1], traits.vec_dot_type
    activations = np.zeros(library().ggml_row_size(other, n), np.uint8)
    if other == 0:
        activations = np.ascontiguousarray(x, np.float32)
    else:
        cpu_traits(other).from_float(x.ctypes.data, activations.ctypes.data, n)
    out = np.zeros(len(blocks), np.float32)
    vec_dot = _DOT(ctypes.cast(traits.vec_dot, ctypes.c_void_p).value)

    @numba.njit(nogil=True)
    def loop(result, weights, row_bytes, x, rows, n):
        for r in range(rows):
            vec_dot(n, result + 4 * r, 0, weights + row_bytes * r, 0, x, 0, 1)

    def run() -> np.ndarray:
        loop(out.ctypes.data, blocks.ctypes.data, row_bytes, activations.ctypes.data, len(blocks), n)
        return out

    return run
