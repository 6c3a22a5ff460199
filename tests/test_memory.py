"""What `memory` counts, against what is allocated: this package's caches and weights, llama.cpp's buffers."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import llama
import llama_memory
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import write_tiny

import ggufkit
from ggufkit.errors import GgufkitError, UsageError
from ggufkit.memory import DEVICES, ENGINES, Fit, Setup, device, model_of, report
from ggufkit.memory.fit import devices_of
from ggufkit.memory.model import model_of_shapes
from ggufkit.runtime.kv.types import TYPES

HOST = (device("cpu-64G"),)

# One of each kind of memory: full layers, windows, latent attention, states beside attention, states alone.
SHAPES = ("llama+experts", "gemma3", "deepseek2", "granitehybrid", "mamba2")
CHOSEN = ("dots3note", "hy_v4+index", "minimax-m3+few", "qwen4exp")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    for name in (*SHAPES, *CHOSEN):
        write_tiny(folder / f"{name}.gguf", name)
    return {name: folder / f"{name}.gguf" for name in (*SHAPES, *CHOSEN)}


def fit_of(path: Path, engine: str, **setup) -> Fit:
    with ggufkit.open(path) as gguf:
        return report(model_of(gguf), Setup(engine, **setup), HOST)


def part(fit: Fit, *parts: str) -> int:
    return sum(line.nbytes for line in fit.lines if line.part in parts)


CASES = [
    ("llama+experts", {"context": 8192}),
    ("llama+experts", {"context": 5000, "slots": 3, "keys": "F32", "values": "F16"}),
    ("gemma3", {"context": 16384}),
    ("gemma3", {"context": 16384, "slots": 4, "unified": True, "keys": "Q8_0", "values": "Q4_0"}),
    ("gemma3", {"context": 9000, "slots": 2, "ubatch": 64, "keys": "Q4_1", "values": "Q5_1"}),
    ("gemma3", {"context": 8192, "slots": 2, "swa_full": True, "values": "BF16"}),
    ("gemma3", {"context": 8192, "flash": False}),
    ("deepseek2", {"context": 32768}),
    ("deepseek2", {"context": 16384, "slots": 2, "keys": "BF16", "values": "BF16"}),
    ("granitehybrid", {"context": 8192, "slots": 8}),
    ("granitehybrid", {"context": 8192, "slots": 8, "unified": True}),
    ("mamba2", {"context": 4096, "slots": 16}),
    ("llama+experts", {"context": 2048, "slots": 2, "outputs": 2}),
]


@pytest.mark.parametrize(("name", "setup"), CASES, ids=str)
def test_llama_cpp_allocates_what_is_said(tiny, name, setup):
    fit = fit_of(tiny[name], "llama.cpp", **setup)
    s = fit.setup
    found = llama_memory.buffers(
        tiny[name],
        n_ctx=s.context * (1 if s.unified else s.slots),
        n_seq_max=s.slots,
        n_ubatch=s.ubatch,
        n_outputs_max=s.outputs,
        kv_unified=s.unified,
        swa_full=s.swa_full,
        flash_attn_type=int(s.flash),
        type_k=llama.CACHE_TYPES[s.keys],
        type_v=llama.CACHE_TYPES[s.values],
    )
    for ours, theirs in (
        (part(fit, "weights"), sum(found.model.values())),
        (part(fit, "cache", "latent cache"), found.cache),
        (part(fit, "window cache"), found.windows),
        (part(fit, "states"), found.states),
        (part(fit, "logits"), found.output),
    ):
        assert ours == pytest.approx(theirs, abs=llama_memory.STEP)
    assert part(fit, "compute") == pytest.approx(found.compute, rel=0.01)


@pytest.mark.parametrize("name", [*SHAPES, *CHOSEN])
def test_own_caches_to_the_byte(tiny, name):
    with ggufkit.load(tiny[name], backend="cpu") as model:
        for kind in TYPES:
            for keys, values in ((kind, "F16"), ("F32", kind)):
                setup = {"context": 77, "keys": keys, "values": values}
                try:
                    cache = model.new_cache(77, keys, values)
                except UsageError:
                    with pytest.raises(UsageError):
                        fit_of(tiny[name], "cpu", **setup).lines  # noqa: B018
                    continue
                fit = fit_of(tiny[name], "cpu", **setup)
                assert part(fit, "cache", "latent cache", "states") == sum(layer.nbytes for layer in cache.layers)


@pytest.mark.parametrize("name", ["gemma3", "deepseek2", "granitehybrid"])
def test_caches_of_mlx_to_the_byte(tiny, name):
    pytest.importorskip("mlx.core")
    with ggufkit.load(tiny[name], backend="mlx") as model:
        for keys, values in (("F16", "F16"), ("Q8_0", "Q5_1"), ("tq4", "tq3"), ("F32", "IQ4_NL")):
            try:
                cache = model.new_cache(300, keys, values)
            except UsageError:
                continue
            model.forward([1] * 290, cache)
            found = [
                layer.nbytes
                if hasattr(layer, "nbytes")
                else sum(array.nbytes for stored in (layer.keys, layer.values) for array in stored.arrays)
                for layer in cache.layers
            ]
            fit = fit_of(tiny[name], "mlx", context=300, keys=keys, values=values)
            assert part(fit, "cache", "latent cache", "states") == sum(found)


ODD = st.sampled_from([0, 1, 2, 3, -1, 7, 1 << 24, 1 << 63, 1.5, float("nan"), "x", True, [], [1], [0] * 10, None])
ODD_SHAPES = st.lists(st.sampled_from([0, 1, 2, 32, 64, 96, 100_000]), max_size=4).map(tuple)


@given(data=st.data())
def test_whatever_a_header_says_there_is_a_report_or_a_line(tiny, data):
    """Keys with odd values or without any, tensors that are missing or of odd shapes: never another kind of error."""
    path = tiny[data.draw(st.sampled_from(SHAPES))]
    with ggufkit.open(path) as gguf:
        keys = {key: gguf.metadata[key] for key in gguf.metadata}
        shapes = {info.name: info.shape for info in gguf.info.values()}
    own = [key for key in keys if key != "general.architecture"]
    keys |= data.draw(st.dictionaries(st.sampled_from(own), ODD, max_size=3))
    shapes |= data.draw(st.dictionaries(st.sampled_from(list(shapes)), st.none() | ODD_SHAPES, max_size=3))
    found = {key: value for key, value in keys.items() if value is not None}
    kept = {name: shape for name, shape in shapes.items() if shape is not None}
    engine = data.draw(st.sampled_from(ENGINES))
    with suppress(GgufkitError):
        fit = report(model_of_shapes(str(path), found, kept), Setup(engine, context=100, slots=2), HOST)
        assert fit.nbytes >= 0
        assert fit.largest_context() <= fit.model.context_length
        fit.speed(10)


def test_numpy_is_not_needed(tiny):
    probe = f"import sys, ggufkit; ggufkit.fit({str(tiny['gemma3'])!r}).lines; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True)


@pytest.mark.parametrize(
    ("text", "wanted"), [("RTX 4090", "rtx-4090"), ("4090", "rtx-4090"), ("m4-pro-48", "m4-pro-48")]
)
def test_devices_by_name(text, wanted):
    assert device(text) is DEVICES[wanted]


def test_devices_by_bytes_and_nonsense():
    assert device("24G").memory == 24 * 1000**3
    assert device("24GiB").memory == 24 << 30
    assert device("cpu-64G").kind == "host"
    assert [d.kind for d in devices_of(["rtx-3090", "24G"])] == ["card", "card", "host"]
    for text in ("m4-pro", "rtx-9999", "", "1e99G", "m4\x1b[2J"):
        with pytest.raises(UsageError) as error:
            device(text)
        assert str(error.value).isprintable()
    with pytest.raises(UsageError):
        devices_of(["m4-pro-48", "rtx-4090"])
