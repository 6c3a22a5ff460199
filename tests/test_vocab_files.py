"""Vocabularies in files of their own: what they become, and one line where they are malformed."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError
from ggufkit.tokenizer.from_checkpoint.plamo import plamo2
from ggufkit.tokenizer.from_checkpoint.ranks import all_merges, merges_of
from ggufkit.tokenizer.from_checkpoint.rwkv import rwkv_world
from ggufkit.tokenizer.from_checkpoint.tekken import mistral
from ggufkit.tokenizer.from_checkpoint.tiktoken import qwen
from ggufkit.tokenizer.run.rwkv import bytes_of

BYTES = {bytes([byte]): byte for byte in range(256)}
PLAMO = json.dumps({"tokenizer_class": "Plamo2Tokenizer", "bos_token": "<|plamo:bos|>"})


def pairs(folder: Path, vocabulary: Any, size: int, files: dict[str, str]) -> dict[str, Any]:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    config = {"vocab_size": size}
    found = vocabulary(Checkpoint(folder, b"", config, {}), Config(config))
    return {key.removeprefix("tokenizer.ggml."): value.value for key, value in found}


def ranks(*tokens: bytes) -> str:
    return "".join(f"{b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))


def test_merges_are_what_encoding_comes_to_before_the_token():
    tokens = BYTES | {b"aa": 256, b"aaaa": 257, b"ab": 258, b"aab": 259}
    assert merges_of(tokens) == ["a a", "aa aa", "a b", "aa b"]
    assert all_merges(tokens) == ["a a", "aa aa", "a b", "a ab", "aa b"]
    with pytest.raises(CheckpointError, match="no merge makes the token b'xyz'"):
        merges_of(BYTES | {b"xyz": 256})
    assert merges_of(BYTES | {b"xyz": 256}, strict=False) == []


def test_rwkv_tokens_are_bytes_as_python_prints_them(tmp_path):
    lines = "1 'é' 2\n2 b'\\xff' 1\n3 '\\n' 1\n4 '\\'' 1\n5 '\u2028' 3\n"
    found = pairs(tmp_path, rwkv_world, 7, {"rwkv_vocab_v20230424.txt": lines})
    assert found["tokens"] == ["<s>", "\\xc3\\xa9", "\\xff", "\\n", "'", "\\xe2\\x80\\xa8", "[PAD6]"]
    assert [bytes_of(text) for text in found["tokens"][1:4]] == ["é".encode(), b"\xff", b"\n"]
    assert (found["bos_token_id"], found["eot_token_id"]) == (0, 261)


@pytest.mark.parametrize(
    ("vocabulary", "files", "message"),
    [
        (rwkv_world, {"rwkv_vocab_v20230424.txt": "1 'a' 2\n"}, "line 1: 1 'a' 2 is not"),
        (rwkv_world, {"rwkv_vocab_v20230424.txt": "1 __import__('os') 1\n"}, "line 1"),
        (rwkv_world, {"rwkv_vocab_v20230424.txt": "1 " + "(" * 5000 + " 1\n"}, "line 1"),
        (rwkv_world, {"rwkv_vocab_v20230424.txt": "1 'a' 1\n" * 600}, "has 600 tokens, config.json calls for 500"),
        (plamo2, {"tokenizer_config.json": "{}"}, "'tokenizer_class' is None, not Plamo2Tokenizer or Plamo3Tokenizer"),
        (plamo2, {"tokenizer_config.json": PLAMO, "tokenizer.jsonl": "[1, 2]\n"}, "line 1: .* is not a list of text"),
        (plamo2, {"tokenizer_config.json": PLAMO, "tokenizer.jsonl": '["a", 0.0]\n'}, "no token '<|plamo:bos|>'"),
        (qwen, {"qwen.tiktoken": "IQ== x\n"}, "line 1: IQ== x is not base64 and a rank"),
        (qwen, {"qwen.tiktoken": "IQ== 5\n"}, "the tokens' ranks are not 0 to 0"),
        (qwen, {"qwen.tiktoken": ranks(b"a" * 5000)}, "is not base64 and a rank"),
        (mistral("llama"), {"tekken.json": "{}"}, "it needs a config and a vocab"),
        (
            mistral("llama"),
            {
                "tekken.json": json.dumps(
                    {"config": {"default_vocab_size": 10**12, "default_num_special_tokens": 10**12}, "vocab": []}
                )
            },
            "tokens with 1000000000000 special ones do not fit",
        ),
        (
            mistral("llama"),
            {
                "tekken.json": json.dumps(
                    {"config": {"default_vocab_size": 30, "default_num_special_tokens": 30}, "vocab": []}
                    | {"special_tokens": [{"token_str": "a"}]}
                )
            },
            "has no special token <s>",
        ),
    ],
)
def test_malformed_vocabularies_are_one_line(tmp_path, vocabulary, files, message):
    with pytest.raises(CheckpointError, match=message.replace("|", r"\|")) as caught:
        pairs(tmp_path, vocabulary, 500, files)
    assert "\n" not in str(caught.value)
