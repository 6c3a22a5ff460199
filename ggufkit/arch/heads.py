"""Orders of the rows of projections, which checkpoints and GGUF files have in different ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["qkv_rows", "rope_order"]


def rope_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """The order of `transforms.permute_rope` for the rows of `heads` heads, array of shape (n,)."""
    return rows.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def qkv_rows(rows: int, heads: int, kv_heads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Which rows of a fused projection that goes head by head are queries, keys and values.

        for each key head:   its query heads | key | value

    Returns
    -------
    three arrays of shape (n,), each in the order of the heads; None where so many rows are no such heads
    """
    import numpy as np

    group, rest = divmod(heads, kv_heads)
    if rest or rows % ((group + 2) * kv_heads):
        return None
    found = np.arange(rows).reshape(kv_heads, group + 2, -1)  # (key heads, heads per group, rows per head)
    return found[:, :-2].reshape(-1), found[:, -2].reshape(-1), found[:, -1].reshape(-1)
