"""Checkpoints of strangers: bare classes, odd model cards, templates in files of their own."""

import json
from dataclasses import replace

import pytest
import tiny_checkpoints
from safetensors.numpy import load_file, save_file
from tiny_families import FAMILIES

from ggufkit.errors import CheckpointError
from ggufkit.gguf import reader
from ggufkit.jobs.convert import as_gguf, conversion, convert


def tensors_of(path):
    with reader.open(path) as model:
        return {name: tensor.read(0, tensor.rows).tobytes() for name, tensor in model.tensors.items()}


def bare(folder, name, prefix):
    """A family's checkpoint as its base class would be saved; returns (with the head's prefix, without)."""
    whole = tiny_checkpoints.write(replace(FAMILIES[name](), dtype="F32"), folder / "whole")
    lone = tiny_checkpoints.write(replace(FAMILIES[name](), dtype="F32"), folder / "bare")
    config = json.loads((lone / "config.json").read_text())
    kind = config["architectures"][0].replace("ForCausalLM", "Model").replace("LMHeadModel", "Model")
    (lone / "config.json").write_text(json.dumps(config | {"architectures": [kind]}))
    weights = load_file(lone / "model.safetensors")
    save_file({key.removeprefix(prefix): value for key, value in weights.items()}, lone / "model.safetensors")
    return whole, lone


@pytest.mark.parametrize(
    ("family", "prefix"),
    [(name, "model.") for name in FAMILIES if name in ("llama-linear", "qwen2", "qwen3", "gemma2", "olmo2", "phi3")]
    + [(name, "transformer.") for name in FAMILIES if name in ("gpt2",)],
)
def test_bare_classes_convert_as_those_with_a_head(tmp_path, family, prefix):
    whole, lone = bare(tmp_path, family, prefix)
    first, second = (convert(c, tmp_path / f"{c.name}.gguf", "F32", pre="gpt-2") for c in (whole, lone))
    assert tensors_of(second)
    assert tensors_of(first) == tensors_of(second)


RAW = ["BOOL", "U8", "U16", "U32", "U64", "F8_E8M0"]


@pytest.mark.parametrize("dtype", RAW)
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama-linear", "model.layers.0.self_attn.v_proj.weight"),
        ("llama-linear", "model.layers.1.input_layernorm.weight"),
        ("gemma3", "model.layers.0.input_layernorm.weight"),  # one is added
        ("gemma3", "model.embed_tokens.weight"),
    ],
)
def test_a_dtype_without_a_meaning_is_refused_by_name(tmp_path, dtype, family, name):
    folder = tiny_checkpoints.write(replace(FAMILIES[family](), dtype="F32"), tmp_path / "m")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    shape = header[name]["shape"]
    # The same bytes as more numbers, or fewer, in the last dimension; then cut to the shape.
    size = {"U16": 2, "U32": 4, "U64": 8}.get(dtype, 1)
    begin, end = header[name]["data_offsets"]
    need = size * (end - begin) // 4
    body = body[:begin] + bytes(need) + body[end:]
    for entry in header.values():
        if entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [at + need - (end - begin) for at in entry["data_offsets"]]
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + need]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    target = tmp_path / "out.gguf"
    with pytest.raises(CheckpointError, match=dtype):
        convert(folder, target, "F32", pre="gpt-2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


CARDS = {
    "not YAML": "---\n\t{[: \n---\n",
    "a list": "---\n- a\n- b\n---\n",
    "a number": "---\n5\n---\n",
    "numbers for texts": "---\nlicense: 4\nname: 17\nauthor: 1.5\n---\n",
    "lists for texts": "---\nlicense: [mit, apache]\nauthor: [a, {b: c}]\n---\n",
    "dicts for texts": "---\nlicense: {a: b}\nmodel_name: {x: [1]}\n---\n",
    "odd tags": "---\ntags: [1, null, {a: b}, yes]\nlanguage: {en: fr}\n---\n",
    "odd bases": "---\nbase_model: [1, {name: x}, null]\ndatasets: {a: 1}\n---\n",
    "a date": "---\nversion: 2024-01-01\nlicense: 2024-01-01\n---\n",
    "thousands of digits": f"---\nversion: {'9' * 5000}\n---\n",
    "a tag of Python": "---\nname: !!python/object:os.system [ls]\n---\n",
    "aliases": "---\na: &a [x, x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20))
    + "---\n",
    "no end": "---\nname: x\n",
    "deep": "---\na: " + "[" * 3000 + "\n---\n",
    "not UTF-8": b"---\nname: \xff\xfe\n---\n",
    "nul": "---\nname: 'a\x00b'\n---\n",
    "empty": "",
}


@pytest.mark.parametrize("card", CARDS)
def test_no_card_stops_a_conversion(tmp_path, card):
    folder = tiny_checkpoints.write(FAMILIES["llama-linear"](), tmp_path / "m")
    text = CARDS[card]
    (folder / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    job = conversion(folder, tmp_path / "out.gguf", "F32", pre="gpt-2")
    assert all(len(note.splitlines()) == 1 for note in job.plan.notes)
    (path,) = job.write()
    with reader.open(path) as model:
        assert isinstance(model.metadata["general.name"], str)


@pytest.mark.parametrize(
    "settings",
    [{"top_k": "many"}, {"top_k": 1e300}, {"temperature": None}, {"temperature": [1]}, {"top_p": float("nan")}],
    ids=str,
)
def test_no_generation_config_stops_a_conversion(tmp_path, settings):
    folder = tiny_checkpoints.write(FAMILIES["llama-linear"](), tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps(settings))
    conversion(folder, tmp_path / "out.gguf", "F32", pre="gpt-2").write()


def test_a_template_in_a_file_counts_without_tokenizer_config(tmp_path):
    folder = tiny_checkpoints.write(FAMILIES["llama-linear"](), tmp_path / "m")
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    metadata = as_gguf(folder, pre="gpt-2").metadata
    assert metadata["tokenizer.chat_template"].value == "{{ messages[0].content }}"
