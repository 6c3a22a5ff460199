"""GPTQ: codes along the inputs, packed down the rows of a transposed matrix.

    …q_proj.qweight   (cols · bits / 32, rows) I32     codes of an output, one stream of bits down its column
    …q_proj.qzeros    (groups, rows · bits / 32) I32   zero points, a stream along the outputs
    …q_proj.scales    (groups, rows) F16               w = scale · (code - zero)
    …q_proj.g_idx     (cols,) I32                      the group of each input; absent: one after the other

Of 5, 6 and 7 bits, and of 3 where the format is `gptq_p`, 32 codes lie in planes: their low bits, then their high ones.

    bits   planes        32 codes
    3      2 + 1         two words of 2-bit fields, one of 1-bit fields
    5      4 + 1         four words, one
    6      4 + 2         four words, two
    7      4 + 2 + 1     four words, two, one

Zero points of version 1 are stored less 1: by AutoGPTQ field by field, by GPTQModel from each whole word of 2, 4 or 8
bit fields, so that a 0 borrows from its neighbours. Which version it is, files say wrongly; where quantization was
symmetric the values tell. Bits and groups are taken from the shapes, which `dynamic` settings cannot contradict.

Source: gptqmodel/nn_modules/qlinear/__init__.py, utils/planar_packing.py and utils/model.py of ModelCloud/GPTQModel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ggufkit.checkpoint.packed.integers import Integers
from ggufkit.checkpoint.packed.matrix import Groups, chunks
from ggufkit.checkpoint.packed.stored import Matrix, Reading, Source, natural, parts_of, require
from ggufkit.errors import CheckpointError, printable

if TYPE_CHECKING:
    import numpy as np

    from ggufkit.tensors.tensor import Tensor

__all__ = ["add_gptq", "read", "transposed_floats"]

# dtypes of words that codes are packed into, and their bits.
_WORDS = {"I8": 8, "U8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64}

# Bytes of scales that are kept as a whole.
_SMALL = 1 << 25

# Width of each plane of 32 codes.
_PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def read(source: Source) -> Reading | None:
    """Modules with `qweight`, where the settings say GPTQ; or nothing, and the shapes do."""
    if source.method not in ("gptq", "gptqmodel", "marlin", ""):
        return None
    modules = parts_of(source.tensors, ".qweight")
    settings = source.settings
    if not modules or not (source.method or "bits" in settings):
        return None
    reading = Reading("GPTQ")
    for module in modules:
        add_gptq(reading, source, module, settings)
    return reading


def add_gptq(reading: Reading, source: Source, module: str, settings: Mapping[str, Any]) -> None:
    """Add one module; `settings` are those of the checkpoint."""
    parts = [f"{module}.{part}" for part in ("qzeros", "scales", "g_idx", "perm", "workspace")]
    reading.add(f"{module}.qweight", _matrix(source, module, settings), parts)


def _matrix(source: Source, module: str, settings: Mapping[str, Any]) -> Matrix:
    """One module.

    Raises
    ------
    CheckpointError : a part is missing, or shapes, settings and groups contradict each other.
    """
    tensors, shown = source.tensors, printable(module)
    qweight = require(tensors, f"{module}.qweight", tuple(_WORDS), (-1, -1))
    scales = require(tensors, f"{module}.scales", ("F16", "BF16", "F32"), (-1, -1))
    (words, rows), (groups, outputs) = qweight.shape, scales.shape
    qzeros = require(tensors, f"{module}.qzeros", tuple(_WORDS), (groups, -1))
    word = _WORDS[qweight.format.name]
    if rows != outputs or not rows or not words or not groups or qzeros.cols * _WORDS[qzeros.format.name] % rows:
        raise CheckpointError(
            f"{shown}: qweight {list(qweight.shape)}, qzeros {list(qzeros.shape)} and scales {list(scales.shape)} do "
            "not belong together"
        )
    bits = qzeros.cols * _WORDS[qzeros.format.name] // rows
    planar = "gptq_p" in (settings.get("checkpoint_format"), settings.get("format"))
    if bits not in _PLANES or words * word % bits or (bits in (5, 6, 7) and not planar):
        raise CheckpointError(f"{shown}: {bits} bits for a zero point, and {words * word} for the codes of an output")
    cols = words * word // bits
    _check_settings(shown, settings, bits, cols, groups)
    of = _groups(source, module, cols, groups, settings)
    zeros = _zeros(source, qzeros.name, bits, settings, planar and len(_PLANES[bits]) > 1)

    def codes(lo: int, hi: int) -> np.ndarray:
        stored = source.columns(qweight, lo, hi).T  # (n, words)
        return _unpacked(stored, bits, planar and len(_PLANES[bits]) > 1)

    def scale(lo: int, hi: int) -> np.ndarray:
        return transposed_floats(source, scales, lo, hi)

    def extremes() -> Iterator[tuple[int, int]]:
        from ggufkit.formats.streams import range_of_codes

        for lo, hi in chunks(words, 4 * rows):
            yield range_of_codes(qweight.read(lo, hi), bits)

    each = f"in groups of {-(cols // -groups)}" if groups > 1 else "a scale for each row"
    order = "" if not _unsorted(of.of) else ", inputs in any order"
    what = f"GPTQ, {bits} bits {each}{order}"
    numbers = Integers((rows, cols), codes, bits, scale, zeros, of)
    if bits in (4, 8):
        numbers = replace(numbers, extremes=extremes)
        if scales.format.name == "F16" and scales.nbytes <= _SMALL:
            numbers = replace(numbers, distinct=_different(source, scales))
            if word == 32 and (blocks := of.of_blocks(32)) is not None:
                numbers = replace(numbers, direct=_direct(source, qweight, scales, bits, blocks))
    return Matrix(f"{module}.weight", what, numbers)


def _different(source: Source, scales: Tensor) -> Callable[[], np.ndarray]:
    def different() -> np.ndarray:
        from ggufkit.formats.streams import different_halves

        return different_halves(source.whole(scales))

    return different


def _direct(
    source: Source, qweight: Tensor, scales: Tensor, bits: int, groups: np.ndarray
) -> Callable[[int, int, int], np.ndarray | None]:
    """Blocks straight from words, see `Integers.direct`; groups: of each block of a row."""
    groups = groups.copy()  # one after the other, as kernels want them

    def direct(lo: int, hi: int, added: int) -> np.ndarray | None:
        import numpy as np

        from ggufkit.formats.streams import LANES, columns_to_blocks

        out = np.empty((hi - lo, len(groups) * (2 + 4 * bits)), np.uint8)
        halves = source.whole(scales)  # (groups, rows)
        for begin, parts in source.strips(qweight, lo, hi, own=True):
            end = begin + parts[0].shape[1]
            if end - begin < LANES:
                return None
            rows = out[max(begin - lo, 0) : end - lo]
            block = 0
            for part in parts:
                columns_to_blocks(part, max(lo - begin, 0), halves, max(lo, begin), groups, block, added, rows)
                block += len(part) // bits
        return out

    return direct


def _unsorted(of: np.ndarray) -> bool:
    return bool((of[1:] < of[:-1]).any())


def _check_settings(shown: str, settings: Mapping[str, Any], bits: int, cols: int, groups: int) -> None:
    """Settings of the whole checkpoint, where none are of single modules, are those of these shapes."""
    if settings.get("dynamic") or settings.get("extra_config"):
        return
    said, size = settings.get("bits"), settings.get("group_size")
    if said is not None and natural(said, f"{shown}: bits", 1, 16) != bits:
        raise CheckpointError(f"{shown} has {bits} bits, the settings say {said}; are they those of these weights?")
    if type(size) is int and size > 0 and -(cols // -size) != groups and groups > 1:
        raise CheckpointError(f"{shown} has {groups} groups of its {cols} inputs, the settings say groups of {size}")


def _groups(source: Source, module: str, cols: int, groups: int, settings: Mapping[str, Any]) -> Groups:
    import numpy as np

    name = f"{module}.g_idx"
    if name in source.tensors and source.tensors[name].size:
        of = source.whole(require(source.tensors, name, ("I32", "I64"), (cols,))).astype(np.int64)
        if cols and not 0 <= of.min() <= of.max() < groups:
            bad = of.max() if of.max() >= groups else of.min()
            raise CheckpointError(f"{printable(name)} names group {bad}, and there are {groups}")
        return Groups(of)
    size = settings.get("group_size")
    if type(size) is not int or size < 1 or -(cols // -size) != groups:
        size = -(cols // -groups)
        if -(cols // -size) != groups:
            raise CheckpointError(f"{printable(module)}: {groups} scales cannot be shared by {cols} inputs evenly")
    return Groups.even(cols, size)


def transposed_floats(source: Source, tensor: Tensor, lo: int, hi: int) -> np.ndarray:
    """Columns lo:hi of a stored matrix of floats, as rows: (hi - lo, groups), float32."""
    import numpy as np

    stored = source.columns(tensor, lo, hi).T
    if tensor.format.name == "BF16":
        return (np.ascontiguousarray(stored).astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(stored).astype(np.float32)


def _unpacked(stored: np.ndarray, bits: int, planar: bool) -> np.ndarray:
    """(n, words) → codes (n, words · word / bits), uint8."""
    import numpy as np

    from ggufkit.formats.affine import unpack_codes

    data = np.ascontiguousarray(stored)
    if not planar:
        return unpack_codes(data.view(np.uint8), bits)
    blocks = data.view("<u4").reshape(len(data), -1, bits)  # (n, blocks of 32, words)
    codes = np.zeros((len(data), blocks.shape[1], 32), np.uint8)
    at = shift = 0
    for width in _PLANES[bits]:
        plane = unpack_codes(blocks[:, :, at : at + width], width)
        codes |= plane.reshape(codes.shape) << shift
        at, shift = at + width, shift + width
    return codes.reshape(len(data), -1)


def _zeros(source: Source, name: str, bits: int, settings: Mapping[str, Any], planar: bool) -> Any:
    """The zero point of all groups where it is the same; else a reader of (n, groups), uint8."""
    import numpy as np

    tensor = source.tensors[name]
    version2 = "gptq_v2" in (settings.get("checkpoint_format"), settings.get("format")) or planar
    middle = 1 << (bits - 1)

    def meant(words: np.ndarray) -> np.ndarray:
        fields = _unpacked(words, bits, planar)
        symmetric = settings.get("sym") is True and fields.size > 0 and fields.flat[0] in (middle, middle - 1)
        if symmetric and (fields == fields.flat[0]).all():
            return np.full_like(fields, middle)
        if version2:
            return fields
        if bits != 3 and _by_gptqmodel(settings):
            ones = np.array(int(("0" * (bits - 1) + "1") * (words.itemsize * 8 // bits), 2)).astype(
                f"u{words.itemsize}"
            )
            return _unpacked(words.view(ones.dtype) + ones, bits, planar)
        return fields + 1 & (1 << bits) - 1

    def make() -> np.ndarray:
        words = source.whole(tensor)
        if words.size and bits in (2, 4, 8) and (words == words.flat[0]).all():  # the same fields in each
            first = meant(words[:1, :1])
            if (first == first[0, 0]).all():
                return first[:1, :1]
        return meant(words)

    zeros = source.derived(name, make)
    if zeros.size and (zeros == zeros.flat[0]).all():
        return int(zeros.flat[0])
    return lambda lo, hi: source.derived(name, make)[:, lo:hi].T


def _by_gptqmodel(settings: Mapping[str, Any]) -> bool:
    meta = settings.get("meta")
    return isinstance(meta, dict) and "gptqmodel" in str(meta.get("quantizer", "")).lower()
