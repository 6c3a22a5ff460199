"""Models that cannot be run say why, in one line."""

from __future__ import annotations

import os

import pytest
from tiny_models import write_tiny

import ggufkit
from ggufkit.errors import ArchitectureError, GGUFError, UsageError


def problem(path, name="llama", error=ArchitectureError, **changes):
    write_tiny(path, name, **changes)
    with pytest.raises(error) as caught:
        ggufkit.load(path, backend="cpu")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.block_count": None}, "llama.block_count is missing"),
        ({"llama.block_count": "two"}, "llama.block_count must be a finite number, not 'two'"),
        ({"llama.block_count": 0}, "must be a whole number from 1"),
        ({"llama.block_count": 1 << 40}, "must be a whole number from 1"),
        ({"llama.attention.head_count_kv": 3}, "is 3 in layer 0, which does not divide 4 heads"),
        ({"llama.attention.head_count": [4, 4]}, "must be 3 whole numbers"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "must be a finite number"),
        ({"llama.rope.dimension_count": 18}, "must be even and at most 16, not 18"),
        ({"llama.rope.scaling.type": "ntk"}, "must be none, linear, yarn or longrope, not ntk"),
        ({"llama.expert_count": 4}, "expert_used_count must be from 1 to 4"),
        ({"llama.attention.causal": 0}, "must be true or false, not 0"),
        ({"llama.pooling_type": 9}, "pooling_type must be from 0 to 4, not 9"),
        ({"general.architecture": "llama9"}, "llama9 is not known and cannot be run"),
        (
            {"general.architecture": "wavtokenizer-dec"},
            "wavtokenizer-dec is known, but cannot be run; those that can: afmoe",
        ),
    ],
)
def test_metadata_that_makes_no_model(tmp_path, changes, message):
    assert message in problem(tmp_path / "m.gguf", metadata=changes)


def test_file_without_architecture_is_no_model(tmp_path):
    message = problem(tmp_path / "m.gguf", error=GGUFError, metadata={"general.architecture": None})
    assert "not a model that can be run" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_embd.weight": None}, "the tensor token_embd.weight is missing"),
        ({"blk.2.attn_output.weight": None}, "the tensor blk.2.attn_output.weight is missing"),
        ({"blk.1.ffn_down.weight": (63, 96)}, "blk.1.ffn_down.weight has the shape 63 × 96, not 64 × any"),
        ({"blk.1.ffn_up.weight": (80, 64)}, "blk.1.ffn_up.weight has the shape 80 × 64, not 96 × 64"),
        ({"output.weight": (95, 64)}, "output.weight has the shape 95 × 64, not 96 × 64"),
        ({"rope_freqs.weight": (5,)}, "rope_freqs.weight has the shape 5, not 8"),
        ({"blk.0.attn_v2.weight": (64, 64)}, "nothing is known about the tensor blk.0.attn_v2.weight"),
        ({"blk.0.attn_norm.bias": (64,)}, "nothing is known about the tensor blk.0.attn_norm.bias"),
        ({"blk.7.attn_norm.weight": (64,)}, "nothing is known about the tensor blk.7.attn_norm.weight"),
    ],
)
def test_tensors_that_make_no_model(tmp_path, changes, message):
    assert message in problem(tmp_path / "m.gguf", tensors=changes)


def test_encoders_write_no_text(tmp_path):
    write_tiny(tmp_path / "m.gguf", "bert+mean")
    with ggufkit.load(tmp_path / "m.gguf", backend="cpu") as model:
        with pytest.raises(UsageError, match="makes embeddings and no text; use embed"):
            model.forward([1, 2], model.new_cache(8))
        with pytest.raises(UsageError, match="the text has 65 tokens; the model reads 64 at most"):
            model.embed([1] * 65)
        with pytest.raises(UsageError, match="pooling is by mean, cls, last, rank or none, not by max"):
            model.embed([1], "max")


@pytest.mark.parametrize(
    ("length", "message"), [(0, "at least 1 token, not 0"), (65, "learned 64 positions"), (1 << 50, "positions")]
)
def test_contexts_that_cannot_be(tmp_path, length, message):
    write_tiny(tmp_path / "m.gguf", "gpt2")
    with ggufkit.load(tmp_path / "m.gguf", backend="cpu") as model, pytest.raises(UsageError, match=message):
        model.new_cache(length)


def test_context_larger_than_memory_is_refused(tmp_path):
    write_tiny(tmp_path / "m.gguf", "llama")
    with ggufkit.load(tmp_path / "m.gguf", backend="cpu") as model, pytest.raises(UsageError, match="no memory for"):
        model.new_cache(1 << 50)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are not listed here")
def test_a_model_takes_few_of_the_files_that_may_be_open(tmp_path):
    """Which may be as few as 256, less than a model has tensors."""
    write_tiny(tmp_path / "tiny.gguf", "llama")
    before = len(os.listdir("/proc/self/fd"))
    with ggufkit.load(tmp_path / "tiny.gguf", backend="cpu") as model:
        assert len(model.gguf.tensors) > 20
        assert len(os.listdir("/proc/self/fd")) - before < 10
