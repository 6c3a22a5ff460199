"""The vocabulary of a GGUF file: token texts, what each token is, the special ones, and what the tokenizer adds.

A file says only part of that. llama.cpp derives the rest from the tokenizer's name and from the texts of well-known
tokens, and what a model generates depends on it, so the rules here are its rules.

Source: `llama_vocab::impl::load` in llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ggufkit.errors import GGUFError, printable
from ggufkit.gguf.header import ValueType
from ggufkit.tokenizer.run.pre import PRE_TOKENIZERS, PreTokenizer

if TYPE_CHECKING:
    from ggufkit.gguf.reader import GGUF

__all__ = ["BYTE", "CONTROL", "LSTRIP", "NORMAL", "RSTRIP", "UNKNOWN", "UNUSED", "USER_DEFINED", "Vocab", "read_vocab"]

# `enum llama_token_attr`: a token may have several.
UNKNOWN, UNUSED, NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 2, 4, 8, 16, 32
LSTRIP, RSTRIP = 128, 256  # white space on this side of the token belongs to it
# `tokenizer.ggml.token_type` → attribute.
_ATTRIBUTES = {1: NORMAL, 2: UNKNOWN, 3: CONTROL, 4: USER_DEFINED, 5: UNUSED, 6: BYTE}

# -- tokens that are known by their text ---------------------------------------------------------------------

END_OF_TURN = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
)
END_OF_MESSAGE = ("<|eom_id|>",)
END_OF_GENERATION = (
    *END_OF_TURN,
    *END_OF_MESSAGE,
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
)
# Fill-in-the-middle tokens; generation ends at those of padding, repository and file.
FILL_IN = {
    "prefix": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "suffix": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "middle": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "padding": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "repository": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "file": ("<|file_sep|>",),
}
# Metadata keys of the ids, `tokenizer.ggml.{key}_token_id`; the later one wins.
_FILL_IN_KEYS = {
    "prefix": ("fim_pre", "prefix"),
    "suffix": ("fim_suf", "suffix"),
    "middle": ("fim_mid", "middle"),
    "padding": ("fim_pad",),
    "repository": ("fim_rep",),
    "file": ("fim_sep",),
}
_ENDING_FILL_IN = ("padding", "repository", "file")
# gpt-oss's channel markers are shown to the user.
ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


@dataclass(frozen=True)
class _Kind:
    """What a tokenizer's model name decides: default ids and settings."""

    name: str  # ours
    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    sep: int | None = None
    pad: int | None = None
    mask: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_sep: bool = False
    add_space_prefix: bool = False
    clean_spaces: bool = False


# `tokenizer.ggml.model` → its kind.
_KINDS = {
    "llama": _Kind("spm", bos=1, eos=2, unk=0, add_bos=True, add_space_prefix=True),
    "gpt2": _Kind("bpe", bos=11, eos=11),
    "gemma4": _Kind("bpe"),
    "bert": _Kind(
        "wordpiece", bos=101, unk=100, sep=102, pad=0, mask=103, add_bos=True, add_sep=True, clean_spaces=True
    ),
    "t5": _Kind("unigram", eos=1, unk=2, pad=0, add_eos=True),
    "rwkv": _Kind("rwkv"),
    "plamo2": _Kind("plamo2", bos=1, eos=2, unk=0, pad=3),
    "plamo3": _Kind("plamo3", bos=1, eos=2, unk=0, pad=3),
}


