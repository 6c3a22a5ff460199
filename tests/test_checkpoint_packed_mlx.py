"""Checkpoints that MLX quantized: the same numbers in GGUF's blocks."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from ggufkit.checkpoint.packed.mlx import QUANTIZATION_KEY
from ggufkit.checkpoint.packed.registry import Unpacked, unpack
from ggufkit.checkpoint.packed.stored import Source
from ggufkit.checkpoint.safetensors import RAW_DTYPES
from ggufkit.errors import CheckpointError
from ggufkit.formats.affine import Affine, pack_codes
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.jobs.convert import convert
from ggufkit.tensors.tensor import Tensor

ROWS, COLS = 6, 256


def read_mlx(tensors: dict[str, Tensor], config: dict) -> Unpacked | None:
    return unpack(Source(tensors, config))


def stored(name: str, array: np.ndarray, format: str) -> Tensor:
    kind = FORMATS.get(format) or RAW_DTYPES[format]
    rows = np.ascontiguousarray(array).view(np.uint8).reshape(int(np.prod(array.shape[:-1])), -1)
    return Tensor(name, array.shape, kind, lambda lo, hi: rows[lo:hi])


def matrix(bits: int, group: int, zero: int | None = None, shape: tuple[int, ...] = (ROWS,), dtype: str = "F16"):
    """The three tensors of a random matrix "m", and its numbers in float32."""
    rng = np.random.default_rng(bits * group)
    codes = rng.integers(0, 1 << bits, (*shape, COLS), np.uint8)
    scales = rng.uniform(0.001, 0.01, (*shape, COLS // group)).astype(np.float16)
    biases = (scales.astype(np.float32) * zero) if zero else -rng.random(scales.shape)
    if dtype == "BF16":
        scales, biases = (a.astype(np.float32).view(np.uint32) >> 16 << 16 for a in (scales, biases.astype("f4")))
        numbers = [scales.view(np.float32), biases.view(np.float32)]
        raw = [(a >> 16).astype(np.uint16) for a in (scales, biases)]
    else:
        raw = [scales, biases.astype(np.float16)]
        numbers = [a.astype(np.float32) for a in raw]
    tensors = {
        "m.weight": stored("m.weight", pack_codes(codes, bits), "U32"),
        "m.scales": stored("m.scales", raw[0], dtype),
        "m.biases": stored("m.biases", raw[1], dtype),
    }
    flat = [a.reshape(-1, a.shape[-1]) for a in (codes, *numbers)]
    return tensors, Affine(*flat).floats()


def settings(bits: int, group: int, **more) -> dict:
    return {"quantization": {"bits": bits, "group_size": group, **more}}


@pytest.mark.parametrize(
    ("bits", "group", "zero", "format"),
    [
        (2, 64, None, "Q4_1"),
        (3, 32, None, "Q4_1"),
        (4, 32, None, "Q4_1"),
        (4, 128, None, "Q4_1"),
        (4, 64, -8, "Q4_0"),
        (5, 64, None, "Q5_1"),
        (5, 32, -16, "Q5_0"),
        (8, 64, -128, "Q8_0"),
    ],
)
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_affine_matrices_keep_their_numbers(bits, group, zero, format, dtype):
    tensors, expected = matrix(bits, group, zero, dtype=dtype)
    found = read_mlx(tensors, settings(bits, group))
    assert list(found.tensors) == ["m.weight"]
    weight = found.tensors["m.weight"]
    assert weight.format.name == format
    assert weight.shape == (ROWS, COLS)
    np.testing.assert_array_equal(expected, weight.floats())
    np.testing.assert_array_equal(expected[2:5], weight.floats(2, 5))
    assert weight.origin.exact
    assert json.loads(found.mlx) == {"bits": bits, "group_size": group, "dtype": dtype}


@pytest.mark.parametrize("bits", [6, 8])
def test_what_no_format_holds_is_rounded_and_said(bits):
    tensors, expected = matrix(bits, 64, zero=-(1 << bits - 1) + 3)
    found = read_mlx(tensors, settings(bits, 64))
    assert found.tensors["m.weight"].format.name == "Q8_0"
    steps = np.repeat(tensors["m.scales"].floats(), 64, axis=1)
    assert (np.abs(expected - found.tensors["m.weight"].floats()) < steps).all()
    assert not found.tensors["m.weight"].origin.exact


@pytest.mark.parametrize(("mode", "group"), [("mxfp4", 32), ("nvfp4", 16)])
def test_fp4_matrices_keep_their_numbers(mode, group):
    mx = pytest.importorskip("mlx.core")
    weights = mx.random.normal((ROWS, COLS))
    codes, scales = mx.quantize(weights, mode=mode)
    tensors = {
        "m.weight": stored("m.weight", np.array(codes), "U32"),
        "m.scales": stored("m.scales", np.array(scales), "U8"),
    }
    found = read_mlx(tensors, settings(4, group, mode=mode)).tensors["m.weight"]
    assert mode.upper() == found.format.name
    expected = mx.dequantize(codes, scales, mode=mode, dtype=mx.float32)
    np.testing.assert_array_equal(np.array(expected), found.floats())


def test_layers_of_their_own_settings_and_stacks_of_experts():
    tensors, expected = matrix(5, 32, shape=(3, ROWS))
    renamed = {
        name.replace("m.", "model.layers.0.mlp.switch_mlp.up_proj."): tensor.renamed(
            name.replace("m.", "model.layers.0.mlp.switch_mlp.up_proj.")
        )
        for name, tensor in tensors.items()
    }
    own = {"model.layers.0.mlp.switch_mlp.up_proj": {"bits": 5, "group_size": 32}}
    found = read_mlx(renamed, settings(4, 64, **own))
    (weight,) = found.tensors.values()
    assert weight.name == "model.layers.0.mlp.experts.up_proj.weight"
    assert weight.shape == (3, ROWS, COLS)
    np.testing.assert_array_equal(expected, weight.floats())


def test_other_checkpoints_are_none_of_its_business():
    plain = {"m.weight": stored("m.weight", np.zeros((2, 32), np.float32), "F32")}
    assert read_mlx(plain, settings(4, 64)) is None


@pytest.mark.parametrize(
    ("lose", "config", "message"),
    [
        ("m.weight", settings(4, 64), "m has scales and no weight"),
        ("", settings(4, 64, mode="mxfp4"), "has 4 bits, groups of 32 and scales of U8"),
        ("m.biases", settings(4, 64), "lacks its biases"),
        ("", settings(8, 64), "words of 8-bit codes are not 4 groups of 64"),
        ("", settings(4, 32), "is config.json's quantization the right one"),
        ("", settings(7, 64), "needs bits and group_size"),
        ("", settings(4, 64, mode="mystery"), "mode mystery"),
    ],
)
def test_parts_that_do_not_fit_are_refused(lose, config, message):
    tensors = {name: tensor for name, tensor in matrix(4, 64)[0].items() if name != lose}
    with pytest.raises(CheckpointError, match=message):
        read_mlx(tensors, config)


def test_convert_keeps_what_mlx_quantized(tmp_path, fixtures):
    mx = pytest.importorskip("mlx.core")
    folder = tmp_path / "model"
    shutil.copytree(fixtures / "pylib-llama", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings(4, 64)}))
    weights = {}
    for name, weight in mx.load(str(folder / "model.safetensors")).items():
        if weight.ndim == 1:
            weights[name] = weight
            continue
        base = name.removesuffix(".weight")
        weights[name], weights[f"{base}.scales"], weights[f"{base}.biases"] = mx.quantize(weight, 64, 4)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)

    path = convert(folder, tmp_path / "m.gguf")
    with open_gguf(path) as model:
        assert model.metadata["general.file_type"] == 3  # mostly Q4_1
        assert json.loads(model.metadata[QUANTIZATION_KEY])["dtype"] == "BF16"
        for gguf_name, base in (
            ("blk.2.ffn_down", "model.layers.2.mlp.down_proj"),
            ("output", "lm_head"),
        ):
            parts = [weights[f"{base}.{part}"] for part in ("weight", "scales", "biases")]
            expected = mx.dequantize(parts[0], *(p.astype(mx.float32) for p in parts[1:]), 64, 4)
            found = model.tensors[f"{gguf_name}.weight"]
            assert found.format.name == "Q4_1"
            np.testing.assert_array_equal(np.array(expected), found.floats())
