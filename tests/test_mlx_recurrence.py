"""Recurrences on MLX: chunks, and kernels of Metal, have the numbers of token after token."""

from __future__ import annotations

import shutil
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")

import recurrences
from metal_shim import Kernels
from tiny_checkpoints import write
from tiny_families import FAMILIES
from tiny_models import write_tiny
from verify_runtime import divergence

import ggufkit
from ggufkit.jobs.convert import convert
from ggufkit.runtime.batch import Piece
from ggufkit.runtime.mlx import recurrence, scans
from ggufkit.runtime.ops import StateSpace


@pytest.fixture(autouse=True)
def without_metal(monkeypatch):
    """Chunks, on a Mac, too; the tests of kernels ask for them."""
    monkeypatch.setattr(scans, "_on_metal", lambda: False)


LENGTHS = [1, 2, 5, 16, 17, 63, 64, 65, 129, 200]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# What a layer gives a recurrence of n tokens; `fast` multiplies the logarithms of its decays.


def space_inputs(n: int, rng, *, alike: bool, fast: float = 1.0, heads=4, size=8, groups=2, states=16):
    x, b, c = (rng.standard_normal(shape) for shape in ((n, heads, size), (n, groups, states), (n, groups, states)))
    dt = np.logaddexp(rng.standard_normal((n, heads)) - 1, 0) * fast
    a = -np.exp(rng.standard_normal((heads, 1 if alike else states)))
    return x, b, c, dt, a, rng.standard_normal(heads), rng.standard_normal((heads, size, states))


def delta_inputs(n: int, rng, *, alike: bool, fast: float = 1.0, heads=3, dk=16, dv=24):
    q, k = (unit(rng.standard_normal((n, heads, dk))) for _ in range(2))
    decay = -np.exp(rng.standard_normal((n, heads, 1 if alike else dk)) - 2) * fast
    return (
        q,
        k,
        rng.standard_normal((n, heads, dv)),
        decay,
        rng.random((n, heads)),
        rng.standard_normal((heads, dk, dv)),
    )


def wkv_inputs(n: int, rng, *, unlearns: bool, bonus: bool, fast: float = 1.0, heads=3, size=16):
    r, k, v = (rng.standard_normal((n, heads, size)) for _ in range(3))
    w = np.exp(-0.6 * rng.random((n, heads, size)) * fast)
    known = unit(rng.standard_normal((n, heads, size)))
    a, b = (-known, known * rng.random((n, heads, size))) if unlearns else (None, None)
    own = rng.standard_normal((heads, size)) if bonus else None
    return r, w, k, v, a, b, own, rng.standard_normal((heads, size, size))


KINDS = {
    "Mamba 2": (space_inputs, {"alike": True}),
    "Mamba": (space_inputs, {"alike": False, "heads": 16, "size": 1, "groups": 1}),
    "delta net": (delta_inputs, {"alike": True}),
    "Kimi delta attention": (delta_inputs, {"alike": False}),
    "RWKV 6": (wkv_inputs, {"unlearns": False, "bonus": True}),
    "RWKV 6 of Qwen": (wkv_inputs, {"unlearns": False, "bonus": False}),
    "RWKV 7": (wkv_inputs, {"unlearns": True, "bonus": False}),
}


def on_mlx(kind: str, inputs: tuple) -> tuple[np.ndarray, np.ndarray]:
    """What a kind finds, and its state then."""
    arrays = [None if x is None else mx.array(x.astype(np.float32)) for x in inputs]
    make, _ = KINDS[kind]
    if make is space_inputs:
        x, b, c, dt, a, d, state = arrays
        space = StateSpace(x.shape[1], x.shape[2], b.shape[1], b.shape[2], a, d)
        n = len(x)
        y, state = recurrence.scan(x.reshape(n, -1), b.reshape(n, -1), c.reshape(n, -1), dt, space, state)
        return np.array(y).reshape(x.shape), np.array(state)
    found = (recurrence.delta if make is delta_inputs else recurrence.wkv)(*arrays)
    return np.array(found[0]), np.array(found[1])


