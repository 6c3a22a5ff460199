"""Tokenizers give llama.cpp's tokens."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import llama_vocab
import pytest
import vocab_texts
from hypothesis import given, settings
from hypothesis import strategies as st

import ggufkit
from ggufkit.errors import GGUFError, UsageError
from ggufkit.gguf.header import Value, ValueType
from ggufkit.jobs.convert import convert
from ggufkit.tokenizer.run.merge import _merge_long, _merge_short, merge
from ggufkit.tokenizer.run.pre import PRE_TOKENIZERS, Splitter
from ggufkit.tokenizer.run.special import names_inside
from ggufkit.tokenizer.run.tokenizer import Tokenizer, clean_spaces, load_tokenizer
from ggufkit.tokenizer.run.unicode import category, first_decomposed, is_space, lower

VOCABULARIES = ["bert-bge", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2"]
BOTH = ((True, True), (False, False))  # add special tokens and read them in the text, or neither


def load(path: Path) -> Tokenizer:
    with ggufkit.open(path) as model:
        return load_tokenizer(model)


@functools.cache
def both(path: Path) -> tuple[Tokenizer, llama_vocab.Vocab]:
    """Ours and llama.cpp's; large vocabularies are loaded once."""
    return load(path), llama_vocab.Vocab(path)


def assert_same(path: Path, texts) -> None:
    """llama.cpp's tokens for all texts, and its text for the tokens."""
    tokenizer, reference = both(path)
    for text in texts:
        for special, parse in BOTH:
            expected = reference.tokenize(text, special, parse)
            assert tokenizer.encode(text, special, parse) == expected, (text, special, parse)
            assert tokenizer.decode_bytes(expected, special, parse) == reference.detokenize(expected, special, parse)


@pytest.fixture(scope="module")
def bundled(fixtures, tmp_path_factory) -> Path:
    """The bundled model as GGUF."""
    return convert(fixtures / "pylib-llama", tmp_path_factory.mktemp("model") / "f16.gguf", "F16")


@pytest.fixture(params=VOCABULARIES)
def vocabulary(request, shared) -> Path:
    return shared / "vocab" / f"ggml-vocab-{request.param}.gguf"


def write(path: Path, model: str = "llama", tokens: dict[str, int] | None = None, **more) -> Path:
    default = {"<unk>": 2, "<s>": 3, "</s>": 3, "\u2581a": 1, "a": 1, "b": 1}
    scores = Value(ValueType.ARRAY, [0.0] * len(tokens or default), ValueType.FLOAT32)
    return vocab_texts.write_vocab(path, model, tokens or default, **{"scores": scores, **more})


# -- against llama.cpp ------------------------------------------------------------------------------------


