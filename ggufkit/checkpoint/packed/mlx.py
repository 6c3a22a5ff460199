"""Checkpoints that MLX quantized: codes, scales and biases become GGUF blocks, exactly where a format holds them.

    model.layers.0.mlp.up_proj.weight   (rows, cols · bits / 32) U32      codes, a stream of bits
    model.layers.0.mlp.up_proj.scales   (rows, cols / group)              w = scale · code + bias
    model.layers.0.mlp.up_proj.biases   (rows, cols / group)

    MLX                        GGUF     exact
    affine, 2, 3 or 4 bits     Q4_1     where float16 holds every scale and bias; Q4_0 where bias = -8 scale
    affine, 5 bits             Q5_1     the same; Q5_0 where bias = -16 scale
    affine, 8 bits             Q8_0     where bias = -128 scale
    mxfp4                      MXFP4    yes
    nvfp4                      NVFP4    yes
    anything else              Q8_0     no: decoded and encoded again

A bfloat16 scale has fewer digits than a float16, but more range. Which it is shows when the scales are looked at,
once, while the checkpoint is opened.

Source: `mlx.core.quantize`; `quantization` in config.json as mlx-lm writes it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggufkit.errors import CheckpointError, printable
from ggufkit.formats.table import FORMATS, Format
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

    from ggufkit.formats.affine import Affine

__all__ = ["QUANTIZATION_KEY", "MlxCheckpoint", "read_mlx"]

# Where the settings are kept in a GGUF, so that its export has the same arrays again.
QUANTIZATION_KEY = "ggufkit.mlx.quantization"

_CHUNK = 1 << 20  # weights looked at or made at once

# mlx-lm stacks a layer's experts under this name; the architectures know them by the other.
_STACKED = (re.compile(r"\.mlp\.switch_mlp\."), ".mlp.experts.")

# What each format's block has for a zero, and bits.
_AFFINE_TARGETS = (("Q4_0", 4, -8), ("Q4_1", 4, None), ("Q5_0", 5, -16), ("Q5_1", 5, None), ("Q8_0", 8, -128))


@dataclass(frozen=True)
class MlxCheckpoint:
    """A checkpoint's tensors with their blocks put together.

    Attributes
    ----------
    tensors : name → `Tensor`; what was quantized has a block format.
    settings : the quantization settings as JSON, and the dtype of the scales.
    notes : what the user should know, a sentence each.
    """

    tensors: Mapping[str, Tensor]
    settings: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Matrix:
    """One quantized matrix of the checkpoint."""

    codes: Tensor
    scales: Tensor
    biases: Tensor | None
    mode: str
    bits: int
    group: int

    @property
    def cols(self) -> int:
        return self.scales.cols * self.group

    def affine(self, lo: int, hi: int) -> Affine:
        """Rows lo:hi in groups of 32."""
        import numpy as np

        from ggufkit.formats.affine import Affine, unpack_codes

        if self.biases is None:
            raise CheckpointError(f"{printable(self.codes.name)} lacks its biases")
        codes = unpack_codes(self.codes.read(lo, hi).view("<u4"), self.bits)
        repeats = self.group // 32
        scales = np.repeat(self.scales.floats(lo, hi), repeats, axis=1)
        return Affine(codes, scales, np.repeat(self.biases.floats(lo, hi), repeats, axis=1))


def read_mlx(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> MlxCheckpoint | None:
    """Put the parts of quantized matrices together; None where nothing was quantized by MLX.

    Parameters
    ----------
    tensors : of the checkpoint, in its order.
    config : `config.json`.

    Raises
    ------
    CheckpointError : a part is missing, or its shape does not fit the settings.
    """
    settings = config.get("quantization")
    bases = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    if not isinstance(settings, dict) or not bases:
        return None
    found: dict[str, Tensor] = {}
    made: Counter[tuple[str, str]] = Counter()
    parts = {f"{base}.{part}" for base in bases for part in ("weight", "scales", "biases")}
    for base in bases:
        if f"{base}.weight" not in tensors:
            raise CheckpointError(f"{printable(base)} has scales and no weight")
    for name, tensor in tensors.items():
        if name not in parts:
            found[_renamed(name)] = tensor.renamed(_renamed(name))
        elif name.endswith(".weight"):
            matrix = _matrix(name.removesuffix(".weight"), tensors, settings)
            blocks, exact = _as_blocks(_renamed(name), matrix)
            found[blocks.name] = blocks
            made[f"{matrix.mode} {matrix.bits}-bit → {blocks.format.name}", exact] += 1
    dtype = tensors[f"{bases[0]}.scales"].format.name
    return MlxCheckpoint(found, json.dumps({**settings, "dtype": dtype}), tuple(_notes(made)))


def _renamed(name: str) -> str:
    return _STACKED[0].sub(_STACKED[1], name)


def _notes(made: Counter[tuple[str, str]]) -> list[str]:
    return [f"{count} matrices from MLX: {what}, {exact}" for (what, exact), count in made.items()]


def _matrix(base: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> _Matrix:
    shown = printable(base)
    codes, scales = tensors[f"{base}.weight"], tensors[f"{base}.scales"]
    biases = tensors.get(f"{base}.biases")
    own = settings.get(base)
    merged = {**settings, **own} if isinstance(own, dict) else settings
    bits, group, mode = merged.get("bits"), merged.get("group_size"), merged.get("mode", "affine")
    if bits not in (1, 2, 3, 4, 5, 6, 8) or not isinstance(group, int) or group < 1 or not isinstance(mode, str):
        raise CheckpointError(
            f"{shown}: config.json's quantization needs bits and group_size, not {printable(str(merged))}"
        )
    if codes.format.name != "U32" or codes.shape[:-1] != scales.shape[:-1] or (biases and biases.shape != scales.shape):
        raise CheckpointError(
            f"{shown}: codes {codes.format.name} {list(codes.shape)} do not go with scales {list(scales.shape)}"
        )
    if codes.cols * 32 != scales.cols * group * bits:
        raise CheckpointError(
            f"{shown}: {codes.cols} words of {bits}-bit codes are not {scales.cols} groups of {group}; "
            "is config.json's quantization the right one?"
        )
    return _Matrix(codes, scales, biases, mode, bits, group)


def _as_blocks(name: str, m: _Matrix) -> tuple[Tensor, str]:
    """The matrix as blocks, and how exact they are."""
    shape = (*m.codes.shape[:-1], m.cols)
    if m.mode in ("mxfp4", "nvfp4") and m.group == (32 if m.mode == "mxfp4" else 16):
        format = FORMATS[m.mode.upper()]
        if m.cols % format.block_size == 0:
            return Tensor(name, shape, format, _fp4_reader(m, format)), "exactly"
    if m.mode != "affine" or m.group % 32:
        raise CheckpointError(
            f"{printable(name)}: MLX's mode {printable(m.mode)} with {m.bits} bits in groups of {m.group} "
            "cannot be converted"
        )
    if (holding := _exact_format(m)) is not None:
        return Tensor(name, shape, holding, _affine_reader(m, holding)), "exactly"
    return Tensor(name, shape, FORMATS["Q8_0"], _rounded_reader(m)), "rounded: no block format holds them"


def _exact_format(m: _Matrix) -> Format | None:
    """The smallest format that holds the matrix without rounding."""
    possible = [
        (name, zero) for name, bits, zero in _AFFINE_TARGETS if bits >= m.bits and (zero is None or bits == m.bits)
    ]
    rows = max(1, _CHUNK // max(m.cols, 1))
    for lo in range(0, m.scales.rows, rows):
        possible = _holding(possible, m, lo, min(lo + rows, m.scales.rows))
        if not possible:
            return None
    return FORMATS[possible[0][0]]


def _holding(possible: list[tuple[str, int | None]], m: _Matrix, lo: int, hi: int) -> list[tuple[str, int | None]]:
    """Those of the possible formats that hold the scales and biases of rows lo:hi."""
    import numpy as np

    if m.biases is None:
        raise CheckpointError(f"{printable(m.codes.name)} lacks its biases")
    scales, biases = m.scales.floats(lo, hi), m.biases.floats(lo, hi)

    def exact(values: np.ndarray) -> bool:
        with np.errstate(over="ignore"):
            return np.array_equal(values.astype(np.float16).astype(np.float32), values)

    if not exact(scales):
        return []
    halves = exact(biases)
    return [
        (name, zero)
        for name, zero in possible
        if (halves if zero is None else np.array_equal(biases, scales * np.float32(zero)))
    ]


def _affine_reader(m: _Matrix, format: Format) -> Callable[[int, int], np.ndarray]:
    def read(lo: int, hi: int) -> np.ndarray:
        from ggufkit.formats.affine import join

        return join(m.affine(lo, hi), format).reshape(hi - lo, -1)

    return read


def _rounded_reader(m: _Matrix) -> Callable[[int, int], np.ndarray]:
    def read(lo: int, hi: int) -> np.ndarray:
        from ggufkit.formats.codec import encode

        return encode(m.affine(lo, hi).floats(), "Q8_0", threads=1, name=printable(m.codes.name), first_row=lo)

    return read


def _fp4_reader(m: _Matrix, format: Format) -> Callable[[int, int], np.ndarray]:
    def read(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        from ggufkit.formats.affine import unpack_codes

        rows, half = hi - lo, m.group // 2
        codes = unpack_codes(m.codes.read(lo, hi).view("<u4"), 4).reshape(rows, -1, m.group)
        bytes_ = codes[..., :half] | codes[..., half:] << 4  # byte i holds weights i and i + half
        records = np.empty((rows, m.cols // format.block_size), format.dtype)
        scales = m.scales.read(lo, hi)
        if format.name == "MXFP4":
            records["e"], records["qs"] = scales, bytes_
        else:
            if (scales & 0x80).any():
                raise CheckpointError(f"{printable(m.codes.name)}: a negative scale has no place in NVFP4")
            records["d"], records["qs"] = scales.reshape(rows, -1, 4), bytes_.reshape(rows, -1, 32)
        return records.view(np.uint8)

    return read
