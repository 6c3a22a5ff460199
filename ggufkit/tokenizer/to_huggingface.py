"""A GGUF vocabulary as the files that the `tokenizers` and `transformers` packages read.

    tokenizer.json            vocabulary, merges, added tokens, how a text is cut and put together
    tokenizer_config.json     the special tokens by role, the chat templates
    generation_config.json    the tokens at which generation ends, how to sample
    tokenizer.model           SentencePiece's own file, of its vocabularies with byte-pair merges

SentencePiece's BPE has scores and no merges: a pair merges when its text is a token, the best score first. So each way
to cut a token into two tokens becomes a merge, in the order of the scores.
"""

from __future__ import annotations

import json
from base64 import b64encode
from typing import TYPE_CHECKING, Any

from ggufkit.errors import GGUFError, printable
from ggufkit.tokenizer.run.vocab import (
    BYTE,
    CONTROL,
    LSTRIP,
    RSTRIP,
    UNKNOWN,
    UNUSED,
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


# Kinds of `tokenizer.ggml.model` that the `tokenizers` package has, too.
_KINDS = ("llama", "gpt2", "gemma4", "bert", "t5")

# Key of `general.sampling` → generation_config.json's.
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def tokenizer_files(model: GGUF) -> dict[str, bytes]:
    """File name → contents.

    Raises
    ------
    GGUFError : the model has no tokenizer, or one of a kind that the `tokenizers` package lacks.
    """
    kind = model.get("tokenizer.ggml.model", str, "none")
    vocab = read_vocab(model) if kind in _KINDS else None
    if vocab is None or (kind == "gpt2" and not vocab.pre.byte_encode):
        raise GGUFError(f"a tokenizer of the kind {printable(kind)} cannot be written as tokenizer.json", model.path)
    files: dict[str, Any] = {
        "tokenizer.json": _tokenizer(vocab),
        "tokenizer_config.json": _config(vocab, model),
        "generation_config.json": {
            "bos_token_id": _roles(vocab, model).get("bos"),
            "eos_token_id": _ends(vocab, model),
            **{
                name: value
                for own, name in _SAMPLING.items()
                if type(value := model.metadata.get(f"general.sampling.{own}")) in (int, float)
            },
        },
    }
    texts = {name: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in files.items()}
    contents = {name: text.encode("utf-8", "replace") for name, text in texts.items()}
    return contents | ({"tokenizer.model": sentencepiece_file(vocab)} if vocab.kind == "spm" else {})


def _tokenizer(vocab: Vocab) -> dict[str, Any]:
    if vocab.kind == "bpe":
        parts = _byte_pairs(vocab) if vocab.pre.byte_encode else _pieces_with_merges(vocab)
    else:
        parts = {"spm": _sentencepiece, "wordpiece": _wordpiece, "unigram": _unigram}[vocab.kind](vocab)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocab),
        "post_processor": _template(vocab, parts.pop("post_processor", None)),
        **parts,
    }


def _is_padding(vocab: Vocab, token: int) -> bool:
    """A row of the embedding without a token, which GGUF gives a name."""
    return bool(vocab.attributes[token] & UNUSED) and vocab.texts[token] == f"[PAD{token}]"


def _model_tokens(vocab: Vocab) -> int:
    """How many tokens the tokenizer's model has itself: behind them there are only added ones and padding."""
    count = len(vocab)
    while count and (vocab.attributes[count - 1] & (CONTROL | USER_DEFINED) or _is_padding(vocab, count - 1)):
        count -= 1
    return count


def _added_tokens(vocab: Vocab) -> list[dict[str, Any]]:
    return [
        {
            "id": token,
            "content": vocab.texts[token],
            "single_word": False,
            "lstrip": bool(attribute & LSTRIP),
            "rstrip": bool(attribute & RSTRIP),
            # Of byte pairs nothing is normalized, and a token that is called so keeps its text when it is read again.
            "normalized": vocab.kind == "bpe" and vocab.pre.byte_encode,
            "special": bool(attribute & (CONTROL | UNKNOWN)),
        }
        for token, attribute in enumerate(vocab.attributes)
        if attribute & (CONTROL | UNKNOWN | USER_DEFINED)
    ]


