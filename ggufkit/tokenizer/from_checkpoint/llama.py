"""The vocabulary of Llama and its relatives: SentencePiece, or what came after it."""

from __future__ import annotations

from collections.abc import Iterator

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.checkpoint.config import Config
from ggufkit.gguf.header import Value, ValueType
from ggufkit.tokenizer.from_checkpoint.bpe import bpe
from ggufkit.tokenizer.from_checkpoint.special import SpecialTokens
from ggufkit.tokenizer.from_checkpoint.spm import sentencepiece
from ggufkit.tokenizer.from_checkpoint.tekken import mistral
from ggufkit.tokenizer.from_checkpoint.tokens import first_of

__all__ = ["llama_vocabulary"]


def llama_vocabulary(checkpoint: Checkpoint, config: Config) -> Iterator[tuple[str, Value]]:
    """`tokenizer.*` of a Llama of any generation.

    Raises
    ------
    NoTokenizer : there is no tokenizer.model, tokenizer.json or tekken.json.
    CheckpointError : a file is malformed, or the pre-tokenizer is not known.
    """
    files = ("tekken.json", "tokenizer.json")
    if [(checkpoint.folder / name).is_file() for name in files] == [True, False]:
        yield from mistral()(checkpoint, config)
        return
    settings = checkpoint.json("tokenizer_config.json") or {}
    if isinstance(prefix := settings.get("add_prefix_space"), bool):
        yield "tokenizer.ggml.add_space_prefix", Value(ValueType.BOOL, prefix)
    yield from first_of(sentencepiece, bpe)(checkpoint, config)
    # Two releases have no file that says so, and are known by the size of their vocabulary.
    if config.get("vocab_size") == 32016:  # Code Llama
        special = SpecialTokens()
        special.set("eot", 32010)
        yield from special.pairs()
    if config.get("vocab_size") == 49152:  # Granite's small code models
        yield "tokenizer.ggml.add_bos_token", Value(ValueType.BOOL, False)