def test_known_pairs_are_exact(vocabulary):
    tokenizer, _ = both(vocabulary)
    texts = vocabulary.with_name(vocabulary.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = vocabulary.with_name(vocabulary.name + ".out").read_text().split("\n")
    assert (len(texts), len(lines)) == (47, 47)
    expected = {text: [int(i) for i in line.split()] for text, line in zip(texts, lines, strict=True)}
    assert {text: tokenizer.encode(text, add_special=False, parse_special=False) for text in texts} == expected


@pytest.mark.parametrize("model", ["plamo2", "plamo3", "rwkv"])
def test_vocabularies_without_merges_give_llama_cpps_tokens(tmp_path, model):
    path = tmp_path / "vocab.gguf"
    path = vocab_texts.write_rwkv(path) if model == "rwkv" else vocab_texts.write_plamo(path, model)
    tokenizer = load(path)
    assert_same(path, vocab_texts.texts(3, 400, tokenizer.vocab))
    assert_same(path, vocab_texts.signs(4, 400))
    assert_same(path, ["<|plamo:op|>aaaa    b\uee00c", "\ufeffab", " [PAD1]x", "x[PAD2]", "[PAD1", "<|plamo:a b|>"])
    for token in range(len(tokenizer)):
        for special in (False, True):
            assert tokenizer.piece(token, special) == both(path)[1].piece(token, special)


def test_plamo_needs_a_token_for_each_byte(tmp_path):
    path = write(tmp_path / "vocab.gguf", "plamo2", {"<0x00>": 6, "a": 1, "<0x01>": 6})
    with pytest.raises(GGUFError, match="no token for the byte 0x00"):
        load(path)


def test_random_texts_give_llama_cpps_tokens(vocabulary):
    assert_same(vocabulary, vocab_texts.texts(7, 500, both(vocabulary)[0].vocab))


def test_tokens_are_what_they_are_to_llama_cpp(vocabulary):
    tokenizer, reference = both(vocabulary)
    vocab = tokenizer.vocab
    sample = {*vocab.special(), *vocab.ends, *range(0, len(vocab), 17)}
    assert {i for i in sample if reference.is_end(i)} == vocab.ends
    for token in sample:
        assert vocab.attributes[token] == reference.attribute(token)
        for special in (False, True):
            assert tokenizer.piece(token, special) == reference.piece(token, special)
    for name in ("bos", "eos", "eot", "sep", "pad", "mask"):
        token = getattr(vocab, name)
        assert (-1 if token is None else token) == reference.special(name), name
    assert (vocab.add_bos, vocab.add_eos) == reference.adds()


def test_bundled_vocabulary_gives_llama_cpps_tokens(bundled):
    assert_same(bundled, vocab_texts.texts(3, 1000, load(bundled).vocab))


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_gives_llama_cpps_tokens(bundled, text):
    assert_same(bundled, [text])


PATTERNS = {pre.patterns: name for name, pre in reversed(PRE_TOKENIZERS.items())}


@pytest.mark.parametrize("name", sorted(PATTERNS.values()))
def test_pre_tokenizer_cuts_as_llama_cpp_does(tmp_path, name):
    assert_same(vocab_texts.write_pairs(tmp_path / "pairs.gguf", name), vocab_texts.signs(2, 100))


@pytest.mark.parametrize("name", ["gemma4", "granite-embed-multi-311m", "sarvam-moe"])
def test_newlines_are_tokens_as_in_llama_cpp(tmp_path, name):
    assert_same(vocab_texts.write_pairs(tmp_path / "pairs.gguf", name), ["\n" * n + "a" for n in range(6)] + ["s\n\n"])


@pytest.mark.parametrize(
    "name", ["llama-bpe", "glm4", "roberta-bpe", "tekken", "chameleon", "gemma4", "default", "qwen2"]
)
def test_pre_tokenizers_name_decides_settings_as_in_llama_cpp(tmp_path, name):
    path = vocab_texts.write_pairs(tmp_path / "pairs.gguf", name)
    vocab = load(path).vocab
    with llama_vocab.Vocab(path) as reference:
        assert (vocab.add_bos, vocab.add_eos) == reference.adds()
        assert (-1 if vocab.bos is None else vocab.bos) == reference.special("bos")


@pytest.mark.parametrize(
    "options", [{}, {"remove_extra_whitespaces": False}, {"add_space_prefix": False}, {"add_eos_token": False}], ids=str
)
def test_unigram_gives_llama_cpps_tokens(tmp_path, options):
    path = vocab_texts.write_unigram(tmp_path / "unigram.gguf", **options)
    assert_same(path, [*vocab_texts.texts(4, 600, load(path).vocab), "", " ", "  a  b ", "\u212a\u212b\u212a\u212a"])


@pytest.mark.parametrize("options", [{}, {"normalizer.lowercase": False}, {"normalizer.strip_accents": False}], ids=str)
def test_wordpiece_gives_llama_cpps_tokens(tmp_path, options):
    words = [
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *"aAäöehuÄ.!$世",
        "ha",
        "us",
        "er",
        "\u2581ha",
        "\u2581Ä",
        "\u2581a",
        "\u2581h",
        "\u2581.",
    ]
    tokens = {word: 3 if word.startswith("[") else 1 for word in words}
    ids = {"unknown_token_id": 0, "bos_token_id": 1, "seperator_token_id": 2}
    path = write(tmp_path / "bert.gguf", "bert", tokens, **ids, **options)
    texts = ["Häuser. ha!", "h\u0308a$ 世ha a\u0301", "Ä ä\u00a0\u0301 ", "\x00ha\ufffd\x7fus", ""]
    assert_same(path, [*texts, *vocab_texts.texts(4, 500, load(path).vocab)])


@pytest.mark.parametrize("model", ["phi-3-mini", "other"])
def test_special_tokens_take_white_space_with_them_as_in_llama_cpp(tmp_path, model):
    tokens = {"<unk>": 2, "<s>": 3, "</s>": 3, "<|user|>": 4, "<|end|>": 3, "<|endoftext|>": 3, "a": 1, "\u2581": 1}
    tokens |= {f"<0x{byte:02X}>": 6 for byte in range(256)}
    path = tmp_path / "phi.gguf"
    write(path, tokens=tokens)
    with ggufkit.open(path) as source:
        metadata = {**source.fields, "general.name": model}
        path = tmp_path / "named.gguf"
        with ggufkit.Writer(path, metadata, []):
            pass
    assert_same(
        path, ["<s>a<|end|> \n a", "<|user|>\n a</s>  <|user|>", " <|endoftext|> a<|user|><|end|>", "<|end|>\u3000a"]
    )


@pytest.mark.parametrize("text", ["<|end|>|end|>", "<<s>>", "<|e<|end|>nd|>", "<s><s></s>", "a<unk>b"])
def test_overlapping_special_tokens_are_found_in_llama_cpps_order(tmp_path, text):
    tokens = {"<unk>": 2, "<s>": 3, "</s>": 3, "<|end|>": 3, "|><": 4, "<|": 4, "a": 1, "b": 1, "\u2581": 1}
    tokens |= {f"<0x{byte:02X}>": 6 for byte in range(256)}
    assert_same(write(tmp_path / "overlap.gguf", tokens=tokens), [text, text * 2, f" {text} "])


@given(st.text("ab<", max_size=40), st.sets(st.text("ab<", min_size=1, max_size=5), max_size=30))
def test_special_tokens_of_a_text_are_those_that_are_in_it(text, names):
    names = sorted(names)
    assert list(names_inside(text, names)) == [name for name in names if name in text]


class Counted(str):
    """A text that counts how often something is looked for in it."""

    looks = 0

    def __contains__(self, part: str) -> bool:
        self.looks += 1
        return str.__contains__(self, part)


def test_a_text_is_not_read_for_each_of_thousands_of_special_tokens():
    text = Counted("a < b <unused17> <unused4242> <un")
    names = sorted(f"<unused{i}>" for i in range(6242))
    assert list(names_inside(text, names)) == ["<unused17>", "<unused4242>"]
    assert text.looks < 500


@pytest.mark.parametrize(
    "texts",
    [
        ("<|return|>", "<|call|>", "<|end|>"),
        ("<|end|>", "<|im_end|>"),
        ("<|tool_response>", "x"),
        ("<fim_pad>", "[EOS]"),
    ],
    ids=str,
)
def test_ends_follow_from_texts_as_in_llama_cpp(tmp_path, texts):
    tokens = {"<unk>": 2, "<s>": 3, "</s>": 3, "a": 1, "\u2581": 1, "unused_control": 3, "<|start|>": 3, "<REPO>": 1}
    tokens |= dict.fromkeys(texts, 3)
    path = write(tmp_path / "ends.gguf", tokens=tokens)
    vocab = load(path).vocab
    with llama_vocab.Vocab(path) as reference:
        assert {vocab.texts[i] for i in range(len(vocab)) if reference.is_end(i)} == {
            vocab.texts[i] for i in vocab.ends
        }
        assert [reference.attribute(i) for i in range(len(vocab))] == vocab.attributes


@settings(max_examples=200, deadline=None)
@given(
    symbols=st.lists(st.sampled_from(["a", "b", "ab", "c"]), max_size=60),
    ranks=st.dictionaries(st.text("abc ", min_size=2, max_size=5), st.integers(0, 5)),
    glue=st.sampled_from(["", " "]),
)
def test_both_ways_of_merging_agree(symbols, ranks, glue):
    assert _merge_short(list(symbols), ranks, glue) == _merge_long(list(symbols), ranks, glue)


def test_merge_takes_the_lowest_rank_and_of_equal_ones_the_leftmost():
    ranks = {"l o": 3, "lo w": 1, "e r": 2}
    assert merge(list("lower"), ranks, " ") == ["low", "er"]
    assert merge(list("aaaaa"), {"aa": 0}, "") == ["aa", "aa", "a"]
    assert merge(["x"], ranks, " ") == ["x"]
    assert merge([], ranks, " ") == []


@pytest.mark.parametrize("name", ["llama-spm", "qwen2"])
def test_long_words_give_llama_cpps_tokens(shared, name):
    path = shared / "vocab" / f"ggml-vocab-{name}.gguf"
    assert_same(path, ["ab" * 400, "的" * 300 + "一是不了" * 60, "\n" * 200 + "-" * 300, "x\u2581" * 90])


def test_unicode_is_llama_cpps():
    letters = {0x01: "X", 0x02: "N", 0x04: "L", 0x08: "Z", 0x10: "M", 0x20: "P", 0x40: "S", 0x80: "C"}
    sample = [*range(0x3000), *range(0x3000, 0x110000, 61)]
    for character, decomposed in zip(sample, llama_vocab.decomposed(sample), strict=True):
        flags = llama_vocab.flags(character)
        assert category(character) == letters[flags & 0xFF]
        assert is_space(character) == bool(flags & 0x100)
        assert lower(character) == llama_vocab.lower(character)
        assert first_decomposed(character) == decomposed


# -- on its own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gpt-2", "Hello  world's 1234\n", ["Hello", " ", " world", "'s", " 1234", "\n"]),
        ("llama-bpe", "I'LL pay 12345€\n\n x", ["I", "'LL", " pay", " ", "123", "45", "€\n\n", " x"]),
        ("qwen2", "a\u00a0ä12", ["a", "\u00a0ä", "1", "2"]),
        ("deepseek-v3", "go12345语言", ["go", "123", "45", "语言"]),
        ("gpt-4o", "camelCaseText", ["camel", "Case", "Text"]),
        ("afmoe", "x1234567", ["x", "1", "234", "567"]),
        ("superbpe", "of 1234567 ", ["of ", "1", "234", "567", " "]),
    ],
)
def test_splitter_cuts_words(name, text, words):
    assert Splitter(PRE_TOKENIZERS[name])(text) == words


