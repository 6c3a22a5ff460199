"""Checkpoints that the real tools quantized, against the weights that the tools themselves make of them."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import ggufkit
from ggufkit.checkpoint.folder import open_checkpoint
from ggufkit.checkpoint.packed.registry import Unpacked, unpack
from ggufkit.checkpoint.packed.stored import Source
from ggufkit.jobs.convert import convert
from ggufkit.jobs.to_huggingface import export_hf

# Checkpoint → formats of its matrices, and whether they hold every weight.
EXPECTED: dict[str, tuple[set[str], bool]] = {
    "autoround/w4-g128-autogptq": ({"Q4_0"}, True),
    "autoround/w4-g128-sym": ({"Q4_0"}, True),
    "autoround/w4-g32-asym": ({"Q5_0"}, True),
    "autoround/w4-g64-autoawq": ({"Q5_0"}, True),
    "awq/rtn-w4-g128-gemm": ({"Q5_0"}, True),
    "awq/rtn-w4-g128-gemv": ({"Q5_0"}, True),
    "awq/rtn-w4-g32-gemm": ({"Q5_0"}, True),
    "awq/rtn-w4-g64-gemv_fast": ({"Q4_1"}, True),
    "awq/w4-g128": ({"Q5_0"}, True),
    "awq/w4-g128-gemv": ({"Q5_0"}, True),
    "bitnet/autobitlinear-offline": ({"TQ1_0"}, True),
    "bitnet/autobitlinear-online": ({"TQ1_0"}, True),
    "bitnet/bitlinear-offline": ({"TQ1_0"}, True),
    "bitsandbytes/fp4": ({"Q8_0"}, False),
    "bitsandbytes/int8": ({"Q8_0"}, False),
    "bitsandbytes/nf4": ({"Q8_0"}, False),
    "bitsandbytes/nf4-double": ({"Q8_0"}, False),
    "compressed-tensors/fp8-block": ({"F16"}, False),
    "compressed-tensors/fp8-dynamic": ({"F16"}, False),
    "compressed-tensors/fp8-static-tensor": ({"F16"}, False),
    "compressed-tensors/mixed-groups": ({"Q4_0", "F16", "Q8_0"}, False),
    "compressed-tensors/mxfp4a16": ({"MXFP4"}, True),
    "compressed-tensors/mxfp8a16": ({"BF16"}, True),
    "compressed-tensors/nvfp4": ({"NVFP4"}, True),
    "compressed-tensors/nvfp4a16": ({"NVFP4"}, True),
    "compressed-tensors/w3a16-g64-dense": ({"Q4_0"}, True),
    "compressed-tensors/w4a16-channel": ({"Q4_0"}, True),
    "compressed-tensors/w4a16-g128-asym": ({"Q5_0"}, True),
    "compressed-tensors/w4a16-g128-sym": ({"Q4_0"}, True),
    "compressed-tensors/w4a16-g32-gptq-actorder": ({"Q4_0"}, True),
    "compressed-tensors/w8a16-g128": ({"Q8_0"}, True),
    "compressed-tensors/w8a8-int": ({"Q8_0"}, True),
    "exl2/w4.0-h6": ({"F16"}, True),
    "fp8/autofp8-static": ({"F16"}, False),
    "fp8/e5m2-scaled": ({"BF16"}, False),
    "fp8/fbgemm-per-row": ({"F16"}, False),
    "fp8/finegrained-128x128": ({"F16"}, False),
    "fp8/finegrained-128x128-edge": ({"F16"}, False),
    "fp8/finegrained-ue8m0": ({"BF16"}, True),
    "fp8/plain-e5m2": ({"BF16"}, True),
    "gptq/dynamic-mixed": ({"Q4_0", "Q8_0"}, True),
    "gptq/w2-g64-asym": ({"Q4_0"}, True),
    "gptq/w3-g64": ({"Q4_0"}, True),
    "gptq/w4-channel-actorder": ({"Q4_0"}, True),
    "gptq/w4-g128-sym": ({"Q4_0"}, True),
    "gptq/w4-g128-v2": ({"Q4_0"}, True),
    "gptq/w4-g32-asym-actorder": ({"Q5_0", "Q8_0"}, False),
    "gptq/w4-g64-asym-v2": ({"Q5_0"}, True),
    "gptq/w5-g64-planar": ({"Q5_0"}, True),
    "gptq/w8-channel-sym": ({"Q8_0"}, True),
    "hqq/mixed": ({"Q4_1", "Q8_0"}, False),
    "hqq/w2-g16": ({"Q8_0"}, False),
    "hqq/w3-g64": ({"Q4_1"}, False),
    "hqq/w4-g64": ({"Q4_1"}, False),
    "hqq/w4-g64-axis0": ({"Q8_0"}, False),
    "hqq/w8-g128": ({"Q8_0"}, False),
    "mlx/affine2-g64": ({"Q4_1"}, True),
    "mlx/affine3-g32": ({"Q4_1"}, True),
    "mlx/affine3-g64": ({"Q4_1"}, True),
    "mlx/affine4-g128": ({"Q4_1"}, True),
    "mlx/affine4-g32": ({"Q4_1"}, True),
    "mlx/affine4-g64": ({"Q4_1"}, True),
    "mlx/affine4-g64-f16": ({"Q4_1"}, True),
    "mlx/affine5-g64": ({"Q5_1"}, True),
    "mlx/affine6-g64": ({"Q8_0"}, False),
    "mlx/affine8-g32": ({"Q8_0"}, False),
    "mlx/affine8-g64": ({"Q8_0"}, False),
    "mlx/custom-mixed-modes": ({"Q4_1", "MXFP4", "Q8_0"}, False),
    "mlx/mixed_2_6": ({"Q4_1", "Q8_0"}, False),
    "mlx/mixed_3_4": ({"Q4_1"}, True),
    "mlx/mxfp4": ({"MXFP4"}, True),
    "mlx/mxfp8": ({"BF16"}, True),
    "mlx/nvfp4": ({"NVFP4"}, True),
    "modelopt/fp8": ({"F16"}, False),
    "modelopt/fp8-pc-pt": ({"F16"}, False),
    "modelopt/nvfp4": ({"NVFP4"}, True),
    "mxfp4/gpt-oss-experts": ({"MXFP4"}, True),
    "quanto/float8-e4m3": ({"F16"}, False),
    "quanto/int4": ({"Q4_1"}, True),
    "quanto/int8": ({"Q8_0"}, True),
    "torchao/float8-weight-only": ({"F16"}, False),
    "torchao/int4-intx-g64": ({"Q4_0"}, True),
    "torchao/int8-weight-only": ({"Q8_0"}, True),
}

# Checkpoints whose references are of another arithmetic than float32 from the stored scales: the largest difference
# over the largest weight.
ROUNDED = {
    "bitnet/autobitlinear-online": 1e-6,  # the mean in float32, in torch's order
    "bitsandbytes/int8": 3e-7,  # the order of products
    "gptq/w5-g64-planar": 5e-3,  # scales in bfloat16
}


@pytest.fixture(scope="module")
def quantized(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    for archive in ("checkpoints.tar.xz", "exl2.tar.xz"):
        with tarfile.open(shared / "quantized" / archive) as opened:
            opened.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder


def unpacked(folder: Path, **how) -> Unpacked:
    checkpoint = open_checkpoint(folder)
    found = unpack(Source(checkpoint.tensors, checkpoint.config, checkpoint.json), **how)
    assert found is not None
    return found


def references(folder: Path) -> dict[str, str]:
    """Weight → SHA-256 of the tool's own, float32."""
    stored = json.loads((folder / "reference.json").read_text())
    return {
        name if name.endswith(".weight") else f"{name}.weight": entry["sha256_f32"] for name, entry in stored.items()
    }


