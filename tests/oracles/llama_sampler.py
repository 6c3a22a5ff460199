"""llama.cpp's samplers, from the library inside `xllamacpp`: the oracle for what is left to draw from.

llama_sampler.candidates(logits, recent, [("penalties", vocab, 64, 1.1, 0.0, 0.0), ("top_k", 40), ("temp", 0.8)])
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llama
import numpy as np


class _Token(ctypes.Structure):
    """`llama_token_data`."""

    _fields_ = [("id", ctypes.c_int32), ("logit", ctypes.c_float), ("p", ctypes.c_float)]


class _Tokens(ctypes.Structure):
    """`llama_token_data_array`."""

    _fields_ = [
        ("data", ctypes.POINTER(_Token)),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    ]


_ARGUMENTS = {
    "penalties": [ctypes.c_int32, ctypes.c_int32, ctypes.c_float, ctypes.c_float, ctypes.c_float],
    "top_k": [ctypes.c_int32],
    "top_p": [ctypes.c_float, ctypes.c_size_t],
    "min_p": [ctypes.c_float, ctypes.c_size_t],
    "temp": [ctypes.c_float],
    "greedy": [],
    "top_n_sigma": [ctypes.c_float],
    "typical": [ctypes.c_float, ctypes.c_size_t],
    "xtc": [ctypes.c_float, ctypes.c_float, ctypes.c_size_t, ctypes.c_uint32],
    "temp_ext": [ctypes.c_float, ctypes.c_float, ctypes.c_float],
    "mirostat": [ctypes.c_int32, ctypes.c_uint32, ctypes.c_float, ctypes.c_float, ctypes.c_int32],
    "mirostat_v2": [ctypes.c_uint32, ctypes.c_float, ctypes.c_float],
    "dry": [
        *(ctypes.c_void_p, ctypes.c_float, ctypes.c_float, ctypes.c_int32, ctypes.c_int32),
        *(ctypes.c_void_p, ctypes.c_size_t),
    ],
    "dist": [ctypes.c_uint32],
}


def candidates(logits: np.ndarray, recent: Sequence[int], chain: Sequence[tuple]) -> tuple[dict[int, float], int]:
    """({token: probability} of those that are left, the one that was selected or -1).

    Parameters
    ----------
    recent : tokens that the samplers have accepted.
    chain : samplers in order, each with its arguments.
    """
    lib = llama.library()
    tokens = (_Token * len(logits))(*((i, float(logit), 0.0) for i, logit in enumerate(logits)))
    array = _Tokens(tokens, len(logits), -1, False)
    for name, *arguments in chain:
        make = getattr(lib, f"llama_sampler_init_{name}")
        make.restype, make.argtypes = ctypes.c_void_p, _ARGUMENTS[name]
        sampler = ctypes.c_void_p(make(*arguments))
        for token in recent:
            lib.llama_sampler_accept(sampler, ctypes.c_int32(token))
        lib.llama_sampler_apply(sampler, ctypes.byref(array))
        lib.llama_sampler_free(sampler)
    left = {array.data[i].id: array.data[i].logit for i in range(array.size)}
    left = {token: logit for token, logit in left.items() if np.isfinite(logit)}
    top = max(left.values())
    weights = {token: float(np.exp(np.float64(logit) - top)) for token, logit in left.items()}
    total = sum(weights.values())
    selected = array.data[array.selected].id if array.selected >= 0 else -1
    return {token: weight / total for token, weight in weights.items()}, selected
