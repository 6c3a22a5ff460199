"""Blocks as the pack-quantized arrays of compressed-tensors, with the same numbers.

    block    code, zero         becomes
    Q4_0     0 … 15,  8         4 bits, symmetric
    Q5_0     0 … 31,  16        4 bits with zero points, where the levels of a group are of 16 in a row, as those from
                                there are; else 8 bits, symmetric: what runs such models has kernels for 4 and 8
    Q8_0     0 … 255, 128       8 bits, symmetric
    Q4_1     0 … 15,  -m / d    4 bits with zero points, where these are whole numbers from 0 to 15

Blocks of one scale are one group: 128 weights, 64, 32, or a whole row. What runs as one (queries, keys and values; gate
and up; the experts of a layer) gets one scheme, or none where one of them cannot have any.
Source: compressed_tensors/compressors of vllm-project/compressed-tensors, which says where the bits go.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING, Any

from ggufkit.jobs.checkpoint_folder import Part, Repacked, ranges
from ggufkit.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Scheme", "coded", "inner_matrices", "packed", "quantization_config", "schemes"]

# Format → its bits in the layout, and the code of its zero; None for one that each block has for itself.
_PACKED: dict[str, tuple[int, int | None]] = {"Q4_0": (4, 8), "Q5_0": (8, 16), "Q8_0": (8, 128), "Q4_1": (4, None)}

# Blocks of 32 that may share a scale.
_GROUPS = (4, 2, 1)

# Matrices inside a block of layers, as opposed to embeddings and the output.
_INNER = re.compile(r"\.\d+\..*\.weight$")

# What is run as one: the name without what tells its parts apart.
_FUSED = (
    re.compile(r"(?<=\.)experts\.\d+\.\w+(?=\.weight$)"),
    re.compile(r"(?<=\.)[qkv]_proj(?=\.weight$)"),
    re.compile(r"(?<=\.)(q_a_proj|kv_a_proj_with_mqa)(?=\.weight$)"),
    re.compile(r"(?<=\.)(gate|up)_proj(?=\.weight$)"),
    re.compile(r"(?<=\.)w[13](?=\.weight$)"),
)


@dataclass(frozen=True)
class Scheme:
    """How a matrix is packed.

    Attributes
    ----------
    bits : of a code.
    group : columns that share a scale; 0 for the whole row.
    symmetric : the zero is 2^(bits - 1) everywhere.
    """

    bits: int
    group: int
    symmetric: bool

    def __str__(self) -> str:
        zeros = "" if self.symmetric else " with zero points"
        return f"{self.bits} bits{zeros}, {f'groups of {self.group}' if self.group else 'a scale for each row'}"

    def weights(self) -> dict[str, Any]:
        """`weights` of a group in config.json."""
        return {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "group" if self.group else "channel",
            "group_size": self.group or None,
            "dynamic": False,
            "actorder": None,
            "block_structure": None,
            "observer": "minmax",
            "observer_kwargs": {},
        }


def inner_matrices(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices of the blocks of layers, which may be quantized."""
    return {name: tensor for name, tensor in tensors.items() if len(tensor.shape) == 2 and _INNER.search(name)}


_EXPERTS = r"re:.*\.experts\..*"


def schemes(
    tensors: Mapping[str, Tensor],
    fits: Callable[[Tensor, Scheme], bool] = lambda tensor, scheme: True,
) -> dict[str, Scheme]:
    """The matrices that stay quantized, and how; looks at scales, of Q4_1 at biases.

    Parameters
    ----------
    fits : whether a layout has a place for a matrix of a scheme.
    """
    sets: dict[str, list[Tensor]] = {}
    for name, tensor in inner_matrices(tensors).items():
        sets.setdefault(_set_of(name), []).append(tensor)
    found: dict[str, Scheme] = {}
    for members in sets.values():
        # The formats tell most sets that cannot stay, without a look at a scale.
        if all(t.format.name in _PACKED and not t.cols % 32 for t in members):
            own = [_scheme(tensor) for tensor in members]
            scheme = _common([s for s in own if s is not None], members) if None not in own else None
            if scheme is not None and all(fits(tensor, scheme) for tensor in members):
                found.update((tensor.name, scheme) for tensor in members)
    others = set(found.values())
    return {name: _as_others(scheme, tensors[name].cols, others) for name, scheme in found.items()}


