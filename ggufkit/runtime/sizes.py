"""Numbers that decide how much memory a run takes: the runtime goes by them, and `memory` counts with them."""

from __future__ import annotations

__all__ = ["CONTEXT", "CPU_STEP", "KEPT_STATES", "LIMIT", "MLX_STEP"]

# Tokens of a context that nobody asked for: the cache of what large models were trained on fills the memory.
CONTEXT = 4096

# Tokens that go through the layers together: more fill memory with activations and are no faster.
LIMIT = 512

# Tokens by which a layer's cache grows: on the CPU attention reads so many at once.
CPU_STEP = 32
MLX_STEP = 256

# Positions at which a conversation keeps a copy of its recurrent states.
KEPT_STATES = 4
