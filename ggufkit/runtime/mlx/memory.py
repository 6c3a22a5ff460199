"""Whether a model fits into memory, and what of it would."""

from __future__ import annotations

import os

import mlx.core as mx

from ggufkit.errors import UsageError, printable
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.reader import GGUF

__all__ = ["require_room", "room"]

# What is left to the system, activations and the cache of a short conversation.
_KEPT = 1 << 30

# Presets to name when a model is too large, and about how many bits per weight they take.
_PRESETS = {"Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q4_K_M": 4.9, "IQ4_XS": 4.3, "Q3_K_M": 3.9, "Q2_K": 3.0}

# Bits a weight on the device, where that is more than in the file: scales as float32.
_ON_DEVICE = {"Q4_K": 6.0, "Q5_K": 7.0, "Q4_0": 6.0, "Q4_1": 6.0, "Q5_0": 7.0, "Q5_1": 7.0, "Q8_0": 10.0}


def room() -> int:
    """Bytes that a model may take: what Metal recommends, or the machine's memory."""
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_room(gguf: GGUF) -> None:
    """Check that the weights fit, and on Metal let them stay in memory (the wired limit).

    Raises
    ------
    UsageError : they do not; the message names presets that would.
    """
    limit = room()
    needed = sum(device_bytes(t.size, t.format.name) for t in gguf.tensors.values())
    if needed > limit - _KEPT:
        weights = sum(t.size for t in gguf.tensors.values())
        fitting = [name for name, bits in _PRESETS.items() if weights * (bits + 1) / 8 < limit - _KEPT]
        advice = f"as {fitting[0]} it would fit" if fitting else "no quantization of it fits"
        raise UsageError(
            f"{printable(gguf.path)} needs {needed / 1e9:.1f} GB of memory and {(limit - _KEPT) / 1e9:.1f} GB "
            f"of {limit / 1e9:.1f} GB may be used; {advice}"
        )
    if mx.metal.is_available():
        mx.set_wired_limit(limit)


def device_bytes(weights: int, format: str) -> int:
    """Bytes that weights of a format take on the device."""
    return int(weights * _ON_DEVICE.get(format, FORMATS[format].bits_per_weight) / 8)