def oracle(kind: str, inputs: tuple) -> tuple[np.ndarray, np.ndarray]:
    names = {space_inputs: "scan", delta_inputs: "delta", wkv_inputs: "wkv"}
    # What float32 has of the inputs.
    inputs = tuple(None if x is None else x.astype(np.float32).astype(np.float64) for x in inputs)
    return getattr(recurrences, names[KINDS[kind][0]])(*inputs)


def assert_close(expected: np.ndarray, found: np.ndarray, limit: float) -> None:
    """By the greatest of all numbers."""
    assert np.isfinite(found).all()
    assert np.abs(expected - found).max() <= limit * np.abs(expected).max()


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_have_the_numbers_of_token_after_token(kind, n):
    make, options = KINDS[kind]
    inputs = make(n, np.random.default_rng(n), **options)
    for expected, found in zip(oracle(kind, inputs), on_mlx(kind, inputs), strict=True):
        assert_close(expected, found, 1e-5)


@pytest.mark.parametrize("fast", [1e-4, 30.0, 1e4])
@pytest.mark.parametrize("kind", KINDS)
def test_states_that_forget_at_once_or_never_overflow_nothing(kind, fast):
    make, options = KINDS[kind]
    inputs = make(150, np.random.default_rng(3), fast=fast, **options)
    for expected, found in zip(oracle(kind, inputs), on_mlx(kind, inputs), strict=True):
        assert_close(expected, found, 1e-4)


@pytest.mark.parametrize("kind", ["delta net", "Kimi delta attention"])
def test_one_key_again_and_again(kind):
    """A text of one token: the powers of what keys find of each other would be beyond float32."""
    make, options = KINDS[kind]
    q, k, v, decay, beta, state = make(128, np.random.default_rng(4), fast=1e-6, **options)
    k[:] = k[:1]
    inputs = (q, k, v, decay, np.ones_like(beta) * 0.999, state)
    for expected, found in zip(oracle(kind, inputs), on_mlx(kind, inputs), strict=True):
        assert_close(expected, found, 1e-5)


# -- kernels of Metal -------------------------------------------------------------------------------------


