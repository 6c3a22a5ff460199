"""Byte-level BPE as tiktoken stores it: byte strings and their ranks, without merges.

    IQ== 0            `qwen.tiktoken`, `tiktoken.model`: base64 of a token's bytes, its rank, a line each
    {"rank": 0, …}    `tekken.json` of Mistral

A token's merge is what encoding its bytes comes to before its own rank is reached: two parts, which have lower ranks.
For tekken the reference takes every way to cut a token in two tokens, as transformers does.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterator, Mapping
from itertools import pairwise

from ggufkit.checkpoint.checkpoint import Checkpoint
from ggufkit.errors import CheckpointError, printable
from ggufkit.tokenizer.from_checkpoint.tokens import NoTokenizer
from ggufkit.tokenizer.run.bpe import byte_letters

__all__ = ["all_merges", "merges_of", "read_ranks", "spelled"]

Ranks = Mapping[bytes, int]

_LONGEST = 512  # bytes of a token; real ones have at most 128, of spaces


def spelled(token: bytes) -> str:
    """A token's bytes as GPT-2's letters, as GGUF has them."""
    letters = byte_letters()
    return "".join(letters[byte] for byte in token)


def read_ranks(checkpoint: Checkpoint, *files: str) -> dict[bytes, int]:
    """Token → rank of the first of `files` that there is.

    Raises
    ------
    NoTokenizer : there is none.
    CheckpointError : it is malformed.
    """
    for file in files:
        if (text := checkpoint.text(file)) is not None:
            return dict(_lines(f"{printable(checkpoint.folder)}/{file}", text))
    raise NoTokenizer(f"{printable(checkpoint.folder)} has no {' nor '.join(files)}")


def _lines(where: str, text: str) -> Iterator[tuple[bytes, int]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line:
            continue
        token, _, rank = line.partition(" ")
        try:
            data = b64decode(token, validate=True)
            if not 0 < len(data) <= _LONGEST or not (rank.isascii() and rank.isdigit()):
                raise ValueError
        except (binascii.Error, ValueError):
            raise CheckpointError(f"{where}, line {number}: {printable(line, 60)} is not base64 and a rank") from None
        yield data, int(rank)


def _merge_of(ranks: Ranks, token: bytes, rank: int) -> list[bytes]:
    """The parts that a token of rank `rank` is merged from, by merges of lower ranks: two, where it can be reached."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while True:
        # The leftmost of the best.
        best = min(
            (
                (found, place)
                for place, (left, right) in enumerate(pairwise(parts))
                if (found := ranks.get(left + right)) is not None
            ),
            default=None,
        )
        if best is None or best[0] >= rank:
            return parts
        place = best[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def merges_of(ranks: Ranks, strict: bool = True) -> list[str]:
    """GGUF's merges of all tokens of more than a byte, in the order of `ranks`.

    Raises
    ------
    CheckpointError : a token cannot be reached by merges, and `strict`; else it is left out.
    """
    merges = []
    for token, rank in ranks.items():
        if len(token) < 2:
            continue
        parts = _merge_of(ranks, token, rank)
        if len(parts) == 2:
            merges.append(" ".join(map(spelled, parts)))
        elif strict:
            raise CheckpointError(f"no merge makes the token {printable(repr(token), 60)} of rank {rank}")
    return merges


def all_merges(ranks: Ranks, first: int = 256) -> list[str]:
    """GGUF's merges of the tokens from rank `first` on, by rank: each way to make one of two others.

    Raises
    ------
    CheckpointError : there is none.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if rank < first:
            continue
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs = [(ranks[left], ranks[right], left, right) for left, right in cuts if left in ranks and right in ranks]
        if not pairs:
            raise CheckpointError(f"no merge makes the token {printable(repr(token), 60)} of rank {rank}")
        merges += [f"{spelled(left)} {spelled(right)}" for _, _, left, right in sorted(pairs)]
    return merges