def as_reference(folder: Path, name: str, tensor, values: np.ndarray) -> np.ndarray:
    """The weights in the order in which the tool gives them."""
    if ".experts." in name:
        return values.reshape(tensor.shape).transpose(0, 2, 1)
    if folder.parent.name == "exl2" and ".mlp." in name:  # taken from a loaded model, which sorts these rows
        places = open_checkpoint(folder).tensors["model.layers.0.mlp.down_proj.q_invperm"]
        return np.take(values, np.argsort(places.read(0, 1).view(np.int32)[0]), axis=1 if "down_proj" in name else 0)
    return values


@pytest.mark.parametrize("name", EXPECTED)
def test_weights_are_those_of_the_tool(name: str, quantized: Path):
    folder = quantized / name
    decoded, samples = unpacked(folder, keep=False).tensors, np.load(folder / "reference_samples.npz")
    for weight, sha256 in references(folder).items():
        values = as_reference(folder, weight, decoded[weight], decoded[weight].floats())
        if name in ROUNDED:
            key = weight if f"{weight}|index" in samples else weight.removesuffix(".weight")
            expected = samples[f"{key}|value"]
            error = np.abs(values.reshape(-1)[samples[f"{key}|index"]] - expected).max() / np.abs(expected).max()
            assert error < ROUNDED[name]
        else:
            assert hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest() == sha256