def _as_others(scheme: Scheme, cols: int, others: set[Scheme]) -> Scheme:
    """A scale for each row is one for a group of so many, where others have such groups: one scheme less."""
    grouped = replace(scheme, group=scheme.group or cols)
    return grouped if grouped in others else scheme


def _set_of(name: str) -> str:
    for pattern in _FUSED:
        if (match := pattern.search(name)) is not None:
            return f"{name[: match.start()]}{pattern.pattern}"
    return name


def _scheme(tensor: Tensor) -> Scheme | None:
    """The scheme of one matrix; None where none has its numbers."""
    bits, zero = _PACKED[tensor.format.name]
    blocks = tensor.cols // 32
    possible = [size for size in (blocks, *_GROUPS) if size and not blocks % size]
    narrow = possible if tensor.format.name == "Q5_0" else []  # where 4 bits hold the levels
    symmetric = True
    for lo, hi in ranges(tensor):
        records = tensor.records(lo, hi)
        d = records["d"].reshape(hi - lo, blocks)
        zeros = None
        if zero is None:
            zeros = _zeros(d, records["m"].reshape(d.shape))
            if zeros is None:
                return None
            symmetric = symmetric and bool((zeros == 8).all())
        possible = [size for size in possible if _shared(d, size) and (zeros is None or _shared(zeros, size))]
        if narrow:
            least, most = _zero_points(_codes(tensor, records.view("u1")).reshape(-1, 32))
            narrow = [size for size in possible if size in narrow and _overlap(least, most, size)]
        if zero is not None and possible[0] == 1 and not narrow:
            break
    if narrow:
        return Scheme(4, 0 if narrow[0] == blocks else 32 * narrow[0], False)
    if not possible:
        return None
    return Scheme(bits, 0 if possible[0] == blocks else 32 * possible[0], symmetric)


def _shared(values: np.ndarray, size: int) -> bool:
    """Whether each `size` neighbours of a row, of (n, blocks), are the same."""
    if size == 1:
        return True
    groups = values.reshape(len(values), -1, size)
    if values.dtype.kind == "f":
        groups = groups.view("u2")
    return bool((groups == groups[:, :, :1]).all())


def _codes(tensor: Tensor, blocks: np.ndarray) -> np.ndarray:
    from ggufkit.formats.affine import split

    codes: np.ndarray = split(blocks, tensor.format).codes
    return codes


