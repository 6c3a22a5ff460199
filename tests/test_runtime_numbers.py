"""Numbers from files reach no arithmetic unchecked: one line that names key and value, or finite logits; no warning."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import write_tiny

import ggufkit
from ggufkit.arch.registry import architecture_of
from ggufkit.errors import ArchitectureError, GgufkitError, PolicyError, UsageError
from ggufkit.gguf.header import Value, ValueType
from ggufkit.policy.policy_file import parse_policy
from ggufkit.runtime.sampling import Sampler, Sampling, sampling_of


def f64(value):
    return Value(ValueType.FLOAT64, value)


YARN = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0}
NUMBERS = [0.0, -1.0, 1.0, 1e-310, 1e-10, 1e30, 1e300, -0.0]
# A model a key, and of each number one without and one with yarn.
KEYS = [
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
]


def runs_or_says(path, key):
    """Logits without NaN, or one line that names the key."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with ggufkit.load(path, backend="cpu") as model:
                model.forward([1, 2, 3], model.new_cache(8))
        except GgufkitError as e:
            line = str(e)
        else:
            line = key
    assert key in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("key", KEYS)
def test_odd_numbers_in_keys(tmp_path, key):
    for i, value in enumerate(NUMBERS):
        for more in ({}, YARN):
            path = tmp_path / f"{i}{len(more)}.gguf"
            write_tiny(path, "llama", metadata={**more, f"llama.{key}": f64(value)})
            runs_or_says(path, key.removesuffix("_softcapping"))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"llama.rope.freq_base": f64(1.0)}, "rope.freq_base must be above 1"),
        ({"llama.rope.freq_base": f64(0.5)}, "rope.freq_base must be above 1"),
        ({"llama.rope.freq_base": f64(0.0)}, "rope.freq_base must be from"),
        ({"llama.rope.freq_base": f64(-1.0)}, "rope.freq_base must be from"),
        ({"llama.rope.scaling.yarn_beta_fast": f64(0.0)}, "yarn_beta_fast must be from"),
        ({"llama.rope.scaling.yarn_beta_slow": f64(1e-300)}, "yarn_beta_slow must be"),
        ({"llama.rope.scaling.yarn_beta_slow": f64(-1.0)}, "yarn_beta_slow must be from"),
        ({"llama.rope.scaling.factor": f64(1e-300)}, "rope.scaling.factor must be"),
        ({"llama.rope.scaling.factor": f64(-2.0)}, "rope.scaling.factor must be from"),
        ({"llama.rope.scaling.attn_factor": f64(0.0)}, "attn_factor must be from"),
    ],
)
def test_yarn_of_odd_numbers(tmp_path, changes, key):
    write_tiny(tmp_path / "m.gguf", "llama", metadata={**YARN, **changes})
    with pytest.raises(ArchitectureError, match=key):
        ggufkit.load(tmp_path / "m.gguf", backend="cpu")


def test_yarn_without_its_type_is_checked_too(tmp_path):
    changes = {"llama.rope.scaling.yarn_ext_factor": f64(1.0), "llama.rope.freq_base": f64(1.0)}
    write_tiny(tmp_path / "m.gguf", "llama", metadata=changes)
    with pytest.raises(ArchitectureError, match=r"rope.freq_base must be above 1"):
        ggufkit.load(tmp_path / "m.gguf", backend="cpu")


@pytest.mark.parametrize(
    ("name", "tensor", "shape"),
    [
        ("gpt2", "position_embd.weight", (0, 64)),
        ("bert+mean", "token_types.weight", (0, 64)),
        ("bert+mean", "position_embd.weight", (0, 64)),
        ("llama", "token_embd.weight", (0, 64)),
    ],
)
def test_tables_without_rows(tmp_path, name, tensor, shape):
    write_tiny(tmp_path / "m.gguf", name, tensors={tensor: shape})
    with pytest.raises(GgufkitError, match=tensor):
        ggufkit.load(tmp_path / "m.gguf", backend="cpu")