@pytest.mark.parametrize("name", sorted(PATTERNS.values()))
def test_splitter_takes_no_longer_than_the_text_is(name):
    split = Splitter(PRE_TOKENIZERS[name])
    for unit in ("a", "A", " ", "\n", "1", "é", "\u0301", " \n", "aA", "\u00a01"):
        text = unit * (20_000 // len(unit)) + "x"  # what is quadratic takes minutes
        start = time.perf_counter()
        assert "".join(split(text)) == text
        assert time.perf_counter() - start < 5


def test_decode_is_what_encode_took(bundled):
    tokenizer = load(bundled)
    for text in ("def main(self):\n    return 'é'\n", " two  spaces ", "世界😀", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("raw", [b"a\x80\xbf b", b"\xff\x80 b", b"def \xe2\x96", b"\xf0\x9f\x98 x\xc3"], ids=repr)
def test_bytes_that_are_no_utf8_are_tokens_as_in_llama_cpp(bundled, raw):
    tokenizer, reference = both(bundled)
    ids = tokenizer.encode(raw.decode("utf-8", "surrogateescape"))
    assert ids == reference.tokenize(raw)
    assert tokenizer.decode_bytes(ids, True) == reference.detokenize(ids, True)


@pytest.mark.parametrize("name", ["gpt-2", "qwen2", "bert-bge"])
def test_bytes_that_are_no_utf8_are_replaced_as_in_llama_cpp(shared, name):
    tokenizer, reference = both(shared / "vocab" / f"ggml-vocab-{name}.gguf")
    for raw in (b"a\x80\xbf b", b"\xff\x80 b", b"def \xe2\x96", b"\xf0\x9f\x98 x\xc3"):
        assert tokenizer.encode(raw.decode("utf-8", "surrogateescape")) == reference.tokenize(raw)


def test_stream_gives_whole_characters(bundled):
    tokenizer = load(bundled)
    stream = tokenizer.stream()
    parts = [stream.feed([token]) for token in tokenizer.encode("é😀", add_special=False)]
    assert "".join(parts) + stream.close() == " é😀"
    assert all("\ufffd" not in part for part in parts)
    half = tokenizer.encode("😀", add_special=False)[:-1]
    stream = tokenizer.stream()
    assert (stream.feed(half), stream.close()) == (" ", "\ufffd")


@pytest.mark.parametrize(
    ("data", "clean"),
    [
        (b"Hello , world !", b"Hello, world!"),
        (b"it 's , a ' b ' ' c", b"it's, a'b'' c"),
        (b"we 're they 've don 't", b"we're they've don 't"),
        (b" ?", b"?"),
    ],
)
def test_clean_spaces(data, clean):
    assert clean_spaces(data) == clean


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": "none"}, "the file has no tokenizer"),
        ({"model": "whitespace"}, "tokenizer 'whitespace' is not supported, only llama, gpt2"),
        ({"model": "gpt2"}, "needs its merges"),
        (
            {"model": "gpt2", "merges": ["a b"], "pre": "new\n"},
            r"pre-tokenizer 'new\\n' (tokenizer.ggml.pre) is not known",
        ),
        ({"model": "gpt2", "merges": [1, 2]}, "tokenizer.ggml.merges should be a list of str, but is arr[i32, 2]"),
        ({"scores": ["a"] * 6}, "tokenizer.ggml.scores should be a list of f32 or i32, but is arr[str, 6]"),
        ({"token_type": ["a"] * 6}, "tokenizer.ggml.token_type should be a list of i32 or u32, but is arr[str, 6]"),
        ({"tokens": {1: 1, 2: 1}}, "tokenizer.ggml.tokens should be a list of str, but is arr[i32, 2]"),
        ({"bos_token_id": "x"}, "tokenizer.ggml.bos_token_id should be of type int, but is str"),
        ({"scores": Value(ValueType.ARRAY, [0.0], ValueType.FLOAT32)}, "scores has 1 items for 6 tokens"),
        ({"model": "bert", "add_bos_token": True}, "adds a token that the file does not name: tokenizer.ggml.bos"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_vocabulary_that_is_no_good_is_refused(tmp_path, more, message):
    path = write(tmp_path / "bad.gguf", **{"model": "llama", **more})
    with pytest.raises(GGUFError) as e:
        load(path)
    assert message in str(e.value)


def test_byte_token_that_names_no_byte_is_nothing(tmp_path):
    tokens = {"<unk>": 2, "<s>": 3, "</s>": 3, "<0x0A>": 6, "<0xG1>": 6, "x": 6, "": 1}
    tokenizer = load(write(tmp_path / "bytes.gguf", tokens=tokens))
    assert [tokenizer.piece(token) for token in (3, 4, 5, 6)] == [b"\n", b"", b"", b"[EMPTY_6]"]


def test_duplicate_tokens_are_refused(tmp_path):
    path = write(tmp_path / "twice.gguf")
    with ggufkit.open(path) as source:
        texts = ["<unk>", "<s>", "</s>", "a", "a", "b"]
        metadata = {**source.fields, "tokenizer.ggml.tokens": Value(ValueType.ARRAY, texts, ValueType.STRING)}
        with ggufkit.Writer(tmp_path / "bad.gguf", metadata, []):
            pass
    with pytest.raises(GGUFError, match="tokens 3 and 4 have the same text 'a'"):
        load(tmp_path / "bad.gguf")


def test_damaged_normalization_rules_are_refused(tmp_path):
    for rules in ([1, 2], [4, 0, 0, 0, 255, 255, 255, 255, 0], [255, 255, 255, 255, 0, 0]):
        path = write(
            tmp_path / "rules.gguf",
            "t5",
            precompiled_charsmap=Value(ValueType.ARRAY, rules, ValueType.UINT8),
        )
        with pytest.raises(GGUFError, match="normalization rules"):
            load(path).encode("ab")


def test_token_outside_the_vocabulary_is_refused(bundled):
    with pytest.raises(UsageError, match="token 4096 is not in the vocabulary of 4096 tokens"):
        load(bundled).piece(4096)
