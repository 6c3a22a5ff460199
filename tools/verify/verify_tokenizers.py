#!/usr/bin/env python3
"""Every tokenizer against llama.cpp's: tokens of random texts, pieces, attributes, ends, and known pairs.

    python tools/verify/verify_tokenizers.py ../shared/vocab/*.gguf            # 100,000 texts each
    python tools/verify/verify_tokenizers.py --pre --texts 20000   # every pre-tokenizer, on a small vocabulary

A file beside a vocabulary with `.inp` and `.out` at its end has texts and their tokens. Exit code 1 if one differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import ggufkit
from ggufkit.tokenizer.run.pre import PRE_TOKENIZERS
from ggufkit.tokenizer.run.tokenizer import Tokenizer, load_tokenizer

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/oracles", "tests/models", "tools")]

import llama_vocab
import vocab_texts

SEPARATOR = "\n__ggml_vocab_test__\n"


def tokenizer_of(path: Path) -> Tokenizer:
    with ggufkit.open(path) as model:
        return load_tokenizer(model)


def known_pairs(path: Path, tokenizer: Tokenizer) -> tuple[int, int]:
    """(pairs, how many differ) of the files beside a vocabulary."""
    source = path.with_name(path.name + ".inp")
    if not source.exists():
        return 0, 0
    texts = source.read_bytes().decode().split(SEPARATOR)
    lines = path.with_name(path.name + ".out").read_text().split("\n")
    pairs = [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=False)]
    return len(pairs), sum(tokenizer.encode(text, False, False) != ids for text, ids in pairs)


def token_facts(reference: llama_vocab.Vocab, tokenizer: Tokenizer) -> int:
    """How many tokens differ in attributes, pieces or being an end."""
    vocab = tokenizer.vocab
    return sum(
        reference.attribute(i) != vocab.attributes[i]
        or reference.is_end(i) != (i in vocab.ends)
        or any(reference.piece(i, special) != tokenizer.piece(i, special) for special in (False, True))
        for i in range(len(vocab))
    )


def compare(reference: llama_vocab.Vocab, tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[int, float, float]:
    """(how many texts differ, in tokens or in what becomes of them; seconds of llama.cpp; of ggufkit)."""
    differing, theirs, ours = 0, 0.0, 0.0
    for text in texts:
        good = True
        for special, parse in ((True, True), (False, False)):
            start = time.perf_counter()
            expected = reference.tokenize(text, special, parse)
            middle = time.perf_counter()
            actual = tokenizer.encode(text, special, parse)
            theirs, ours = theirs + middle - start, ours + time.perf_counter() - middle
            good = good and actual == expected
            good = good and reference.detokenize(expected, special, parse) == tokenizer.decode_bytes(
                expected, special, parse
            )
        if not good:
            differing += 1
            if differing <= 3:
                print(f"  {text!r}\n    llama.cpp {expected}\n    ggufkit   {actual}")
    return differing, theirs, ours


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabularies", nargs="*", type=Path)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pre", action="store_true", help="every pre-tokenizer")
    args = parser.parse_args()
    wrong = 0
    for path in args.vocabularies:
        tokenizer = tokenizer_of(path)
        with llama_vocab.Vocab(path) as reference:
            pairs, bad_pairs = known_pairs(path, tokenizer)
            facts = token_facts(reference, tokenizer)
            texts = vocab_texts.texts(args.seed, args.texts, tokenizer.vocab)
            differing, theirs, ours = compare(reference, tokenizer, texts)
        print(
            f"{path.name}: {bad_pairs} of {pairs} pairs, {facts} of {len(tokenizer)} tokens, {differing} of "
            f"{args.texts} texts differ; llama.cpp {theirs:.1f} s, ggufkit {ours:.1f} s",
            flush=True,
        )
        wrong += bad_pairs + facts + differing
    if args.pre:
        wrong += pre_tokenizers(args.texts, args.seed)
    return int(wrong > 0)


def pre_tokenizers(n: int, seed: int) -> int:
    wrong, seen = 0, set()
    with tempfile.TemporaryDirectory() as folder:
        for name, pre in PRE_TOKENIZERS.items():
            # Names that share everything need no second look.
            count = n // 50 if pre in seen else n
            seen.add(pre)
            path = vocab_texts.write_pairs(Path(folder) / "pairs.gguf", name)
            with llama_vocab.Vocab(path) as reference:
                differing, theirs, ours = compare(reference, tokenizer_of(path), vocab_texts.signs(seed, count))
            print(f"{name}: {differing} of {count} differ; llama.cpp {theirs:.1f} s, ggufkit {ours:.1f} s", flush=True)
            wrong += differing
    return wrong


if __name__ == "__main__":
    sys.exit(main())
