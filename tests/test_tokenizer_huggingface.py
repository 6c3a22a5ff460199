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

# Of the spaces at a text's ends, and of unknown signs, the packages think otherwise.
PLAIN = ["Hello, world! It's 2026; 1234567 .", "naïve café — Größe, 世界", "de vrouw the quick brown foxes", "x"]


def compare(path, texts=TEXTS) -> None:
    with open_gguf(path) as model:
        own = load_tokenizer(model)
        theirs = Tokenizer.from_str(tokenizer_files(model)["tokenizer.json"].decode())
    for text in texts:
        ids = own.encode(text)
        assert ids == theirs.encode(text).ids, text
        if texts is TEXTS:  # WordPiece is put together by rules of taste
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


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_encoders_cut_words_the_same(name, checkpoints, tmp_path):
    compare(convert(checkpoints / name / "hf", tmp_path / "m.gguf", "F32"), PLAIN)


def test_pairs_are_put_together_as_bert_has_them(checkpoints, tmp_path):
    folder = checkpoints / "bert" / "hf"
    with open_gguf(convert(folder, tmp_path / "m.gguf", "F32")) as model:
        theirs = Tokenizer.from_str(tokenizer_files(model)["tokenizer.json"].decode())
    source = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected, found = source.encode("a question", "its answer"), theirs.encode("a question", "its answer")
    assert (expected.ids, expected.type_ids) == (found.ids, found.type_ids)


def test_other_kinds_are_refused(tmp_path):
    path = tmp_path / "m.gguf"
    metadata = {"general.architecture": "rwkv7", "tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": ["<s>", "a"]}
    with Writer(path, metadata, []):
        pass
    with open_gguf(path) as model, pytest.raises(GGUFError, match="kind rwkv cannot be written"):
        tokenizer_files(model)
