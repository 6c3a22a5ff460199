"""Tokenizers as transformers 4 and 5 save them, and the header that comes of them."""

import json
import shutil

import pytest
import tiny_checkpoints
from hypothesis import given
from hypothesis import strategies as st

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.errors import CheckpointError
from ggufkit.gguf.checks.planned import check_planned
from ggufkit.gguf.header import Value, ValueType
from ggufkit.jobs.convert import as_gguf
from ggufkit.tokenizer.from_checkpoint.bpe import bpe, wordpiece
from ggufkit.tokenizer.from_checkpoint.llama import llama_vocabulary
from ggufkit.tokenizer.from_checkpoint.tokens import TokenType

KINDS = {"llama": llama_vocabulary, "bpe": bpe, "bert": wordpiece}
# What tokenizers of one kind must agree on; the rest is llama.cpp's reading of flags that only some versions write.
SAME = ("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id", "padding_token_id")


def vocabulary(kind, folder, pre="gpt-2", **config):
    source = Checkpoint(folder, b"", config, {})
    source.pre_tokenizer = pre
    pairs = KINDS[kind](source, Config(config))
    return {key.removeprefix("tokenizer.").removeprefix("ggml."): value.value for key, value in pairs}


def saved(fixtures, kind):
    return sorted((fixtures / "tokenizers" / kind).glob("transformers*"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_save_gives_the_same_vocabulary(fixtures, kind):
    folders = saved(fixtures, kind)
    assert {folder.name[:13] for folder in folders} == {"transformers4", "transformers5"}
    size = max(len(vocabulary(kind, folder)["tokens"]) for folder in folders)
    found = {folder.name: vocabulary(kind, folder, vocab_size=size) for folder in folders}
    first = next(iter(found.values()))
    for name, one in found.items():
        assert {key: one.get(key) for key in SAME} == {key: first.get(key) for key in SAME}, name
    tokens = first["tokens"]
    types = dict(zip(tokens, map(TokenType, first["token_type"]), strict=True))
    marked = "\u2581plain word" if kind == "bert" else "plain word"
    assert types[marked] is TokenType.USER_DEFINED
    assert types["<turn>"] is types["<end_turn>"] is TokenType.CONTROL


def test_scores_order_pieces_as_the_sentencepiece_model_does(fixtures):
    model, alone = (fixtures / "tokenizers" / "llama" / f"transformers{v}-LlamaTokenizer" for v in (4, 5))
    with_model, with_json = vocabulary("llama", model), vocabulary("llama", alone)
    assert not (alone / "tokenizer.model").exists()

    def merged(found):
        pieces = zip(found["tokens"], found["scores"], found["token_type"], strict=True)
        return sorted(
            (text for text, _, kind in pieces if kind == 1 and len(text) > 1),
            key=dict(zip(found["tokens"], found["scores"], strict=True)).get,
        )

    assert merged(with_model) == merged(with_json)


@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
@pytest.mark.parametrize("entry", ["plain", "dict", "role"])
def test_special_tokens_under_every_name_that_they_have_had(fixtures, tmp_path, key, entry):
    """A list of texts or of descriptions, a dict of roles, or a role of its own."""
    folder = tmp_path / "m"
    shutil.copytree(fixtures / "tokenizers" / "llama" / "transformers5-LlamaTokenizer", folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["extra_special_tokens"]
    described = json.loads((folder / "tokenizer.json").read_text())
    for token in described["added_tokens"]:
        token["special"] = token["content"] not in ("plain word", "<tool>", "<turn>")
    (folder / "tokenizer.json").write_text(json.dumps(described))
    if entry == "role":
        settings["image_token"] = "<turn>"
    else:
        settings[key] = {"plain": ["<turn>"], "dict": [{"content": "<turn>"}]}[entry]
    if key == "extra_special_tokens" and entry == "dict":
        settings[key] = {"image_token": "<turn>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    found = vocabulary("llama", folder)
    types = dict(zip(found["tokens"], found["token_type"], strict=True))
    assert types["<turn>"] == TokenType.CONTROL
    assert types["<tool>"] == TokenType.USER_DEFINED


def test_added_tokens_that_only_tokenizer_json_has(fixtures, tmp_path):
    """Beside a tokenizer.model, with an older tokenizer_config.json and with a newer one."""
    folder = tmp_path / "m"
    shutil.copytree(fixtures / "tokenizers" / "llama" / "transformers4-LlamaTokenizerFast", folder)
    (folder / "added_tokens.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    wanted = vocabulary("llama", folder)
    del settings["added_tokens_decoder"]
    for version in (4, 5):
        newer = {"backend": "tokenizers"} if version == 5 else {}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | newer))
        found = vocabulary("llama", folder, vocab_size=len(wanted["tokens"]) + 4)
        assert found["tokens"][: len(wanted["tokens"])] == wanted["tokens"]
        if version == 5:
            assert found["token_type"][: len(wanted["tokens"])] == wanted["token_type"]


BPE_FILES = tiny_checkpoints.bpe_files()["tokenizer.json"]


@given(
    length=st.integers(1, 40),
    side=st.sampled_from(["Left", "Right"]),
    fixed=st.booleans(),
    pad=st.sampled_from(["!", "<|user|>"]),
)
def test_saved_padding_and_truncation_change_nothing(tmp_path_factory, length, side, fixed, pad):
    folder = tmp_path_factory.mktemp("m")
    strategy = {"Fixed": length} if fixed else "BatchLongest"
    padding = {"strategy": strategy, "direction": side, "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0}
    padding["pad_token"] = pad
    truncation = {"direction": side, "max_length": length, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(BPE_FILES))
    wanted = vocabulary("bpe", folder)
    (folder / "tokenizer.json").write_text(json.dumps(BPE_FILES | {"padding": padding, "truncation": truncation}))
    assert vocabulary("bpe", folder) == wanted


# ---- the header that is about to be written -----------------------------------------------------------------------


def tiny(folder, settings=None, config=None, added=()):
    """A checkpoint without weights whose tokenizer has further `added` tokens."""
    folder.mkdir(exist_ok=True)
    described = json.loads(json.dumps(BPE_FILES))
    base = len(described["model"]["vocab"])
    n = base + len(described["added_tokens"])
    described["added_tokens"] += [dict(described["added_tokens"][0], id=n + i, content=t) for i, t in enumerate(added)]
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "rope_theta": 1e4,
        "vocab_size": n,
        "tie_word_embeddings": True,
        **(config or {}),
    }
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.json").write_text(json.dumps(described))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings or {"bos_token": "<|begin|>"}))
    return folder, n


@pytest.mark.parametrize(
    ("settings", "config", "word"),
    [
        ({"bos_token": "<|begin|>", "eos_token": "<|im_end|>"}, {}, "eos_token_id"),
        ({"bos_token": "<|im_end|>"}, {}, "bos_token_id"),
        ({"bos_token": "<|begin|>"}, {"eos_token_id": 100_000}, "eos_token_id"),
        ({"bos_token": "<|begin|>"}, {"eos_token_id": [1, 100_000]}, "eot_token_id"),
        ({"bos_token": None, "add_bos_token": True}, {}, "bos_token_id"),
        ({"eos_token": None, "add_eos_token": True, "bos_token": "<|begin|>"}, {}, "eos_token_id"),
    ],
)
def test_a_role_without_a_token_is_refused(tmp_path, settings, config, word):
    folder, _ = tiny(tmp_path / "m", settings, config, added=["<|new|>", "<|im_end|>"])
    with pytest.raises(CheckpointError, match=word):
        as_gguf(folder, pre="gpt-2", vocab_only=True)


def test_a_padding_token_beyond_the_vocabulary_gets_no_role(tmp_path):
    settings = {"bos_token": "<|begin|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    folder, n = tiny(tmp_path / "m", settings, {"pad_token_id": 5_000}, added=["<|pad|>"])
    metadata = as_gguf(folder, pre="gpt-2", vocab_only=True).metadata
    assert len(metadata["tokenizer.ggml.tokens"].value) == n
    assert "tokenizer.ggml.padding_token_id" not in metadata


def test_ends_in_a_list_of_config_json(tmp_path):
    folder, _ = tiny(tmp_path / "m", {"bos_token": "<|begin|>"}, {"eos_token_id": [258, 259]})
    metadata = as_gguf(folder, pre="gpt-2", vocab_only=True).metadata
    assert metadata["tokenizer.ggml.eos_token_id"].value == 258
    assert metadata["tokenizer.ggml.eot_token_id"].value == 259


def header(**keys):
    tokens = Value(ValueType.ARRAY, ["a", "b", "c"], ValueType.STRING)
    pairs = {"model": Value(ValueType.STRING, "llama"), "tokens": tokens}
    for key, value in keys.items():
        kind = ValueType.BOOL if isinstance(value, bool) else ValueType.UINT32
        pairs[key] = value if isinstance(value, Value) else Value(kind, value)
    return {f"tokenizer.ggml.{key}": value for key, value in pairs.items()}


@pytest.mark.parametrize("key", ["bos", "eos", "eot", "unknown", "padding", "seperator", "mask", "fim_pre"])
def test_planned_headers_are_looked_at_like_files(key):
    assert not [f for f in check_planned(header(**{f"{key}_token_id": 2}), {}) if f.fatal]
    (found,) = [f for f in check_planned(header(**{f"{key}_token_id": 3}), {}) if f.fatal]
    assert f"{key}_token_id is 3" in found.message
    assert found.offset is None


@pytest.mark.parametrize(("model", "fatal"), [("llama", False), ("gpt2", True), ("bert", True), ("t5", True)])
def test_a_wanted_beginning_that_is_not_there(model, fatal):
    found = check_planned(header(model=Value(ValueType.STRING, model), add_bos_token=True), {})
    assert any(f.fatal and "bos_token_id" in f.message for f in found) == fatal