@pytest.mark.apple
@pytest.mark.parametrize("n", [1, 7, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_metal_itself_has_the_numbers_of_token_after_token(kind, n, monkeypatch):
    if not mx.metal.is_available():
        pytest.skip("needs Metal")
    monkeypatch.setattr(scans, "_on_metal", lambda: True)
    make, options = KINDS[kind]
    inputs = make(n, np.random.default_rng(n), **options)
    for expected, found in zip(oracle(kind, inputs), on_mlx(kind, inputs), strict=True):
        assert_close(expected, found, 1e-5)


@pytest.fixture
def metal(tmp_path, monkeypatch, without_metal):
    """Metal's kernels, compiled for the CPU."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler here to stand in for Metal's")
    kernels = Kernels(compiler, tmp_path)
    monkeypatch.setattr(scans, "_on_metal", lambda: True)
    monkeypatch.setattr(scans.mx.fast, "metal_kernel", kernels)
    scans._kernel.cache_clear()
    yield kernels
    scans._kernel.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
def test_metal_kernels_have_the_numbers_of_token_after_token(kind, metal):
    make, options = KINDS[kind]
    for n in (1, 7):
        inputs = make(n, np.random.default_rng(n), **options)
        for expected, found in zip(oracle(kind, inputs), on_mlx(kind, inputs), strict=True):
            assert_close(expected, found, 1e-5)
    assert len(metal.calls) == 2
    assert len(set(metal.calls)) == 1


SHAPES = [
    (space_inputs, {"alike": True, "heads": 2, "size": 4, "groups": 1, "states": 128}),
    (space_inputs, {"alike": True, "heads": 2, "size": 2, "groups": 2, "states": 256}),
    (space_inputs, {"alike": False, "heads": 8, "size": 1, "groups": 1, "states": 32}),
    (delta_inputs, {"alike": True, "heads": 1, "dk": 128, "dv": 8}),
    (delta_inputs, {"alike": False, "heads": 1, "dk": 64, "dv": 16}),
    (wkv_inputs, {"unlearns": True, "bonus": False, "heads": 1, "size": 64}),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_metal_kernels_of_other_shapes(shape, metal, monkeypatch):
    make, options = shape
    kind = next(name for name, (made_by, _) in KINDS.items() if made_by is make)
    inputs = make(3, np.random.default_rng(1), **options)
    for expected, found in zip(oracle(kind, inputs), on_mlx(kind, inputs), strict=True):
        assert_close(expected, found, 1e-5)
    assert len(metal.calls) == 1


# -- whole models -----------------------------------------------------------------------------------------

RECIPES = ["mamba", "mamba2", "granitehybrid", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"]
CONVERTED = ["jamba", "kimi_linear"]
SHARED = ["qwen35", "qwen3next", "nemotronh-moe"]
# Parts of a text in passes of their own: one token, some, the end of a chunk and beyond, several chunks.
CUTS = [0, 1, 6, 22, 86, 87, 107]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recurrent")
    shared = Path(__file__).parents[2] / "shared" / "architectures" / "checkpoints.tar.xz"
    members = [f"{name}/hf" for name in SHARED]
    if shared.exists():
        with tarfile.open(shared) as archive:
            wanted = [m for m in archive.getmembers() if m.name.startswith(tuple(members))]
            archive.extractall(folder, wanted, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))

    def path(name: str) -> Path:
        target = folder / f"{name}.gguf"
        if target.exists():
            return target
        if name in RECIPES:
            write_tiny(target, name)
        elif name in CONVERTED:
            convert(write(FAMILIES[name](), folder / name), target, "F32", pre="gpt-2")
        else:
            if not shared.exists():
                pytest.skip("the reference data beside the repository is not here")
            convert(folder / name / "hf", target, "F32")
        return target

    return path


def in_parts(path, backend: str, tokens: np.ndarray) -> np.ndarray:
    """Logits of a text, of its beginning read again from a checkpoint, and of two texts in one pass."""
    with ggufkit.load(path, backend=backend) as model:
        cache = model.new_cache(len(tokens), "F32", "F32")
        found = [model.forward(tokens[lo:hi], cache, "all") for lo, hi in pairwise(CUTS)]
        assert cache.keep_prefix([*tokens[:90].tolist(), 5]) == 87  # where a pass ended
        found.append(model.forward(tokens[87:107], cache, "all"))
        other, caches = model.new_cache(len(tokens), "F32", "F32"), [cache.copy(), model.new_cache(80, "F32", "F32")]
        found += model.step([Piece(other, tokens[:70], "all"), Piece(caches[1], tokens[5:8], "all")])
        found += model.step([Piece(other, tokens[70:71], "all"), Piece(caches[1], tokens[8:75], "all")])
    return np.concatenate(found)


@pytest.mark.parametrize("name", [*RECIPES, *CONVERTED, *SHARED])
def test_models_have_the_cpus_logits(paths, name):
    tokens = np.random.default_rng(7).integers(5, 90, CUTS[-1]).astype(np.int32)
    assert divergence(in_parts(paths(name), "cpu", tokens), in_parts(paths(name), "mlx", tokens)).max() < 1e-5


@pytest.mark.parametrize("name", ["mamba2", "rwkv7", "qwen35"])
def test_models_on_metals_kernels_have_the_cpus_logits(paths, name, metal):
    tokens = np.random.default_rng(7).integers(5, 90, 20).astype(np.int32)
    found = []
    for backend in ("cpu", "mlx"):
        with ggufkit.load(paths(name), backend=backend) as model:
            cache = model.new_cache(20, "F32", "F32")
            found.append(np.concatenate([model.forward(tokens[lo:hi], cache, "all") for lo, hi in ((0, 19), (19, 20))]))
    assert divergence(*found).max() < 1e-5
    assert len(set(metal.calls)) == 1
