"""Tiny checkpoints as quantizers store them: packers of our own, written from the layouts' descriptions.

    write_packed(FAMILIES["qwen3moe"](), GPTQ(bits=4, group=32), folder)

Each packer turns a matrix into stored arrays, and says which float32 weights these mean. A tiny model is made four
times as wide, so that its rows have whole blocks.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from tiny_checkpoints import Tiny, tokenizer_files, weights

__all__ = [
    "AWQ",
    "GPTQ",
    "Fp8Blocks",
    "Int8",
    "Marlin24",
    "PackQuantized",
    "Packer",
    "Sparse24",
    "Stored",
    "packs",
    "wide",
    "write_packed",
]

# Arrays by their names' ends, and the weights that they mean.
Stored = tuple[dict[str, np.ndarray], np.ndarray]

_KINDS = {
    "float32": "F32",
    "float16": "F16",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "int8": "I8",
    "uint8": "U8",
}
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "head_dim",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "kv_lora_rank",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
)
_FACTOR = 4

_OF_LAYER = re.compile(r"(^|\.)(layers|h|blocks)\.\d+\.")
_LEFT = ("gate.weight", "router.weight", "router.layer.weight", "norm.weight")


def wide(tiny: Tiny) -> Tiny:
    """The same model with matrices of four times as many rows and columns, but for its vocabulary and experts."""
    vocabulary = tiny.config["vocab_size"]
    shapes = {
        name: tuple(n if n < 8 or (n >= vocabulary and "embed" in name + "lm_head") else n * _FACTOR for n in shape)
        for name, shape in tiny.shapes
    }
    for name in shapes:
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            shapes[name] = (shapes[name][0] if shapes[name][0] < 1000 else shapes[name][0] // _FACTOR, shapes[name][1])
    config = {key: value * _FACTOR if key in _SIZES and value else value for key, value in tiny.config.items()}
    return replace(tiny, config=config, shapes=shapes.items())


def packs(name: str, shape: tuple[int, ...]) -> bool:
    """Whether quantizers touch it: matrices of layers, but for routers."""
    named = name.endswith(".weight") and not name.endswith(_LEFT)
    return named and len(shape) == 2 and _OF_LAYER.search(name) is not None


def random_of(name: str) -> np.random.Generator:
    return np.random.default_rng(crc32(name.encode()))


def stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """(rows, n) codes as one stream of bits a row, lowest first: (rows, words) int32."""
    spread = (codes[:, :, None] >> np.arange(bits) & 1).astype(np.uint8).reshape(len(codes), -1)
    spread = np.pad(spread, ((0, 0), (0, -spread.shape[1] % 32)))
    return np.packbits(spread, axis=1, bitorder="little").view("<i4")


def scales_of(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.uniform(0.001, 0.01, shape).astype(np.float16)


def groups_of(cols: int, size: int) -> np.ndarray:
    return np.zeros(cols, np.int64) if size < 0 else np.arange(cols) // size


@dataclass(frozen=True)
class GPTQ:
    bits: int = 4
    group: int = 32
    sym: bool = True
    order: bool = False
    version: int = 1

    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group,
            "sym": self.sym,
            "desc_act": self.order,
            "checkpoint_format": "gptq_v2" if self.version == 2 else "gptq",
        }

    def pack(self, name: str, shape: tuple[int, int]) -> Stored:
        random, (rows, cols) = random_of(name), shape
        of = groups_of(cols, self.group)
        if self.order:
            of = random.permutation(of)
        count, top = int(of.max()) + 1, 1 << self.bits
        codes = random.integers(0, top, (rows, cols))
        zeros = np.full((rows, count), top // 2) if self.sym else random.integers(1, top, (rows, count))
        scales = scales_of(random, rows, count)
        packed = {
            "qweight": np.ascontiguousarray(stream(codes, self.bits).T),
            "qzeros": stream((zeros - (self.version == 1)).T, self.bits),
            "scales": np.ascontiguousarray(scales.T),
            "g_idx": of.astype(np.int32),
        }
        return packed, scales.astype(np.float32)[:, of] * (codes - zeros[:, of]).astype(np.float32)


@dataclass(frozen=True)
class AWQ:
    group: int = 32

    def config(self) -> dict[str, Any]:
        settings = {"bits": 4, "group_size": self.group, "zero_point": True, "version": "gemm"}
        return {"quant_method": "awq", **settings, "modules_to_not_convert": None}

    def pack(self, name: str, shape: tuple[int, int]) -> Stored:
        random, (rows, cols) = random_of(name), shape
        of = groups_of(cols, self.group)
        count = int(of.max()) + 1
        codes, zeros = random.integers(0, 16, (rows, cols)), random.integers(0, 16, (rows, count))
        scales = scales_of(random, rows, count)
        packed = {
            "qweight": self.words(codes.T),
            "qzeros": self.words(zeros.T),
            "scales": np.ascontiguousarray(scales.T),
        }
        return packed, scales.astype(np.float32)[:, of] * (codes - zeros[:, of]).astype(np.float32)

    @staticmethod
    def words(codes: np.ndarray) -> np.ndarray:
        return stream(codes.reshape(len(codes), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(codes.shape), 4)


@dataclass(frozen=True)
class PackQuantized:
    """compressed-tensors; `dense`: codes of 3, 5, 6, 7 bits as one stream."""

    bits: int = 4
    group: int = 32
    sym: bool = True
    dense: bool = True
    order: bool = False

    def config(self) -> dict[str, Any]:
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.sym,
            "strategy": "group" if self.group > 0 else "channel",
            "group_size": self.group if self.group > 0 else None,
        }
        groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": groups,
            "ignore": ["lm_head"],
        }

    def pack(self, name: str, shape: tuple[int, int]) -> Stored:
        random, (rows, cols) = random_of(name), shape
        of = groups_of(cols, self.group)
        if self.order:
            of = random.permutation(of)
        count, top = int(of.max()) + 1, 1 << self.bits
        codes = random.integers(0, top, (rows, cols))
        zeros = np.full((rows, count), top // 2) if self.sym else random.integers(0, top, (rows, count))
        scales = scales_of(random, rows, count)
        packed = {
            "weight_packed": self.words(codes),
            "weight_scale": scales,
            "weight_shape": np.array(shape, np.int64),
        }
        if not self.sym:
            packed["weight_zero_point"] = np.ascontiguousarray(self.words(zeros.T).T)
        if self.order:
            packed["weight_g_idx"] = of.astype(np.int32)
        return packed, scales.astype(np.float32)[:, of] * (codes - zeros[:, of]).astype(np.float32)

    def words(self, codes: np.ndarray) -> np.ndarray:
        if self.dense:
            return stream(codes, self.bits)
        each = 32 // self.bits
        codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % each))).reshape(len(codes), -1, each)
        shifted = codes.astype(np.uint32) << np.arange(each, dtype=np.uint32) * np.uint32(self.bits)
        return np.bitwise_or.reduce(shifted, axis=2).view(np.int32)


@dataclass(frozen=True)
class Int8:
    """compressed-tensors of 8 bits, not packed."""

    strategy: str = "channel"

    def config(self) -> dict[str, Any]:
        weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": self.strategy}
        groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": {"num_bits": 8}}}
        return {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "config_groups": groups,
            "ignore": ["lm_head"],
        }

    def pack(self, name: str, shape: tuple[int, int]) -> Stored:
        random = random_of(name)
        codes = random.integers(-128, 128, shape).astype(np.int8)
        scales = scales_of(random, *(shape[0], 1) if self.strategy == "channel" else (1,))
        return {"weight": codes, "weight_scale": scales}, codes.astype(np.float32) * scales.astype(np.float32)


@dataclass(frozen=True)
class Fp8Blocks:
    """Scales of float32 for blocks, powers of two."""

    size: int = 64

    def config(self) -> dict[str, Any]:
        return {"quant_method": "fp8", "weight_block_size": [self.size, self.size], "activation_scheme": "dynamic"}

    def pack(self, name: str, shape: tuple[int, int]) -> Stored:
        import ml_dtypes

        random = random_of(name)
        codes = random.integers(0, 0x70, shape).astype(np.uint8)
        grid = tuple(-(n // -self.size) for n in shape)
        scales = np.exp2(random.integers(-9, -4, grid)).astype(np.float32)
        spread = np.repeat(np.repeat(scales, self.size, 0), self.size, 1)[: shape[0], : shape[1]]
        values = codes.view(ml_dtypes.float8_e4m3fn)
        return {"weight": values, "weight_scale_inv": scales}, values.astype(np.float32) * spread


def two_of_four(random: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """Which two of each four neighbours are there, ascending: (rows, cols / 4, 2)."""
    return np.sort(random.permuted(np.broadcast_to(np.arange(4), (rows, cols // 4, 4)), axis=2)[:, :, :2], axis=2)


@dataclass(frozen=True)
class Marlin24:
    """compressed-tensors before 0.19, for a GPU's sparse tiles."""

    bits: int = 4
    group: int = 128

    def config(self) -> dict[str, Any]:
        return PackQuantized(self.bits, self.group).config() | {"format": "marlin-24"}

    def pack(self, name: str, shape: tuple[int, int]) -> Stored:
        random, (rows, cols) = random_of(name), shape
        of = groups_of(cols, self.group)
        count, middle = int(of.max()) + 1, 1 << (self.bits - 1)
        places, kept = two_of_four(random, rows, cols), random.integers(0, 2 * middle, (rows, cols // 2))
        scales = scales_of(random, rows, count)
        codes = np.full((rows, cols // 4, 4), middle)
        np.put_along_axis(codes, places, kept.reshape(places.shape), axis=2)
        packed = {
            "weight_packed": self.tiles(kept.T),
            "meta": self.meta(places),
            "scale_packed": self.scales(scales.T, self.group > 0 and self.group < cols // 2),
        }
        return packed, scales.astype(np.float32)[:, of] * (codes.reshape(shape) - middle).astype(np.float32)

    def tiles(self, kept: np.ndarray) -> np.ndarray:
        """(kept inputs, outputs), code by code into the order of the lanes."""
        into, out = kept.shape
        order = []
        for lane in range(32):
            for j in range(4):
                for block in (0, 1):
                    for row in (2 * (lane % 4), 2 * (lane % 4) + 1, 2 * (lane % 4 + 4), 2 * (lane % 4 + 4) + 1):
                        order.append(16 * row + lane // 8 * 256 + 8 * (lane // 4 % 2) + 4 * block + j)
        mix = [0, 2, 4, 6, 1, 3, 5, 7] if self.bits == 4 else [0, 2, 1, 3]
        order = np.array(order).reshape(-1, len(mix))[:, mix].reshape(-1)
        tiles = kept.reshape(into // 16, 16, out // 16, 16).transpose(0, 2, 1, 3).reshape(-1, 1024)
        return stream(tiles[:, order].reshape(into // 16, -1), self.bits)

    @staticmethod
    def meta(places: np.ndarray) -> np.ndarray:
        rows, quads, _ = places.shape
        fours = (places[:, :, 0] | places[:, :, 1] << 2).reshape(rows, quads // 4, 4)
        words = (fours << np.array([0, 4, 8, 12])).sum(axis=2)
        flat = np.zeros(words.size, np.int64)
        for row in range(rows):
            for column in range(words.shape[1]):
                to = row // 64 * 64 + (row % 2) * 2 + (row % 8) // 4 + ((row % 32) % 4) // 2 * 32 + (row % 64) // 8 * 4
                turn = int(to % 2 == 0 and column % 2 == 1) - int(to % 2 == 1 and column % 2 == 0)
                to, at = to + turn, column - turn
                flat[at // 2 * rows * 2 + to * 2 + at % 2] = words[row, column]
        return flat.astype(np.uint16).view(np.int16).reshape(words.shape[1] // 2, rows * 2)

    @staticmethod
    def scales(scales: np.ndarray, grouped: bool) -> np.ndarray:
        order = [0, 4, 1, 5, 2, 6, 3, 7] if grouped else list(range(8))
        return np.ascontiguousarray(scales.reshape(-1, 8)[:, order].reshape(scales.shape))


@dataclass(frozen=True)
class Sparse24:
    """compressed-tensors' bit mask; "F16", "I8" with a scale for each row."""

    kind: str = "F16"

    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "compressed-tensors",
            "format": "dense" if self.kind == "F16" else "int-quantized",
            "sparsity_config": {"format": "sparse-24-bitmask", "sparsity_structure": "2:4"},
            "config_groups": {} if self.kind == "F16" else Int8().config()["config_groups"],
        }

    def pack(self, name: str, shape: tuple[int, int]) -> Stored:
        random, (rows, cols) = random_of(name), shape
        there = np.zeros((rows, cols // 4, 4), bool)
        np.put_along_axis(there, two_of_four(random, rows, cols), True, axis=2)
        there = there.reshape(shape)
        if self.kind == "F16":
            values, scale = random.standard_normal((rows, cols // 2)).astype(np.float16), np.ones((rows, 1), np.float16)
        else:
            values, scale = random.integers(-128, 128, (rows, cols // 2)).astype(np.int8), scales_of(random, rows, 1)
        meant = np.zeros(shape, np.float32)
        meant[there] = values.reshape(-1)
        packed = {
            "compressed": values,
            "bitmask": np.packbits(there, axis=1, bitorder="little"),
            "shape": np.array([[rows], [cols]], np.int64),
        }
        if self.kind != "F16":
            packed["weight_scale"] = scale
        return packed, meant * scale.astype(np.float32)


Packer = Marlin24 | Sparse24 | GPTQ | AWQ | PackQuantized | Int8 | Fp8Blocks


def write_packed(tiny: Tiny, packer: Packer, folder: Path, plain: Path | None = None, *, widened: bool = True) -> Path:
    """Write a quantized checkpoint; to `plain` the one that it means, in float32."""
    tiny = wide(tiny) if widened else tiny
    stored: dict[str, np.ndarray] = {}
    meant: dict[str, np.ndarray] = {}
    for name, shape in tiny.shapes:
        if packs(name, shape):
            arrays, meant[name] = packer.pack(name, (shape[0], shape[1]))
            stored |= {f"{name.removesuffix('weight')}{end}": array for end, array in arrays.items()}
        else:
            stored[name] = meant[name] = weights(name, shape)
    _write(folder, tiny, stored, {**tiny.config, "quantization_config": packer.config()})
    if plain is not None:
        _write(plain, tiny, meant, tiny.config)
    return folder


def _write(folder: Path, tiny: Tiny, arrays: Mapping[str, np.ndarray], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    for file, contents in {"config.json": config, **tokenizer_files(tiny), **tiny.files}.items():
        data = contents if isinstance(contents, bytes) else json.dumps(contents).encode()
        (folder / file).write_bytes(data)
    header, data = {}, b""
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).tobytes()
        kind = _KINDS.get(array.dtype.name, "F8_E4M3")
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
