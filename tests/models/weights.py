"""Weights and importances that are hard to encode: the battery of the tests and of verify_formats.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

__all__ = ["KINDS", "importances", "plain_weights", "random_blocks", "real_weights", "weights"]

_MODEL = Path(__file__).parents[3] / "shared" / "models" / "pylib-llama" / "model.safetensors"


def weights(rows: int, cols: int, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array of shape (rows, cols), float32) for each kind of weights."""
    rng = np.random.default_rng(seed)
    shape = (rows, cols)

    def normal(scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    yield "normal", normal(0.02)
    yield "student-t", (rng.standard_t(3, shape) * 0.02).astype(np.float32)
    yield "uniform", rng.uniform(-1, 1, shape).astype(np.float32)
    yield "positive", rng.uniform(0, 1, shape).astype(np.float32)
    yield "negative", -rng.exponential(1.0, shape).astype(np.float32)
    yield "offset", normal(0.1) + np.float32(3)
    yield "sparse", normal() * (rng.random(shape) < 0.05)
    yield "negative zeros", np.where(rng.random(shape) < 0.9, np.float32(-0.0), np.abs(normal()))
    yield "one-hot", np.where(np.arange(cols) % 256 == rng.integers(0, 256, (rows, 1)), normal(), np.float32(0))
    yield "constant", np.broadcast_to(normal()[:, :1], shape).copy()
    yield "constant blocks", np.repeat(normal()[:, ::32], 32, axis=1)[:, :cols]
    yield "signs", np.where(rng.random(shape) < 0.5, np.float32(-1), np.float32(1)) * np.float32(0.37)
    yield "ternary", rng.integers(-1, 2, shape).astype(np.float32) * np.float32(0.05)
    yield "few levels", rng.integers(-8, 8, shape).astype(np.float32) * np.float32(0.25)
    yield "zero", np.zeros(shape, np.float32)
    yield "denormal", (rng.integers(-300, 300, shape) * 2.0**-149).astype(np.float32)
    yield "around the smallest normal", normal(2.0**-126)
    yield "1e-30", normal(1e-30)
    yield "1e-15", normal(1e-15)
    yield "1e+4", np.clip(normal(1e4), -6e4, 6e4)
    yield "wide range", (normal() * np.exp2(rng.uniform(-40, 10, shape))).astype(np.float32)
    yield "powers of two", np.exp2(rng.integers(-20, 5, shape)).astype(np.float32) * np.sign(normal())
    below = np.nextafter(np.exp2(rng.integers(-30, 5, shape)).astype(np.float32), np.float32(0))
    yield "just below powers of two", below
    yield "sorted", np.sort(normal(), axis=1)
    yield "sorted downwards", -np.sort(normal(), axis=1)
    yield "outlier a block", normal(1e-3) + np.where(np.arange(cols) % 32 == 7, np.float32(5), np.float32(0))


def real_weights(cols: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array of shape (rows, cols), float32) for each matrix of the trained model beside the repository, if any.

    Rows are cut anew to `cols` weights.
    """
    if not _MODEL.exists():
        return
    data = _MODEL.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for name, tensor in json.loads(data[8:start]).items():
        if name == "__metadata__" or tensor["dtype"] != "BF16":
            continue
        lo, hi = tensor["data_offsets"]
        values = np.frombuffer(data[start + lo : start + hi], "<u2").astype(np.uint32) << 16
        rows = values.view(np.float32)[: values.size // cols * cols].reshape(-1, cols)
        if len(rows):
            yield name, rows


def importances(cols: int, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array of shape (cols,), float32) for each kind of importance."""
    rng = np.random.default_rng(seed)
    uniform = rng.random(cols).astype(np.float32)
    yield "random", uniform
    yield "spiky", np.exp(3 * rng.standard_normal(cols)).astype(np.float32)
    yield "half zeros", np.where(rng.random(cols) < 0.5, np.float32(0), uniform)
    yield "zero blocks", np.where(rng.random(-(-cols // 32)).repeat(32)[:cols] < 0.3, np.float32(0), uniform)
    yield "zero", np.zeros(cols, np.float32)
    yield "tiny", uniform * np.float32(1e-20)
    yield "huge", uniform * np.float32(1e10)


def random_blocks(n: int, type_size: int, seed: int = 0) -> np.ndarray:
    """(n, type_size) uint8: any bytes, with zeros, ones and all-ones blocks in front."""
    blocks = np.random.default_rng(seed).integers(0, 256, (n, type_size), dtype=np.uint8)
    blocks[:3] = [[0], [1], [255]]
    return blocks


# Kinds of `plain_weights`.
KINDS = (
    "normal",
    "laplace",
    "uniform",
    "sparse",
    "low rank",
    "rows of one scale",
    "outliers",
    "halves",
    "ternary",
    "tiny",
)


def plain_weights(kind: str, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Weights as models have them that nobody trained for a block format: array of `shape`, float32."""
    rows, cols = shape
    values = random.standard_normal((rows, cols)) * 0.02
    if kind == "laplace":
        values = random.laplace(0, 0.02, (rows, cols))
    elif kind == "uniform":
        values = random.uniform(-0.1, 0.1, (rows, cols))
    elif kind == "sparse":
        values *= random.random((rows, cols)) < 0.3
    elif kind == "low rank":
        values = random.standard_normal((rows, 2)) @ random.standard_normal((2, cols)) * 0.02
    elif kind == "rows of one scale":
        values *= random.lognormal(0, 1, (rows, 1))
    elif kind == "outliers":
        values[random.random((rows, cols)) < 0.01] *= 50
    elif kind == "halves":
        values = np.rint(values * 1024) / 1024
    elif kind == "ternary":
        values = np.sign(values) * (np.abs(values) > 0.02) * 0.03
    elif kind == "tiny":
        values *= 1e-6
    return values.astype(np.float32)