@dataclass
class Vocab:
    """Tokens and settings, as llama.cpp has them after loading.

    Attributes
    ----------
    kind : "spm", "bpe", "wordpiece", "unigram", "rwkv", "plamo2" or "plamo3".
    texts, attributes, scores : of each token id.
    ids : text → id.
    bos, eos, eot, eom, unk, sep, pad, mask : special ids, or None.
    fill_in : ids of the fill-in-the-middle tokens by role.
    ends : ids at which generation ends.
    suppressed : ids that are never generated.
    pre : the pre-tokenizer of byte-pair vocabularies.
    """

    kind: str
    texts: list[str]
    ids: dict[str, int]
    attributes: list[int]
    scores: Sequence[float]
    bos: int | None = None
    eos: int | None = None
    eot: int | None = None
    eom: int | None = None
    unk: int | None = None
    sep: int | None = None
    pad: int | None = None
    mask: int | None = None
    fill_in: dict[str, int] = field(default_factory=dict)
    ends: set[int] = field(default_factory=set)
    suppressed: list[int] = field(default_factory=list)
    pre: PreTokenizer = field(default_factory=lambda: PRE_TOKENIZERS["default"])
    merges: Sequence[str] = ()
    charsmap: bytes = b""
    add_bos: bool = False
    add_eos: bool = False
    add_sep: bool = False
    add_space_prefix: bool = False
    remove_extra_spaces: bool = False
    clean_spaces: bool = False
    escape_spaces: bool = True
    lowercase: bool = True
    strip_accents: bool = True

    def __len__(self) -> int:
        return len(self.texts)

    def special(self) -> list[int]:
        """The ids that are looked for in a text, the longest first."""
        found = [i for i, a in enumerate(self.attributes) if a & (CONTROL | USER_DEFINED | UNKNOWN)]
        return sorted(found, key=lambda i: -len(self.texts[i].encode("utf-8", "surrogateescape")))


def read_vocab(model: GGUF) -> Vocab:
    """The vocabulary of an open file.

    Raises
    ------
    GGUFError : there is none, it is of a kind that is not supported, or it contradicts itself.
    """
    return _Reader(model).read()


