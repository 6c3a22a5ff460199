"""Mistral's own vocabularies: `tekken.json`, or a SentencePiece model beside params.json.

    {"config": {"default_vocab_size": …, "default_num_special_tokens": …, "version": "v3"},
     "vocab": [{"rank": 0, "token_bytes": "AA==", …}, …],
     "special_tokens": [{"rank": 0, "token_str": "<unk>", …}, …]}

The special tokens come first, and those without a name are called after their number.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, os_errors, printable
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tokenizer.from_checkpoint.ranks import all_merges, spelled
from ggufkit.tokenizer.from_checkpoint.spm import read_model
from ggufkit.tokenizer.from_checkpoint.tokens import NoTokenizer, TokenType, Vocabulary

__all__ = ["mistral"]

# What tokenizers of up to version 7 leave out.
_FIRST_SPECIAL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)

_MOST = 1 << 20  # special tokens; files have 1000
_MODEL = re.compile(r"tokenizer\.model(\.v\d+(m\d+)?)?")

# llama.cpp's own chat templates, by version of the tokenizer; of later ones a checkpoint must have its own.
_TEMPLATES = {
    ("v1", "spm"): "mistral-v1",
    ("v3", "spm"): "mistral-v3",
    ("v3", "tekken"): "mistral-v3-tekken",
    ("v7", "spm"): "mistral-v7",
    ("v7", "tekken"): "mistral-v7-tekken",
}


# GGUF's keys of roles → the tokens that have them.
_ROLES = {"bos": "<s>", "eos": "</s>", "unknown": "<unk>", "padding": "<pad>"}


def mistral(architecture: str = "") -> Vocabulary:
    """`tokenizer.*` of a Mistral without tokenizer.json; with the vocabulary's size, where that has a key yet to come.

    Raises
    ------
    NoTokenizer : there is neither a tekken.json nor, in Mistral's own format, a SentencePiece model.
    CheckpointError : it is malformed.
    """

    def vocabulary(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
        described = checkpoint.json("tekken.json")
        if described is not None:
            version, pairs, size = _tekken(f"{printable(checkpoint.folder)}/tekken.json", described)
            found = "tekken"
        elif architecture:
            version, pairs, size = _sentencepiece(checkpoint)
            found = "spm"
        else:
            raise NoTokenizer(f"{printable(checkpoint.folder)} has no tekken.json")
        yield from pairs.items()
        if architecture:
            yield f"{architecture}.vocab_size", Value(ValueType.UINT32, size)
        yield "tokenizer.ggml.add_bos_token", Value(ValueType.BOOL, True)
        yield "tokenizer.ggml.add_eos_token", Value(ValueType.BOOL, False)
        own = checkpoint.text("chat_template.jinja") if architecture else None
        if (template := own or _TEMPLATES.get((version, found))) is not None:
            yield "tokenizer.chat_template", Value(ValueType.STRING, template)

    return vocabulary


def _tekken(where: str, described: dict[str, Any]) -> tuple[str, dict[str, Value], int]:
    """(version, metadata, number of tokens) of a tekken.json."""
    config, vocab = described.get("config"), described.get("vocab")
    declared = described.get("special_tokens")
    try:
        if not isinstance(config, dict) or not isinstance(vocab, list):
            raise ValueError("it needs a config and a vocab")
        size, n_special = int(config["default_vocab_size"]), int(config["default_num_special_tokens"])
        special = list(_FIRST_SPECIAL) if declared is None else [str(entry["token_str"]) for entry in declared]
        if not len(special) <= n_special <= min(size, _MOST) or size > len(vocab) + n_special:
            raise ValueError(f"{size} tokens with {n_special} special ones do not fit {len(vocab)} and {len(special)}")
        ranks = {b64decode(entry["token_bytes"], validate=True): n for n, entry in enumerate(vocab[: size - n_special])}
    except (KeyError, TypeError, ValueError, binascii.Error) as e:
        raise CheckpointError(f"{where} is no vocabulary of Mistral's: {printable(e)}") from None
    special += [f"<SPECIAL_{number}>" for number in range(len(special), n_special)]
    texts = [*special, *map(spelled, ranks)]
    types = [TokenType.CONTROL] * len(special) + [TokenType.NORMAL] * len(ranks)
    pairs = {
        "tokenizer.ggml.model": Value(ValueType.STRING, "gpt2"),
        "tokenizer.ggml.pre": Value(ValueType.STRING, "tekken"),
        "tokenizer.ggml.merges": Value(ValueType.ARRAY, all_merges(ranks), ValueType.STRING),
    }
    for key, text in _ROLES.items():
        if text not in special:
            raise CheckpointError(f"{where} has no special token {text}")
        pairs[f"tokenizer.ggml.{key}_token_id"] = Value(ValueType.UINT32, special.index(text))
    # Without scores, which are therefore whole numbers.
    lists = {"tokens": (texts, ValueType.STRING), "scores": ([0] * len(texts), ValueType.INT32)}
    pairs |= {f"tokenizer.ggml.{key}": Value(ValueType.ARRAY, *items) for key, items in lists.items()}
    pairs["tokenizer.ggml.token_type"] = Value(ValueType.ARRAY, [int(kind) for kind in types], ValueType.INT32)
    return str(config.get("version")), pairs, len(texts)


def _sentencepiece(checkpoint: Checkpoint) -> tuple[str, dict[str, Value], int]:
    """The same of `tokenizer.model`, or of the last of tokenizer.model.v1, v2, …"""
    from sentencepiece import SentencePieceProcessor

    with os_errors(checkpoint.folder, "read"):
        names = [path.name for path in checkpoint.folder.iterdir() if _MODEL.fullmatch(path.name) and path.is_file()]
    if not names:
        raise NoTokenizer(f"{printable(checkpoint.folder)} has neither tekken.json nor tokenizer.model")
    name = max(names)
    tokens = read_model(checkpoint.folder / name, None)
    processor = SentencePieceProcessor()
    processor.LoadFromFile(str(checkpoint.folder / name))
    end, pad = processor.eos_id(), processor.pad_id()
    ids = (processor.bos_id(), end, processor.unk_id(), end if pad < 0 else pad)
    pairs = {"tokenizer.ggml.model": Value(ValueType.STRING, "llama")}
    for key, token in zip(_ROLES, ids, strict=True):
        if token < 0:
            raise CheckpointError(f"{printable(checkpoint.folder / name)} has no {_ROLES[key]}")
        pairs[f"tokenizer.ggml.{key}_token_id"] = Value(ValueType.UINT32, token)
    for key, value in tokens.pairs("llama", ""):
        if key not in ("tokenizer.ggml.model", "tokenizer.ggml.pre"):
            pairs[key] = value
    return (name.removeprefix("tokenizer.model").removeprefix(".").partition("m")[0] or "v1"), pairs, len(tokens)
