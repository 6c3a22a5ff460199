"""Quantized checkpoints of other models than the references, and of other settings, from packers of our own."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from test_checkpoint_packed_hostile import of, stored
from tiny_checkpoints import BPE_TOKENS, FFN, WIDTH, Tiny, config, decoder, llama_layer, write
from tiny_families import FAMILIES
from tiny_packed import (
    AWQ,
    GPTQ,
    Fp8Blocks,
    Int8,
    Marlin24,
    Packer,
    PackQuantized,
    Sparse24,
    groups_of,
    scales_of,
    stream,
    write_packed,
)
from tiny_remote import REMOTE

from ggufkit.arch import transforms
from ggufkit.checkpoint.folder import open_checkpoint
from ggufkit.checkpoint.packed.gptq import add_gptq
from ggufkit.checkpoint.packed.registry import unpack
from ggufkit.checkpoint.packed.stored import Reading, Source
from ggufkit.cli import cli
from ggufkit.errors import CheckpointError
from ggufkit.formats.codec import decode, encode
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.jobs.convert import as_gguf, convert
from ggufkit.tensors.scaled import scaled
from ggufkit.tensors.tensor import Origin, Tensor
from ggufkit.tensors.views import computed

PACKERS = {
    "gptq": (GPTQ(), {"Q4_0"}),
    "gptq-zeros": (GPTQ(sym=False), {"Q5_0"}),
    "gptq-rows": (GPTQ(bits=8, group=-1), {"Q8_0"}),
    "awq": (AWQ(), {"Q5_0"}),
    "pack-quantized": (PackQuantized(bits=3, dense=False), {"Q4_0"}),
    "int8": (Int8(), {"Q8_0"}),
    "fp8": (Fp8Blocks(), {"BF16"}),
}
# Biases, experts, what lies in one and is taken apart, rows in another order, norms with a 1, transposed matrices.
BASES = ("qwen3moe", "phimoe", "gemma3", "phi2", "command-r", "olmo3", "llama-yarn", "starcoder2", "deepseek-v2")
CASES = [(base, packer) for i, base in enumerate(BASES) for packer in list(PACKERS)[i % 2 :: 2]]


@pytest.mark.parametrize(("base", "packer"), CASES)
def test_other_models_mean_the_same_weights(base: str, packer: str, tmp_path: Path):
    how, formats = PACKERS[packer]
    folder = write_packed(FAMILIES[base](), how, tmp_path / "packed", tmp_path / "plain")
    expected = convert(tmp_path / "plain", tmp_path / "plain.gguf", "F32", pre="llama-bpe", threads=1)
    found = convert(folder, tmp_path / "packed.gguf", pre="llama-bpe", threads=1)
    with open_gguf(expected) as plain, open_gguf(found) as model:
        assert list(plain.tensors) == list(model.tensors)
        for name, tensor in plain.tensors.items():
            np.testing.assert_array_equal(tensor.floats(), model.tensors[name].floats(), name)
        others = ("gate_inp", "attn_k_b")  # not quantized; the other way round, and so in F32
        kept = [t for n, t in model.tensors.items() if len(t.shape) > 1 and not any(other in n for other in others)]
        matrices = {t.format.name for t in kept}
    assert formats <= matrices <= formats | {"F16"}  # the embedding is not quantized


# What one matrix holds side by side or in turns, and rows that change their places, in other families' names.
FUSED = ("bloom", "mpt", "falcon-40b", "phi4-mini", "internlm2", "nomic-bert", "glm4", "granitemoe", "starcoder")
HOW = (GPTQ(sym=False), AWQ(), PackQuantized(), Int8(), Fp8Blocks(), GPTQ(bits=8, group=-1))


@pytest.mark.parametrize(("base", "packer"), [(b, p) for i, b in enumerate(FUSED) for p in HOW[i % 3 :: 3]], ids=str)
def test_fused_matrices_mean_the_same_weights(base: str, packer: Packer, tmp_path: Path):
    # 48 inputs of the last matrix: of groups of 32 one is smaller.
    folder = write_packed(FAMILIES[base](), packer, tmp_path / "packed", tmp_path / "plain", widened=False)
    expected = convert(tmp_path / "plain", tmp_path / "plain.gguf", "F32", pre="llama-bpe", threads=1)
    found = convert(folder, tmp_path / "packed.gguf", inexact="F32", pre="llama-bpe", threads=1)
    with open_gguf(expected) as plain, open_gguf(found) as model:
        assert list(plain.tensors) == list(model.tensors)
        for name, tensor in plain.tensors.items():
            np.testing.assert_array_equal(tensor.floats(), model.tensors[name].floats(), name)


@pytest.mark.parametrize("how", [GPTQ(sym=False), GPTQ(bits=8, order=True)], ids=str)
def test_what_gptqmodel_takes_apart_is_one_again(how: Packer, tmp_path: Path):
    tiny = FAMILIES["phi4-mini"]()
    shapes = dict(tiny.shapes)
    for name in [name for name in shapes if "gate_up_proj" in name]:
        rows, cols = shapes.pop(name)
        shapes |= {name.replace("gate_up", part): (rows // 2, cols) for part in ("gate", "up")}
    apart = replace(tiny, shapes=shapes.items())
    folder = write_packed(apart, how, tmp_path / "packed", tmp_path / "plain", widened=False)
    expected = open_checkpoint(tmp_path / "plain").tensors
    with open_gguf(convert(folder, tmp_path / "m.gguf", inexact="F32", pre="llama-bpe", threads=1)) as model:
        parts = [expected[f"model.layers.1.mlp.{part}_proj.weight"].floats() for part in ("gate", "up")]
        found = model.tensors["blk.1.ffn_up.weight"]
        np.testing.assert_array_equal(np.concatenate(parts), found.floats())
        assert found.format.name == ("Q8_0" if how.bits == 8 else "Q5_0")  # one group has one order


def test_experts_of_mixtral_by_their_new_names(tmp_path: Path):
    """As GPTQModel and transformers 5 write them."""
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    parts = {"w1": (FFN, WIDTH), "w2": (WIDTH, FFN), "w3": (FFN, WIDTH)}

    def layer(at: str, i: int, new: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        for name, shape in llama_layer(at, i):
            if ".mlp." not in name:
                yield name, shape
        moe = f"{at}.mlp" if new else f"{at}.block_sparse_moe"
        yield f"{moe}.gate.weight", (4, WIDTH)
        for expert, (part, shape) in product(range(4), parts.items()):
            yield f"{moe}.experts.{expert}.{names[part] if new else part}.weight", shape

    values = config("MixtralForCausalLM", "mixtral", num_local_experts=4, num_experts_per_tok=2)
    found = []
    for new in (False, True):
        tiny = Tiny(values, decoder(lambda at, i, new=new: layer(at, i, new), BPE_TOKENS))
        path = convert(write(tiny, tmp_path / str(new)), tmp_path / f"{new}.gguf", "F32", pre="llama-bpe", threads=1)
        with open_gguf(path) as model:
            found.append({name: tensor.shape for name, tensor in model.tensors.items()})
    assert found[0] == found[1]


def test_a_group_is_as_large_as_the_settings_say():
    """Two scales for 192 inputs in groups of 128: 128 and 64, not 96 each."""
    tensor, meant = unpacked(PackQuantized(4, 128), (8, 192), "F32")
    np.testing.assert_array_equal(meant, tensor.floats())


@pytest.mark.parametrize("packer", [GPTQ(), AWQ(), PackQuantized(bits=8), Int8()], ids=str)
def test_powers_of_two_go_into_scales(packer: Packer, tmp_path: Path):
    folder = write_packed(REMOTE["rwkv6"](), packer, tmp_path / "packed", tmp_path / "plain", widened=False)
    expected = convert(tmp_path / "plain", tmp_path / "plain.gguf", "F32", pre="llama-bpe", threads=1)
    found = convert(folder, tmp_path / "packed.gguf", pre="llama-bpe", threads=1)
    name = "blk.1.time_mix_output.weight"
    with open_gguf(expected) as plain, open_gguf(found) as model:
        assert model.tensors[name].format.is_quantized
        np.testing.assert_array_equal(plain.tensors[name].floats(), model.tensors[name].floats())
    assert "1 multiplied" in as_gguf(folder).notes[-1]  # of 48 inputs, which are no blocks


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "TQ2_0"])
def test_scales_take_a_factor_in_or_nothing_does(name: str):
    values = np.random.default_rng(1).standard_normal((6, 512), dtype=np.float32)
    blocks = encode(values, name)
    tensor = Tensor("a", (6, 512), FORMATS[name], lambda lo, hi: blocks[lo:hi])
    of_row = np.array([1, -1, 2, 0.5, 4, 0.25], np.float32)
    for factor in (2.0, -1.0, 0.5, of_row):
        found = scaled(tensor, factor)
        assert found.format is tensor.format
        np.testing.assert_array_equal(tensor.floats() * np.reshape(factor, (-1, 1)), found.floats())
        np.testing.assert_array_equal(found.read(0, 6)[2:5], found.read(2, 5))
    for factor in (1 / 3, 1e9, 1e-9, np.inf, np.nan):
        assert scaled(tensor, factor) is None
    plain = replace(tensor, format=FORMATS["F32"], read=lambda lo, hi: values[lo:hi].view(np.uint8))
    assert scaled(plain, 2.0) is None


def test_what_a_model_computes_with_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transforms, "scaled", lambda tensor, number: None)  # as where a scale would be rounded
    folder = write_packed(REMOTE["rwkv6"](), GPTQ(), tmp_path / "packed", tmp_path / "plain", widened=False)
    model = as_gguf(folder)
    assert "2 multiplied by factors of the model, and so as weights that were not quantized" in model.notes[-1]
    tensor = unpacked(PackQuantized(), (8, 64), "step")[0]
    factor = replace(tensor, origin=Origin("NVFP4", True, (0.5,)))
    half = computed(factor, lambda weights: weights / 2)
    assert (half.origin.factors, half.origin.exact, half.origin.computed) == ((0.5,), False, True)


def unpacked(packer: Packer, shape: tuple[int, int], inexact: str):
    name = "model.layers.0.self_attn.q_proj.weight"
    arrays, meant = packer.pack(name, shape)
    kinds = {"int16": "I16"}
    tensors = of(
        *(
            stored(f"{name.removesuffix('weight')}{end}", array, kinds.get(array.dtype.name, ""))
            for end, array in arrays.items()
        )
    )
    found = unpack(Source(tensors, {"quantization_config": packer.config()}), inexact=inexact)
    return found.tensors[name], meant


SETTINGS = (
    *(
        GPTQ(b, g, s, o, v)
        for b, g, s, o, v in product((2, 3, 4, 8), (32, 48, -1), (True, False), (False, True), (1, 2))
    ),
    *(PackQuantized(b, g, s, d) for b, g, s, d in product(range(2, 9), (64, 128, -1), (True, False), (True, False))),
    *(PackQuantized(b, 32, order=True) for b in (4, 8)),
    *(AWQ(g) for g in (32, 128, -1)),
)


def test_all_settings_mean_the_same_weights():
    for packer in SETTINGS:
        if isinstance(packer, PackQuantized) and not packer.dense and packer.bits in (2, 4, 8):
            continue  # the same as dense
        # 320 columns: the last group of 128, and 48, is smaller than the others.
        tensor, meant = unpacked(packer, (72 if isinstance(packer, PackQuantized) else 96, 320), "F32")
        np.testing.assert_array_equal(meant, tensor.floats(), str(packer))
        tensor, meant = unpacked(packer, (64, 256), "step")
        assert tensor.origin.exact == np.array_equal(meant, tensor.floats()), packer
        even = packer.group != 48 and not getattr(packer, "order", False)
        symmetric = getattr(packer, "sym", False)
        if even and symmetric:
            expected = "Q4_0" if packer.bits < 5 else "Q5_0" if packer.bits == 5 else "Q8_0"
            assert tensor.format.name == expected, packer


@pytest.mark.parametrize(
    ("packer", "format"),
    [
        (Marlin24(4, 128), "Q4_0"),
        (Marlin24(4, -1), "Q4_0"),
        (Marlin24(8, 128), "Q8_0"),
        (Sparse24("F16"), "F16"),
        (Sparse24("I8"), "Q8_0"),
    ],
)
def test_two_weights_of_four(packer: Marlin24 | Sparse24, format: str):
    for shape in ((64, 256), (128, 512)):
        tensor, meant = unpacked(packer, shape, "step")
        assert tensor.format.name == format
        assert tensor.origin.exact
        np.testing.assert_array_equal(meant, tensor.floats())
        np.testing.assert_array_equal(meant[5:41], tensor.floats(5, 41))


def test_verbs_say_what_a_folder_is(tmp_path: Path):
    folder = write_packed(FAMILIES["llama-yarn"](), GPTQ(group=64), tmp_path / "packed")
    said = CliRunner().invoke(cli, ["inspect", str(folder)]).output
    assert said.count("\n") == 1
    assert "LlamaForCausalLM, GPTQ: 4 bits in groups of 64; exact: 14 of 14 matrices (14 as Q4_0)" in said
    assert "valid, LlamaForCausalLM, GPTQ: 4 bits" in CliRunner().invoke(cli, ["validate", str(folder)]).output
    assert "exact: 14 of 14 matrices" in CliRunner().invoke(cli, ["plan", "--summary", str(folder)]).output
    (folder / "model.safetensors").write_bytes(b"")
    broken = CliRunner().invoke(cli, ["validate", str(folder)])
    assert broken.exit_code == 1
    assert broken.output.startswith("error: ")


def test_the_order_of_inputs_is_noted(tmp_path: Path):
    folder = write_packed(FAMILIES["llama-yarn"](), GPTQ(order=True), tmp_path / "packed", tmp_path / "plain")
    source = open_checkpoint(tmp_path / "plain").tensors["model.layers.0.mlp.down_proj.weight"].floats()
    with open_gguf(convert(folder, tmp_path / "m.gguf")) as model:
        order = model.metadata["ggufkit.quantization.order.blk.0.ffn_down.weight"]
        tensor = model.tensors["blk.0.ffn_down.weight"]
        assert tensor.format.name == "Q4_0"
        np.testing.assert_array_equal(source[:, order], tensor.floats())


def test_little_memory_gives_the_same_bytes(tmp_path: Path):
    folder = write_packed(FAMILIES["llama-yarn"](), GPTQ(), tmp_path / "packed")
    whole = convert(folder, tmp_path / "whole.gguf")
    little = convert(folder, tmp_path / "little.gguf", memory=1 << 16)
    assert whole.read_bytes() == little.read_bytes()
    source = Source({}, {})
    assert source.within(1 << 30) == (1 << 30) - 160_000_000
    wide = stored("m", np.arange(4096 * 1024, dtype=np.int32).reshape(4096, 1024))
    source.within(3 << 20)  # 16 MB in strips of less than one
    whole_matrix = np.arange(4096 * 1024, dtype=np.int32).reshape(4096, 1024)
    np.testing.assert_array_equal(whole_matrix[:, 100:900], source.columns(wide, 100, 900))


def in_shards(folder: Path) -> None:
    """Codes in one file, scales and zero points in another."""
    whole = folder / "model.safetensors"
    tensors = open_checkpoint(folder).tensors
    weight_map = {}
    for number, of_scales in enumerate((False, True)):
        kinds = ("scales", "qzeros", "weight_scale", "weight_zero_point", "weight_shape", "weight_scale_inv")
        own = {name: tensor for name, tensor in tensors.items() if name.endswith(kinds) == of_scales}
        header, data = {}, b""
        for name, tensor in own.items():
            raw = tensor.read(0, tensor.rows).tobytes()
            entry = {"dtype": tensor.format.name, "shape": tensor.shape}
            header[name] = entry | {"data_offsets": [len(data), len(data) + len(raw)]}
            data += raw
        text = json.dumps(header).encode()
        file = folder / f"model-{number + 1:05d}-of-00002.safetensors"
        file.write_bytes(len(text).to_bytes(8, "little") + text + data)
        weight_map |= dict.fromkeys(own, file.name)
    whole.unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def in_a_file_of_its_own(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "quantize_config.json").write_text(json.dumps(config.pop("quantization_config")))
    (folder / "config.json").write_text(json.dumps(config))


def in_the_text_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    whole = {"architectures": config.pop("architectures"), "text_config": config}
    (folder / "config.json").write_text(json.dumps(whole))


@pytest.mark.parametrize("kept", [in_shards, in_a_file_of_its_own, in_the_text_model])
@pytest.mark.parametrize("packer", [GPTQ(), AWQ(), PackQuantized(sym=False), Fp8Blocks()])
def test_parts_and_settings_lie_elsewhere(kept: Callable[[Path], None], packer: Packer, tmp_path: Path):
    folder = write_packed(FAMILIES["llama-yarn"](), packer, tmp_path / "packed", tmp_path / "plain")
    kept(folder)
    expected = convert(tmp_path / "plain", tmp_path / "plain.gguf", "F32", pre="llama-bpe", threads=1)
    found = convert(folder, tmp_path / "packed.gguf", pre="llama-bpe", threads=1)
    with open_gguf(expected) as plain, open_gguf(found) as model:
        for name, tensor in plain.tensors.items():
            np.testing.assert_array_equal(tensor.floats(), model.tensors[name].floats(), name)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "group"), [(64, 32), (72, 128), (24, -1), (8, 64), (200, 32)])
def test_words_become_blocks_directly(bits: int, rows: int, group: int):
    random, middle = np.random.default_rng(rows), 1 << (bits - 1)
    of = groups_of(384, group)
    scales = scales_of(random, rows, int(of.max()) + 1)
    for zero in (middle, 1):
        codes = random.integers(max(0, zero - middle), zero + middle, (rows, 384))
        meant = scales.astype(np.float32)[:, of] * (codes - zero).astype(np.float32)
        arrays = {
            "qweight": np.ascontiguousarray(stream(codes, bits).T),
            "qzeros": stream(np.full(scales.shape, zero - 1).T, bits),
            "scales": np.ascontiguousarray(scales.T),
        }
        source = Source({f"m.{end}": stored(f"m.{end}", array) for end, array in arrays.items()}, {})
        reading = Reading("GPTQ")
        add_gptq(reading, source, "m", {"bits": bits, "group_size": group})
        numbers = reading.matrices["m.qweight"].numbers
        format = numbers.holding("m")[0]
        assert format.name == {4: "Q4_0", 8: "Q8_0"}[bits]
        for limit in (1 << 30, arrays["qweight"].nbytes):  # whole, and in two strips
            source._kept.limit = limit
            for lo, hi in ((0, rows), (0, 5), (rows - 3, rows), (rows // 3, rows - 2)):
                found = decode(numbers.blocks(format, lo, hi), format)
                np.testing.assert_array_equal(meant[lo:hi], found)


def test_threads_that_wait_for_a_matrix_read_parts_of_it():
    numbers = np.arange(1 << 22, dtype=np.int32).reshape(-1, 256)  # 16 MB
    seen: dict[str, int] = {}

    def read(lo: int, hi: int) -> np.ndarray:
        seen[threading.current_thread().name] = seen.get(threading.current_thread().name, 0) + hi - lo
        time.sleep(0.1)
        return numbers.view(np.uint8)[lo:hi]

    source = Source({}, {})
    source._kept.limit = 32 << 20
    tensor = Tensor("m", numbers.shape, stored("m", numbers).format, read)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda lo: source.columns(tensor, lo, lo + 64), (0, 64)))
    assert (len(seen), sum(seen.values())) == (2, len(numbers))
    np.testing.assert_array_equal(numbers[:, :128], np.concatenate(found, axis=1))


def test_a_thread_has_a_matrix_of_its_own_while_there_is_room():
    numbers = np.arange(1 << 16, dtype=np.int32).reshape(-1, 64)  # 256 KB
    reads: list[str] = []

    def matrix(name: str) -> Tensor:
        def read(lo: int, hi: int) -> np.ndarray:
            reads.append(name)
            return numbers.view(np.uint8)[lo:hi]

        return Tensor(name, numbers.shape, stored(name, numbers).format, read)

    def rows(name: str) -> None:
        for lo in range(0, 64, 16):
            (begin, parts), *more = source.strips(matrix(name), lo, lo + 16, own=True)
            assert not more
            np.testing.assert_array_equal(numbers[:, lo : lo + 16], np.concatenate(parts)[:, lo - begin :][:, :16])

    source = Source({}, {})
    source._kept.limit = 5 * numbers.nbytes
    met = threading.Barrier(4)

    def work(number: int) -> None:
        met.wait(10)
        rows(f"{number}")
        met.wait(10)
        rows(f"{number} again")
        met.wait(10)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
        assert sorted(reads) == sorted([*map(str, range(4)), *(f"{number} again" for number in range(4))])
        assert 1 <= len(source._kept._lent) <= 3
    gc.collect()
    assert not source._kept._lent


def test_a_matrix_that_cannot_be_read_fails_for_all_who_wait():
    def read(lo: int, hi: int) -> np.ndarray:
        time.sleep(0.01)
        raise CheckpointError("the file ends inside tensor m")

    source = Source({}, {})
    tensor = Tensor("m", (1 << 14, 256), stored("m", np.zeros((1, 256), np.int32)).format, read)
    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(source.columns, tensor, 0, 64) for _ in range(3)]:
            with pytest.raises(CheckpointError, match="the file ends"):
                future.result(10)


@pytest.mark.parametrize(
    ("packer", "change", "message"),
    [
        (Marlin24(), {"meta": np.zeros((8, 130), np.int16)}, "meta is I16"),
        (Marlin24(), {"scale_packed": np.ones((3, 64), np.float16)}, "do not belong together"),
        (Marlin24(), {"scale_packed": np.full((2, 64), np.nan, np.float16)}, "scale is nan"),
        (Marlin24(), {"weight_packed": np.zeros((8, 100), np.int32)}, "do not belong together"),
        (Sparse24(), {"shape": np.array([[-1], [256]])}, "no matrix of four columns"),
        (Sparse24(), {"shape": np.array([[64], [1 << 40]])}, "bitmask is U8"),
        (Sparse24(), {"bitmask": np.full((64, 32), 255, np.uint8)}, "a row has not 128 weights"),
        (Sparse24("I8"), {"weight_scale": np.ones((63, 1), np.float16)}, "does not fit"),
    ],
)
def test_lying_sparse_matrices_are_refused(packer: Packer, change: dict[str, np.ndarray], message: str):
    name = "model.layers.0.self_attn.q_proj.weight"
    arrays, _ = packer.pack(name, (64, 256))
    kinds = {"int16": "I16"}
    tensors = of(
        *(
            stored(f"{name.removesuffix('weight')}{end}", array, kinds.get(array.dtype.name, ""))
            for end, array in (arrays | change).items()
        )
    )
    with pytest.raises(CheckpointError, match=message):
        unpack(Source(tensors, {"quantization_config": packer.config()})).tensors[name].floats()