def _template(vocab: Vocab, last: dict[str, Any] | None) -> dict[str, Any] | None:
    """Puts BOS before and EOS after a text, where the vocabulary wants them; SEP after one in WordPiece."""
    before = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
    after = [vocab.eos] if vocab.add_eos and vocab.eos is not None else []
    if vocab.kind == "wordpiece":
        after = [token for token in (vocab.sep,) if token is not None]
    if not before and not after:
        return last

    def special(*tokens: int, type_id: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": vocab.texts[token], "type_id": type_id}} for token in tokens]

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": sequence, "type_id": type_id}}
        return [*special(*before, type_id=type_id), text, *special(*after, type_id=type_id)]

    pair = around("A", 0) + around("B", 1)
    if vocab.kind == "wordpiece":
        del pair[len(pair) // 2 : len(pair) // 2 + len(before)]
    elif vocab.add_sep and after:  # <s> A </s> </s> B </s>
        pair = [*around("A", 0), *special(*after, type_id=0), *around("B", 0)[len(before) :]]
    names = {vocab.texts[t]: {"id": vocab.texts[t], "ids": [t], "tokens": [vocab.texts[t]]} for t in before + after}
    template = {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
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


def _wordpiece(vocab: Vocab) -> dict[str, Any]:
    """BERT's: pieces inside a word are marked again, instead of the words' starts."""
    ids = {}
    for token, (text, attribute) in enumerate(zip(vocab.texts, vocab.attributes, strict=True)):
        if _is_padding(vocab, token):
            continue
        marked = text if attribute & (CONTROL | UNKNOWN) else "##" + text
        ids[text[1:] if text.startswith(_SPACE) and len(text) > 1 else marked] = token
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None if vocab.strip_accents == vocab.lowercase else vocab.strip_accents,
            "lowercase": vocab.lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": vocab.clean_spaces},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]" if vocab.unk is None else vocab.texts[vocab.unk],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    }


def _unigram(vocab: Vocab) -> dict[str, Any]:
    """SentencePiece's unigram model."""
    count = _model_tokens(vocab)
    rules: list[dict[str, Any]] = []
    if vocab.charsmap:
        rules.append({"type": "Precompiled", "precompiled_charsmap": b64encode(vocab.charsmap).decode()})
    if vocab.remove_extra_spaces:
        rules.append({"type": "Strip", "strip_left": True, "strip_right": True})
        rules.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    scheme = "always" if vocab.add_space_prefix else "never"
    spaces = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": True}
    return {
        "normalizer": {"type": "Sequence", "normalizers": rules} if rules else None,
        "pre_tokenizer": spaces,
        "decoder": spaces,
        "model": {
            "type": "Unigram",
            "unk_id": vocab.unk,
            "vocab": [[text, score] for text, score in zip(vocab.texts[:count], vocab.scores, strict=False)],
            "byte_fallback": False,
        },
    }


def _bpe_model(vocab: Vocab, merges: list[list[str]], **settings: bool) -> dict[str, Any]:
    count = _model_tokens(vocab)
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
        "vocab": {text: token for text, token in vocab.ids.items() if token < count},
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
        "clean_up_tokenization_spaces": vocab.kind == "unigram" and vocab.remove_extra_spaces,
    }
    for role, token in _roles(vocab, model).items():
        config[f"{role}_token"] = vocab.texts[token]
    if vocab.kind in ("wordpiece", "unigram") and vocab.add_bos and vocab.bos is not None:
        config["cls_token"] = vocab.texts[vocab.bos]
    prefix = model.get("tokenizer.ggml.add_space_prefix", bool, None)
    if prefix is not None and (vocab.kind != "bpe" or not prefix):
        config["add_prefix_space"] = prefix
    if declared := _declared(vocab):
        config["added_tokens_decoder"] = declared
    architecture = model.get("general.architecture", str, "")
    context = model.get(f"{architecture}.context_length", int, None)
    if context:
        config["model_max_length"] = context
    template = model.get("tokenizer.chat_template", str, None)
    named = model.get("tokenizer.chat_templates", list, None) or []
    templates = [
        {"name": name, "template": text}
        for name in named
        if isinstance(name, str) and (text := model.get(f"tokenizer.chat_template.{name}", str, None)) is not None
    ]
    if templates:
        default = [{"name": "default", "template": template}] if template else []
        config["chat_template"] = [*default, *templates]
    elif template:
        config["chat_template"] = template
    return config


# Role → its name in GGUF's keys.
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}


def _roles(vocab: Vocab, model: GGUF) -> dict[str, int]:
    """Special tokens; of byte pairs those that the file names: what llama.cpp takes where it does not is GPT-2's."""
    return {
        role: token
        for role, key in _ROLES.items()
        if (token := getattr(vocab, role)) is not None
        and (vocab.kind != "bpe" or f"tokenizer.ggml.{key}_token_id" in model.fields)
    }


def _ends(vocab: Vocab, model: GGUF) -> int | list[int] | None:
    """Tokens at which generation ends: first that of a turn, then that of a text."""
    eos = _roles(vocab, model).get("eos")
    if len(vocab.ends) < 2:
        return eos
    return list(dict.fromkeys(token for token in (vocab.eot, eos, *sorted(vocab.ends)) if token in vocab.ends))


def _declared(vocab: Vocab) -> dict[str, dict[str, Any]]:
    """Added tokens that a tokenizer.model takes for pieces like any other."""
    if vocab.kind != "spm":
        return {}
    pieces = {token for token, attribute in enumerate(vocab.attributes) if attribute & USER_DEFINED}
    return {str(entry.pop("id")): entry for entry in _added_tokens(vocab) if entry["id"] in pieces}
