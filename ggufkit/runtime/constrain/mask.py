"""Masks of tokens: a bit for each, as a `Constraint` gives them."""

from __future__ import annotations

import numpy as np

__all__ = ["allowed", "permits"]


def allowed(logits: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The logits with minus infinity where a mask has no bit.

    Parameters
    ----------
    logits : array of shape (vocabulary,), float32; left as it is.
    mask : array of shape (⌈vocabulary / 32⌉,), uint32, or None for all.
    """
    if mask is None:
        return logits
    bits = np.unpackbits(mask.view(np.uint8), count=len(logits), bitorder="little").view(bool)  # (vocabulary,)
    return np.where(bits, logits, np.float32(-np.inf))


def permits(mask: np.ndarray | None, token: int) -> bool:
    """Whether a mask has the bit of a token."""
    return mask is None or bool(mask[token >> 5] >> np.uint32(token & 31) & np.uint32(1))