@pytest.mark.parametrize("name", EXPECTED)
def test_blocks_hold_the_weights(name: str, quantized: Path):
    formats, exact = EXPECTED[name]
    kept, decoded = unpacked(quantized / name).tensors, unpacked(quantized / name, keep=False).tensors
    quantized_tensors = [tensor for tensor in kept.values() if tensor.origin is not None]
    assert {tensor.format.name for tensor in quantized_tensors} == formats
    assert exact == all(tensor.origin.exact for tensor in quantized_tensors)
    for tensor in quantized_tensors:
        expected, found = decoded[tensor.name].floats(), tensor.floats()
        if moved(kept, tensor.name):  # rows of gate and up, columns of down, in another order
            axis = 1 if "down_proj" in tensor.name else 0
            expected, found = np.sort(expected, axis=axis), np.sort(found, axis=axis)
        if tensor.origin.factors:
            (factor,) = tensor.origin.factors
            np.testing.assert_allclose(found * np.float32(factor), expected, rtol=3e-7)
        elif tensor.origin.exact:
            np.testing.assert_array_equal(expected, found)
        else:
            assert np.abs(expected - found).max() <= np.abs(expected).max() / 100
    for lo, hi in ((0, 1), (3, 10), (5, 5)):
        some = quantized_tensors[0]
        np.testing.assert_array_equal(some.floats()[lo:hi], some.floats(lo, hi))


def moved(tensors, name: str) -> bool:
    """Whether the rows of this matrix changed places with the inputs of another."""
    module = name.rpartition(".mlp.")[0]
    down = tensors.get(f"{module}.mlp.down_proj.weight")
    return ".mlp." in name and down is not None and down.origin is not None and "another order" in down.origin.note


@pytest.mark.parametrize("name", ["gptq/w4-g128-sym", "awq/w4-g128", "compressed-tensors/nvfp4", "hqq/w4-g64"])
def test_converted_file_is_what_was_unpacked(name: str, quantized: Path, tmp_path: Path):
    path = convert(quantized / name, tmp_path / "m.gguf")
    kept = unpacked(quantized / name).tensors
    with ggufkit.open(path) as model:
        for ours, theirs in (("blk.0.ffn_up", "mlp.up_proj"), ("blk.0.attn_v", "self_attn.v_proj")):
            tensor = kept[f"model.layers.0.{theirs}.weight"]
            np.testing.assert_array_equal(
                tensor.read(0, tensor.rows), model.tensors[f"{ours}.weight"].read(0, tensor.rows)
            )
            assert tensor.origin is not None
            if tensor.origin.factors:
                np.testing.assert_array_equal(
                    np.float32(tensor.origin.factors), model.tensors[f"{ours}.scale"].floats()[0]
                )


@pytest.mark.parametrize("name", ["gptq/w4-g128-sym", "gptq/w8-channel-sym", "autoround/w4-g128-autogptq"])
def test_symmetric_gptq_comes_back_array_for_array(name: str, quantized: Path, tmp_path: Path):
    path = convert(quantized / name, tmp_path / "m.gguf")
    export_hf(path, tmp_path / "out", layout="gptq")
    source, found = open_checkpoint(quantized / name), open_checkpoint(tmp_path / "out")
    assert set(source.tensors) == set(found.tensors)
    packed = [name for name in source.tensors if name.endswith(("qweight", "qzeros", "scales", "g_idx"))]
    assert len(packed) == 28
    for part in packed:
        tensor, again = source.tensors[part], found.tensors[part]
        assert (tensor.format, tensor.shape) == (again.format, again.shape), part
        np.testing.assert_array_equal(tensor.read(0, tensor.rows), again.read(0, again.rows), part)
    settings, said = source.config["quantization_config"], found.config["quantization_config"]
    assert all(settings[key] == said[key] for key in ("bits", "group_size", "sym", "desc_act"))
