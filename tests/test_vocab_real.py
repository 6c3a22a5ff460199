"""Real vocabularies: a tokenizer that is rebuilt from a GGUF file converts to the vocabulary of that file.

The files are of 2024. What the converter does otherwise since then is named in `CHANGED`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import sentencepiece_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ggufkit.arch.registry import architecture_of
from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.gguf import reader
from ggufkit.tokenizer.from_checkpoint.fast import _QWEN2_SPLIT
from ggufkit.tokenizer.from_checkpoint.tokens import TokenType

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CLASSES = {
    "bert-bge": "BertModel",
    "gpt-2": "GPT2LMHeadModel",
    "llama-bpe": "LlamaForCausalLM",
    "llama-spm": "LlamaForCausalLM",
    "phi-3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
# BERT's vocabularies share one pre-tokenizer, which is called after another model today.
CHANGED = {("bert-bge", "pre"): "jina-v2-en"}

ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unknown": "unk",
    "seperator": "sep",
    "padding": "pad",
    "cls": "cls",
    "mask": "mask",
}


def rebuild(folder: Path, name: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Write the tokenizer files that the vocabulary of a GGUF came from; returns config.json."""
    texts, kinds = metadata["tokens"], metadata["token_type"]
    settings: dict[str, Any] = {
        f"{role}_token": texts[metadata[f"{key}_token_id"]]
        for key, role in ROLES.items()
        if f"{key}_token_id" in metadata
    }
    settings |= {key: metadata[key] for key in ("add_bos_token", "add_eos_token") if key in metadata}
    config: dict[str, Any] = {"architectures": [CLASSES[name]], "vocab_size": len(texts)}
    config |= {f"{role}_token_id": metadata.get(f"{key}_token_id") for key, role in ROLES.items()}
    if metadata["model"] == "llama":
        added = {
            i
            for i, kind in enumerate(kinds)
            if kind in (TokenType.CONTROL, TokenType.USER_DEFINED) and metadata["scores"][i] == -1000
        }
        real = [i for i, text in enumerate(texts) if text != f"[PAD{i}]" and (i < 3 or i not in added)]
        pieces = [(texts[i], metadata["scores"][i], kinds[i]) for i in real]
        (folder / "tokenizer.model").write_bytes(sentencepiece_file(pieces))
        settings["added_tokens_decoder"] = {
            i: {"content": texts[i], "special": kinds[i] == TokenType.CONTROL} for i in sorted(added)
        }
    elif metadata["model"] == "bert":
        config["type_vocab_size"] = metadata["token_type_count"]
        word_piece(texts, kinds).save(str(folder / "tokenizer.json"))
    else:
        byte_level(name, metadata).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return config


def byte_level(name: str, metadata: dict[str, Any]) -> Tokenizer:
    texts, kinds = metadata["tokens"], metadata["token_type"]
    normal = {text: i for i, text in enumerate(texts) if kinds[i] == TokenType.NORMAL}
    merges = [tuple(merge.split(" ")) for merge in metadata["merges"]]
    tokenizer = Tokenizer(models.BPE(normal, merges, ignore_merges=name == "llama-bpe"))
    split = {"llama-bpe": LLAMA3_SPLIT, "qwen2": _QWEN2_SPLIT}.get(name)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False) for t, kind in zip(texts, kinds, strict=True) if kind == TokenType.CONTROL]
    )
    if name == "llama-bpe":
        bos = metadata["bos_token_id"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{texts[bos]} $A", pair=f"{texts[bos]} $A {texts[bos]} $B", special_tokens=[(texts[bos], bos)]
        )
    return tokenizer


def word_piece(texts: list[str], kinds: list[int]) -> Tokenizer:
    def inner(text: str) -> str:
        return text[1:] if text.startswith("\u2581") else f"##{text}"

    control = [kind == TokenType.CONTROL for kind in kinds]
    words = [t if special or t.startswith("[unused") else inner(t) for t, special in zip(texts, control, strict=True)]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([word for word, special in zip(words, control, strict=True) if special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))],
    )
    return tokenizer


@pytest.mark.parametrize("name", CLASSES)
def test_vocabulary_comes_back_from_its_tokenizer(shared: Path, tmp_path: Path, name: str):
    with reader.open(shared / "vocab" / f"ggml-vocab-{name}.gguf") as model:
        expected = {
            key.removeprefix("tokenizer.ggml."): value
            for key, value in model.metadata.items()
            if key.startswith("tokenizer.ggml.")
        }
    config = rebuild(tmp_path, name, expected)
    spec, _ = architecture_of(config)
    pairs = spec.vocabulary(Checkpoint(tmp_path, b"", config, {}), Config(config))
    found = {key.removeprefix("tokenizer.ggml."): value.value for key, value in pairs}

    padding = {i for i, text in enumerate(expected["tokens"]) if text == f"[PAD{i}]"}
    for key, value in expected.items():
        if key == "cls_token_id":  # no longer written: it is the bos
            assert found["bos_token_id"] == value
        elif key == "tokens":
            # BERT's unused tokens start words as well, today.
            assert [t.removeprefix("\u2581") if "[unused" in t else t for t in found[key]] == value
        elif key == "token_type":
            assert found[key] == [TokenType.UNUSED if i in padding else kind for i, kind in enumerate(value)]
        elif key == "scores":
            kept = [i for i in range(len(value)) if i not in padding]
            assert [found[key][i] for i in kept] == [value[i] for i in kept]
        else:
            assert found[key] == CHANGED.get((name, key), value), key