def _zero_points(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest zero point with which 4 bits hold levels of Q5_0, (n, weights): each (n,), int."""
    return 16 - codes.min(axis=1).astype(int), 31 - codes.max(axis=1).astype(int)


def _overlap(least: np.ndarray, most: np.ndarray, size: int) -> bool:
    """Whether each `size` neighbours can have the same zero point, from 0 to 15."""
    first, last = least.reshape(-1, size).max(axis=1), most.reshape(-1, size).min(axis=1)
    return bool((first.clip(0) <= last.clip(max=15)).all())


def _zeros(d: np.ndarray, m: np.ndarray) -> np.ndarray | None:
    """The zero points of blocks of Q4_1, (n, blocks), uint8; None where one is not a whole number from 0 to 15."""
    import numpy as np

    scale, bias = d.astype(np.float32), m.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        zeros = np.where(scale != 0, np.rint(-bias / scale), 0)
    if not (np.isfinite(zeros).all() and zeros.min(initial=0) >= 0 and zeros.max(initial=0) <= 15):
        return None
    return zeros.astype(np.uint8) if np.array_equal(-zeros * scale, bias) else None


def _common(schemes: Sequence[Scheme], members: Sequence[Tensor]) -> Scheme | None:
    """The scheme that all of some matrices can have."""
    if not schemes:
        return None
    bits = max(s.bits for s in schemes)
    even = bits == 8 and all(_PACKED[t.format.name][1] is not None for t in members)
    symmetric = even or all(s.symmetric for s in schemes)
    if not any(s.group for s in schemes):
        return Scheme(bits, 0, symmetric)
    return Scheme(bits, gcd(128, *(s.group or t.cols for s, t in zip(schemes, members, strict=False))), symmetric)


def coded(tensor: Tensor, scheme: Scheme, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks of rows, (n, row_bytes), as codes (n, cols), zero points (n, groups), both uint8, and scales, float16."""
    import numpy as np

    n, repeats = len(blocks), (scheme.group or tensor.cols) // 32
    records = blocks.view(tensor.format.dtype)  # (n, blocks per row)
    codes = _codes(tensor, blocks).reshape(n, tensor.cols)
    scales = np.ascontiguousarray(records["d"][:, ::repeats])
    middle = 1 << (scheme.bits - 1)
    zero = _PACKED[tensor.format.name][1]
    if scheme.bits == 4 and zero == 16:
        least, most = _zero_points(codes.reshape(-1, 32 * repeats))
        chosen = np.full(least.shape, middle).clip(least, most).astype(np.uint8).reshape(n, -1)
        return codes - np.uint8(16) + np.repeat(chosen, 32 * repeats, axis=1), chosen, scales
    zeros = np.full(records.shape, zero, np.uint8) if zero is not None else _zeros(records["d"], records["m"])
    assert zeros is not None, "the scheme was made for these blocks"
    if scheme.symmetric and zero != middle:
        codes = codes - np.repeat(zeros, 32, axis=1) + np.uint8(middle)  # modulo 256, as the sum is from 0 to 255
        zeros = np.full_like(zeros, middle)
    return codes, zeros[:, ::repeats], scales


def packed(tensor: Tensor, scheme: Scheme) -> Repacked:
    """The arrays of a matrix."""
    base, (rows, cols), bits = tensor.name, tensor.shape, scheme.bits
    groups = cols // scheme.group if scheme.group else 1
    parts = [
        Part(f"{base}_packed", "I32", (rows, cols * bits // 32)),
        Part(f"{base}_scale", "F16", (rows, groups)),
        Part(f"{base}_shape", "I64", (2,)),
    ]
    if not scheme.symmetric:
        parts.append(Part(f"{base}_zero_point", "I32", (-(rows * bits // -32), groups)))

    def make(lo: int, blocks: np.ndarray) -> list[tuple[int, np.ndarray]]:
        import numpy as np

        from ggufkit.formats.affine import pack_codes

        n = len(blocks)
        codes, zeros, scales = coded(tensor, scheme, blocks)
        arrays = [(lo, pack_codes(codes, bits)), (lo, scales), (0, np.array([rows, cols], np.int64))]
        if not scheme.symmetric:
            whole = np.zeros((groups, -(n * bits // -32) * 32 // bits), np.uint8)
            whole[:, :n] = zeros.T
            words = pack_codes(whole, bits).view(np.uint32)  # (groups, words)
            arrays.append((lo * bits // 32, np.ascontiguousarray(words.T)))
        return arrays

    return Repacked(tensor, tuple(parts), make)


def quantization_config(tensors: Mapping[str, Tensor], kept: Mapping[str, Scheme]) -> dict[str, Any]:
    """`quantization_config` of config.json; {} where nothing stays quantized."""
    if not kept:
        return {}
    modules: dict[Scheme, list[str]] = {}
    for name, scheme in kept.items():
        modules.setdefault(scheme, []).append(name.removesuffix(".weight"))
    most = Counter(kept.values()).most_common(1)[0][0]
    groups = {}
    # transformers keeps experts in stacks, no layers of their own, and looks for a pattern that names them.
    of_experts = {scheme for name, scheme in kept.items() if ".experts." in name} if len(modules) > 1 else set()
    for number, scheme in enumerate(sorted(modules, key=lambda scheme: scheme == most)):
        targets = ["Linear"] if scheme == most else modules[scheme]
        groups[f"group_{number}"] = {
            "targets": [_EXPERTS, *targets] if of_experts == {scheme} else targets,
            "weights": scheme.weights(),
            "input_activations": None,
            "output_activations": None,
            "format": "pack-quantized",
        }
    others = [
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if name.endswith(".weight") and len(tensor.shape) > 1 and name not in kept and "embed" not in name
    ]
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": others if "lm_head" in others else [*others, "lm_head"],
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }
    }
