"""Checkpoints that other programs quantized: a file a layout, `registry` what becomes of them."""

__all__ = ["INEXACT"]

# What may become of a matrix that no block holds: see `registry.unpack`.
INEXACT = ("step", "F16", "BF16", "F32", "preset")
