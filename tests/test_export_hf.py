"""Models as folders for transformers: the checkpoint's names, numbers and settings; the same blocks on the way back."""

from __future__ import annotations

import json
import re
import struct
import tarfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_checkpoints import write
from tiny_families import FAMILIES
from tiny_packed import AWQ, GPTQ, Packer, PackQuantized, wide, write_packed
from tiny_remote import hunyuan_moe

import ggufkit
from ggufkit.arch.rope import llama3_divisors
from ggufkit.arch.transforms import decays
from ggufkit.arch.undo import logarithms
from ggufkit.checkpoint.folder import open_checkpoint
from ggufkit.errors import ArchitectureError, FileError, GgufkitError, UsageError
from ggufkit.formats.affine import Affine, join
from ggufkit.formats.codec import encode
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.jobs import pack_gptq, pack_quantized
from ggufkit.jobs.convert import convert
from ggufkit.jobs.pack_quantized import Scheme, packed, schemes
from ggufkit.jobs.to_huggingface import LAYOUTS, export_hf
from ggufkit.tensors.tensor import Tensor
from ggufkit.tensors.views import vector
from ggufkit.tokenizer.run.vocab import read_vocab

# The families that transformers has classes of, with transforms that can be taken back.
EXPORTED = (
    "bloom",
    "cohere2",
    "command-r",
    "exaone",
    "deepseek-v2",
    "exaone4",
    "falcon-40b",
    "gemma3",
    "gemma3-linear",
    "gemma-embedding",
    "glm",
    "glm4",
    "granitemoe",
    "internlm2",
    "llama-linear",
    "llama-yarn",
    "minicpm",
    "minicpm3",
    "mpt",
    "nemotron",
    "nomic-bert",
    "olmo3",
    "phi2",
    "phi4-mini",
    "phimoe",
    "qwen3-embedding",
    "qwen3moe",
    "roberta",
    "smollm3",
    "starcoder",
    "starcoder2",
    "xlm-roberta",
)

# Gemma 4's, of layers with experts beside the others.
MOE_NORMS = ("pre_feedforward_layernorm_2", "post_feedforward_layernorm_1", "post_feedforward_layernorm_2")
# What a GGUF does without.
WITHOUT = (
    *("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"),
    "transformer.rotary_pos_emb.inv_freq",
)