# ---- sampling -----------------------------------------------------------------------------------------------------

SAMPLING = {
    "temp": [1e-310, 1e-45, -1.0, float("inf"), 1e300, float("nan")],
    "top_p": [-1.0, 2.0, float("nan"), 1e-310],
    "min_p": [-1.0, 2.0, float("nan"), 1e-310],
    "penalty_repeat": [0.0, 1e-310, 1e-45, -1.0, 1e300, float("nan"), float("inf")],
}


@pytest.mark.parametrize("key", SAMPLING)
def test_recommended_settings_are_used_or_named(tmp_path, key):
    for i, value in enumerate(SAMPLING[key]):
        path = tmp_path / f"{i}.gguf"
        write_tiny(path, "llama", metadata={f"general.sampling.{key}": f64(value)})
        with ggufkit.open(path) as model, warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                sampler = Sampler(sampling_of(model))
            except GgufkitError as e:
                line = str(e)
            else:
                line = f"general.sampling.{key}"
                sampler.accept([1, 2, 3])
                assert 0 <= sampler.draw(np.arange(9, dtype=np.float32)) < 9
        assert f"general.sampling.{key}" in line
        assert len(line.splitlines()) == 1


@pytest.mark.parametrize("value", [1 << 63, (1 << 64) - 1, 1 << 31])
@pytest.mark.parametrize("key", ["penalty_last_n", "top_k"])
def test_recommended_counts(tmp_path, key, value):
    write_tiny(tmp_path / "m.gguf", "llama", metadata={f"general.sampling.{key}": Value(ValueType.UINT64, value)})
    with ggufkit.open(tmp_path / "m.gguf") as model:
        with pytest.raises(GgufkitError, match=f"general.sampling.{key}.*{value}"):
            sampling_of(model)
        wanted = {"repeat_last_n" if key == "penalty_last_n" else key: 5}
        assert sampling_of(model, **wanted)  # what is asked for needs no advice


@given(
    st.floats(1e-320, 1e6),
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=2, max_size=20),
    st.floats(1e-3, 1e3),
    st.integers(0, 5),
)
def test_sampling_is_finite_for_all_settings_in_range(temperature, logits, penalty, top_k):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = Sampler(Sampling(temperature=temperature, repeat_penalty=penalty, top_k=top_k, seed=1))
        sampler.accept([0, 1])
        token = sampler.draw(np.array(logits, np.float32))
    assert 0 <= token < len(logits)


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repeat_penalty", "frequency_penalty"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e300, 10**400])
def test_settings_out_of_range(name, value):
    with pytest.raises(UsageError, match=name.split("_")[0]):
        Sampling(**{name: value})


# ---- other places ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [20, 400, 4000])
@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_sizes_of_many_digits_in_config_json(tmp_path, name, digits):
    from ggufkit.jobs.convert import as_gguf

    values = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    values |= {"architectures": ["LlamaForCausalLM"], "vocab_size": 100, name: int("9" * digits)}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(GgufkitError) as error:
        as_gguf(tmp_path, vocab_only=True)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("value", ["9" * 5000, "'" + ">= " + "9" * 5000 + "'", "9" * 400, "1e9999999", "nan", "-1"])
@pytest.mark.parametrize("key", ["cols", "rows", "dims", "weights"])
def test_sizes_of_many_digits_in_policies(key, value):
    with pytest.raises(PolicyError) as error:
        parse_policy(f'base = "Q4_K_M"\n[[rule]]\ntype = "Q8_0"\n{key} = {value}\n', "p.toml")
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("kind", "noted"), [("dynamic", True), ("proportional", True), ("llama3", False), (None, False)]
)
def test_rope_types_that_a_gguf_cannot_say(kind, noted):
    from ggufkit.arch.metadata import rope_note

    values = {"architectures": ["LlamaForCausalLM"], "rope_scaling": {"rope_type": kind, "factor": 2.0}}
    _, config = architecture_of(values)
    assert (rope_note(config) is not None) == noted
