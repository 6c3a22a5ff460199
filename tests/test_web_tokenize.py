"""The explorer cuts texts into the tokens that ggufkit gives: its JavaScript against Python, in node."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from test_web_methods import node
from tiny_checkpoints import write
from tiny_families import FAMILIES

import ggufkit
from ggufkit.tokenizer.run.pre import PRE_TOKENIZERS, Splitter
from ggufkit.tokenizer.run.tokenizer import Tokenizer
from ggufkit.tokenizer.run.vocab import CONTROL, NORMAL, RSTRIP, USER_DEFINED, Vocab
from ggufkit.web.vocabulary import javascript_patterns, vocabulary_of

PARTS = ("page.js", "tokenize.js")
READ = 'const input = JSON.parse(require("fs").readFileSync(0, "utf8"));\n'
WRITE = "process.stdout.write(JSON.stringify(out));"

PIECES = [
    "Hello", " world", "camelCase", "DON'T", "it's", "we'Ve", " 12345", "1", "999999999",
    "\n", "\n\n ", "\t", "  ", " \u3000", "世界",
    "한국어", "こんにちは", "ไทย", "हिन्दी", "العربية", "Ünïcödé", "👩‍👩‍👧", "🎉", "½", "x²", "€5", "--", "/*", "…",
    "<|im_end|>", "<s>", "<sentinel:12>", "IMGIMGABZ", "\u00a0", "e\u0301", "\u200d", "ſ", "İ", "₿", "\x07", "'", '"',
    "!?", "a.b_c", "ÀÁÂ",
]  # fmt: skip


def texts(count: int) -> list[str]:
    rng = random.Random(18)
    return ["".join(rng.choices(PIECES, k=rng.randint(1, 14))) for _ in range(count)]


def test_patterns_cut_as_pythons_do():
    """Every pre-tokenizer that there is, on texts of many scripts."""
    some = texts(40)
    names = list({pre.patterns: name for name, pre in PRE_TOKENIZERS.items()}.values())
    patterns = {name: javascript_patterns(PRE_TOKENIZERS[name].patterns) for name in names}
    program = READ + (
        "const out = Object.fromEntries(Object.entries(input.patterns).map(([name, patterns]) => "
        "[name, input.texts.map(splitter(patterns))]));"
    )
    got = node(program + WRITE, {"patterns": patterns, "texts": some}, PARTS)
    for name in names:
        assert got[name] == [Splitter(PRE_TOKENIZERS[name])(text) for text in some], name


def byte_pairs(pre: str, **settings: bool) -> Vocab:
    """A vocabulary that merges learned from the texts, some of them twice, odd ones among them."""
    from ggufkit.tokenizer.run.bpe import byte_letters
    from ggufkit.tokenizer.run.unicode import utf8

    row = PRE_TOKENIZERS[pre]
    rng = random.Random(1)
    if row.byte_encode:
        words = [utf8(word).decode("latin-1").translate(byte_letters()) for word in PIECES]
        tokens = list(byte_letters().values())
    else:
        words = [word.replace(" ", "▁") for word in PIECES]
        tokens = [f"<0x{byte:02X}>" for byte in range(256)] + sorted({c for word in words for c in word} - {"世"})
    merges = []
    for word in words:
        parts = list(word)
        while len(parts) > 1:
            at = rng.randrange(len(parts) - 1)
            if " " not in parts[at] + parts[at + 1]:
                merges.append(f"{parts[at]} {parts[at + 1]}")
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
            tokens.append(parts[at])
    rng.shuffle(merges)
    merges += [*merges[:3], "no token", "x y z"]
    tokens = list(dict.fromkeys([*tokens, "<|im_end|>", "<s>", "  ", "Hello world"]))
    attributes = [NORMAL] * len(tokens)
    attributes[tokens.index("<|im_end|>")] = CONTROL | RSTRIP
    attributes[tokens.index("  ")] = USER_DEFINED
    ids = {text: i for i, text in enumerate(tokens)}
    return Vocab(
        "bpe", tokens, ids, attributes, [0.0] * len(tokens), bos=ids["<s>"], pre=row, merges=merges,
        escape_spaces=row.escape_spaces, **settings,
    )  # fmt: skip


PROGRAM = (
    READ + "const t = tokenizerOf(input.vocabulary);\nconst out = input.texts.map((text) => t.encode(text));" + WRITE
)


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "gpt-4o", "gemma4", "deepseek-v3"])
def test_byte_pairs_are_pythons(pre):
    vocab, some = byte_pairs(pre, add_bos=pre == "llama-bpe"), texts(200)
    got = node(PROGRAM, {"vocabulary": vocabulary_of(vocab), "texts": some}, PARTS)
    tokenizer = Tokenizer(vocab)
    assert got == [tokenizer.encode(text) for text in some]


@pytest.mark.parametrize("lowercase", [True, False])
def test_word_pieces_are_pythons(lowercase):
    words = ["[CLS]", "[SEP]", "[UNK]", "▁hello", "▁Hello", "▁world", "▁camel", "case", "Case", "▁a", ".", "▁.", "b"]
    words += [f"▁{c}" for c in "世界0123456789'\"!?-/*…<>|_€½uüi한"] + list("0123456789nuüicod한국어eé")
    ids = {text: i for i, text in enumerate(words)}
    attributes = [CONTROL] * 3 + [NORMAL] * (len(words) - 3)
    vocab = Vocab("wordpiece", words, ids, attributes, [0.0] * len(words), bos=0, sep=1, unk=2)
    vocab.lowercase = vocab.strip_accents = lowercase
    some = texts(200)
    got = node(PROGRAM, {"vocabulary": vocabulary_of(vocab), "texts": some}, PARTS)
    tokenizer = Tokenizer(vocab)
    assert got == [tokenizer.encode(text) for text in some]


def test_unigrams_are_pythons(tmp_path: Path):
    ggufkit.convert(write(FAMILIES["xlm-roberta"](), tmp_path / "model"), tmp_path / "model.gguf", "F16")
    with ggufkit.open(tmp_path / "model.gguf") as model:
        tokenizer = ggufkit.load_tokenizer(model)
    assert tokenizer.vocab.kind == "unigram"
    some = [*texts(200), " two  spaces ", "ﬁ ² Å ｆｕｌｌ"]
    got = node(PROGRAM, {"vocabulary": vocabulary_of(tokenizer.vocab), "texts": some}, PARTS)
    assert got == [tokenizer.encode(text) for text in some]


def test_sentence_pieces_are_pythons(tmp_path: Path, fixtures: Path):
    path = ggufkit.convert(fixtures / "pylib-llama", tmp_path / "model.gguf", "F16")
    with ggufkit.open(tmp_path / "model.gguf") as model:
        tokenizer = ggufkit.load_tokenizer(model)
    assert path
    some = texts(200)
    got = node(PROGRAM, {"vocabulary": vocabulary_of(tokenizer.vocab), "texts": some}, PARTS)
    assert got == [tokenizer.encode(text) for text in some]


@pytest.mark.parametrize("name", ["bert-bge", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2"])
def test_real_vocabularies_give_llama_cpps_tokens(name: str, shared: Path):
    path = shared / "vocab" / f"ggml-vocab-{name}.gguf"
    some = Path(f"{path}.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")[:-1]
    expected = [[int(token) for token in line.split()] for line in Path(f"{path}.out").read_text().splitlines()]
    with ggufkit.open(path) as model:
        vocabulary = vocabulary_of(ggufkit.load_tokenizer(model).vocab)
    vocabulary |= {"before": [], "after": []}  # these lists are without begin and end of text
    assert node(PROGRAM, {"vocabulary": vocabulary, "texts": some}, PARTS) == expected[: len(some)]
