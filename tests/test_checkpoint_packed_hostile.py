"""Quantized checkpoints that lie: one line that says what, and nothing is written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ggufkit.checkpoint.packed.registry import unpack
from ggufkit.checkpoint.packed.stored import Source
from ggufkit.checkpoint.safetensors import RAW_DTYPES
from ggufkit.errors import CheckpointError
from ggufkit.formats.table import FORMATS
from ggufkit.tensors.tensor import Tensor

ROWS, COLS, GROUP = 64, 128, 32
Tensors = dict[str, Tensor]


def stored(name: str, array: np.ndarray, dtype: str = "") -> Tensor:
    names = {"float16": "F16", "float32": "F32", "int32": "I32", "int64": "I64", "int8": "I8", "uint8": "U8"}
    dtype = dtype or names[array.dtype.name]
    rows = np.ascontiguousarray(array).reshape(-1, array.shape[-1] if array.ndim else 1).view(np.uint8)
    return Tensor(name, array.shape, FORMATS.get(dtype) or RAW_DTYPES[dtype], lambda lo, hi: rows[lo:hi])


def of(*tensors: Tensor) -> Tensors:
    return {tensor.name: tensor for tensor in tensors}


def gptq(**change: np.ndarray) -> Tensors:
    rng = np.random.default_rng(0)
    parts = {
        "qweight": rng.integers(-(1 << 31), 1 << 31, (COLS // 8, ROWS)).astype(np.int32),
        "qzeros": np.full((COLS // GROUP, ROWS // 8), 0x77777777, np.int32),
        "scales": rng.uniform(0.01, 0.02, (COLS // GROUP, ROWS)).astype(np.float16),
        "g_idx": (np.arange(COLS) // GROUP).astype(np.int32),
    }
    return of(*(stored(f"m.{name}", array) for name, array in {**parts, **change}.items()))


def packed(**change: np.ndarray) -> Tensors:
    parts = {
        "weight_packed": np.zeros((ROWS, COLS // 8), np.int32),
        "weight_scale": np.full((ROWS, COLS // GROUP), 0.01, np.float16),
        "weight_shape": np.array([ROWS, COLS]),
    }
    return of(*(stored(f"m.{name}", array) for name, array in {**parts, **change}.items()))


def without(tensors: Tensors, name: str) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key != name}


def config(method: str, **settings: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **settings}}


def groups(*targets: str, bits: int = 4) -> dict[str, Any]:
    group = {"targets": list(targets), "weights": {"num_bits": bits}}
    return config("compressed-tensors", config_groups={"group_0": group})


GPTQ = config("gptq", bits=4, group_size=GROUP, sym=True)

HOSTILE: dict[str, tuple[Callable[[], Tensors], dict[str, Any], str]] = {
    "no zeros": (lambda: without(gptq(), "m.qzeros"), GPTQ, "m.qzeros is missing"),
    "no scales": (lambda: without(gptq(), "m.scales"), GPTQ, "m.scales is missing"),
    "lying bits": (gptq, config("gptq", bits=8, group_size=GROUP), "has 4 bits, the settings say 8"),
    "bits in words": (gptq, config("gptq", bits="four", group_size=GROUP), "bits must be a whole number"),
    "lying group size": (gptq, config("gptq", bits=4, group_size=64), "4 groups of its 128 inputs, the settings say"),
    "group out of range": (
        lambda: gptq(g_idx=np.full(COLS, 4, np.int32)),
        GPTQ,
        "m.g_idx names group 4, and there are 4",
    ),
    "group below zero": (lambda: gptq(g_idx=np.full(COLS, -1, np.int32)), GPTQ, "m.g_idx names group -1"),
    "groups of other inputs": (lambda: gptq(g_idx=np.zeros(7, np.int32)), GPTQ, "m.g_idx is I32 .7., expected"),
    "scale not a number": (
        lambda: gptq(scales=np.full((COLS // GROUP, ROWS), np.nan, np.float16)),
        GPTQ,
        "a scale is nan",
    ),
    "scale without end": (
        lambda: gptq(scales=np.full((COLS // GROUP, ROWS), np.inf, np.float16)),
        GPTQ,
        "a scale is inf",
    ),
    "other shape of codes": (lambda: gptq(qweight=np.zeros((3, ROWS + 8), np.int32)), GPTQ, "do not belong together"),
    "codes of no matrix": (lambda: gptq(qweight=np.zeros(64, np.int32)), GPTQ, "expected .* of any × any"),
    "AWQ of an unknown version": (
        gptq,
        config("awq", version="exllama", bits=4),
        "AWQ of version exllama is not known",
    ),
    "AWQ of another shape": (gptq, config("awq", version="gemm", bits=4), "m.qzeros is I32"),
    "no target": (packed, groups("re:.*nothing"), "m is quantized, and is no target of a group"),
    "a target for ever": (packed, groups("re:(a+)+$"), "is no pattern that can be used"),
    "a target that is broken": (packed, groups("re:(("), "is no pattern that can be used"),
    "targets without end": (packed, groups(*(f"re:{i}" for i in range(100_000))), "more than 4096 targets"),
    "bits of other words": (packed, groups("Linear", bits=3), "16 words are no row of 128 codes of 3 bits"),
    "shape of another": (
        lambda: packed(weight_shape=np.array([ROWS + 1, COLS])),
        groups("Linear"),
        "has 64 rows, its weight_shape is .65, 128.",
    ),
    "scales of others": (
        lambda: packed(weight_scale=np.zeros((ROWS, 3), np.float16)),
        groups("Linear"),
        "m.weight_scale of shape .64, 3. does not fit",
    ),
    "unknown tool": (
        lambda: of(stored("m.qweight", np.zeros((4, 4), np.int32))),
        config("quip"),
        "quantized by quip .m.qweight. in a way that is not known",
    ),
    "NF4 of another size": (
        lambda: of(
            stored("m.weight", np.zeros((10, 1), np.uint8)),
            stored(
                "m.weight.quant_state.bitsandbytes__nf4",
                np.frombuffer(json.dumps({"blocksize": 64, "shape": [1 << 40, 1 << 40]}).encode(), np.uint8),
            ),
        ),
        config("bitsandbytes"),
        "m.weight has 10 bytes",
    ),
    "NF4 without JSON": (
        lambda: of(
            stored("m.weight", np.zeros((10, 1), np.uint8)),
            stored("m.weight.quant_state.bitsandbytes__nf4", np.full(4, 255, np.uint8)),
        ),
        config("bitsandbytes"),
        "is not valid JSON",
    ),
    "BitNet's scale of zero": (
        lambda: of(stored("m.weight", np.zeros((4, 32), np.uint8)), stored("m.weight_scale", np.zeros(1, np.float32))),
        config("bitnet"),
        "m.weight_scale is 0.0, and must be a positive number",
    ),
    "int8 without scale": (
        lambda: of(stored("m.weight", np.zeros((4, 32), np.int8))),
        config("x"),
        "has no scale beside it",
    ),
    "a matrix twice": (
        lambda: gptq() | of(stored("m.weight", np.zeros((ROWS, COLS), np.float32))),
        GPTQ,
        "there are two of m.weight",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_lies_is_refused_in_one_line(name: str):
    tensors, settings, message = HOSTILE[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        unpack(Source(tensors(), settings))
    assert "\n" not in str(caught.value)


def test_the_same_without_lies():
    for tensors, settings in ((gptq(), GPTQ), (packed(), groups("Linear"))):
        found = unpack(Source(tensors, settings))
        assert found is not None
        assert found.tensors["m.weight"].format.name == "Q4_0"


def test_a_million_patterns_that_are_ignored_cost_nothing():
    settings = groups("Linear")
    settings["quantization_config"]["ignore"] = ["re:(a+)+$"] * 1_000_000
    begin = time.monotonic()
    assert unpack(Source(packed(), settings)) is not None
    assert time.monotonic() - begin < 5


def test_codes_that_mean_nothing_are_refused_as_they_are_read():
    bad = np.full((ROWS // 4, COLS), 255, np.uint8)
    tensors = of(stored("m.weight", bad), stored("m.weight_scale", np.ones(1, np.float32)))
    with pytest.raises(CheckpointError, match="the code 3 is none of the levels"):
        unpack(Source(tensors, config("bitnet"))).tensors["m.weight"].floats()