class _Reader:
    def __init__(self, model: GGUF):
        self.model = model

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        return self.model.get(f"tokenizer.ggml.{key}", kind, default)

    def array(self, key: str, *types: ValueType) -> list[Any] | None:
        """A list whose items are of one of the types; None where there is none."""
        full = f"tokenizer.ggml.{key}"
        values = self.model.get(full, list, None)
        if values is not None and self.model.fields[full].item_type not in types:
            names = " or ".join(kind.short for kind in types)
            raise self.fail(f"{full} should be a list of {names}, but is {self.model.fields[full].describe()}")
        return values

    def fail(self, message: str) -> GGUFError:
        return GGUFError(message, self.model.path)

    def read(self) -> Vocab:
        name = self.get("model", str)
        if name is None or name in ("none", "no_vocab"):
            raise self.fail("the file has no tokenizer (tokenizer.ggml.model); give token ids, or convert it with one")
        kind = _KINDS.get(name)
        if kind is None:
            known = ", ".join(_KINDS)
            raise self.fail(f"tokenizer {printable(name)!r} is not supported, only {known}")

        vocab = self.tokens(kind)
        if kind.name == "bpe":
            self.byte_pairs(vocab, name)
        elif kind.name == "unigram":
            vocab.charsmap = self.charsmap()
        self.settings(vocab)
        if kind.name == "rwkv":
            vocab.add_bos = vocab.add_eos = False  # whatever the file says
        self.special_ids(vocab, kind)
        self.known_texts(vocab)
        self.strip_rules(vocab)
        for adds, token, key in (
            (vocab.add_bos, vocab.bos, "bos"),
            (vocab.add_eos, vocab.eos, "eos"),
            (vocab.add_sep and kind.name == "wordpiece", vocab.sep, "seperator"),
        ):
            if adds and token is None:
                raise self.fail(
                    f"the tokenizer adds a token that the file does not name: tokenizer.ggml.{key}_token_id"
                )
        return vocab

    def tokens(self, kind: _Kind) -> Vocab:
        """The tokens with what the kind of tokenizer decides."""
        texts = self.array("tokens", ValueType.STRING)
        if not texts:
            raise self.fail("the list of tokens (tokenizer.ggml.tokens) is missing or empty")
        if "\0" in "".join(texts):
            texts = [text.partition("\0")[0] for text in texts]  # to C a text ends there
        if "" in texts:
            texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]
        ids = dict(zip(texts, range(len(texts)), strict=True))
        if len(ids) < len(texts):
            i, text = next((i, text) for i, text in enumerate(texts) if ids[text] != i)
            raise self.fail(
                f"tokens {i} and {ids[text]} have the same text {printable(text)!r}; llama.cpp refuses that"
            )
        types = self.parallel("token_type", len(texts), ValueType.INT32, ValueType.UINT32)
        scores = self.parallel("scores", len(texts), ValueType.FLOAT32, ValueType.INT32)
        return Vocab(
            kind=kind.name,
            texts=texts,
            ids=ids,
            attributes=[_ATTRIBUTES.get(t, 0) for t in types] if types else [NORMAL] * len(texts),
            scores=scores or [0.0] * len(texts),
            bos=kind.bos,
            eos=kind.eos,
            unk=kind.unk,
            sep=kind.sep,
            pad=kind.pad,
            mask=kind.mask,
            add_bos=kind.add_bos,
            add_eos=kind.add_eos,
            add_sep=kind.add_sep,
            add_space_prefix=kind.add_space_prefix,
            clean_spaces=kind.clean_spaces,
        )

    def parallel(self, key: str, size: int, *types: ValueType) -> list[Any] | None:
        """A list over the token ids; longer ones are cut."""
        values = self.array(key, *types)
        if values is not None and len(values) < size:
            raise self.fail(f"tokenizer.ggml.{key} has {len(values)} items for {size} tokens")
        return values[:size] if values else None

    def byte_pairs(self, vocab: Vocab, name: str) -> None:
        pre_name = "gemma4" if name == "gemma4" else self.get("pre", str) or "default"
        pre = PRE_TOKENIZERS.get(pre_name)
        if pre is None:
            raise self.fail(f"pre-tokenizer {printable(pre_name)!r} (tokenizer.ggml.pre) is not known")
        merges = self.array("merges", ValueType.STRING)
        if merges is None and pre_name != "kimi-k2":
            raise self.fail("a byte-pair vocabulary needs its merges (tokenizer.ggml.merges), and there are none")
        vocab.merges = merges or []
        if "\0" in "".join(vocab.merges):
            vocab.merges = [pair for pair in vocab.merges if "\0" not in pair]
        vocab.pre = pre
        vocab.add_bos, vocab.add_sep, vocab.clean_spaces = pre.add_bos, pre.add_sep, pre.clean_spaces
        vocab.escape_spaces = pre.escape_spaces
        if pre.no_default_bos:
            vocab.bos = None

    def charsmap(self) -> bytes:
        """SentencePiece's compiled normalization rules."""
        values = self.array("precompiled_charsmap", ValueType.UINT8, ValueType.INT8)
        return bytes(v & 0xFF for v in values) if values else b""

    def settings(self, vocab: Vocab) -> None:
        for name, key in (
            ("add_space_prefix", "add_space_prefix"),
            ("remove_extra_spaces", "remove_extra_whitespaces"),
            ("add_bos", "add_bos_token"),
            ("add_eos", "add_eos_token"),
            ("add_sep", "add_sep_token"),
        ):
            setattr(vocab, name, self.get(key, bool, getattr(vocab, name)))
        vocab.lowercase = self.model.get("tokenizer.ggml.normalizer.lowercase", bool, True) is True
        accents = self.model.get("tokenizer.ggml.normalizer.strip_accents", bool, vocab.lowercase)
        vocab.strip_accents = accents is True
        if vocab.pre.gemma:
            vocab.add_bos = True  # whatever the file says
        suppressed = self.array("suppress_tokens", ValueType.INT32, ValueType.UINT32) or ()
        vocab.suppressed = [i for i in suppressed if 0 <= i < len(vocab)]

    def special_ids(self, vocab: Vocab, kind: _Kind) -> None:
        def read(key: str, default: int | None) -> int | None:
            if default is not None and default >= len(vocab):
                default = None
            token = self.get(f"{key}_token_id", int)
            return token if token is not None and 0 <= token < len(vocab) else default

        for name, key in (
            ("bos", "bos"),
            ("eos", "eos"),
            ("eot", "eot"),
            ("eom", "eom"),
            ("unk", "unknown"),
            ("sep", "seperator"),
            ("pad", "padding"),
            ("mask", "mask"),
        ):
            setattr(vocab, name, read(key, getattr(vocab, name)))
        for role, keys in _FILL_IN_KEYS.items():
            token = None
            for key in keys:
                token = read(key, token)
            if token is not None:
                vocab.fill_in[role] = token

    def known_texts(self, vocab: Vocab) -> None:
        """Ends and fill-in tokens that the file does not name, found by their texts."""
        attributes = vocab.attributes

        def first(texts: Iterable[str]) -> int | None:
            # llama.cpp takes whichever its hash table has first.
            found = next((vocab.ids[text] for text in texts if text in vocab.ids), None)
            if found is not None:
                attributes[found] |= CONTROL
            return found

        if vocab.eot is None:
            vocab.eot = first(END_OF_TURN)
        if vocab.eom is None:
            vocab.eom = first(END_OF_MESSAGE)
        for role, texts in FILL_IN.items():
            if role not in vocab.fill_in and (token := first(texts)) is not None:
                vocab.fill_in[role] = token

        for token, attribute in enumerate(attributes):
            if attribute & CONTROL and "unused" in vocab.texts[token]:
                attributes[token] |= UNUSED

        vocab.ends = {vocab.fill_in[role] for role in _ENDING_FILL_IN if role in vocab.fill_in}
        for text in END_OF_GENERATION:
            if text in vocab.ids:
                vocab.ends.add(vocab.ids[text])
                attributes[vocab.ids[text]] |= CONTROL
        for text in ALWAYS_SHOWN:
            if text in vocab.ids:
                attributes[vocab.ids[text]] = USER_DEFINED
        vocab.ends |= {token for token in (vocab.eos, vocab.eot, vocab.eom) if token is not None}
        self.not_ends(vocab)

    def not_ends(self, vocab: Vocab) -> None:
        """Ends in most vocabularies that are none where their neighbours are ends too (gpt-oss, Solar, Gemma 4)."""
        texts = {vocab.texts[token]: token for token in vocab.ends}
        harmony = "<|return|>" in texts and ("<|call|>" in texts or "<|calls|>" in texts)
        solar = "<|flush|>" in texts and ("<|call|>" in texts or "<|calls|>" in texts)
        if "<|end|>" in texts and (harmony or solar):
            vocab.ends.remove(texts["<|end|>"])
            vocab.attributes[texts["<|end|>"]] = USER_DEFINED
        if "</s>" in texts and "<|tool_response>" in texts:
            vocab.ends.remove(texts["</s>"])
            vocab.attributes[texts["</s>"]] = NORMAL

    def strip_rules(self, vocab: Vocab) -> None:
        """Tokens that take the white space beside them with them: in no file, known by the model's name."""
        pre = self.get("pre", str, "") or ""
        arch = self.model.get("general.architecture", str, "") or ""
        name = (self.model.get("general.name", str, "") or "").lower()
        attributes, ids = vocab.attributes, vocab.ids
        if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or any(
            part in arch for part in ("nomic-bert-moe", "jina-bert-v3")
        ):
            if "<mask>" in ids:
                attributes[ids["<mask>"]] |= LSTRIP
        elif "phi-3" in name or "phi3" in name:
            for token in vocab.special():
                attributes[token] |= RSTRIP
            for text in ("</s>", "<unk>", "<s>", "<|endoftext|>"):
                if text in ids:
                    attributes[ids[text]] &= ~RSTRIP
            if "</s>" in ids:
                attributes[ids["</s>"]] |= RSTRIP
        elif "modern-bert" in name and "[MASK]" in ids:
            attributes[ids["[MASK]"]] |= LSTRIP
