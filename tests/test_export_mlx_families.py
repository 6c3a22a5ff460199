"""Families that mlx-lm has: it loads our folders, computes our logits, and the folders become the same GGUF again."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mlx_lm.utils")

from tiny_checkpoints import write
from tiny_families import FAMILIES
from verify_export_mlx import TOKENS, verify
from verify_runtime import divergence

import ggufkit
from ggufkit.errors import ArchitectureError
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.jobs.convert import convert
from ggufkit.jobs.to_mlx import export_mlx

TINY = ("bailingmoe2", "command-r", "deepseek-v2", "deepseek-v3", "glm4", "kimi_linear", "lfm2", "mamba", "qwen3moe")
SHARED = ("falconh1", "granitehybrid-moe", "nemotronh-moe", "qwen35moe-vl", "qwen3next")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Name → a tiny model of the family in F32, made when asked for."""
    folder = tmp_path_factory.mktemp("families")
    shared = Path(__file__).parents[2] / "shared" / "architectures" / "checkpoints.tar.xz"
    if shared.exists():
        with tarfile.open(shared) as archive:
            members = [member for member in archive if member.name.split("/")[0] in SHARED]
            archive.extractall(folder, members, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))

    def path(name: str) -> Path:
        target = folder / f"{name}.gguf"
        if target.exists():
            return target
        if name in FAMILIES:
            return convert(write(FAMILIES[name](), folder / name / "hf"), target, "F32", pre="llama-bpe")
        if not shared.exists():
            pytest.skip("the reference data beside the repository is not here")
        return convert(folder / name / "hf", target, "F32")

    return path


@pytest.mark.parametrize("name", [*TINY, *SHARED])
def test_mlx_lm_has_our_logits_and_the_way_back_the_same_weights(name, paths, tmp_path):
    found = verify(paths(name), tmp_path)
    assert found.apart < 1e-5
    assert not found.renamed
    assert not found.changed


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3next"])
def test_quantized_stacks_stay_quantized(name, paths, tmp_path):
    path = tmp_path / "q8.gguf"
    ggufkit.quantize(paths(name), path, "Q8_0")
    found = verify(path, tmp_path)
    assert found.apart < 1e-5
    assert not found.changed
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    stacks = [key for key, value in config["quantization"].items() if "switch_mlp" in key and value is False]
    with open_gguf(path) as model:
        plain = [t for t in model.tensors.values() if t.name.endswith("_exps.weight") and not t.format.is_quantized]
    assert len(stacks) == len(plain)


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3moe"])
def test_folders_that_mlx_lm_quantized_are_converted(name, paths, tmp_path):
    mx = pytest.importorskip("mlx.core")
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    export_mlx(paths(name), tmp_path / "plain", dtype="float32")
    model, config = load_model(tmp_path / "plain")
    wide = {"group_size": 32, "bits": 4, "quant_predicate": lambda path, module: module.weight.shape[-1] % 32 == 0}
    model, config = quantize_model(model, config, **wide)
    shutil.copytree(tmp_path / "plain", tmp_path / "saved", ignore=shutil.ignore_patterns("*.safetensors"))
    save_model(tmp_path / "saved", model)
    save_config(config, tmp_path / "saved" / "config.json")
    with ggufkit.load(convert(tmp_path / "saved", tmp_path / "back.gguf", pre="llama-bpe"), backend="mlx") as back:
        own = back.forward(TOKENS, back.new_cache(64, "F32", "F32"), logits="all")
    logits = np.array(model(mx.array(TOKENS)[None])[0].astype(mx.float32))
    assert divergence(own, logits).max() < 1e-5


def test_models_that_mlx_lm_would_run_otherwise_are_refused(paths, tmp_path):
    """mlx-lm's router of dots.1 takes sigmoids, whatever the file says."""
    with pytest.raises(ArchitectureError, match="of this kind cannot be exported"):
        export_mlx(paths("dots1"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_norms_that_mlx_lm_has_with_their_one_get_no_second(paths, tmp_path):
    export_mlx(paths("qwen3next"), tmp_path / "out")
    back = convert(tmp_path / "out", tmp_path / "back.gguf", "F32")
    with open_gguf(paths("qwen3next")) as there, open_gguf(back) as again:
        for name in ("blk.0.attn_norm.weight", "output_norm.weight", "blk.0.ssm_conv1d.weight"):
            np.testing.assert_array_equal(there.tensors[name].floats(), again.tensors[name].floats())
