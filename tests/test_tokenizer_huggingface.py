"""Vocabularies as tokenizer.json: the `tokenizers` package cuts texts as we do."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

from ggufkit.errors import GGUFError
from ggufkit.gguf.reader import open as open_gguf
from ggufkit.gguf.writer import Writer
from ggufkit.jobs.convert import convert
from ggufkit.tokenizer.run.tokenizer import load_tokenizer
from ggufkit.tokenizer.to_huggingface import tokenizer_files

TEXTS = [
    "def main(argv=None):\n    return 0\n",
    "Hello, world! It's 2026; 1234567 €.",
    "  leading and   several   spaces  ",
    "naïve café — Größe, 世界 🙂\n\n\tend",
    "<s>control</s> and more",
    "",
]


def compare(path) -> None:
    with open_gguf(path) as model:
        own = load_tokenizer(model)
        theirs = Tokenizer.from_str(tokenizer_files(model)["tokenizer.json"].decode())
    for text in TEXTS:
        ids = own.encode(text)
        assert ids == theirs.encode(text).ids, text
        assert own.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


def test_sentencepiece_of_the_bundled_model(tmp_path, fixtures):
    path = convert(fixtures / "pylib-llama", tmp_path / "m.gguf", "Q8_0")
    compare(path)
    with open_gguf(path) as model:
        files = {name: json.loads(text) for name, text in tokenizer_files(model).items() if name.endswith(".json")}
    assert files["tokenizer_config.json"]["eos_token"] == "</s>"
    assert files["tokenizer_config.json"]["model_max_length"] == 512
    assert files["generation_config.json"] == {"bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2"])
def test_real_vocabularies(shared, name):
    compare(shared / "vocab" / f"ggml-vocab-{name}.gguf")


def test_other_kinds_are_refused(tmp_path):
    path = tmp_path / "m.gguf"
    metadata = {"general.architecture": "bert", "tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": ["[PAD]", "a"]}
    with Writer(path, metadata, []):
        pass
    with open_gguf(path) as model, pytest.raises(GGUFError, match="kind bert cannot be written"):
        tokenizer_files(model)
