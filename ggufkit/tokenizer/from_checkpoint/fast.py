"""A checkpoint's tokenizer as the `tokenizers` package runs it, with what transformers would add to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.errors import CheckpointError, printable
from ggufkit.tokenizer.from_checkpoint.tokens import NoTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["FastTokenizer", "saved_by_transformers_5"]

_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

# Tokenizer classes that put bos and eos around a text by their own flags, whatever tokenizer.json says:
# the default of `add_bos_token`. That of `add_eos_token` is False.
_ADDS_BOS = {
    "CodeLlamaTokenizer": True,
    "CohereTokenizer": True,
    "GPTNeoXTokenizer": False,
    "GemmaTokenizer": True,
    "LlamaTokenizer": True,
}

# The classes of models whose tokenizer_config.json names none.
_CLASSES = {
    "codegen": "GPT2Tokenizer",
    "cohere": "CohereTokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "llama": "LlamaTokenizer",
    "mistral": "LlamaTokenizer",
    "mixtral": "LlamaTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
}

_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class FastTokenizer:
    """`tokenizer.json`, or the vocab.json and merges.txt (vocab.txt) of older checkpoints.

    Attributes
    ----------
    vocab : text → id, the added tokens too.
    base_size : tokens of the model alone.
    added : id → added token (``content``, ``special``, ``normalized``).

    Raises
    ------
    NoTokenizer : there are no such files.
    CheckpointError : they are malformed.
    """

    def __init__(self, checkpoint: Checkpoint):
        self._settings = checkpoint.json("tokenizer_config.json") or {}
        self._special = _special_texts(checkpoint, self._settings)
        self._class = _class_name(checkpoint, self._settings)
        where = f"{printable(checkpoint.folder)}/tokenizer.json"
        text = checkpoint.text("tokenizer.json")
        if text is None and (text := _described(checkpoint, self._class)) is None:
            raise NoTokenizer(f"{printable(checkpoint.folder)} has no tokenizer.json")
        from tokenizers import Tokenizer

        try:
            self._tokenizer: Tokenizer = Tokenizer.from_str(text)
            # Saved by whoever ran it last; they would cut and fill what is encoded here.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self._add_tokens()
            self._fix_prefix_space()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:  # plain Exception, or what a panic of its Rust code becomes
            raise CheckpointError(f"{where} cannot be read: {printable(e)}") from None
        self.vocab: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.base_size: int = self._tokenizer.get_vocab_size(with_added_tokens=False)
        self.added: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()

    @property
    def special_ids(self) -> set[int]:
        """Ids of the tokens that tokenizer_config.json calls special: those with a role (bos, eos, …) and others."""
        return {self.vocab[text] for text in self._all_special() if text in self.vocab}

    def check_ids(self, text: str) -> list[list[int]]:
        """What `text` may become, depending on who puts the special tokens around it; the likeliest first."""
        plain = self._tokenizer.encode(text, add_special_tokens=False).ids
        own = self._tokenizer.encode(text).ids
        bos, eos = ([self.vocab[t]] if (t := self._special.get(k)) in self.vocab else [] for k in ("bos", "eos"))
        ways = [own, plain, bos + plain, bos + plain + eos, plain + eos]
        if self._class in _ADDS_BOS:
            add_bos = self._settings.get("add_bos_token", _ADDS_BOS[self._class])
            add_eos = self._settings.get("add_eos_token", False)
            ways.insert(0, (bos if add_bos else []) + plain + (eos if add_eos else []))
        return ways

    def round_trip(self, text: str) -> str:
        """`text` encoded and decoded."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _add_tokens(self) -> None:
        """Tokens that tokenizer_config.json has and tokenizer.json lacks."""
        from tokenizers import AddedToken

        present = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        decoder = self._settings.get("added_tokens_decoder") or {}
        known = AddedToken("").__getstate__().keys()
        for _, entry in sorted(decoder.items(), key=lambda item: int(item[0])):
            if entry["content"] not in present:
                token = AddedToken(**{key: value for key, value in entry.items() if key in known})
                add = self._tokenizer.add_special_tokens if token.special else self._tokenizer.add_tokens
                add([token])
                present.add(token.content)
        missing = [text for text in self._all_special() if text not in present]
        self._tokenizer.add_special_tokens(list(dict.fromkeys(missing)))

    def _all_special(self) -> list[str]:
        return [*self._special.values(), *_more_special(self._settings)]

    def _fix_prefix_space(self) -> None:
        """tokenizer_config.json's `add_prefix_space` wins over tokenizer.json's, and to transformers 4 means no."""
        from tokenizers import pre_tokenizers

        if self._tokenizer.pre_tokenizer is None:
            return
        if saved_by_transformers_5(self._settings) and not isinstance(self._settings.get("add_prefix_space"), bool):
            return
        state = json.loads(self._tokenizer.pre_tokenizer.__getstate__())
        wanted = bool(self._settings.get("add_prefix_space", False))
        if state.get("type") == "ByteLevel" and state.get("add_prefix_space") != wanted:
            self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
                add_prefix_space=wanted, use_regex=state.get("use_regex", True)
            )


