"""compressed-tensors, of llm-compressor and vLLM: a format for each group of modules.

    pack-quantized         …weight_packed (rows, ⌈cols · bits / 32⌉) I32, codes along the inputs, level + 2^(bits - 1)
                           …weight_scale (rows, groups), …weight_shape (2,), …weight_g_idx (cols,)
                           …weight_zero_point (⌈rows · bits / 32⌉, groups) I32, packed along the outputs
    int-quantized,         …weight I8, …weight_scale, …weight_zero_point I8
    naive-quantized
    float-quantized,       …weight F8, …weight_scale for a matrix, rows, blocks; of mxfp8 bytes for 32
    mxfp8-quantized
    nvfp4-pack-quantized   …weight_packed (rows, cols / 2) U8, …weight_scale F8_E4M3, …weight_global_scale () divides
    mxfp4-pack-quantized   …weight_packed U8, …weight_scale U8, E8M0
    sparse-24-bitmask      …compressed (rows, cols / 2), …bitmask (rows, cols / 8) U8, …shape (2, 1): 2 weights of 4
    marlin-24              see `marlin24`

Codes of 3, 5, 6 and 7 bits are packed in two ways, which the width tells apart: since 0.19 as one stream of bits,
before with as many whole codes as a word has room for. What is stored says which format it is; the groups of
config.json are asked for the number of bits. Whatever `ignore` lists is stored as it was.
Source: compressed_tensors/compressors of vllm-project/compressed-tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ggufkit.checkpoint.packed.fp4 import Fp4, pairs
from ggufkit.checkpoint.packed.fp8 import fp8_matrix
from ggufkit.checkpoint.packed.int8 import int8_matrix, per_group
from ggufkit.checkpoint.packed.integers import Integers
from ggufkit.checkpoint.packed.marlin24 import PARTS, marlin24
from ggufkit.checkpoint.packed.matrix import Floats, Groups, Reader
from ggufkit.checkpoint.packed.small_floats import FP8
from ggufkit.checkpoint.packed.stored import Matrix, Reading, Source, parts_of, require
from ggufkit.errors import CheckpointError, printable
from ggufkit.formats.table import FORMATS
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["read"]

_FLOATS = ("F32", "F16", "BF16")

# Targets that are tried; those of real checkpoints are a few.
_MAX_TARGETS = 4096

# A pattern that may take exponential time: a repeated group with a repetition in it.
_SLOW = re.compile(r"\([^()]*[+*}][^()]*\)\s*[+*{]")


def read(source: Source) -> Reading | None:
    """Modules with `weight_packed`; or with a `weight_scale`, where the settings say compressed-tensors."""
    tensors, settings = source.tensors, source.settings
    ours = source.method in ("compressed-tensors", "compressed_tensors")
    packed = parts_of(tensors, ".weight_packed")
    if not ours and not packed:
        return None
    reading = Reading("compressed-tensors")
    for module in packed:
        if f"{module}.meta" in tensors:
            reading.add(f"{module}.weight_packed", marlin24(source, module), [f"{module}.{part}" for part in PARTS])
            continue
        stored = tensors[f"{module}.weight_packed"]
        make = _fp4 if stored.format.name in ("U8", "I8") else _integers
        parts = ("scale", "shape", "g_idx", "zero_point", "global_scale")
        reading.add(stored.name, make(source, module, stored), [f"{module}.weight_{part}" for part in parts])
    for module in parts_of(tensors, ".weight_scale") if ours else ():
        name = f"{module}.weight"
        if name in tensors and name not in reading.matrices:
            reading.add(name, _plain(source, module), [f"{name}_scale", f"{name}_zero_point"])
    for module in parts_of(tensors, ".bitmask") if ours else ():
        name = f"{module}.compressed"
        others = ("bitmask", "shape", "weight_scale", "weight_zero_point")
        reading.add(name, _sparse(source, module), [f"{module}.{part}" for part in others])
    if ours and not reading.matrices and not isinstance(settings.get("config_groups"), dict):
        return None
    return reading if reading.matrices else None


def _plain(source: Source, module: str) -> Matrix:
    return _scaled(source, module, source.tensors[f"{module}.weight"], source.tensors[f"{module}.weight_scale"])


def _scaled(source: Source, module: str, weight: Tensor, scale: Tensor) -> Matrix:
    """A matrix that is stored in eight bits."""
    if weight.format.name in FP8:
        weights = _weights(source, module) or {}
        block = weights.get("block_structure")
        size = (
            (block[0], block[1])
            if block is not None and _is_pair(block) and weights.get("strategy") == "block"
            else None
        )
        return fp8_matrix(weight, scale, size)
    if weight.format.name == "I8" and len(weight.shape) == 2:
        return int8_matrix(weight, scale, source.tensors.get(f"{module}.weight_zero_point"), "compressed-tensors INT8")
    raise CheckpointError(f"{printable(weight.name)} is {weight.format.name} {list(weight.shape)}, and has a scale")


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)


def _fp4(source: Source, module: str, stored: Tensor) -> Matrix:
    tensors = source.tensors
    rows, half = require(tensors, stored.name, ("U8", "I8"), (-1, -1)).shape
    name = f"{module}.weight_scale"
    if f"{module}.weight_global_scale" in tensors:
        scale = require(tensors, name, "F8_E4M3", (rows, half // 8))
        whole = tensors[f"{module}.weight_global_scale"]
        require(tensors, whole.name, "F32", (1,) * len(whole.shape))
        over = float(whole.floats().flat[0])
        if not 0 < over < float("inf"):
            raise CheckpointError(f"{printable(whole.name)} is {over}, and must be a positive number")
        numbers = Fp4((rows, 2 * half), pairs(stored), scale.read, FORMATS["NVFP4"], over=over)
        return Matrix(f"{module}.weight", "NVFP4", numbers)
    scale = require(tensors, name, ("U8", "F8_E8M0"), (rows, half // 16))
    return Matrix(f"{module}.weight", "MXFP4", Fp4((rows, 2 * half), pairs(stored), scale.read, FORMATS["MXFP4"]))


def _integers(source: Source, module: str, stored: Tensor) -> Matrix:
    tensors = source.tensors
    rows, words = require(tensors, stored.name, ("I32", "U32"), (-1, -1)).shape
    shape = tuple(int(n) for n in source.whole(require(tensors, f"{module}.weight_shape", ("I64", "I32"), (2,))))
    if shape[0] != rows or shape[1] < 1:
        raise CheckpointError(f"{printable(stored.name)} has {rows} rows, its weight_shape is {list(shape)}")
    cols = shape[1]
    bits, dense = _bits(source, module, words, cols)
    size = (_weights(source, module) or {}).get("group_size")
    scales, groups = per_group(stored.name, (rows, cols), require_floats(tensors, f"{module}.weight_scale"), size)
    count = groups.count
    if (name := f"{module}.weight_g_idx") in tensors and tensors[name].size:
        of = source.whole(require(tensors, name, ("I32", "I64"), (cols,))).astype("i8")
        if (of >= 0).all():  # -1 for all where there is no order
            if int(of.max()) >= count:
                raise CheckpointError(f"{printable(name)} names group {int(of.max())}, and there are {count}")
            groups = Groups(of)
    zeros: Reader | int = 1 << (bits - 1)
    if (name := f"{module}.weight_zero_point") in tensors:
        zeros = _zeros(source, name, bits, dense, rows, count)

    def codes(lo: int, hi: int) -> np.ndarray:
        return _unpacked(stored.read(lo, hi), bits, dense)[:, :cols]

    each = f"in groups of {-(cols // -count)}" if count > 1 else "a scale for each row"
    what = f"compressed-tensors, {bits} bits {each}"
    return Matrix(f"{module}.weight", what, Integers((rows, cols), codes, bits, scales, zeros, groups))


def require_floats(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    return require(tensors, name, _FLOATS, (-1,) * (len(tensors[name].shape) if name in tensors else 2))


def _unpacked(data: np.ndarray, bits: int, dense: bool) -> np.ndarray:
    """(n, bytes) → codes (n, …), uint8."""
    import numpy as np

    from ggufkit.formats.affine import unpack_codes

    if dense:
        whole = np.zeros((len(data), -(data.shape[1] // -bits) * bits), np.uint8)
        whole[:, : data.shape[1]] = data
        return unpack_codes(whole, bits)
    shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    codes = data.view("<u4")[:, :, None] >> shifts & np.uint32((1 << bits) - 1)
    result: np.ndarray = codes.astype(np.uint8).reshape(len(data), -1)
    return result


def _zeros(source: Source, name: str, bits: int, dense: bool, rows: int, count: int) -> Reader:
    import numpy as np

    words = -(rows * bits // -32) if dense else -(rows // -(32 // bits))
    stored = require(source.tensors, name, ("I32", "U32"), (words, count))

    def make() -> np.ndarray:
        along = np.ascontiguousarray(source.whole(stored).T)  # (groups, words)
        return np.ascontiguousarray(_unpacked(along.view(np.uint8), bits, dense)[:, :rows].T)

    return lambda lo, hi: source.derived(name, make)[lo:hi]


def _bits(source: Source, module: str, words: int, cols: int) -> tuple[int, bool]:
    """Bits of a code, and whether they are one stream, of which a row of `cols` codes takes so many words."""
    fitting = [(bits, True) for bits in range(1, 9) if -(cols * bits // -32) == words]
    fitting += [(bits, False) for bits in (3, 5, 6, 7) if -(cols // -(32 // bits)) == words]
    weights = _weights(source, module)
    said = weights.get("num_bits") if weights is not None else None
    if said is not None:
        fitting = [(bits, dense) for bits, dense in fitting if bits == said]
    if not fitting:
        raise CheckpointError(
            f"{printable(module)}: {words} words are no row of {cols} codes"
            + ("" if said is None else f" of {printable(repr(said))} bits, as the settings say")
        )
    return fitting[0]


def _weights(source: Source, module: str) -> Mapping[str, Any] | None:
    """The `weights` of the first group that has the module as its target; None where there are no groups.

    Raises
    ------
    CheckpointError : no group has it, or a target is not a pattern.
    """
    groups = source.settings.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        return None
    generic = None
    for target, weights in _targets(groups):
        if target.startswith("re:"):
            if _pattern(target[3:]).match(module):
                return weights
        elif target == module or module.endswith(f".{target}"):
            return weights
        elif target in ("Linear", "Embedding", "LinearBase", "ParallelLMHead") or target.endswith("Linear"):
            generic = weights if generic is None else generic
    if generic is None:
        raise CheckpointError(f"{printable(module)} is quantized, and is no target of a group in config.json")
    return generic


def _targets(groups: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    count = 0
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, dict) else None
        targets = group.get("targets") if isinstance(group, dict) else None
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise CheckpointError("config.json: each of config_groups needs a list of targets")
        count += len(targets)
        if count > _MAX_TARGETS:
            raise CheckpointError(f"config.json: config_groups has more than {_MAX_TARGETS} targets")
        if isinstance(weights, dict):
            yield from ((target, weights) for target in targets)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        if len(text) > 1000 or _SLOW.search(text):
            raise re.error("it may take forever")
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as e:
        raise CheckpointError(
            f"config.json: the target {printable(text)} is no pattern that can be used: {e}"
        ) from None


def _sparse(source: Source, module: str) -> Matrix:
    """Half of the weights, and a bit for each place: set where there is one, the first in the lowest bit."""
    tensors = source.tensors
    name = f"{module}.shape"
    column = name in tensors and len(tensors[name].shape) == 2
    stored = require(tensors, name, ("I64", "I32"), (2, 1) if column else (2,))
    rows, cols = (int(n) for n in source.whole(stored).reshape(-1))
    if rows < 1 or cols < 4 or cols % 4:
        raise CheckpointError(f"{printable(name)} is {[rows, cols]}, which is no matrix of four columns and four")
    mask = require(tensors, f"{module}.bitmask", "U8", (rows, -(cols // -8)))
    kept = require(tensors, f"{module}.compressed", (*_FLOATS, "I8", *FP8), (rows, cols // 2))

    def spread(lo: int, hi: int, values: np.ndarray, nothing: int) -> np.ndarray:
        """The values in the places that the mask has for them."""
        import numpy as np

        there = np.unpackbits(mask.read(lo, hi), axis=1, bitorder="little")[:, :cols].astype(bool)
        if (there.sum(axis=1) != cols // 2).any():
            raise CheckpointError(f"{printable(mask.name)}: a row has not {cols // 2} weights, half of {cols}")
        found = np.full((hi - lo, cols), nothing, values.dtype)
        found[there] = values.reshape(-1)
        return found

    if kept.format.name not in _FLOATS:
        whole = Tensor(
            f"{module}.weight", (rows, cols), kept.format, lambda lo, hi: spread(lo, hi, kept.read(lo, hi), 0)
        )
        return _scaled(source, module, whole, require_floats(tensors, f"{module}.weight_scale"))

    def floats(lo: int, hi: int) -> np.ndarray:
        return spread(lo, hi, kept.floats(lo, hi), 0)

    numbers = Floats((rows, cols), floats, sixteen=kept.format.name if kept.format.name != "F32" else "")
    return Matrix(f"{module}.weight", "two weights of four", numbers)
