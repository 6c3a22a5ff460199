"""Rotary embeddings on the way to a GGUF and back: Llama 3's stretched frequencies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ggufkit.errors import ArchitectureError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["llama3_divisors"]


def llama3_divisors(scaling: Mapping[str, Any], head: int) -> np.ndarray:
    """The divisors of `rope_freqs` for heads of `head` rows: array of shape (head / 2,), float32."""
    import numpy as np

    def setting(name: str, default: float) -> float:
        value = scaling.get(name)
        return default if value is None else value

    factor, context = setting("factor", 8.0), setting("original_max_position_embeddings", 8192)
    low, high = setting("low_freq_factor", 1.0), setting("high_freq_factor", 4.0)
    theta = float(setting("rope_theta", 10000.0))
    if not 0 < low <= high or not factor > 0 or not context > 0 or not theta > 0:
        found = f"{low:g} and {high:g} for low and high frequencies, a factor of {factor:g}, {context:g} tokens"
        raise ArchitectureError(f"Llama 3's rope scaling needs positive numbers, the high one no less, not {found}")
    # float32 throughout, as the reference computes it; its powers are correctly rounded but for one in a hundred.
    exponents = np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
    powers = np.power(theta, exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1) / powers
    divisors = []
    for frequency in frequencies:
        wavelength = np.float32(1) / frequency * np.float32(2 * math.pi)  # PyTorch's division of a number by a tensor
        # Llama 4's two are the same: nothing lies between.
        if wavelength < np.float32(context / high) or (low == high and wavelength == np.float32(context / high)):
            divisors.append(np.float32(1))
        elif wavelength > np.float32(context / low):
            divisors.append(np.float32(factor))
        else:
            smooth = (np.float32(1) / wavelength * np.float32(context) - np.float32(low)) / np.float32(high - low)
            divisors.append(np.float32(1) / ((1 - smooth) / np.float32(factor) + smooth))
    return np.array(divisors, np.float32)
