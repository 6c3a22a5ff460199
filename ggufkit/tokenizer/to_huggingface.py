"""A GGUF vocabulary as the files that the `tokenizers` and `transformers` packages read.

    tokenizer.json            vocabulary, merges, added tokens, how a text is cut and put together
    tokenizer_config.json     the special tokens by role, the chat template
    generation_config.json    the tokens at which generation ends
    tokenizer.model           SentencePiece's own file, of its vocabularies

SentencePiece's BPE has scores and no merges: a pair merges when its text is a token, the best score first. So each way
to cut a token into two tokens becomes a merge, in the order of the scores.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ggufkit.errors import GGUFError, printable
from ggufkit.tokenizer.run.vocab import (
    BYTE,
    CONTROL,
    LSTRIP,
    RSTRIP,
    UNKNOWN,
    USER_DEFINED,
    Vocab,
    read_vocab,
)
from ggufkit.tokenizer.to_sentencepiece import sentencepiece_file

if TYPE_CHECKING:
    from ggufkit.gguf.reader import GGUF

__all__ = ["tokenizer_files"]

_SPACE = "\u2581"

# Pieces to text.
_SPM_DECODERS: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]


def tokenizer_files(model: GGUF) -> dict[str, bytes]:
    """File name → contents.

    Raises
    ------
    GGUFError : the model has no tokenizer, or one of another kind than byte-pair encoding.
    """
    kind = model.get("tokenizer.ggml.model", str, "none")
    vocab = read_vocab(model) if kind in ("llama", "gpt2", "gemma4") else None
    if vocab is None or (kind == "gpt2" and not vocab.pre.byte_encode):
        raise GGUFError(f"a tokenizer of the kind {printable(kind)} cannot be written as tokenizer.json", model.path)
    files: dict[str, Any] = {
        "tokenizer.json": _tokenizer(vocab),
        "tokenizer_config.json": _config(vocab, model),
        "generation_config.json": {
            "bos_token_id": vocab.bos,
            "eos_token_id": sorted(vocab.ends) if len(vocab.ends) > 1 else vocab.eos,
        },
    }
    texts = {name: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in files.items()}
    contents = {name: text.encode("utf-8", "replace") for name, text in texts.items()}
    return contents | ({"tokenizer.model": sentencepiece_file(vocab)} if vocab.kind == "spm" else {})


def _tokenizer(vocab: Vocab) -> dict[str, Any]:
    if vocab.kind == "spm":
        parts = _sentencepiece(vocab)
    else:
        parts = _byte_pairs(vocab) if vocab.pre.byte_encode else _pieces_with_merges(vocab)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocab),
        "post_processor": _template(vocab, parts.pop("post_processor", None)),
        **parts,
    }


def _added_tokens(vocab: Vocab) -> list[dict[str, Any]]:
    return [
        {
            "id": token,
            "content": vocab.texts[token],
            "single_word": False,
            "lstrip": bool(attribute & LSTRIP),
            "rstrip": bool(attribute & RSTRIP),
            "normalized": False,
            "special": bool(attribute & (CONTROL | UNKNOWN)),
        }
        for token, attribute in enumerate(vocab.attributes)
        if attribute & (CONTROL | UNKNOWN | USER_DEFINED)
    ]


def _template(vocab: Vocab, last: dict[str, Any] | None) -> dict[str, Any] | None:
    """Puts BOS before and EOS after a text, where the vocabulary wants them."""
    before = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
    after = [vocab.eos] if vocab.add_eos and vocab.eos is not None else []
    if not before and not after:
        return last

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        special = [
            [{"SpecialToken": {"id": vocab.texts[t], "type_id": type_id}} for t in ids] for ids in (before, after)
        ]
        return [*special[0], {"Sequence": {"id": sequence, "type_id": type_id}}, *special[1]]

    names = {vocab.texts[t]: {"id": vocab.texts[t], "ids": [t], "tokens": [vocab.texts[t]]} for t in before + after}
    template = {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": names,
    }
    return template if last is None else {"type": "Sequence", "processors": [last, template]}


def _byte_pairs(vocab: Vocab) -> dict[str, Any]:
    cuts = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in vocab.pre.patterns
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, byte_level]},
        "post_processor": byte_level,
        "decoder": {**byte_level, "trim_offsets": True, "use_regex": True},
        "model": _bpe_model(
            vocab, [pair.split(" ", 1) for pair in vocab.merges], ignore_merges=vocab.pre.ignore_merges
        ),
    }


def _pieces_with_merges(vocab: Vocab) -> dict[str, Any]:
    """SentencePiece's pieces, of which the merges are known: Gemma 4."""
    merges = [pair.split(" ", 1) for pair in vocab.merges]
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": {"type": "Sequence", "decoders": _SPM_DECODERS},
        "model": _bpe_model(vocab, merges, fuse_unk=True, byte_fallback=True),
    }


def _sentencepiece(vocab: Vocab) -> dict[str, Any]:
    prepend = vocab.add_space_prefix
    decoders = [*_SPM_DECODERS, *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prepend else [])]
    # A space goes before a text and what follows a special token, even where there is one already.
    normalizers: list[dict[str, Any]] = [{"type": "Prepend", "prepend": _SPACE}] if prepend else []
    normalizers.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe_model(vocab, _merges(vocab), fuse_unk=True, byte_fallback=True),
    }


def _bpe_model(vocab: Vocab, merges: list[list[str]], **settings: bool) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if vocab.unk is None else vocab.texts[vocab.unk],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **settings,
        "vocab": vocab.ids,
        "merges": merges,
    }


def _merges(vocab: Vocab) -> list[list[str]]:
    """Every way to cut a token into two tokens, the best score of the whole first."""
    plain = {
        text: token
        for text, token in vocab.ids.items()
        if not vocab.attributes[token] & (BYTE | CONTROL | UNKNOWN | USER_DEFINED)
    }
    found = []
    for text, token in plain.items():
        ways = [(text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in plain and text[i:] in plain]
        # Of one token's ways the one whose parts have the best scores: SentencePiece merges from the left.
        ways.sort(key=lambda way: (plain[way[0]], plain[way[1]]))
        found += [(-vocab.scores[token], token, i, way) for i, way in enumerate(ways)]
    return [list(way) for *_, way in sorted(found)]


def _config(vocab: Vocab, model: GGUF) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": vocab.add_bos,
        "add_eos_token": vocab.add_eos,
        "clean_up_tokenization_spaces": False,
    }
    for role in ("bos", "eos", "unk", "pad", "sep", "mask"):
        token = getattr(vocab, role)
        if token is not None:
            config[f"{role}_token"] = vocab.texts[token]
    architecture = model.get("general.architecture", str, "")
    context = model.get(f"{architecture}.context_length", int, None)
    if context:
        config["model_max_length"] = context
    if template := model.get("tokenizer.chat_template", str, None):
        config["chat_template"] = template
    return config
