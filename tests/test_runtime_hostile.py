"""Metadata that lies makes one line or a model that runs, never a traceback, whatever architecture it is of."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tiny_models import RECIPES, write_tiny

from ggufkit.errors import GgufkitError
from ggufkit.gguf import reader
from ggufkit.runtime.backend import make_ops
from ggufkit.runtime.model import Model

NAN, INFINITE = float("nan"), float("inf")
MISSING = object()
VALUES = [
    MISSING, 0, -1, 1, 2, 3, 7, 1 << 20, 1 << 31, 1 << 40, NAN, INFINITE, 0.0, 1e-30, -1.5, 1e30, "x", True, False,
    [], [0], [1], [1] * 64, [0] * 64, [-1] * 64, [1 << 40] * 64, ["a"] * 64, [2.5] * 64, [NAN] * 64, [True] * 64,
    [False] * 64, [3] * 64,
]  # fmt: skip
# Of all architectures, whether their recipes have them or not.
OFTEN = [
    "expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count", "expert_gating_func",
    "expert_weights_scale", "attention.sliding_window", "attention.sliding_window_pattern", "nextn_predict_layers",
    "attention.shared_kv_layers", "leading_dense_block_count", "rope.dimension_sections", "rope.scaling.factor",
    "rope.scaling.type", "rope.dimension_count", "rope.freq_base", "swiglu_clamp_exp", "swiglu_clamp_shexp",
    "logit_scale", "attention.clamp_kqv", "attention.temperature_scale", "attention.value_scale", "pooling_type",
    "num_loops",
    "attention.max_alibi_bias", "final_logit_softcapping", "residual_scale", "rescale_every_n_layers", "swin_norm",
]  # fmt: skip


def lies(architecture, metadata, chance, count):
    keys = [key for key in metadata if key.startswith(f"{architecture}.")]
    keys += [f"{architecture}.{key}" for key in OFTEN]
    for _ in range(count):
        changed = dict(metadata)
        for key in chance.sample(keys, chance.choice([1, 1, 1, 2])):
            if (value := chance.choice(VALUES)) is MISSING:
                changed.pop(key, None)
            else:
                changed[key] = value
        yield changed


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "chameleon"])  # which is large
def test_metadata_that_lies(tmp_path, name):
    write_tiny(tmp_path / "m.gguf", name)
    chance = random.Random(name)
    with reader.open(tmp_path / "m.gguf") as gguf:
        ops, honest = make_ops("cpu", gguf, 1), dict(gguf.metadata)
        for metadata in lies(honest["general.architecture"], honest, chance, 8):
            gguf.metadata, lines = metadata, 1
            try:
                model = Model(gguf, ops)
                if model.weights.output is None:
                    model.embed(np.arange(1, 4))
                else:
                    model.forward([1, 2, 3], model.new_cache(8))
            except GgufkitError as e:
                lines = len(str(e).splitlines())
            assert lines == 1
