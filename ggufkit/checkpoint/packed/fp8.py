"""Checkpoints with weights in eight-bit floats: DeepSeek V3's blocks, and a scale for each row or matrix.

    …q_proj.weight             (rows, cols) F8_E4M3         w = weight · scale of its block
    …q_proj.weight_scale_inv   (rows / 128, cols / 128)     "inv" as it is what to multiply with

    SEEEEMMM    E4M3: bias 7, no infinities, S1111111 is NaN
    SEEEEEMM    E5M2: bias 15, as IEEE has it

The weights become F32, of which any type can be made. Source: `dequant_model` of llama.cpp's conversion/base.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from ggufkit.errors import CheckpointError, printable
from ggufkit.formats.table import FORMATS
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FP8", "read_fp8"]

# Name of the dtype → bits of the mantissa, bias of the exponent.
FP8 = {"F8_E4M3": (3, 7), "F8_E5M2": (2, 15)}

_SCALES = ("_scale_inv", "_scale")
# Scales of activations and of the cache, for those who compute in eight bits.
_UNUSED = (".activation_scale", "_activation_scale", ".input_scale", ".k_scale", ".v_scale")


def read_fp8(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Mapping[str, Tensor] | None:
    """The tensors with those in eight bits multiplied out; None where there are none of these.

    Raises
    ------
    CheckpointError : a weight has no scale, or one of another shape.
    """
    small = [name for name, tensor in tensors.items() if tensor.format.name in FP8]
    if not small:
        return None
    block = _block(config)
    found: dict[str, Tensor] = {}
    scales = {f"{name}{ending}" for name in small for ending in _SCALES}
    for name, tensor in tensors.items():
        if name in scales or name.endswith(_UNUSED):
            continue
        if tensor.format.name not in FP8:
            found[name] = tensor
        else:
            scale = next((tensors[name + ending] for ending in _SCALES if name + ending in tensors), None)
            if scale is None:
                raise CheckpointError(f"{printable(name)} is {tensor.format.name} and has no scale beside it")
            found[name] = _scaled(tensor, scale, block)
    return found


def _block(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a scale, where config.json says that blocks do."""
    settings = config.get("quantization_config")
    sizes = settings.get("weight_block_size") if isinstance(settings, dict) else None
    if isinstance(sizes, list) and len(sizes) == 2 and all(type(size) is int and size > 0 for size in sizes):
        return sizes[0], sizes[1]
    return None


def _scaled(weight: Tensor, scale: Tensor, block: tuple[int, int] | None) -> Tensor:
    """Weight times scale as float32: one scale for all, one per row, or one per block."""
    rows, cols = weight.rows, weight.cols
    if scale.size == 1:
        block = (max(rows, 1), max(cols, 1))
    elif scale.size == rows and (len(scale.shape) == 1 or scale.cols == 1):
        block = (1, max(cols, 1))
    if block is None or scale.size != -(rows // -block[0]) * -(cols // -block[1]) or len(weight.shape) > 2:
        raise CheckpointError(
            f"{printable(scale.name)} of shape {list(scale.shape)} does not fit {printable(weight.name)} of shape "
            f"{list(weight.shape)}" + ("" if block is None else f" in blocks of {block[0]} × {block[1]}")
        )
    high, wide = block
    per_row = -(cols // -wide)

    def read(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        values = _levels(weight.format.name)[weight.read(lo, hi)]  # (hi - lo, cols), float32
        first, last = lo // high, -(hi // -high)
        flat = _entries(scale, first * per_row, last * per_row).reshape(last - first, per_row)
        factors = flat[np.arange(lo, hi) // high - first]  # (hi - lo, per_row)
        return (values * np.repeat(factors, wide, axis=1)[:, :cols]).view(np.uint8)

    return replace(weight, format=FORMATS["F32"], read=read)


def _entries(tensor: Tensor, lo: int, hi: int) -> np.ndarray:
    """Numbers lo:hi of a tensor in the order of its memory, float32."""
    cols = max(tensor.cols, 1)
    return tensor.floats(lo // cols, -(hi // -cols)).reshape(-1)[lo % cols :][: hi - lo]


@cache
def _levels(dtype: str) -> np.ndarray:
    """What each of the 256 bytes means: array of shape (256,), float32."""
    import numpy as np

    mantissa_bits, bias = FP8[dtype]
    bytes_ = np.arange(256)
    exponent, mantissa = (bytes_ & 127) >> mantissa_bits, bytes_ & (1 << mantissa_bits) - 1
    whole = 1 << mantissa_bits
    fraction = np.where(exponent > 0, whole + mantissa, mantissa) / whole
    values = np.ldexp(fraction, np.maximum(exponent, 1) - bias)
    if dtype == "F8_E4M3":
        values[(bytes_ & 127) == 127] = np.nan
    else:
        values[exponent == 31] = np.where(mantissa[exponent == 31] == 0, np.inf, np.nan)
    return np.where(bytes_ < 128, values, -values).astype(np.float32)