def blocks(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    with open_gguf(path) as model:
        return {t.name: (t.format.name, t.shape, t.read(0, t.rows).tobytes()) for t in model.tensors.values()}


def hyperparameters(path: Path) -> dict:
    with open_gguf(path) as model:
        prefix = model.metadata["general.architecture"]
        return {key: value for key, value in model.metadata.items() if key.startswith(prefix)}


def there_and_back(folder: Path, scratch: Path) -> None:
    """The checkpoint's tensors come out of its GGUF, and the GGUF out of these."""
    path = convert(folder, scratch / "there.gguf", "F32", pre="llama-bpe")
    export_hf(path, scratch / "out")
    source, found = open_checkpoint(folder).tensors, open_checkpoint(scratch / "out").tensors
    named = {bare(name): tensor for name, tensor in found.items()}
    assert {bare(name) for name in source} - {*WITHOUT} == set(named)
    for name, tensor in source.items():
        if name in WITHOUT:
            continue
        floats, own = named[bare(name)].floats(), tensor.floats()
        if "position_embeddings" in name and not floats[:2].any():
            floats, own = floats[2:], own[2:]
        assert len(floats) <= tensor.rows or "embed" in name  # rows without a token are not in the GGUF
        np.testing.assert_array_equal(own[: len(floats)].reshape(floats.shape), floats, name)
    back = convert(scratch / "out", scratch / "back.gguf", "F32", pre="llama-bpe")
    assert blocks(path) == blocks(back)
    expected, again = hyperparameters(path), hyperparameters(back)
    assert expected == {key: again[key] for key in expected}
    assert lost(path, back) == []


def bare(name: str) -> str:
    """A name as a model without its head has it."""
    return name.removeprefix("model.").removeprefix("roberta.")


def lost(path: Path, back: Path) -> list[str]:
    """Keys of a GGUF's tokenizer that another one lacks or has otherwise."""
    with open_gguf(path) as a, open_gguf(back) as b:
        keys = [
            key for key in a.metadata if key.startswith("tokenizer.") and not key.endswith(("token_type", "scores"))
        ]
        assert read_vocab(a).special() == read_vocab(b).special()
        return [key for key in keys if a.metadata[key] != b.metadata.get(key)]


@pytest.mark.parametrize("name", EXPORTED)
def test_families_go_there_and_back(name: str, tmp_path: Path):
    there_and_back(write(FAMILIES[name](), tmp_path / "hf"), tmp_path)


@pytest.mark.parametrize("name", ["bert", "gemma2", "gpt-oss", "mistral", "mixtral", "phi3", "stablelm", "t5"])
def test_checkpoints_of_the_reference_go_there_and_back(name: str, checkpoints: Path, tmp_path: Path):
    folder = checkpoints / name / "hf"
    path = convert(folder, tmp_path / "there.gguf", "F32")
    export_hf(path, tmp_path / "out")
    back = convert(tmp_path / "out", tmp_path / "back.gguf", "F32")
    assert blocks(path) == blocks(back)
    assert lost(path, back) == []


def test_hunyuan_with_experts_goes_there_and_back(tmp_path: Path):
    path = convert(write(hunyuan_moe(), tmp_path / "hf"), tmp_path / "there.gguf", "F32")
    export_hf(path, tmp_path / "out")
    with open_gguf(path) as model:
        pre = model.get("tokenizer.ggml.pre", str)
    back = convert(tmp_path / "out", tmp_path / "back.gguf", "F32", pre=pre)
    assert blocks(path) == blocks(back)
    assert lost(path, back) == []  # no role for the token that GPT-2 ends with


def test_gemma_4_with_experts_goes_there_and_back(later: Path, tmp_path: Path):
    source = later / "gemma4-e" / "hf"
    config = json.loads((source / "config.json").read_text())
    more = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32, "enable_moe_block": True}
    arrays = {}
    for name, tensor in open_checkpoint(source).tensors.items():
        arrays[name] = tensor.floats().reshape(tensor.shape)
    width = config["hidden_size"]
    random = np.random.default_rng(3)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes = {
            "experts.gate_up_proj": (4, 64, width),
            "experts.down_proj": (4, width, 32),
            "router.proj.weight": (4, width),
            "router.scale": (width,),
            "router.per_expert_scale": (4,),
            **{f"{norm}.weight": (width,) for norm in MOE_NORMS},
        }
        arrays |= {f"{at}.{name}": random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    folder = tmp_path / "hf"
    folder.mkdir()
    save_file(arrays, folder / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    (folder / "config.json").write_text(json.dumps(config | more))
    path = convert(folder, tmp_path / "there.gguf", "F32")
    export_hf(path, tmp_path / "out")
    assert blocks(path) == blocks(convert(tmp_path / "out", tmp_path / "back.gguf", "F32"))
    found = open_checkpoint(tmp_path / "out").tensors
    for name, values in arrays.items():
        if "per_layer.weight" not in name:
            np.testing.assert_array_equal(values, found[name].floats().reshape(values.shape), name)


def test_dots_comes_back_with_its_router(tmp_path: Path):
    folder = write(FAMILIES["dots1"](), tmp_path / "softmax")
    with pytest.raises(ArchitectureError, match="dots1 models of this kind"):
        export_hf(convert(folder, tmp_path / "softmax.gguf", "F32", pre="llama-bpe"), tmp_path / "out")
    tiny = FAMILIES["dots1"]()
    tiny.config["scoring_func"] = "sigmoid"
    there_and_back(write(tiny, tmp_path / "hf"), tmp_path)


def test_how_vectors_are_pooled_comes_back(tmp_path: Path):
    path = convert(write(FAMILIES["qwen3-embedding"](), tmp_path / "hf"), tmp_path / "m.gguf", "F32", pre="llama-bpe")
    export_hf(path, tmp_path / "out")
    pooling = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert [name for name, on in pooling.items() if on is True] == ["pooling_mode_lasttoken"]
    assert [module["path"] for module in json.loads((tmp_path / "out" / "modules.json").read_text())] == [
        "",
        "1_Pooling",
    ]


def test_how_to_sample_and_every_chat_template_come_back(checkpoints: Path, tmp_path: Path):
    path = convert(checkpoints / "mistral" / "hf", tmp_path / "m.gguf", "F32")
    with ggufkit.edit(path) as file:
        file.set("general.sampling.temp", 0.25)
        file.set("general.sampling.top_k", 20)
    export_hf(path, tmp_path / "out")
    back = convert(tmp_path / "out", tmp_path / "back.gguf", "F32")
    with open_gguf(path) as a, open_gguf(back) as b:
        for key in ("general.sampling.temp", "general.sampling.top_k", "tokenizer.chat_template.tool_use"):
            assert a.metadata[key] == b.metadata[key]


def test_rows_without_a_token_get_none(tmp_path: Path):
    path = convert(write(FAMILIES["mamba"](), tmp_path / "hf"), tmp_path / "m.gguf", "F32", pre="llama-bpe")
    export_hf(path, tmp_path / "out")
    tokens = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert not [text for text in tokens["model"]["vocab"] if text.startswith("[PAD")]
    back = convert(tmp_path / "out", tmp_path / "back.gguf", "F32", pre="llama-bpe")
    with open_gguf(path) as a, open_gguf(back) as b:
        types = a.metadata["tokenizer.ggml.token_type"]
        assert 5 in types
        assert types == b.metadata["tokenizer.ggml.token_type"]


LATER = (
    *("apertus", "deepseekv32", "distilbert", "gemma3n", "gemma4-e", "glm4moelite", "graniteswa", "hyv3", "llama4"),
    *("mimo2", "mistral3", "modernbert", "qwen35moe-vl", "qwen3next"),
)


@pytest.fixture(scope="module")
def later(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds `<name>/hf` of later families."""
    folder = tmp_path_factory.mktemp("later")
    archive = shared / "architectures" / "checkpoints.tar.xz"
    if not archive.is_file():
        pytest.skip("the checkpoints beside the repository are not here")
    with tarfile.open(archive) as opened:
        members = [member for member in opened if member.name.split("/")[0] in (*LATER, "qwen35")]
        opened.extractall(folder, members, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder


@pytest.mark.parametrize("name", LATER)
def test_later_families_go_there_and_back(name: str, later: Path, tmp_path: Path):
    kind = "F32" if name in ("distilbert", "modernbert") else "auto"
    path = convert(later / name / "hf", tmp_path / "there.gguf", kind)
    export_hf(path, tmp_path / "out")
    assert blocks(path) == blocks(convert(tmp_path / "out", tmp_path / "back.gguf", kind))
    source, found = open_checkpoint(later / name / "hf").tensors, open_checkpoint(tmp_path / "out").tensors
    text = {key.replace("language_model.", ""): tensor for key, tensor in source.items()}
    for key, tensor in found.items():
        if "per_layer.weight" in key or ".experts." in key:
            continue  # as long as the vocabulary; one by one, or all in one
        np.testing.assert_array_equal(text[key].floats(), tensor.floats(), key)


def test_words_that_end_a_turn_come_back(later: Path, tmp_path: Path):
    path = convert(later / "glm4moelite" / "hf", tmp_path / "m.gguf")
    export_hf(path, tmp_path / "out")
    assert lost(path, convert(tmp_path / "out", tmp_path / "back.gguf")) == []


def test_llama_4_has_one_bound_of_frequencies():
    scaling = {"factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0, "rope_theta": 500000.0}
    assert set(llama3_divisors({**scaling, "original_max_position_embeddings": 8192}, 128)) == {1, 16}


def test_value_heads_go_back_as_whole_blocks(later: Path, tmp_path: Path):
    path = convert(later / "qwen35" / "hf", tmp_path / "there.gguf", "Q8_0")
    notes = export_hf(path, tmp_path / "out")
    back = convert(tmp_path / "out", tmp_path / "back.gguf")
    found, again = blocks(path), blocks(back)
    assert "stay quantized" in notes[0]
    for part in ("ssm_out", "attn_qkv", "attn_gate", "ffn_down"):
        name = f"blk.0.{part}.weight"
        assert (found[name][0], found[name]) == ("Q8_0", again[name])


@pytest.mark.parametrize("name", ["deepseek-v3", "t5encoder"])
def test_blocks_that_are_left_out_are_missed_by_no_one(name: str, tmp_path: Path):
    path = convert(write(FAMILIES[name](), tmp_path / "hf"), tmp_path / "there.gguf", "F32", pre="llama-bpe")
    export_hf(path, tmp_path / "out")
    assert blocks(path) == blocks(convert(tmp_path / "out", tmp_path / "back.gguf", "F32", pre="llama-bpe"))


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_logarithms_of_decays_give_the_same_decays(kind: str):
    values = np.random.default_rng(7).uniform(-5, 3, 4096).astype(np.float32)
    if kind == "bfloat16":
        values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    decayed = vector("a", decays(values))
    found = logarithms(None, decayed).floats().reshape(-1)
    np.testing.assert_array_equal(decays(values), decays(found))
    if kind == "bfloat16":
        np.testing.assert_array_equal(values, found)


@pytest.mark.parametrize("preset", ["Q4_0", "Q5_0", "Q8_0"])
def test_quantized_matrices_come_back_as_the_same_blocks(preset: str, fixtures: Path, tmp_path: Path):
    path = convert(fixtures / "pylib-llama", tmp_path / "there.gguf", preset)
    notes = export_hf(path, tmp_path / "out")
    assert "stay quantized" in notes[0]
    found, back = blocks(path), blocks(convert(tmp_path / "out", tmp_path / "back.gguf"))
    for name, tensor in found.items():
        if name not in ("token_embd.weight", "output.weight"):
            assert tensor == back[name], name


@pytest.mark.parametrize(
    ("layout", "preset", "bits"), [("gptq", "Q4_0", 4), ("gptq", "Q5_0", 8), ("gptq", "Q8_0", 8), ("awq", "Q4_0", 4)]
)
def test_other_layouts_come_back_as_the_same_blocks(
    layout: str, preset: str, bits: int, fixtures: Path, tmp_path: Path
):
    path = convert(fixtures / "pylib-llama", tmp_path / "there.gguf", preset)
    assert f"{bits} bits" in export_hf(path, tmp_path / "out", layout=layout)[0]
    settings = open_checkpoint(tmp_path / "out").config["quantization_config"]
    assert (settings["quant_method"], settings["bits"]) == (layout, bits)
    found, back = blocks(path), blocks(convert(tmp_path / "out", tmp_path / "back.gguf"))
    for name, tensor in found.items():
        if name not in ("token_embd.weight", "output.weight"):
            assert tensor == back[name], name


@pytest.mark.parametrize(
    ("packer", "layout"),
    [
        (GPTQ(sym=False, group=64, version=2), "gptq"),
        (AWQ(group=32), "awq"),
        (PackQuantized(sym=False, group=64), "compressed"),
    ],
    ids=["gptq", "awq", "compressed"],
)
def test_zero_points_come_back(packer: Packer, layout: str, tmp_path: Path):
    folder = write_packed(FAMILIES["llama-yarn"](), packer, tmp_path / "packed")
    path = convert(folder, tmp_path / "there.gguf")
    options = {} if layout == "compressed" else {"layout": layout}
    assert "4 bits with zero points" in export_hf(path, tmp_path / "out", **options)[0]
    stored, found = open_checkpoint(folder).tensors, open_checkpoint(tmp_path / "out").tensors
    same = total = 0
    for name, tensor in stored.items():
        if name.endswith(("qweight", "qzeros", "scales", "weight_packed", "weight_zero_point", "weight_scale")):
            own = found[name].read(0, found[name].rows)
            assert own.shape == tensor.read(0, tensor.rows).shape
            same, total = same + int((own == tensor.read(0, tensor.rows)).sum()), total + own.size
    # The zero point is the checkpoint's wherever a group has its lowest and its highest code.
    assert same > 0.7 * total
    there, back = blocks(path), blocks(convert(tmp_path / "out", tmp_path / "back.gguf"))
    for name, tensor in there.items():
        if "blk" in name:
            assert tensor == back[name], name


def test_levels_of_more_than_sixteen_in_a_row_take_eight_bits():
    codes = np.full((16, 64), 16, np.uint8)
    for low, high, bits in ((5, 20, 4), (4, 20, 8), (0, 15, 8), (1, 16, 4), (16, 31, 4)):
        codes[3, 5], codes[3, 40] = low, high
        affine = Affine(codes.reshape(-1, 32), np.full(32, 0.5, np.float32), np.full(32, -8, np.float32))
        tensor = of_blocks(join(affine, FORMATS["Q5_0"]).reshape(16, -1), "Q5_0", 64).renamed("layers.0.x.weight")
        (scheme,) = pack_quantized.schemes({tensor.name: tensor}).values()
        # Only of a whole row the levels may be too many: of 32 neighbours they are not.
        assert (scheme.bits, scheme.group) == {4: (4, 0), 8: (4, 32) if low else (8, 0)}[bits]
        weights = tensor.floats()
        codes4, zeros, scales = pack_quantized.coded(tensor, scheme, tensor.read(0, 16))
        assert codes4.max() < 1 << scheme.bits
        size = scheme.group or 64
        meant = (codes4.astype(int) - np.repeat(zeros, size, axis=1)) * np.repeat(scales, size, axis=1)
        np.testing.assert_array_equal(weights, meant)


@pytest.mark.parametrize("layout", ["gptq", "awq"])
@pytest.mark.parametrize("name", ["qwen3moe", "phi2", "gemma3"])
def test_other_layouts_of_other_families(layout: str, name: str, tmp_path: Path):
    path = convert(write(wide(FAMILIES[name]()), tmp_path / "hf"), tmp_path / "there.gguf", "Q4_0", pre="llama-bpe")
    export_hf(path, tmp_path / "out", layout=layout)
    found, back = blocks(path), blocks(convert(tmp_path / "out", tmp_path / "back.gguf", pre="llama-bpe"))
    assert {name: t for name, t in found.items() if "blk" in name} == {n: t for n, t in back.items() if "blk" in n}


def test_gptq_names_what_is_not_quantized_as_most_are():
    values = np.random.default_rng(5).standard_normal((32, 256), dtype=np.float32)
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj", "mlp.gate")
    kinds = {
        (0, "mlp.down_proj"): "Q8_0",
        (1, "self_attn.v_proj"): "Q6_K",
        (0, "mlp.gate"): "F32",
        (1, "mlp.gate"): "F32",
    }
    tensors = {}
    for layer, part in product(range(2), parts):
        name, format = f"model.layers.{layer}.{part}.weight", kinds.get((layer, part), "Q4_0")
        tensors[name] = of_blocks(encode(values, format), format, 256).renamed(name)
    kept = pack_gptq.schemes(tensors)
    settings = pack_gptq.quantization_config(tensors, kept)["quantization_config"]
    assert (settings["bits"], settings["group_size"], settings["sym"]) == (4, 32, True)

    def said(module: str) -> object:
        found = [key for key in settings["dynamic"] if re.match(key[2:], module)]
        return settings["dynamic"][found[0]].get("bits", "plain") if found else 4

    expected = {
        "0.mlp.down_proj": 8,
        "1.mlp.down_proj": 4,
        "1.self_attn.v_proj": "plain",
        "1.self_attn.qkv_proj": "plain",
    }
    expected |= {"0.self_attn.qkv_proj": 4, "0.mlp.gate": "plain", "0.mlp.gate_proj": 4, "1.mlp.gate_up_proj": 4}
    assert {module: said(f"model.layers.{module}") for module in expected} == expected


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_zero_points_of_other_layouts(layout: str):
    random, own = np.random.default_rng(6), LAYOUTS[layout]
    scales = (random.uniform(0.01, 0.02, (48, 8)).astype(np.float16).view(np.uint16) & 0xFF00).view(np.float16)
    for first in (0, 1):
        zeros = random.integers(first, 16, (48, 8))
        zeros[0, 0] = first
        blocks = np.zeros((48, 8, 20), np.uint8)
        biases = (-zeros * scales.astype(np.float32)).astype(np.float16)
        blocks[:, :, :2], blocks[:, :, 2:4] = scales[..., None].view(np.uint8), biases[..., None].view(np.uint8)
        blocks[:, :, 4:] = random.integers(0, 256, (48, 8, 16))
        tensor = of_blocks(blocks, "Q4_1", 256)
        kept = own.schemes({tensor.name: tensor})
        made = own.packed(tensor, kept[tensor.name])
        arrays = [array for _, array in made.make(0, tensor.read(0, 48))]
        words, points, halves = (np.ascontiguousarray(array).view(array.dtype) for array in arrays[:3])
        assert [array.shape for array in arrays] == [part.shape for part in made.parts]
        if layout == "gptq":
            codes, points = codes_of(words.T, 4), codes_of(points, 4).T  # version 2: as they are
        else:
            order = [0, 4, 1, 5, 2, 6, 3, 7]  # the nibble that each output is in
            codes, points = (
                codes_of(a, 4).reshape(len(a), -1, 8)[:, :, order].reshape(len(a), -1).T for a in (words, points)
            )
        np.testing.assert_array_equal(zeros, points)
        levels = codes.astype(np.float32) - np.repeat(points, 32, axis=1)
        np.testing.assert_array_equal(tensor.floats(), levels * np.repeat(halves.T.astype(np.float32), 32, axis=1))


def codes_of(words: np.ndarray, bits: int) -> np.ndarray:
    """(rows, words) int32 → codes, the lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return (np.ascontiguousarray(words).view(np.uint32)[:, :, None] >> shifts & np.uint32((1 << bits) - 1)).reshape(
        len(words), -1
    )


def arrays(tensor: Tensor) -> tuple[dict[str, np.ndarray], Scheme]:
    scheme = schemes({tensor.name: tensor})[tensor.name]
    made = packed(tensor, scheme)
    kinds = {"I32": np.int32, "F16": np.float16, "I64": np.int64}
    parts = {part.name.rpartition("weight_")[2]: np.zeros(part.shape, kinds[part.dtype]) for part in made.parts}
    for lo in range(0, tensor.rows, 32):
        stored = made.make(lo, tensor.read(lo, min(lo + 32, tensor.rows)))
        for target, (row, array) in zip(parts.values(), stored, strict=True):
            flat = np.ascontiguousarray(array).view(target.dtype).reshape(-1, target.shape[-1])
            target.reshape(-1, target.shape[-1])[row : row + len(flat)] = flat
    return parts, scheme


def of_blocks(blocks: np.ndarray, format: str, cols: int) -> Tensor:
    blocks = np.ascontiguousarray(blocks).reshape(-1, FORMATS[format].row_bytes(cols))
    name = "model.layers.0.mlp.down_proj.weight"
    return Tensor(name, (len(blocks), cols), FORMATS[format], lambda lo, hi: blocks[lo:hi])


@pytest.mark.parametrize("format", ["Q4_0", "Q5_0", "Q8_0"])
def test_packed_arrays_mean_the_same_numbers(format: str):
    values = np.random.default_rng(1).standard_normal((70, 256), dtype=np.float32)
    tensor = of_blocks(encode(values, format), format, 256)
    parts, scheme = arrays(tensor)
    assert (scheme.group, scheme.symmetric) == (32, True)
    levels = codes_of(parts["packed"], scheme.bits).astype(np.float32) - (1 << (scheme.bits - 1))
    found = levels * np.repeat(parts["scale"].astype(np.float32), 32, axis=1)
    np.testing.assert_array_equal(tensor.floats(), found)
    assert parts["shape"].tolist() == [70, 256]


@pytest.mark.parametrize(("shared", "group"), [(1, 32), (2, 64), (4, 128), (12, 0)])
def test_blocks_of_one_scale_are_one_group(shared: int, group: int):
    random = np.random.default_rng(2)
    blocks = encode(random.standard_normal((33, 384), dtype=np.float32), "Q4_0").reshape(33, 12, 18)
    blocks[:, :, :2] = np.repeat(blocks[:, ::shared, :2], shared, axis=1)
    tensor = of_blocks(blocks, "Q4_0", 384)
    parts, scheme = arrays(tensor)
    assert scheme.group == group
    levels = codes_of(parts["packed"], 4).astype(np.float32) - 8
    scales = np.repeat(parts["scale"].astype(np.float32), group or 384, axis=1)
    np.testing.assert_array_equal(tensor.floats(), levels * scales)


def test_q4_1_stays_where_its_bias_is_whole_steps():
    random = np.random.default_rng(3)
    scales = random.uniform(0.01, 0.02, (40, 8)).astype(np.float16)
    zeros = random.integers(0, 16, (40, 8))
    scales = (scales.view(np.uint16) & 0xFF00).view(np.float16)  # a product with a zero is a half, too
    biases = (-zeros * scales.astype(np.float32)).astype(np.float16)
    blocks = np.zeros((40, 8, 20), np.uint8)
    blocks[:, :, :2], blocks[:, :, 2:4] = scales[..., None].view(np.uint8), biases[..., None].view(np.uint8)
    blocks[:, :, 4:] = random.integers(0, 256, (40, 8, 16))
    tensor = of_blocks(blocks, "Q4_1", 256)
    parts, scheme = arrays(tensor)
    assert (scheme.bits, scheme.symmetric) == (4, False)
    points = codes_of(np.ascontiguousarray(parts["zero_point"].T), 4)[:, :40].T
    np.testing.assert_array_equal(zeros, points)
    levels = codes_of(parts["packed"], 4).astype(np.float32) - np.repeat(points, 32, axis=1)
    np.testing.assert_array_equal(tensor.floats(), levels * np.repeat(parts["scale"].astype(np.float32), 32, axis=1))
    blocks[7, 3, 2] ^= 1
    assert schemes({tensor.name: tensor}) == {}


def test_what_runs_as_one_has_one_scheme():
    values = np.random.default_rng(4).standard_normal((32, 256), dtype=np.float32)
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkvo"]
    tensors = {
        name: of_blocks(encode(values, format), format, 256).renamed(name)
        for name, format in zip(names, ("Q4_0", "Q4_0", "Q8_0", "Q4_0"), strict=True)
    }
    assert [scheme.bits for scheme in schemes(tensors).values()] == [8, 8, 8, 4]
    tensors[names[2]] = of_blocks(encode(values, "Q6_K"), "Q6_K", 256).renamed(names[2])
    assert list(schemes(tensors)) == names[3:]


def test_experts_have_one_scheme_that_a_pattern_names():
    values = np.random.default_rng(5).standard_normal((32, 256), dtype=np.float32)
    name = "model.layers.0.mlp.experts.{}.{}_proj.weight"
    tensors = {}
    for expert, part in product(range(2), ("gate", "up", "down")):
        # One block of a row is a group of 32, as those of the others are.
        own = values[:, :32] if part == "down" else values
        tensor = of_blocks(encode(np.ascontiguousarray(own), "Q4_0"), "Q4_0", own.shape[1])
        tensors[name.format(expert, part)] = tensor.renamed(name.format(expert, part))
    kept = schemes(tensors)
    assert set(kept.values()) == {Scheme(4, 32, True)}
    other = "model.layers.0.self_attn.o_proj.weight"
    tensors[other] = of_blocks(encode(values, "Q8_0"), "Q8_0", 256).renamed(other)
    groups = pack_quantized.quantization_config(tensors, schemes(tensors))["quantization_config"]["config_groups"]
    assert [group["targets"] for group in groups.values()] == [
        ["model.layers.0.self_attn.o_proj"],
        [r"re:.*\.experts\..*", "Linear"],
    ]


def test_parts_of_other_types_go_together(later: Path, tmp_path: Path):
    """Keys and values of a latent attention, of which only one stays in blocks."""
    path = convert(later / "deepseekv32" / "hf", tmp_path / "m.gguf", "Q4_0")
    export_hf(path, tmp_path / "out")
    found = blocks(convert(tmp_path / "out", tmp_path / "back.gguf"))
    assert found["blk.0.attn_q_a.weight"] == blocks(path)["blk.0.attn_q_a.weight"]


def test_config_says_what_is_quantized(fixtures: Path, tmp_path: Path):
    path = convert(fixtures / "pylib-llama", tmp_path / "m.gguf", "Q4_0")
    export_hf(path, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    source = json.loads((fixtures / "pylib-llama" / "config.json").read_text())
    for name in ("architectures", "hidden_size", "num_key_value_heads", "num_hidden_layers", "rope_theta"):
        assert source[name] == config[name]
    settings = config["quantization_config"]
    assert settings["quant_method"] == "compressed-tensors"
    assert [group["targets"] for group in settings["config_groups"].values()][-1] == ["Linear"]
    assert "lm_head" in settings["ignore"]
    assert config["torch_dtype"] == "float16"
    export_hf(path, tmp_path / "plain", decode=True, dtype="bfloat16")
    plain = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "quantization_config" not in plain
    assert {t.format.name for t in open_checkpoint(tmp_path / "plain").tensors.values()} == {"BF16"}


def test_scales_are_stored_as_halves(fixtures: Path, tmp_path: Path):
    path = convert(fixtures / "pylib-llama", tmp_path / "m.gguf", "Q4_0")
    export_hf(path, tmp_path / "out")
    data = (tmp_path / "out" / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    scale = header["model.layers.0.self_attn.q_proj.weight_scale"]
    assert scale["dtype"] == "F16"
    assert header["__metadata__"] == {"format": "pt"}


def test_what_cannot_be_exported_is_refused_by_name(fixtures: Path, tmp_path: Path):
    path = convert(fixtures / "pylib-llama", tmp_path / "m.gguf", "Q8_0")
    out = tmp_path / "out"
    for edit, message in (
        ({"llama.attention.scale": 0.5}, "llama.attention.scale, 0.5, has no place in config.json"),
        ({"llama.rope.scaling.type": "longrope"}, "rope scaling of type longrope"),
        ({"rwkv6.block_count": 4, "general.architecture": "rwkv6"}, "rwkv6 models cannot be exported"),
        ({"llama.block_count": 2**31 - 1}, "block_count"),
        ({"llama.attention.head_count": 7}, "heads"),
    ):
        target = tmp_path / "changed.gguf"
        target.write_bytes(path.read_bytes())
        with ggufkit.edit(target) as file:
            for key, value in edit.items():
                file.set(key, value)
        with pytest.raises(GgufkitError, match=message):
            export_hf(target, out)
        assert not out.exists()
    with pytest.raises(UsageError, match="dtype must be one of"):
        export_hf(path, out, dtype="float8")


def test_the_folder_of_the_model_is_never_replaced(fixtures: Path, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    path = convert(fixtures / "pylib-llama", tmp_path / "folder" / "m.gguf", "Q8_0")
    with pytest.raises(FileError, match="exists already"):
        export_hf(path, path.parent)
    with pytest.raises(FileError, match="holds the model itself"):
        export_hf(path, path.parent, force=True)
    assert path.exists()


def test_a_tensor_without_a_place_is_refused(fixtures: Path, tmp_path: Path):
    path = convert(fixtures / "pylib-llama", tmp_path / "m.gguf", "F16")
    with ggufkit.edit(path) as file:
        file.rename_tensor("blk.0.attn_q.weight", "blk.0.attn_extra.weight")
    with pytest.raises(ArchitectureError, match=r"blk\.0\.attn_extra\.weight has no place"):
        export_hf(path, tmp_path / "out")
