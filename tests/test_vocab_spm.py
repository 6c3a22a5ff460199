"""Vocabularies of SentencePiece models: BPE, Unigram, and the families' own additions."""

import json

import pytest
import sentencepiece as spm

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError
from ggufkit.tokenizer.from_checkpoint import variants
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece
from ggufkit.tokenizer.from_checkpoint.spm_settings import UNIGRAM, read_settings
from ggufkit.tokenizer.from_checkpoint.tokens import NoTokenizer, TokenType
from ggufkit.tokenizer.from_checkpoint.unigram import t5, xlm_roberta

SIZE = 60


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Kind → bytes of a small trained model."""
    folder = tmp_path_factory.mktemp("spm")
    text = folder / "text"
    text.write_text("\n".join(f"the cat number {i} sat on a mat and ate {i * i} rats" for i in range(200)))
    found = {}
    for kind in ("bpe", "unigram"):
        spm.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(folder / kind), model_type=kind, vocab_size=SIZE, minloglevel=2
        )
        found[kind] = (folder / f"{kind}.model").read_bytes()
    return found


def convert(vocabulary, folder, config=None, **files):
    for name, value in files.items():
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        (folder / name.replace("__", ".")).write_bytes(data)
    config = config or {}
    pairs = vocabulary(Checkpoint(folder, b"", config, {}), Config(config))
    return {key.removeprefix("tokenizer.").removeprefix("ggml."): value.value for key, value in pairs}


def test_sentencepiece_added_tokens_and_padding(tmp_path, models):
    settings = {
        "bos_token": "<s>",
        "added_tokens_decoder": {
            str(SIZE + 1): {"content": "<turn>", "special": True},
            str(SIZE + 2): {"content": "\u2581\u2581", "special": False},
            str(SIZE + 9): {"content": "beyond", "special": True},
        },
    }
    found = convert(
        sentencepiece,
        tmp_path,
        {"vocab_size": SIZE + 4},
        tokenizer__model=models["bpe"],
        added_tokens__json={"<more>": SIZE},
        tokenizer_config__json=settings,
    )
    assert found["tokens"][SIZE:] == ["<more>", "<turn>", "  ", f"[PAD{SIZE + 3}]"]
    assert [TokenType(t).name for t in found["token_type"][SIZE:]] == [
        "USER_DEFINED",
        "CONTROL",
        "USER_DEFINED",
        "UNUSED",
    ]
    assert found["tokens"][:3] == ["<unk>", "<s>", "</s>"]
    assert found["scores"][SIZE:] == [-1000.0] * 3 + [-10000.0]


def test_sentencepiece_missing_or_broken(tmp_path, models):
    with pytest.raises(NoTokenizer, match=r"no tokenizer\.model"):
        convert(sentencepiece, tmp_path)
    with pytest.raises(CheckpointError, match="no SentencePiece model"):
        convert(sentencepiece, tmp_path, tokenizer__model=b"\x0a\xff\xff")
    with pytest.raises(CheckpointError, match="no token id"):
        convert(sentencepiece, tmp_path, tokenizer__model=models["bpe"], added_tokens__json={"x": -1})


def test_settings_of_a_model(tmp_path, models):
    path = tmp_path / "m"
    path.write_bytes(models["unigram"])
    settings = read_settings(path)
    assert (settings.model_type, settings.add_dummy_prefix, settings.remove_extra_whitespaces) == (UNIGRAM, True, True)
    assert len(settings.precompiled_charsmap) > 1000
    path.write_bytes(models["unigram"][:-3])
    with pytest.raises(CheckpointError, match="truncated"):
        read_settings(path)


def test_t5_of_either_file(tmp_path, models):
    found = convert(
        t5, tmp_path, {"vocab_size": SIZE + 1}, spiece__model=models["unigram"], added_tokens__json={"<x>": SIZE}
    )
    assert found["model"] == "t5"
    assert found["tokens"][-1] == "<x>"
    assert (found["add_space_prefix"], found["remove_extra_whitespaces"]) == (True, True)
    assert len(found["precompiled_charsmap"]) > 1000
    assert convert(t5, tmp_path, tokenizer__model=models["bpe"])["model"] == "llama"


def test_xlm_roberta_realigns_the_first_tokens(tmp_path, models):
    found = convert(xlm_roberta, tmp_path, {"vocab_size": SIZE + 2}, sentencepiece__bpe__model=models["unigram"])
    pieces = convert(t5, tmp_path, spiece__model=models["unigram"])["tokens"]
    assert found["tokens"] == ["<s>", "<pad>", "</s>", "<unk>", *pieces[3:], f"[PAD{SIZE}]"]
    assert [TokenType(t).name for t in found["token_type"][:4]] == ["CONTROL", "CONTROL", "CONTROL", "UNKNOWN"]


def test_xlm_roberta_of_tokenizer_json(tmp_path):
    described = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": 0,
                "content": "<s>",
                "special": True,
                "normalized": False,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
            }
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]},
        "model": {"type": "Unigram", "unk_id": 1, "vocab": [["<s>", 0.0], ["<unk>", 0.0], ["\u2581a", -1.5]]},
    }
    settings = {"bos_token": "<s>", "unk_token": "<unk>"}
    found = convert(xlm_roberta, tmp_path, tokenizer__json=described, tokenizer_config__json=settings)
    assert found["tokens"] == ["<s>", "<unk>", "\u2581a"]
    assert [TokenType(t).name for t in found["token_type"]] == ["CONTROL", "UNKNOWN", "NORMAL"]
    assert "precompiled_charsmap" not in found
    described["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "§"}
    with pytest.raises(CheckpointError):
        convert(xlm_roberta, tmp_path, tokenizer__json=described)


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [
        (variants.GEMMA, {"eot_token_id": 107, "add_space_prefix": False}),
        (variants.GEMMA3, {"add_space_prefix": False}),
        (variants.NEMOTRON, {"padding_token_id": 0, "unknown_token_id": 1}),
        (variants.MPT, {"add_bos_token": False, "padding_token_id": 3, "eos_token_id": 1, "unknown_token_id": 0}),
    ],
)
def test_variants_with_fixed_tokens(tmp_path, models, vocabulary, expected):
    found = convert(vocabulary, tmp_path, tokenizer__model=models["bpe"])
    assert {key: found[key] for key in expected} == expected


def test_phi3_takes_tokens_of_both_files(tmp_path, models):
    settings = {"added_tokens_decoder": {str(SIZE): {"content": "<|a|>", "special": False}}}
    described = {"added_tokens": [{"id": SIZE + 1, "content": "<b>", "special": True}]}
    found = convert(
        variants.phi3,
        tmp_path,
        {"vocab_size": SIZE + 2},
        tokenizer__model=models["bpe"],
        tokenizer_config__json=settings,
        tokenizer__json=described,
    )
    assert found["tokens"][SIZE:] == ["<|a|>", "<b>"]
    assert [TokenType(t).name for t in found["token_type"][SIZE:]] == ["USER_DEFINED", "CONTROL"]


def test_internlm2_ends_with_im_end(tmp_path, models):
    settings = {"added_tokens_decoder": {str(SIZE): {"content": "<|im_end|>", "special": True}}}
    config = {"vocab_size": SIZE + 1, "eos_token_id": 2}
    found = convert(
        variants.internlm2, tmp_path, config, tokenizer__model=models["bpe"], tokenizer_config__json=settings
    )
    assert found["eos_token_id"] == SIZE
    assert convert(variants.internlm3, tmp_path, config)["eos_token_id"] == SIZE


def test_padded_rounds_the_vocabulary_up(tmp_path, models):
    vocabulary = variants.padded(sentencepiece, 16)
    assert len(convert(vocabulary, tmp_path, {"vocab_size": SIZE}, tokenizer__model=models["bpe"])["tokens"]) == 64
