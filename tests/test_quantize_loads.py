"""llama.cpp loads and runs what comes out, also where the widths of a model make tensors fall back to other types."""

from __future__ import annotations

from pathlib import Path

import llama
import numpy as np
import pytest

import ggufkit
from ggufkit.jobs.convert import convert

# Ten models, of widths from 64 to 512: most are not a multiple of 256.
NAMES = ["bert", "bitnet", "gemma", "gemma2", "llama-spm", "mistral", "mixtral", "olmo2", "phi3", "stablelm"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", ["Q4_K_M", "IQ4_XS"])
def test_llama_cpp_runs_the_quantized_model(checkpoints: Path, tmp_path: Path, name: str, preset: str):
    path = convert(checkpoints / name / "hf", tmp_path / "q.gguf", preset)
    with ggufkit.open(path) as written:
        matrices = [t for t in written.tensors.values() if t.format.is_quantized]
    wanted, fallback = ("Q4_K", "Q5_0") if preset == "Q4_K_M" else ("IQ4_XS", "IQ4_NL")
    assert {wanted if t.cols % 256 == 0 else fallback for t in matrices} <= {t.format.name for t in matrices}
    with llama.Model(str(path), embeddings=name == "bert") as model:
        tokens = model.tokenize("hello world")
        found = model.embed(tokens) if name == "bert" else model.logits(tokens)
        assert np.isfinite(found).all()