def _class_name(checkpoint: Checkpoint, settings: dict[str, Any]) -> str:
    """The transformers class of the tokenizer, without the ending "Fast"."""
    name = settings.get("tokenizer_class") or checkpoint.config.get("tokenizer_class")
    if not isinstance(name, str):
        name = _CLASSES.get(str(checkpoint.config.get("model_type")), "")
    return name.removesuffix("Fast")


def _special_texts(checkpoint: Checkpoint, settings: dict[str, Any]) -> dict[str, str]:
    """Kind (bos, eos, …) → text."""
    older = {} if "added_tokens_decoder" in settings else checkpoint.json("special_tokens_map.json") or {}
    texts = {}
    for kind in _KINDS:
        entry = older.get(f"{kind}_token", settings.get(f"{kind}_token"))
        text = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(text, str):
            texts[kind] = text
    return texts


def saved_by_transformers_5(settings: dict[str, Any]) -> bool:
    """Whether tokenizer_config.json leaves the added tokens to tokenizer.json, and names what runs it."""
    return "backend" in settings and "added_tokens_decoder" not in settings


def _more_special(settings: dict[str, Any]) -> list[str]:
    """Texts of special tokens without one of the usual roles.

    transformers 4 has a list (additional_special_tokens) and a dict of a model's own roles (extra_special_tokens:
    {"image_token": "<image>"}); transformers 5 calls the list extra_special_tokens, and puts a model's roles beside
    bos_token and eos_token.
    """
    entries: list[Any] = []
    for more in (settings.get("additional_special_tokens"), settings.get("extra_special_tokens")):
        entries += more if isinstance(more, list) else more.values() if isinstance(more, dict) else []
    usual = {f"{kind}_token" for kind in _KINDS}
    entries += [value for key, value in settings.items() if key.endswith("_token") and key not in usual]
    texts = [entry.get("content") if isinstance(entry, dict) else entry for entry in entries]
    return [text for text in texts if isinstance(text, str)]


def _described(checkpoint: Checkpoint, class_name: str) -> str | None:
    """A tokenizer.json made of the files that tokenizers had before there was one; None without them."""
    if (vocab := checkpoint.json("vocab.json")) is not None and (merges := checkpoint.text("merges.txt")) is not None:
        return json.dumps(_byte_level_bpe(vocab, merges, class_name, checkpoint.json("added_tokens.json") or {}))
    if (words := checkpoint.text("vocab.txt")) is not None:
        return json.dumps(_word_piece(words, checkpoint.json("tokenizer_config.json") or {}))
    return None


def _byte_level_bpe(vocab: dict[str, Any], merges: str, class_name: str, added: dict[str, Any]) -> dict[str, Any]:
    lines = [line for line in merges.split("\n") if line and not line.startswith("#version")]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    pre: dict[str, Any] = byte_level
    if class_name == "Qwen2Tokenizer":
        split = {"type": "Split", "pattern": {"Regex": _QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
        pre = {"type": "Sequence", "pretokenizers": [split, byte_level | {"use_regex": False}]}
    post: dict[str, Any] = byte_level | {"trim_offsets": False}
    if class_name == "RobertaTokenizer":
        ends = {"sep": ["</s>", vocab.get("</s>", 2)], "cls": ["<s>", vocab.get("<s>", 0)]}
        post = {"type": "RobertaProcessing", **ends, "trim_offsets": True, "add_prefix_space": False}
    return {
        "version": "1.0",
        "added_tokens": [_added(text, token) for text, token in sorted(added.items(), key=lambda item: item[1])],
        "normalizer": {"type": "NFC"} if class_name == "Qwen2Tokenizer" else None,
        "pre_tokenizer": pre,
        "post_processor": post,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": lines},
    }


def _word_piece(words: str, settings: dict[str, Any]) -> dict[str, Any]:
    vocab = {word.rstrip("\r"): i for i, word in enumerate(words.removesuffix("\n").split("\n"))}
    special = [w for w in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if w in vocab]
    around = [{"SpecialToken": {"id": w, "type_id": 0}} for w in ("[CLS]", "[SEP]")]
    text_a, text_b = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    template = {
        "type": "TemplateProcessing",
        "single": [around[0], text_a, around[1]],
        "pair": [around[0], text_a, around[1], text_b, around[1]],
        "special_tokens": {w: {"id": w, "ids": [vocab.get(w, 0)], "tokens": [w]} for w in ("[CLS]", "[SEP]")},
    }
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
        "strip_accents": settings.get("strip_accents"),
        "lowercase": settings.get("do_lower_case", True),
    }
    return {
        "version": "1.0",
        "added_tokens": [_added(w, vocab[w], special=True) for w in special],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": template,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "vocab": vocab,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
    }


def _added(text: str, token: Any, special: bool = False) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special}
    return {"id": token, "content": text, **flags, "special": special}
