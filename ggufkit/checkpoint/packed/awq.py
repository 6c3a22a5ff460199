"""AWQ: three ways to pack four bits, and words of other widths.

    GEMM        qweight (cols, rows / 8) I32     packed along the outputs; a word's nibbles are outputs 0 2 4 6 1 3 5 7
                qzeros  (groups, rows / 8) I32   the same; the zero itself
                scales  (groups, rows) F16       w = scale · (code - zero)
    GEMV        qweight (rows, cols / 8) I32     along the inputs, in order
                qzeros  (rows, …) I32, scales (rows, …) F16: groups behind those that there are, are padding
    GEMV_FAST   qweight (rows / 4, cols) I16     four rows and 64 columns interleaved, see `_interleaved`
                qzeros  (…, rows) F16            -zero · scale, rounded: w = scale · code + qzero
                scales  (…, rows) F16

Other widths than four bits are a stream of bits along the outputs, as in GPTQModel's own files.
Source: awq/utils/packing_utils.py, awq/modules/linear/gemv_fast.py of casper-hansen/AutoAWQ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ggufkit.checkpoint.packed.gptq import transposed_floats
from ggufkit.checkpoint.packed.integers import Integers
from ggufkit.checkpoint.packed.matrix import Groups, Numbers, Offsets, Reader
from ggufkit.checkpoint.packed.stored import Matrix, Reading, Source, natural, parts_of, require
from ggufkit.errors import CheckpointError, printable
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["add_awq", "read"]

# Output of each nibble of a word, the lowest first.
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

_FLOATS = ("F16", "BF16", "F32")


def read(source: Source) -> Reading | None:
    """Modules with `qweight`, where the settings say AWQ."""
    modules = parts_of(source.tensors, ".qweight")
    settings = source.settings or source.json("quant_config.json") or {}
    if not modules or "awq" not in (source.method, "awq" if "q_group_size" in settings else ""):
        return None
    reading = Reading("AWQ")
    for module in modules:
        add_awq(reading, source, module, settings)
    return reading


def add_awq(reading: Reading, source: Source, module: str, settings: Mapping[str, Any]) -> None:
    """Add one module; `settings` are those of the checkpoint.

    Raises
    ------
    CheckpointError : a part is missing, or the shapes are not those of the version that the settings name.
    """
    version = str(settings.get("version", "gemm")).lower().replace("-", "_")
    bits = natural(settings.get("bits", settings.get("w_bit", 4)), f"{printable(module)}: bits", 1, 8)
    kinds: dict[str, Callable[..., tuple[Numbers, int]]] = {"gemm": _gemm, "gemv": _gemv, "gemv_fast": _gemv_fast}
    if version not in kinds:
        raise CheckpointError(f"AWQ of version {printable(version)} is not known; known: {', '.join(kinds)}")
    size = settings.get("group_size", settings.get("q_group_size", -1))
    numbers, groups = kinds[version](source, module, bits, size)
    each = f"in groups of {-(numbers.cols // -groups)}" if groups > 1 else "a scale for each row"
    what = f"AWQ {version.upper()}, {bits} bits {each}"
    parts = [f"{module}.{part}" for part in ("qzeros", "scales", "g_idx")]
    reading.add(f"{module}.qweight", Matrix(f"{module}.weight", what, numbers), parts)


def _wrong(module: str, *tensors: Tensor) -> CheckpointError:
    shapes = ", ".join(f"{tensor.name.rpartition('.')[2]} {list(tensor.shape)}" for tensor in tensors)
    return CheckpointError(
        f"{printable(module)}: {shapes} do not belong together; are bits and version the right ones?"
    )


def _even(module: str, cols: int, groups: int, size: Any) -> Groups:
    """`groups` groups of the inputs, of the size that the settings say."""
    wanted = size if type(size) is int and size > 0 else cols
    if groups < 1 or -(cols // -wanted) != groups:
        raise CheckpointError(f"{printable(module)} has {groups} groups of its {cols} inputs, the settings say {size}")
    return Groups.even(cols, wanted)


def _gemm(source: Source, module: str, bits: int, size: Any) -> tuple[Numbers, int]:
    qweight = require(source.tensors, f"{module}.qweight", "I32", (-1, -1))
    scales = require(source.tensors, f"{module}.scales", _FLOATS, (-1, -1))
    qzeros = require(source.tensors, f"{module}.qzeros", "I32", (scales.shape[0], qweight.cols))
    cols, rows = qweight.shape[0], scales.cols
    if not rows or qweight.cols * 32 != rows * bits:
        raise _wrong(module, qweight, qzeros, scales)
    groups = _even(module, cols, scales.shape[0], size)

    def codes(lo: int, hi: int) -> np.ndarray:
        import numpy as np

        align = 8 if bits == 4 else 32  # outputs of whole words
        first, last = lo // align * align, min(-(hi // -align) * align, rows)
        words = source.columns(qweight, first * bits // 32, last * bits // 32)
        return np.ascontiguousarray(_along_outputs(words, bits)[:, lo - first : hi - first].T)

    def zeros() -> np.ndarray:
        import numpy as np

        return np.ascontiguousarray(_along_outputs(source.whole(qzeros), bits).T)  # (rows, groups)

    return Integers(
        (rows, cols),
        codes,
        bits,
        lambda lo, hi: transposed_floats(source, scales, lo, hi),
        lambda lo, hi: source.derived(qzeros.name, zeros)[lo:hi],
        groups,
    ), scales.shape[0]


def _along_outputs(words: np.ndarray, bits: int) -> np.ndarray:
    """(n, words) → (n, outputs), uint8."""
    import numpy as np

    from ggufkit.formats.affine import unpack_codes

    codes = unpack_codes(words.view(np.uint32), bits)
    if bits != 4:
        return codes
    found = np.empty_like(codes)
    found.reshape(len(codes), -1, 8)[:, :, _ORDER] = codes.reshape(len(codes), -1, 8)
    return found


def _gemv(source: Source, module: str, bits: int, size: Any) -> tuple[Numbers, int]:
    import numpy as np

    from ggufkit.formats.affine import unpack_codes

    qweight = require(source.tensors, f"{module}.qweight", "I32", (-1, -1))
    rows, words = qweight.shape
    cols = words * 32 // bits
    qzeros = require(source.tensors, f"{module}.qzeros", "I32", (rows, -1))
    scales = require(source.tensors, f"{module}.scales", _FLOATS, (rows, -1))
    wanted = size if type(size) is int and size > 0 else max(cols, 1)
    groups = -(cols // -wanted)
    if bits != 4 or scales.cols < groups or qzeros.cols * 32 < groups * bits or not groups:
        raise _wrong(module, qweight, qzeros, scales)
    return Integers(
        (rows, cols),
        lambda lo, hi: unpack_codes(qweight.read(lo, hi), bits),
        bits,
        lambda lo, hi: np.ascontiguousarray(scales.floats(lo, hi)[:, :groups]),
        lambda lo, hi: unpack_codes(qzeros.read(lo, hi), bits)[:, :groups],
        Groups.even(cols, wanted),
    ), groups


def _gemv_fast(source: Source, module: str, bits: int, size: Any) -> tuple[Numbers, int]:
    qweight = require(source.tensors, f"{module}.qweight", "I16", (-1, -1))
    quarter, cols = qweight.shape
    rows = 4 * quarter
    scales = require(source.tensors, f"{module}.scales", _FLOATS, (-1, rows))
    qzeros = require(source.tensors, f"{module}.qzeros", _FLOATS, scales.shape)
    wanted = size if type(size) is int and size > 0 else max(cols, 1)
    groups = -(cols // -wanted)
    if bits != 4 or cols % 64 or scales.shape[0] < groups or not groups:
        raise _wrong(module, qweight, qzeros, scales)

    def codes(lo: int, hi: int) -> np.ndarray:
        first, last = lo // 4, -(hi // -4)
        return _interleaved(qweight.read(first, last).view("<u2"))[lo - 4 * first : hi - 4 * first]

    def floats(tensor: Tensor) -> Reader:
        return lambda lo, hi: transposed_floats(source, tensor, lo, hi)[:, :groups]

    return Offsets((rows, cols), codes, bits, floats(scales), floats(qzeros), Groups.even(cols, wanted)), groups


def _interleaved(words: np.ndarray) -> np.ndarray:
    """(n / 4, cols) uint16 → (n, cols) codes.

    Of 64 columns of four rows, nibble j of word 16 r + k is number 4 k + j of row r. A row's 64 are two times 32,
    and number m of these is column

        m    0 1 2 3   4 5 6 7      8 …
        of   0 2 4 6   1 3 5 7      the same of its own eight

    in the order that 2 (m mod 8 // 2) + … makes: eights of the pairs 0 1, 8 9, 16 17, 24 25, then 2 3, 10 11, …
    """
    import numpy as np

    n, cols = words.shape
    nibbles = words[:, :, None] >> np.arange(0, 16, 4, dtype=np.uint16) & 15  # (n / 4, cols, 4)
    rows = nibbles.astype(np.uint8).reshape(n, cols // 64, 4, 64).swapaxes(1, 2).reshape(4 * n, cols)
    eights = rows.reshape(4 * n, -1, 4, 2, 4).swapaxes(3, 4)  # each eight: 0 2 4 6 1 3 5 7 → 0 to 7
    pairs = eights.reshape(4 * n, -1, 4, 4, 2).swapaxes(2, 3)  # eights of pairs from all four → in order
    return np.ascontiguousarray(pairs).reshape(4 * n, cols)
