"""`validate`: the verdicts on broken files, and what it finds in valid ones."""

import json
import re
import struct
import time
import tracemalloc

import numpy as np
import pytest

import ggufkit
from ggufkit.cli import main
from ggufkit.formats.table import FORMATS
from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.required import required_keys
from ggufkit.gguf.validate import validate
from ggufkit.gguf.writer import Writer

F32, Q8_0 = FORMATS["F32"], FORMATS["Q8_0"]
I32 = ValueType.INT32

BASE = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.embedding_length": 32,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<eos>"],
    "tokenizer.ggml.token_type": Value(ValueType.ARRAY, [1, 1, 1, 3], I32),
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 3,
    "tokenizer.chat_template": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
}
TENSORS = {"token_embd.weight": (4, 32), "blk.0.attn_q.weight": (32, 32), "blk.1.attn_q.weight": (32, 32)}


@pytest.fixture
def make(tmp_path):
    """Write a small sound model with changes; a key set to None is left out."""

    def make(metadata=(), tensors=(), data=()):
        path = tmp_path / "model.gguf"
        pairs = {key: value for key, value in {**BASE, **dict(metadata)}.items() if value is not None}
        shapes = {**TENSORS, **dict(tensors)}
        shapes = {name: shape for name, shape in shapes.items() if shape is not None}
        with Writer(path, pairs, [(name, shape, Q8_0) for name, shape in shapes.items()], force=True) as out:
            for name, shape in shapes.items():
                blocks = np.zeros((shape[0], 34 * shape[1] // 32), np.uint8)
                for row, value in dict(data).get(name, ()):
                    blocks[row, :2] = np.frombuffer(struct.pack("<e", value), np.uint8)
                out.write(name, 0, blocks)
        return path

    return make


def test_sound_model_has_no_findings(make):
    assert validate(make()) == []


def tokens(*texts, types=None, **more):
    types = types or [1] * len(texts)
    return {
        "tokenizer.ggml.tokens": Value(ValueType.ARRAY, list(texts), ValueType.STRING),
        "tokenizer.ggml.token_type": Value(ValueType.ARRAY, types, I32),
        **more,
    }


ODD = {
    # what: (metadata, tensors, words)
    "no architecture": ({"general.architecture": None}, {}, "general.architecture .str. is missing"),
    "unknown architecture": ({"general.architecture": "\x1b[2J"}, {}, r"architecture \\x1b\[2J is not known here"),
    "missing key": (
        {"llama.context_length": None},
        {},
        "llama.context_length .u32. is missing: llama.cpp does not load",
    ),
    "key of another type": ({"llama.block_count": Value(I32, 2)}, {}, "block_count should be of type u32, but is i32"),
    "too many layers": ({"llama.block_count": 3}, {}, "is 3, but the last tensors are of layer 1"),
    "too few layers": ({"llama.block_count": 1}, {}, "is 1, but there are tensors of layer 1"),
    "missing layer": ({}, {"blk.0.attn_q.weight": None}, "layer 0 has no tensors"),
    "per layer": ({"llama.feed_forward_length": [1, 2, 3]}, {}, "has 3 items for 2 layers"),
    "heads": ({"llama.attention.head_count": 5}, {}, "5 attention heads cannot share 2"),
    "no heads": ({"llama.attention.head_count": 0}, {}, "head_count is 0"),
    "odd heads": ({"llama.attention.head_count": 6}, {}, "is 32, which 6 heads do not divide"),
    "width": ({"llama.embedding_length": 64}, {}, "rows of 32 weights, but llama.embedding_length is 64"),
    "no tokenizer": ({"tokenizer.ggml.model": None}, {}, "tokenizer.ggml.model .str. is missing"),
    "other tokenizer": ({"tokenizer.ggml.model": "x\n"}, {}, r"model is x\\n, known are llama"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, {}, "tokens .arr.str.. is missing"),
    "vocabulary": ({}, {"token_embd.weight": (5, 32)}, "token_embd.weight has 5 rows for 4 tokens"),
    "id": ({"tokenizer.ggml.eos_token_id": 4}, {}, "eos_token_id is 4, but the tokens are 0 to 3"),
    "id type": ({"tokenizer.ggml.eos_token_id": Value(I32, -1)}, {}, "eos_token_id should be of type u32"),
    "short types": ({"tokenizer.ggml.token_type": Value(ValueType.ARRAY, [1], I32)}, {}, "has 1 items for 4 tokens"),
    "scores": ({"tokenizer.ggml.scores": [0.5]}, {}, "scores has 1 items for 4 tokens"),
    "type": (tokens("a", "b", "ab", "d", types=[1, 1, 1, 9]), {}, "token 3 with type 9"),
    "twice": (tokens("a", "b", "ab", "a"), {}, "1 tokens occur twice: token 3, 'a', is also token 0"),
    "empty token": (tokens("a", "b", "ab", ""), {}, "1 tokens are empty, the first is token 3"),
    "no byte": (tokens("a", "b", "ab", "<0x-1>", types=[1, 1, 1, 6]), {}, "token 3 is of type byte, but '<0x-1>'"),
    "byte twice": (tokens("a", "b", "<0x0A>", "<0x0a>", types=[1, 1, 6, 6]), {}, "0x0a is both token 2 and token 3"),
    "few bytes": (
        tokens("a", "b", "<0x00>", "c", types=[1, 1, 6, 1]) | {"tokenizer.ggml.model": "llama"},
        {},
        "255 of 256 byte tokens are missing, the first is <0x01>",
    ),
    "merge": (
        {"tokenizer.ggml.merges": ["a b", "ab"]},
        {},
        "1 merges are of no use, the first is merge 1, 'ab' has no",
    ),
    "merged": ({"tokenizer.ggml.merges": ["b a"]}, {}, "'b a': a token is not in the vocabulary"),
    "pre": ({"tokenizer.ggml.pre": "qwen9"}, {}, "the pre-tokenizer qwen9 is not known here"),
    "no pre": ({"tokenizer.ggml.pre": None}, {}, "tokenizer.ggml.pre .str. is missing"),
    "no merges": ({"tokenizer.ggml.merges": None}, {}, "merges .arr.str.. is missing"),
    "template": ({"tokenizer.chat_template": "{% if %}"}, {}, "chat_template does not compile, line 1"),
    "filter": ({"tokenizer.chat_template.x": "{{ 1 | nothing }}"}, {}, "chat_template.x does not compile.*nothing"),
    "include": ({"tokenizer.chat_template": "{% include 'x' %}"}, {}, "loads another template"),
    "deep template": ({"tokenizer.chat_template": "{% if a %}" * 5000 + "{% endif %}" * 5000}, {}, "does not compile"),
    "bytes": ({"general.name": Value(ValueType.STRING, b"\xff")}, {}, "general.name is not valid UTF-8 at its byte 0"),
    "name": ({}, {"\x1b": (1, 32)}, r"the name \\x1b has characters that cannot be printed"),
    "file type": ({"general.file_type": "x"}, {}, "general.file_type should be of type u32"),
    "split": ({"split.count": "2"}, {}, "split.count should be of type u16"),
}


@pytest.mark.parametrize("what", ODD)
def test_oddity_is_found(make, what):
    metadata, tensors, words = ODD[what]
    findings = validate(make(metadata, tensors))
    assert {finding.level for finding in findings} == {"warning"}
    assert all(str(finding).isprintable() for finding in findings)
    assert [finding for finding in findings if re.search(words, finding.message)], findings


def test_infinite_scale_is_found_where_it_is(make):
    path = make(data={"blk.1.attn_q.weight": [(20, np.nan), (7, np.inf)], "token_embd.weight": [(3, -np.inf)]})
    findings = validate(path)
    assert [str(f).split(" (byte")[0] for f in findings] == [
        "token_embd.weight: the scale of the block at row 3, column 0 is not finite",
        "blk.1.attn_q.weight: the scale of the block at row 7, column 0 is not finite",
    ]
    for finding, scale in zip(findings, (-np.inf, np.inf), strict=True):
        assert struct.unpack_from("<e", path.read_bytes(), finding.offset) == (scale,)
    assert validate(path, data=False) == []


def test_exit_code_tells_errors_and_with_strict_warnings(make, capsys):
    def run(*args):
        try:
            main(["validate", *map(str, args)])
        except SystemExit as e:
            return e.code
        return 0

    path = make()
    assert run("--strict", path) == 0
    assert capsys.readouterr().out == f"{path}: valid, no warnings\n"
    path = make({"llama.block_count": 1})
    assert run(path) == 0
    assert capsys.readouterr().out.endswith(f"{path}: valid, 1 warning\n")
    assert run("--strict", "--json", path) == 1
    assert [f["level"] for f in json.loads(capsys.readouterr().out)["findings"]] == ["warning"]
    path.write_bytes(path.read_bytes()[:-3000])
    assert run(path) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"{path}: broken"
    assert run(path.parent / "none.gguf") == 1
    assert "does not exist" in capsys.readouterr().err


def test_corpus_gets_its_verdicts(shared):
    folder = shared / "malformed"
    expected = {name: row["strict"] for name, row in json.loads((folder / "manifest.json").read_text()).items()}
    found = {}
    for name in expected:
        errors = [finding for finding in validate(folder / name) if finding.level == "error"]
        assert all(error.offset is not None for error in errors)
        found[name] = "reject" if errors else "accept"
    assert found == expected


def test_corpus_takes_little_memory_and_time(shared):
    worst_memory, worst_time = 0, 0.0
    for path in sorted((shared / "malformed").glob("*.gguf")):
        tracemalloc.start()
        start = time.perf_counter()
        validate(path)
        worst_time = max(worst_time, time.perf_counter() - start)
        worst_memory = max(worst_memory, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert worst_memory < 64 << 20
    assert worst_time < 2


def test_real_vocabularies_are_sound(shared):
    for path in sorted((shared / "vocab").glob("*.gguf")):
        assert validate(path) == [], path.name


@pytest.mark.parametrize("arch", ["llama", "gpt2", "mamba"])
def test_required_keys_are_those_of_llama_cpp(arch):
    from make_required import Loader, required

    assert required(arch, 4, Loader()) == required_keys(arch)


def test_shard_alone_is_not_blamed_for_its_metadata(make, tmp_path):
    from ggufkit.gguf.copy import write_shards

    with ggufkit.open(make()) as m:
        paths = write_shards(m, tmp_path / "part", max_tensors=1)
    assert validate(paths[1]) == []
    assert validate(paths[1], shards=False) == []
