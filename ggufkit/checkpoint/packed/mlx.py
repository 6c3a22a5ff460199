"""Checkpoints that MLX quantized.

    model.layers.0.mlp.up_proj.weight   (…, rows, cols · bits / 32) U32   codes, a stream of bits
    model.layers.0.mlp.up_proj.scales   (…, rows, cols / group)           affine: w = scale · code + bias
    model.layers.0.mlp.up_proj.biases   (…, rows, cols / group)

    mode      codes           scales         group     becomes
    affine    1 to 8 bits     floats         any       Q4_1, Q5_1; Q4_0, Q5_0, Q8_0 where the bias is their zero
    mxfp4     E2M1            U8, E8M0       32        MXFP4
    nvfp4     E2M1            U8, E4M3       16        NVFP4
    mxfp8     E4M3            U8, E8M0       32        BF16

A bfloat16 scale has fewer digits than a float16, but more range. `group_size: null` of a mixed recipe is the mode's
own. Source: `mlx.core.quantize`; `quantization` in config.json as mlx-lm writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ggufkit.checkpoint.packed.fp4 import Fp4
from ggufkit.checkpoint.packed.matrix import Groups, Levels, Numbers, Offsets
from ggufkit.checkpoint.packed.small_floats import e8m0, levels_of
from ggufkit.checkpoint.packed.stored import Matrix, Reading, Source
from ggufkit.errors import CheckpointError, printable
from ggufkit.formats.table import FORMATS
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["QUANTIZATION_KEY", "hints", "read"]

# Where the settings are kept in a GGUF, so that its export has the same arrays again.
QUANTIZATION_KEY = "ggufkit.mlx.quantization"

# mlx-lm stacks a layer's experts under this name; the architectures know them by the other.
_STACKED = (re.compile(r"\.mlp\.switch_mlp\."), ".mlp.experts.")

# Mode → bits of a code and weights a group, where the settings have null.
_MODES = {"affine": (4, 64), "mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}


def read(source: Source) -> Reading | None:
    """Modules with `scales`, where config.json has MLX's `quantization`.

    Raises
    ------
    CheckpointError : a part is missing, or its shape does not fit the settings.
    """
    settings = source.config.get("quantization")
    tensors = source.tensors
    bases = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    if not isinstance(settings, dict) or not bases:
        return None
    reading = Reading("MLX")
    for base in bases:
        if f"{base}.weight" not in tensors:
            raise CheckpointError(f"{printable(base)} has scales and no weight")
        reading.add(f"{base}.weight", _matrix(base, tensors, settings), (f"{base}.scales", f"{base}.biases"))
    for name, tensor in tensors.items():
        if name not in reading.parts and _STACKED[0].search(name):
            reading.other[name] = tensor.renamed(_renamed(name))
    return reading


def hints(source: Source) -> str:
    """What `QUANTIZATION_KEY` has: the settings and the dtype of the scales, as JSON."""
    dtype = next(tensor.format.name for name, tensor in source.tensors.items() if name.endswith(".scales"))
    return json.dumps({**source.config["quantization"], "dtype": dtype})


def _renamed(name: str) -> str:
    return _STACKED[0].sub(_STACKED[1], name)


def _matrix(base: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Matrix:
    shown = printable(base)
    codes, scales = tensors[f"{base}.weight"], tensors[f"{base}.scales"]
    biases = tensors.get(f"{base}.biases")
    own = settings.get(base)
    merged = {**settings, **own} if isinstance(own, dict) else settings
    mode = merged.get("mode", "affine")
    if mode not in _MODES:
        raise CheckpointError(f"{shown}: MLX's mode {printable(mode)} is not known; known: {', '.join(_MODES)}")
    bits, group = (
        merged.get(key) or default for key, default in zip(("bits", "group_size"), _MODES[mode], strict=True)
    )
    if bits not in (1, 2, 3, 4, 5, 6, 8) or type(group) is not int or group < 1:
        raise CheckpointError(
            f"{shown}: config.json's quantization needs bits and group_size, not {printable(str(merged))}"
        )
    if (
        codes.format.name != "U32"
        or not scales.shape
        or codes.shape[:-1] != scales.shape[:-1]
        or (biases and biases.shape != scales.shape)
    ):
        raise CheckpointError(
            f"{shown}: codes {codes.format.name} {list(codes.shape)} do not go with scales {list(scales.shape)}"
        )
    if codes.cols * 32 != scales.cols * group * bits:
        raise CheckpointError(
            f"{shown}: {codes.cols} words of {bits}-bit codes are not {scales.cols} groups of {group}; "
            "is config.json's quantization the right one?"
        )
    if mode != "affine" and (scales.format.name != "U8" or (bits, group) != _MODES[mode]):
        raise CheckpointError(
            f"{shown}: MLX's mode {mode} has {_MODES[mode][0]} bits, groups of {_MODES[mode][1]} and scales of U8, not "
            f"{bits}, {group} and {scales.format.name}"
        )
    numbers = _numbers(base, codes, scales, biases, mode, bits, group)
    width = "" if mode != "affine" else f", {bits} bits in groups of {group}"
    return Matrix(_renamed(f"{base}.weight"), f"MLX {mode}{width}", numbers)


def _numbers(
    base: str, codes: Tensor, scales: Tensor, biases: Tensor | None, mode: str, bits: int, group: int
) -> Numbers:
    from ggufkit.formats.affine import unpack_codes

    cols = scales.cols * group
    shape = (*codes.shape[:-1], cols)

    def unpacked(lo: int, hi: int) -> np.ndarray:
        return unpack_codes(codes.read(lo, hi).view("<u4"), bits)

    if mode in ("mxfp4", "nvfp4"):
        return Fp4(shape, unpacked, scales.read, FORMATS[mode.upper()])
    if mode == "mxfp8":
        return Levels(shape, codes.read, levels_of("F8_E4M3"), e8m0(scales.read), Groups.even(cols, group))
    if biases is None:
        raise CheckpointError(f"{printable(base)} lacks its biases")
    return Offsets(shape, unpacked, bits, scales.floats, biases.floats, Groups.even(cols, group))
