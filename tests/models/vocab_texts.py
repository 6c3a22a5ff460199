"""Texts and vocabularies that bring out how tokenizers differ.

`texts` draws strings of words, white space, special tokens, scripts and single characters. `write_pairs`,
`write_unigram`, `write_plamo` and `write_rwkv` make small vocabularies: one in which any two neighbours of a word may
merge, so that a word that ends elsewhere gets other tokens, a unigram one with SentencePiece's normalization rules, …
"""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ggufkit.gguf.header import Value, ValueType
from ggufkit.gguf.writer import Writer
from ggufkit.tokenizer.from_checkpoint.spm_settings import read_settings
from ggufkit.tokenizer.run.bpe import byte_letters
from ggufkit.tokenizer.run.pre import PRE_TOKENIZERS
from ggufkit.tokenizer.run.vocab import Vocab

# What pre-tokenizers and normalizers treat in their own ways.
SIGNS = [
    *"aAsStTrReElLvVmMdDzZ019 \n\r\t'.,!-/<$~(|_`#^+{",
    *("\v", "\x1c", "\x00", "\x85", "\xa0", "\u2028", "\u3000", "\u200b", "\u200c", "\u200d", "\ufeff", "\ufffd"),
    *("ä", "Ä", "é", "\u0301", "ſ", "ß", "İ", "ª", "ʰ", "ǅ", "\u212a", "\xb5", "\u1c90", "\U0001e900", "\u0378"),
    *("世", "界", "か", "カ", "ｱ", "한", "ㄱ", "ㄅ", "ก", "ា", "\u0915", "\u094d", "\u1780", "\uaa60", "\u2f00"),
    *("\uf900", "\ufa6e", "\U00020000", "١", "²", "Ⅷ", "１", "…", "。", "、", "،", "“", "—", "！", "＄", "€", "😀"),
    *("IMGIMGAZ", "<sentinel:1>", "    ", "\n\n", " \n ", "123", "1234567", "'LL", "'re", "\u2581", "e\u0301"),
]
WORDS = [
    "Hello",
    "hello",
    "HELLO",
    "camelCase",
    "world",
    "don't",
    "def ",
    "return",
    "()",
    "...",
    "?!",
    "日本語",
    "नमस्ते",
    "ไทย",
]
BLOCKS = (0x250, 0x800, 0x3000, 0x10000, 0x20000)  # first characters of dense parts of Unicode


def texts(seed: int, n: int, vocab: Vocab | None = None) -> Iterator[str]:
    """`n` random strings, with tokens of a vocabulary among what they are made of."""
    rng = random.Random(seed)
    special = [vocab.texts[i] for i in vocab.special()][:200] if vocab else []
    for _ in range(n):
        yield "".join(_part(rng, special, vocab) for _ in range(rng.randint(0, 12)))


def _part(rng: random.Random, special: list[str], vocab: Vocab | None) -> str:
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(SIGNS)
    if kind < 0.5:
        return rng.choice(WORDS)
    if kind < 0.6 and special:
        return rng.choice(special)
    if kind < 0.75 and vocab:
        token = vocab.texts[rng.randrange(len(vocab))].encode("utf-8", "replace").decode()
        return token.replace("\u0120", " ").replace("\u2581", " ")
    if kind < 0.85:
        return "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randint(1, 8)))
    if kind < 0.95:
        first = rng.choice(BLOCKS)
        return "".join(chr(first + rng.randrange(0x800)) for _ in range(rng.randint(1, 4)))
    return chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))


def signs(seed: int, n: int) -> Iterator[str]:
    """`n` random strings of SIGNS alone."""
    rng = random.Random(seed)
    for _ in range(n):
        yield "".join(rng.choices(SIGNS, k=rng.randint(1, 14)))


# What llama.cpp wants of a model, even for its vocabulary alone.
_MODEL = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 8,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 8,
    "llama.attention.head_count": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def write_vocab(path: Path, model: str, tokens: Mapping[str, int], **more: Any) -> Path:
    """A file with nothing but a vocabulary: token → type, and `tokenizer.ggml.*` values."""
    metadata = {
        **_MODEL,
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": Value(ValueType.ARRAY, list(tokens.values()), ValueType.INT32),
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }
    path.unlink(missing_ok=True)
    with Writer(path, metadata, []):
        pass
    return path


