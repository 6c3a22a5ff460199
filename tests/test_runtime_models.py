"""Models of 2024–2026 compute llama.cpp's logits, on the CPU and on MLX."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import verify_logits

import ggufkit
from ggufkit.jobs.convert import convert
from ggufkit.runtime.batch import Piece

ARCHIVE = Path(__file__).parents[1].parent / "shared" / "architectures" / "checkpoints.tar.xz"

# Of each kind of computation one; tools/verify/verify_logits.py compares all. GELU differs by its table of float16.
MODELS = {
    "apertus": ("apertus", 1e-6),
    "deepseek2": ("youtu", 1e-6),
    "deepseek32": ("deepseekv32", 1e-6),
    "falcon-h1": ("falconh1", 1e-6),
    "gemma3n": ("gemma3n", 1e-5),
    "gemma4": ("gemma4-e", 1e-5),
    "granitehybrid": ("granitehybrid-moe", 1e-6),
    "lfm2moe": ("lfm2moe", 1e-6),
    "llama4": ("llama4", 1e-6),
    "mistral3": ("ministral3", 1e-6),
    "modern-bert": ("modernbert", 1e-5),
    "nemotron_h_moe": ("nemotronh-moe", 1e-6),
    "qwen35moe": ("qwen35moe-vl", 1e-6),
    "qwen3next": ("qwen3next", 1e-6),
    "qwen4exp": ("qwen4exp", 1e-6),
}
# Verified by the tools alone: verify_logits, verify_variants.
OTHERS = {
    "cohere2moe", "dots1", "ernie4_5", "ernie4_5-moe", "exaone-moe", "falcon-h1", "glm-dsa", "glm4moe", "granite_swa",
    "hunyuan-dense", "hy_v3", "jais2", "laguna", "lfm2", "mellum", "mimo2", "minimax-m2", "nemotron_h", "olmo",
    "orion", "pangu-embedded", "qwen2vl", "qwen35", "qwen3vl", "seed_oss", "xverse",
}  # fmt: skip
RECURRENT = ("qwen4exp", "qwen35moe", "granitehybrid", "lfm2moe", "falcon-h1")


@pytest.fixture(scope="module")
def folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds `<name>/hf` and `<name>/logits.npz`."""
    folder = tmp_path_factory.mktemp("models")
    if not ARCHIVE.is_file():
        pytest.skip("the checkpoints beside the repository are not here")
    names = {name for name, _ in MODELS.values()}
    with tarfile.open(ARCHIVE) as archive:
        wanted = (member for member in archive if member.name.split("/")[0] in names)
        archive.extractall(folder, wanted, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder


@pytest.mark.parametrize("backend", ["cpu", "mlx"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_the_reference(folder: Path, name: str, backend: str):
    if backend == "mlx":
        pytest.importorskip("mlx.core")
    model, limit = MODELS[name]
    prompt, single = verify_logits.compare(folder / model, backend)
    assert prompt < limit
    assert single < limit


@pytest.mark.parametrize("backend", ["cpu", "mlx"])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_states_are_kept_and_taken_up(folder: Path, tmp_path: Path, name: str, backend: str):
    """A cut, a copied, a saved cache and a batch give what a text alone gives."""
    if backend == "mlx":
        pytest.importorskip("mlx.core")
    path = convert(folder / MODELS[name][0] / "hf", tmp_path / "f32.gguf", "F32")
    ids = np.random.default_rng(0).integers(3, 4000, 30).tolist()
    with ggufkit.load(path, backend=backend) as model:

        def new():
            return model.new_cache(64, "F32", "F32")

        expected = model.forward(ids, new(), "all")
        cache = new()
        model.forward(ids[:12], cache, None)
        model.forward(ids[12:20], cache, None)
        model.forward([7], cache)
        copied, loaded = cache.copy(), new()
        assert cache.keep_prefix([*ids[:20], 8, 9]) == 20
        assert cache.keep_prefix([*ids[:15], 8, 9]) == 12
        loaded.load(cache.save())
        again = model.step([Piece(cache, ids[12:], "all"), Piece(loaded, ids[12:14], "all"), Piece(new(), ids, "all")])
        for found, wanted in zip(again, (expected[12:], expected[12:14], expected), strict=True):
            np.testing.assert_allclose(found, wanted, atol=2e-4)
        assert copied.tokens == [*ids[:20], 7]
        copied.truncate(20)
        np.testing.assert_allclose(model.forward(ids[20:], copied, "all"), expected[20:], atol=2e-4)
        copied.truncate(3)
        assert len(copied) == 0
