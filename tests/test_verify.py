"""`ggufkit verify`: exact tensors are called exact, others are measured, missing ones named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ggufkit.cli import main
from ggufkit.evaluate import verify as module
from ggufkit.evaluate.verify import verify
from ggufkit.formats.codec import decode, encode
from ggufkit.formats.table import FORMATS
from ggufkit.jobs.convert import convert
from ggufkit.tensors.tensor import Tensor


def tensor(name: str, blocks: np.ndarray, shape: tuple[int, ...], format: str) -> Tensor:
    return Tensor(name, shape, FORMATS[format], lambda lo, hi: blocks[lo:hi])


def pair(shape: tuple[int, ...] = (64, 256), format: str = "Q4_0") -> tuple[Tensor, np.ndarray]:
    """A source tensor, and the blocks that it gives."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    rows = x.reshape(-1, shape[-1])
    return tensor("w", encode(rows, "F32"), shape, "F32"), encode(rows, format)


@pytest.mark.parametrize("piece", [1 << 19, 1024])
def test_changed_block_is_counted_and_measured(monkeypatch, piece):
    monkeypatch.setattr(module, "_PIECE", piece)
    source, blocks = pair()
    changed = blocks.copy()
    changed[7, 20] ^= 0xFF
    changed[9, 0] ^= 1
    (exact,) = verify([{"w": source}], {"w": tensor("w", blocks, source.shape, "Q4_0")})
    (found,) = verify([{"w": source}], {"w": tensor("w", changed, source.shape, "Q4_0")})
    assert (exact.exact, exact.blocks, exact.different) == (True, 512, 0)
    assert (found.exact, found.blocks, found.different) == (False, 512, 2)
    distance = decode(changed, "Q4_0") - decode(blocks, "Q4_0")
    assert found.distance == pytest.approx(np.square(distance, dtype=np.float64).sum())
    assert found.largest == pytest.approx(np.abs(distance).max())
    assert found.error > found.best_error > 0


def test_best_way_counts():
    source, blocks = pair()
    other = tensor("w", encode(-source.floats(), "F32"), source.shape, "F32")
    quantized = {"w": tensor("w", blocks, source.shape, "Q4_0")}
    assert verify([{"w": other}, {"w": source}], quantized)[0].exact
    assert verify([{"w": source}, {"w": other}], quantized)[0].exact
    assert not verify([{"w": other}], quantized)[0].exact


def test_sample_looks_at_both_ends():
    source, blocks = pair((4096, 256))
    for row in (0, 4095):
        changed = blocks.copy()
        changed[row, 5] ^= 1
        (found,) = verify([{"w": source}], {"w": tensor("w", changed, source.shape, "Q4_0")}, sample=True)
        assert (found.different, found.blocks) == (1, 4 * 128 * 8)


def test_what_cannot_be_compared_says_why():
    source, blocks = pair()
    q = tensor("w", blocks, (64, 256), "Q4_0")
    zeros = np.zeros((64, 66), np.uint8)
    cases = [
        ({}, q, "the source has no such tensor"),
        ({"w": source, "v": source.renamed("v")}, q, ""),
        ({"w": tensor("w", blocks, (32, 512), "Q4_0")}, q, "the source has the shape 512 × 32, this one 256 × 64"),
        ({"w": source}, tensor("w", zeros, (64, 256), "IQ2_XXS"), "IQ2_XXS needs the importance matrix"),
        ({"w": source}, tensor("w", zeros, (64, 256), "I32"), "nothing turns that into I32"),
    ]
    for sources, quantized, problem in cases:
        verdicts = verify([sources], {"w": quantized})
        assert problem in verdicts[0].problem
    assert [(v.name, v.problem) for v in verify([cases[1][0]], {"w": q})] == [("w", ""), ("v", "missing")]


def run(*arguments: object) -> int:
    try:
        main([str(a) for a in arguments])
    except SystemExit as e:
        return int(e.code or 0)
    return 0


def test_command_checks_a_checkpoint_and_its_file(fixtures, tmp_path, capsys):
    model, path = fixtures / "pylib-llama", tmp_path / "q.gguf"
    convert(model, path, "Q4_K_M")
    assert run("verify", model, path) == 0
    assert "39 of 39 tensors are exactly what llama.cpp makes" in capsys.readouterr().out

    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    Path(path).write_bytes(data)
    assert run("verify", model, path) == 1
    out = capsys.readouterr().out
    assert "blk.3.ffn_up.weight  BF16 → Q4_K" in out
    assert "1 of 768" in out
    assert "38 of 39" in out
    assert run("verify", model, path, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [t["name"] for t in found["tensors"] if not t["exact"]] == ["blk.3.ffn_up.weight"]
