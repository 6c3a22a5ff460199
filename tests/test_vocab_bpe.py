"""Vocabularies that the tokenizers package describes: byte-level BPE, WordPiece, byte-fallback BPE."""

import json
from hashlib import sha256

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError, UsageError
from ggufkit.tokenizer.from_checkpoint import pre
from ggufkit.tokenizer.from_checkpoint.bpe import bpe, wordpiece
from ggufkit.tokenizer.from_checkpoint.llama import llama_vocabulary
from ggufkit.tokenizer.from_checkpoint.special import read_special
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece
from ggufkit.tokenizer.from_checkpoint.tokens import NoTokenizer, TokenType, first_of

LETTERS = ["<s>", "</s>", *(chr(c) for c in range(33, 127)), "Ġ", "Ċ", "th", "the", "Ġthe"]


def byte_level(bos=True):
    """A small byte-level BPE; with `bos` it puts <s> before a text."""
    vocab = {text: i for i, text in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.BPE(vocab, [("t", "h"), ("th", "e"), ("Ġ", "the")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens(["<|tool|>", "wide\u2581word"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A </s> $B", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return tokenizer


def checkpoint(folder, tokenizer=None, config=None, **files):
    """A checkpoint with a tokenizer; `files` are JSON values or texts, with "__" for "."."""
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return Checkpoint(folder, b"", config or {}, {})


def convert(vocabulary, source, pre_tokenizer="gpt-2"):
    source.pre_tokenizer = pre_tokenizer
    pairs = dict(vocabulary(source, Config(source.config)))
    return {key.removeprefix("tokenizer.").removeprefix("ggml."): value.value for key, value in pairs.items()}


def test_bpe_tokens_types_and_merges(tmp_path):
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": {"content": "<|tool|>"}}
    source = checkpoint(tmp_path, byte_level(), {"vocab_size": 110}, tokenizer_config__json=settings)
    found = convert(bpe, source)
    assert found["model"] == "gpt2"
    assert found["tokens"][: len(LETTERS)] == LETTERS
    assert found["tokens"][len(LETTERS) :] == ["<|tool|>", "wide word", *(f"[PAD{i}]" for i in range(103, 110))]
    types = [TokenType(t).name for t in found["token_type"]]
    assert types[:3] == ["CONTROL", "CONTROL", "NORMAL"]
    assert types[len(LETTERS) :] == ["CONTROL", "USER_DEFINED"] + ["UNUSED"] * 7
    assert found["merges"] == ["t h", "th e", "Ġ the"]
    assert (found["bos_token_id"], found["eos_token_id"], found["unknown_token_id"]) == (0, 1, 101)
    assert (found["add_bos_token"], found["add_sep_token"]) == (True, True)


def test_bpe_tokens_without_embedding_are_left_out(tmp_path):
    found = convert(bpe, checkpoint(tmp_path, byte_level(), {"vocab_size": 50}))
    assert found["tokens"] == LETTERS[:50]


def test_bpe_of_vocab_json_and_merges_txt(tmp_path):
    source = checkpoint(
        tmp_path,
        vocab__json={text: i for i, text in enumerate(LETTERS)},
        merges__txt="#version: 0.2\nt h\nth e\n\nĠ the\n",
        added_tokens__json={"<|tool|>": len(LETTERS)},
        tokenizer_config__json={"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>"},
    )
    found = convert(bpe, source)
    assert found["tokens"] == [*LETTERS, "<|tool|>"]
    assert found["merges"] == ["t h", "th e", "Ġ the"]
    assert found["token_type"][1] == TokenType.CONTROL


def test_bpe_pre_tokenizer_is_recognised_by_hash(tmp_path, monkeypatch):
    tokenizer = byte_level()
    source = checkpoint(tmp_path, tokenizer)
    digest = sha256(str(tokenizer.encode(pre.CHECK_TEXT).ids).encode()).hexdigest()
    with pytest.raises(CheckpointError, match=f"{digest}.*pre=qwen2"):
        convert(bpe, source, pre_tokenizer=None)
    monkeypatch.setitem(pre._NAMES, digest, "found")
    assert convert(bpe, source, pre_tokenizer=None)["pre"] == "found"


def test_bpe_pre_tokenizer_class_decides_about_bos(tmp_path, monkeypatch):
    """LlamaTokenizer puts bos before a text whether or not tokenizer.json does."""
    tokenizer = byte_level(bos=False)
    settings = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>"}
    source = checkpoint(tmp_path, tokenizer, tokenizer_config__json=settings)
    plain = tokenizer.encode(pre.CHECK_TEXT).ids
    for ids, name in ((plain, "without"), ([0, *plain], "with")):
        monkeypatch.setitem(pre._NAMES, sha256(str(ids).encode()).hexdigest(), name)
    assert convert(bpe, source, pre_tokenizer=None)["pre"] == "with"


def test_bpe_unknown_name_of_pre_tokenizer(tmp_path):
    with pytest.raises(UsageError, match="qwen2"):
        convert(bpe, checkpoint(tmp_path, byte_level()), pre_tokenizer="qwen-2")


@pytest.mark.parametrize("text", ["", "{", "{}", '{"model": {"type": "BPE"}}', "[]", '{"version": "1.0", "model": 3}'])
def test_bpe_broken_tokenizer_json(tmp_path, text):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        convert(bpe, checkpoint(tmp_path, tokenizer__json=text))


def test_bpe_without_files(tmp_path):
    with pytest.raises(NoTokenizer, match=r"no tokenizer\.json"):
        convert(bpe, checkpoint(tmp_path))
    with pytest.raises(NoTokenizer, match=r"no tokenizer\.model, and .*no tokenizer\.json"):
        convert(llama_vocabulary, checkpoint(tmp_path))


def test_first_of_passes_on_errors_of_present_files(tmp_path):
    source = checkpoint(tmp_path, tokenizer_config__json={}, tokenizer__json='{"model": {"type": "BPE"}}')
    with pytest.raises(CheckpointError):
        convert(first_of(sentencepiece, bpe), source)


def test_wordpiece_marks_the_starts_of_words(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "##"]
    source = checkpoint(tmp_path, config={"type_vocab_size": 2}, vocab__txt="\n".join(words) + "\n")
    found = convert(wordpiece, source)
    assert found["tokens"] == [*words[:5], "\u2581play", "ing", ""]
    assert [TokenType(t).name for t in found["token_type"]] == ["CONTROL"] * 5 + ["NORMAL"] * 3
    assert found["token_type_count"] == 2


def test_spm_json_byte_tokens_and_added_ones(tmp_path):
    vocab = {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "\u2581": 3, "a": 4}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens(["<x>"])
    source = checkpoint(tmp_path, tokenizer, {"vocab_size": 7}, tokenizer_config__json={"bos_token": "<s>"})
    found = convert(sentencepiece, source)
    assert found["tokens"] == [*vocab, "<x>", "[PAD6]"]
    kinds = ["NORMAL", "CONTROL", "BYTE", "NORMAL", "NORMAL", "USER_DEFINED", "UNUSED"]
    assert [TokenType(t).name for t in found["token_type"]] == kinds
    assert found["scores"][:6] == [0.0, -1000.0, 0.0, -1.0, -2.0, -1000.0]


def special(tmp_path, post_processor=None, settings=None, config=None, **tokenizer):
    added = [{"id": i, "content": text} for i, text in enumerate(("<s>", "</s>", "<sep>", "<end>"))]
    described = {"added_tokens": added, "post_processor": post_processor, **tokenizer}
    files = {"tokenizer__json": described, "tokenizer_config__json": settings or {}}
    return read_special(checkpoint(tmp_path, config=config, **files))


def template(single, pair=()):
    def entries(names):
        return [{"Sequence": {"id": name}} if name in ("A", "B") else {"SpecialToken": {"id": name}} for name in names]

    return {"type": "TemplateProcessing", "single": entries(single), "pair": entries(pair)}


def test_special_template_tells_another_end_of_text(tmp_path):
    found = special(tmp_path, template(["<s>", "A", "<end>"]), {"bos_token": "<s>", "eos_token": "</s>"})
    assert found.ids == {"bos": 0, "eos": 3, "eot": 1}
    assert found.add == {"bos": True, "eos": True}


def test_special_template_with_separators(tmp_path):
    pair = ["<s>", "A", "</s>", "<sep>", "B"]
    found = special(
        tmp_path, template(["<s>", "A"], pair), {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "<sep>"}
    )
    assert found.add == {"bos": True, "sep": True}


def test_special_roberta_and_byte_level(tmp_path):
    post = {"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 1]}
    found = special(tmp_path, post, {"mask_token": "<sep>"})
    assert found.add == {"bos": True, "eos": True, "sep": True}
    assert found.ids == {"sep": 1, "cls": 0, "mask": 2}
    assert special(tmp_path, {"type": "ByteLevel"}).add == {"bos": False, "eos": False}


def test_special_ids_of_config_and_their_limits(tmp_path):
    config = {"bos_token_id": 7, "eos_token_id": [1, 2], "pad_token_id": -1, "text_config": {"sep_token_id": 5}}
    found = special(tmp_path, settings={"bos_token": "<s>"}, config=config)
    assert found.ids == {"bos": 0, "eos": 1, "sep": 5}
    assert dict(found.pairs())["tokenizer.ggml.eot_token_id"].value == 2
    found = special(tmp_path, config=config)
    assert found.ids == {"bos": 7, "eos": 1, "sep": 5}
    found.set("eot", 3)  # what a family knows better
    assert dict(found.pairs())["tokenizer.ggml.eot_token_id"].value == 3


def test_special_merges_of_pairs_keep_their_spaces(tmp_path):
    checkpoint(tmp_path, tokenizer__json={"model": {"merges": [["a b", "c"], [" ", " "]]}})
    assert read_special(Checkpoint(tmp_path, b"", {}, {}), merges=True).merges == ["aĠb c", "Ġ Ġ"]
    checkpoint(tmp_path, tokenizer__json={"model": {"merges": [["a", 1]]}})
    with pytest.raises(CheckpointError, match="merges"):
        read_special(Checkpoint(tmp_path, b"", {}, {}), merges=True)


def test_special_normalizer_flags(tmp_path):
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0}))
    tokenizer.normalizer = normalizers.Sequence([normalizers.StripAccents(), normalizers.Lowercase()])
    assert read_special(checkpoint(tmp_path, tokenizer)).normalizer == {"lowercase": True, "strip_accents": True}


def test_special_chat_templates(tmp_path):
    templates = [{"name": "default", "template": "D"}, {"name": "tool use", "template": "T"}]
    assert special(tmp_path, settings={"chat_template": templates}).templates == {"default": "D", "tool_use": "T"}
    with pytest.raises(CheckpointError, match="name and a template"):
        special(tmp_path, settings={"chat_template": [{"name": "x"}]})
    (tmp_path / "chat_template.jinja").write_text("J")
    assert special(tmp_path, settings={"a": 1}).templates == {"default": "J"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("R")
    assert special(tmp_path, settings={"a": 1}).templates == {"default": "J", "rag": "R"}
