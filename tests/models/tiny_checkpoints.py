"""Tiny checkpoints, the same on every machine: a config, weights, a tokenizer of some 300 tokens.

    write(FAMILIES["gemma3"], folder)   # what a Hugging Face repository of a Gemma 3 of 32 columns would hold

`tiny_families` has the architectures.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

__all__ = [
    "BPE_TOKENS",
    "FFN",
    "HEAD",
    "HEADS",
    "KV_HEADS",
    "LAYERS",
    "SPM_TOKENS",
    "UNIGRAM_TOKENS",
    "WIDTH",
    "WORDS",
    "Shapes",
    "Tiny",
    "attention",
    "config",
    "decoder",
    "gated",
    "linear",
    "llama_layer",
    "norm",
    "sentencepiece_file",
    "weights",
    "write",
]

WIDTH, FFN, LAYERS, HEADS, KV_HEADS, HEAD = 32, 48, 2, 4, 2, 8
BPE_TOKENS, SPM_TOKENS, UNIGRAM_TOKENS, WORDS = 260, 276, 20, 34

Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass
class Tiny:
    """A checkpoint to write.

    Attributes
    ----------
    config : `config.json`; without "architectures" params.json of Mistral's own format.
    shapes : (name, shape) of its tensors.
    tokenizer : "bpe", "spm", "unigram" or "wordpiece"; "none" where `files` has another kind.
    dtype : of its weights: "F32", "F16" or "BF16".
    settings : more of tokenizer_config.json.
    files : more files, path → JSON.
    """

    config: dict[str, Any]
    shapes: Iterable[tuple[str, tuple[int, ...]]]
    tokenizer: str = "bpe"
    dtype: str = "BF16"
    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)


# ---- weights ----------------------------------------------------------------------------------------------------


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Multiples of 1/64 between -1/8 and 1/8; positive ones for norms and decays, zero for biases that must be."""
    n = int(np.prod(shape))
    mixed = (np.arange(n, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(crc32(name.encode()))) & 0xFFFFFFFF
    mixed = (mixed ^ (mixed >> np.uint64(15))) * np.uint64(2246822519) & np.uint64(0xFFFFFFFF)
    values = ((mixed >> np.uint64(16)) % np.uint64(17)).astype(np.float32) / 64 - 0.125
    if "norm" in name and name.endswith(("weight", "running_var")):
        values = np.float32(1) + values
    return values.reshape(shape)


def save(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    """A safetensors file, written by hand: u64 length | JSON | data."""
    header, data = {}, b""
    for name in sorted(shapes):
        kind, raw = encoded(weights(name, shapes[name]), dtype_of(name, shapes, dtype))
        header[name] = {"dtype": kind, "shape": shapes[name], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def dtype_of(name: str, shapes: dict[str, tuple[int, ...]], dtype: str) -> str:
    """What has a scale beside it is F8_E4M3, the scale F32."""
    if name.endswith("_scale_inv"):
        return "F32"
    return "F8_E4M3" if f"{name}_scale_inv" in shapes else dtype


def encoded(values: np.ndarray, dtype: str) -> tuple[str, bytes]:
    """(dtype, bytes) of weights, which every dtype holds exactly."""
    if dtype == "BF16":
        return dtype, (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    if dtype == "F8_E4M3":  # float16's bits without the last seven, the exponent's bias 7 instead of 15
        bits = (values / 256).astype("<f2").view("<u2")
        return dtype, (bits >> 8 & 0x80 | bits >> 7 & 0x7F).astype(np.uint8).tobytes()
    return dtype, values.astype("<f2" if dtype == "F16" else "<f4").tobytes()


# ---- tokenizers -------------------------------------------------------------------------------------------------

SPECIAL = {"bos": "<|begin|>", "eos": "<|endoftext|>", "user": "<|user|>"}


def byte_alphabet() -> list[str]:
    """GPT-2's 256 letters, one per byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [
        chr(byte if byte in plain else 256 + i) for i, byte in enumerate([*plain, *sorted({*range(256)} - {*plain})])
    ]


def bpe_files() -> dict[str, Any]:
    letters = sorted(set(byte_alphabet()))[:256]
    vocab = {letter: i for i, letter in enumerate(letters)}
    vocab["th"] = len(vocab)
    special = [
        {"id": len(vocab) + i, "content": text, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i, text in enumerate(SPECIAL.values())
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": ["t h"]}
        | dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
        | {"fuse_unk": False, "byte_fallback": False},
    }
    return {"tokenizer.json": tokenizer}


def wordpiece_files() -> dict[str, Any]:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 123)), "the", "##ing", "##s"]
    special = [
        {"id": i, "content": text, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i, text in enumerate(words[:5])
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
        | {"strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_piece("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, _piece("[SEP]")],
            "pair": [
                _piece("[CLS]"),
                {"Sequence": {"id": "A", "type_id": 0}},
                _piece("[SEP]"),
                {"Sequence": {"id": "B", "type_id": 1}},
                _piece("[SEP]"),
            ],
            "special_tokens": {t: {"id": t, "ids": [words.index(t)], "tokens": [t]} for t in ("[CLS]", "[SEP]")},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: i for i, word in enumerate(words)},
        },
    }
    return {"tokenizer.json": tokenizer}


def _piece(text: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": text, "type_id": 0}}


def sentencepiece_model(unigram: bool) -> bytes:
    """A model file of a few letters; of BPE also with all bytes."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    if not unigram:
        pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    letters = ["\u2581", *"etaoinshrdlucm", "\u2581t", "th"]
    return sentencepiece_file([*pieces, *((text, -float(i), 1) for i, text in enumerate(letters))], unigram)


def sentencepiece_file(pieces: Iterable[tuple[str, float, int]], unigram: bool = False) -> bytes:
    """A SentencePiece model of some pieces (text, score, type), in protobuf's wire format.

    ModelProto   1 piece {1 text, 2 score, 3 type}   2 trainer {3 kind, 35 byte_fallback}
                 3 normalizer {1 name, 3 add_dummy_prefix, 4 remove_extra_whitespaces}
    """

    def varint(number: int) -> bytes:
        out = b""
        while number > 127:
            out += bytes([number & 127 | 128])
            number >>= 7
        return out + bytes([number])

    def message(number: int, payload: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(payload)) + payload

    out = b"".join(
        message(1, message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind))
        for text, score, kind in pieces
    )
    trainer = b"\x18" + varint(1 if unigram else 2) + (b"" if unigram else b"\x98\x02\x01")
    normalizer = message(1, b"identity") + b"\x18\x01\x20\x00"
    return out + message(2, trainer) + message(3, normalizer)


def tokenizer_files(tiny: Tiny) -> dict[str, Any]:
    if tiny.tokenizer == "bpe":
        roles = {"bos_token": SPECIAL["bos"], "eos_token": SPECIAL["eos"]}
        files = bpe_files()
    elif tiny.tokenizer == "none":
        roles, files = {}, {}
    elif tiny.tokenizer == "wordpiece":
        roles = {f"{kind.lower()}_token": f"[{kind}]" for kind in ("PAD", "UNK", "CLS", "SEP", "MASK")}
        files = wordpiece_files()
    else:
        roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        name = "sentencepiece.bpe.model" if tiny.tokenizer == "unigram" else "tokenizer.model"
        files = {name: sentencepiece_model(tiny.tokenizer == "unigram")}
    default = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048}
    return files | {"tokenizer_config.json": default | roles | tiny.settings}


def write(tiny: Tiny, folder: Path) -> Path:
    """Write a checkpoint to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mistral = "architectures" not in tiny.config
    for file, contents in {
        "params.json" if mistral else "config.json": tiny.config,
        **tokenizer_files(tiny),
        **tiny.files,
    }.items():
        (folder / file).parent.mkdir(exist_ok=True)
        data = contents if isinstance(contents, bytes) else json.dumps(contents, indent=1).encode()
        (folder / file).write_bytes(data)
    save(folder / f"{'consolidated' if mistral else 'model'}.safetensors", dict(tiny.shapes), tiny.dtype)
    return folder


# ---- shapes that many families share ----------------------------------------------------------------------------


def linear(name: str, out: int, into: int, bias: bool = False) -> Shapes:
    yield f"{name}.weight", (out, into)
    if bias:
        yield f"{name}.bias", (out,)


def norm(name: str, size: int = WIDTH, bias: bool = False) -> Shapes:
    yield f"{name}.weight", (size,)
    if bias:
        yield f"{name}.bias", (size,)


def attention(at: str, kv_heads: int = KV_HEADS, bias: bool = False, head: int = HEAD, out: str = "o_proj") -> Shapes:
    yield from linear(f"{at}.q_proj", HEADS * head, WIDTH, bias)
    yield from linear(f"{at}.k_proj", kv_heads * head, WIDTH, bias)
    yield from linear(f"{at}.v_proj", kv_heads * head, WIDTH, bias)
    yield from linear(f"{at}.{out}", WIDTH, HEADS * head, False)


def gated(at: str, ffn: int = FFN) -> Shapes:
    yield from linear(f"{at}.gate_proj", ffn, WIDTH)
    yield from linear(f"{at}.up_proj", ffn, WIDTH)
    yield from linear(f"{at}.down_proj", WIDTH, ffn)


def decoder(layer: Callable[[str, int], Shapes], vocab: int, head: bool = True, end: str = "model.norm") -> Shapes:
    """Embedding, layers `model.layers.N`, last norm, and an output matrix of its own with `head`."""
    yield "model.embed_tokens.weight", (vocab, WIDTH)
    for i in range(LAYERS):
        yield from layer(f"model.layers.{i}", i)
    yield from norm(end)
    if head:
        yield "lm_head.weight", (vocab, WIDTH)


def config(architecture: str, model_type: str, vocab: int = BPE_TOKENS, **more: Any) -> dict[str, Any]:
    """A config.json with the shape in the names that most use."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": vocab,
        **more,
    }


def llama_layer(at: str, i: int) -> Shapes:
    yield from norm(f"{at}.input_layernorm")
    yield from attention(f"{at}.self_attn")
    yield from norm(f"{at}.post_attention_layernorm")
    yield from gated(f"{at}.mlp")