def write_pairs(path: Path, pre: str, seed: int = 5) -> Path:
    """A byte-pair vocabulary of a pre-tokenizer over SIGNS: two thirds of all pairs merge, in random order."""
    rng = random.Random(seed)
    letters = byte_letters()
    if PRE_TOKENIZERS[pre].byte_encode:
        used = sorted({letters[byte] for sign in SIGNS for byte in sign.encode()})
        tokens = dict.fromkeys(sorted(letters.values()), 1)
        whole = ["".join(letters[byte] for byte in word.encode()) for word in ("éé", "12", "999", " aA")]
    else:
        # A NUL ends a text in llama.cpp; bytes without a token go by <0x…>.
        used = sorted({c for sign in SIGNS for c in sign.replace(" ", "\u2581")} - {"\n", "\0"})
        tokens = {"\n": 1, "\n\n": 1, "\n\n\n": 1, **dict.fromkeys(used, 1)}
        tokens |= {f"<0x{byte:02X}>": 6 for byte in range(256)}
        whole = []
    pairs = [(a, b) for a in used for b in used]
    rng.shuffle(pairs)
    pairs = pairs[: len(pairs) * 2 // 3]
    for text in [*("".join(pair) for pair in pairs), *whole]:
        tokens.setdefault(text, 1)
    return write_vocab(path, "gpt2", tokens, pre=pre, merges=[" ".join(pair) for pair in pairs], seperator_token_id=1)


def write_plamo(path: Path, model: str, seed: int = 5) -> Path:
    """A vocabulary of PLaMo's: special tokens, all bytes, and words with random scores."""
    rng = random.Random(seed)
    tokens = {"<|plamo:unk|>": 2, **{f"<|plamo:{role}|>": 3 for role in ("bos", "eos", "pad", "op", "tag")}}
    tokens |= {f"<0x{byte:02X}>": 6 for byte in range(256)}
    words = [*WORDS, *SIGNS, "th", "the", "  ", "ab", "abc", "bc", "日本", "本語", "llo", "\n\n"]
    tokens |= dict.fromkeys((word for word in words if word not in ("\x00", "")), 1)
    tokens |= {f"[PAD{number}]": 5 for number in range(1, 4)}
    scores = [0.0] * 262 + [-15 * rng.random() for _ in range(len(tokens) - 265)] + [-1000.0] * 3
    adds = Value(ValueType.BOOL, True)
    scored = Value(ValueType.ARRAY, scores, ValueType.FLOAT32)
    return write_vocab(path, model, tokens, scores=scored, add_bos_token=adds)


def write_rwkv(path: Path) -> Path:
    """A vocabulary of RWKV's: all bytes, words, and parts of characters."""
    texts = ["th", "the", "the world", "\n\n", "  ", "\\", "'", *WORDS]
    pieces = [*(bytes([byte]) for byte in range(256)), *(text.encode() for text in texts), b"\xe7\x95", b"\xff\xfe"]
    tokens = {"<s>": 3, **{repr(piece)[2:-1]: 1 for piece in pieces}, "[PAD300]": 5}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    return write_vocab(path, "rwkv", tokens, **{key: Value(ValueType.UINT32, token) for key, token in ids.items()})


def write_unigram(path: Path, seed: int = 5, **settings: Any) -> Path:
    """A unigram vocabulary that SentencePiece trained on random words, with its rules for NFKC."""
    import sentencepiece

    rng = random.Random(seed)
    words = [
        "".join(rng.choices("aeinrst" if rng.random() < 0.7 else "ouäé世界", k=rng.randint(1, 6))) for _ in range(300)
    ]
    lines = (" ".join(rng.choices(words, k=12)) for _ in range(500))
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=trained, model_type="unigram", vocab_size=200, minloglevel=2, unk_id=2,
        pad_id=0, eos_id=1, bos_id=-1, user_defined_symbols=["<sep>", "\u212a\u212a"],
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    kinds = [
        (model.is_unknown, 2),
        (model.is_control, 3),
        (lambda i: model.id_to_piece(i) in ("<sep>", "\u212a\u212a"), 4),
    ]
    tokens = {model.id_to_piece(i): next((kind for is_kind, kind in kinds if is_kind(i)), 1) for i in range(len(model))}
    scores = [float(model.get_score(i)) for i in range(len(model))]
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(trained.getvalue())
        file.flush()
        rules = list(read_settings(Path(file.name)).precompiled_charsmap)
    return write_vocab(
        path,
        "t5",
        tokens,
        scores=Value(ValueType.ARRAY, scores, ValueType.FLOAT32),
        precompiled_charsmap=Value(ValueType.ARRAY, rules, ValueType.UINT8),
        **{"add_space_prefix": True, "remove_extra_whitespaces": True, **settings},
    )
