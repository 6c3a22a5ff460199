"""EXL2: rows of several widths, in the order of their importance.

    …q_proj.q_weight      (words, rows) I32     inputs down, a stream of bits in each column, group after group
    …q_proj.q_groups      (2 · groups,) I16     of each group its bits, and the first of its words
    …q_proj.q_scale       (groups, rows / 8) I32   codes of four bits along the outputs
    …q_proj.q_scale_max   (groups,) F16
    …q_proj.q_invperm     (cols,) I32           where each input of the model lies among those stored

    scale = (code + 1)² · max / 256      w = (code - 2^(bits - 1)) · scale, in float16

Source: exllamav2/exllamav2_ext/cuda/q_matrix.cu of turboderp-org/exllamav2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufkit.checkpoint.packed.matrix import Floats
from ggufkit.checkpoint.packed.stored import Matrix, Reading, Source, parts_of, require
from ggufkit.errors import CheckpointError, printable

if TYPE_CHECKING:
    import numpy as np

__all__ = ["read"]


def read(source: Source) -> Reading | None:
    """Modules with `q_weight`."""
    reading = Reading("EXL2")
    whole = [name for name, tensor in source.tensors.items() if tensor.format.name in ("I32", "U32")]
    for module in parts_of(whole, ".q_weight"):
        parts = ("q_groups", "q_scale", "q_scale_max", "q_invperm", "q_perm", "q_group_map")
        reading.add(f"{module}.q_weight", _matrix(source, module), [f"{module}.{part}" for part in parts])
    return reading if reading.matrices else None


def _matrix(source: Source, module: str) -> Matrix:
    import numpy as np

    tensors, shown = source.tensors, printable(module)
    weight = require(tensors, f"{module}.q_weight", ("I32", "U32"), (-1, -1))
    groups = source.whole(require(tensors, f"{module}.q_groups", ("I16", "U16"), (-1,))).astype(np.uint16)
    words, rows = weight.shape
    count = len(groups) // 2
    scale = require(tensors, f"{module}.q_scale", ("I32", "U32"), (count, -(rows // -8)))
    largest = require(tensors, f"{module}.q_scale_max", "F16", (count,))
    places = require(tensors, f"{module}.q_invperm", ("I32", "I64", "I16"), (-1,))
    cols = places.cols
    runs = _runs(shown, groups, words, cols)
    order = source.whole(places).astype(np.int64)
    if not np.array_equal(np.sort(order), np.arange(cols)):
        raise CheckpointError(f"{printable(places.name)} is no order of {cols} inputs")

    def scales() -> np.ndarray:
        """(groups, rows), float16, as the tool rounds them."""
        codes = source.whole(scale).view(np.uint32)[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15
        squares = ((codes.reshape(count, -1)[:, :rows] + 1) ** 2).astype(np.float16)
        with np.errstate(over="ignore"):
            most = (source.whole(largest).astype(np.float32) / 256).astype(np.float16)
            return squares * most[:, None]

    def floats(lo: int, hi: int) -> np.ndarray:
        from ggufkit.formats.affine import unpack_codes

        stored = np.ascontiguousarray(source.columns(weight, lo, hi).T)  # (n, words)
        factors = source.derived(f"{module} scales", scales)[:, lo:hi]
        found = np.empty((hi - lo, cols), np.float16)
        at = 0
        for group, (bits, begin, end, inputs) in enumerate(runs):
            codes = unpack_codes(stored[:, begin:end], bits)[:, :inputs]
            levels = codes.astype(np.float16) - np.float16(1 << (bits - 1))
            found[:, at : at + inputs] = levels * factors[group][:, None]
            at += inputs
        return found[:, order].astype(np.float32)

    if not np.isfinite(source.whole(largest)).all():
        raise CheckpointError(f"{printable(largest.name)}: a scale is not finite, and no weight can be made of it")
    widths = sorted({bits for bits, *_ in runs})
    what = f"EXL2, {' and '.join(map(str, widths))} bits, inputs in any order"
    return Matrix(f"{module}.weight", what, Floats((rows, cols), floats, sixteen="F16"))


def _runs(shown: str, groups: np.ndarray, words: int, cols: int) -> list[tuple[int, int, int, int]]:
    """Of each group its bits, its words begin:end, and its inputs."""
    runs = []
    starts = [*(int(n) for n in groups[1::2]), words]
    left = cols
    for bits, begin, end in zip((int(n) for n in groups[0::2]), starts, starts[1:], strict=False):
        if not 1 <= bits <= 8 or not 0 <= begin < end <= words or (end - begin) * 32 % bits:
            raise CheckpointError(f"{shown}: a group of {bits} bits in the words {begin} to {end} of {words}")
        inputs = min((end - begin) * 32 // bits, left)
        runs.append((bits, begin, end, inputs))
        left -= inputs
    if left or not runs or runs[0][1]:
        raise CheckpointError(f"{shown}: its groups have {cols - left} inputs, q_invperm has {cols}")
    return runs
